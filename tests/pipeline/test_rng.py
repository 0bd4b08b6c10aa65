"""Draws: uniform, independent between paths and ids, and tied to nothing but seed, path and id."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.rng import Rng

N = 200_000
#: Kolmogorov's 1 - 1e-6 quantile
KS = 2.7
#: draws of `Rng(0).at("round", 1)` for the three ids of the test that uses them
FROZEN = [0.779279730104491, 0.3809917610991961, 0.6560183605960012]


@pytest.fixture(scope="module", params=["random", "counting"])
def ids(request: pytest.FixtureRequest) -> pa.Array:
    if request.param == "random":
        raw = np.random.default_rng(0).bytes(16 * N)
    else:  # the worst case for a hash of two words
        raw = np.stack([np.zeros(N), np.arange(N)], axis=1).astype("<u8").tobytes()
    return pa.Array.from_buffers(pa.binary(16), N, [None, pa.py_buffer(raw)])


def ks_uniform(draws: np.ndarray) -> float:
    ranked = np.sort(draws)
    n = len(ranked)
    up = np.arange(1, n + 1) / n - ranked
    down = ranked - np.arange(n) / n
    return float(max(up.max(), down.max()) * np.sqrt(n))


def test_draws_are_uniform_in_the_open_interval(ids: pa.Array) -> None:
    for seed in range(3):
        draws = Rng(seed).uniform(ids)
        assert draws.min() > 0
        assert draws.max() < 1
        assert len(np.unique(draws)) > N - 5
        assert ks_uniform(draws) < KS


def test_low_bits_and_neighbours_look_random(ids: pa.Array) -> None:
    draws = Rng(1).uniform(ids)
    assert ks_uniform((draws * 2**20) % 1) < KS
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 5 / np.sqrt(N)


def test_gumbel_draws_have_their_mean_and_variance(ids: pa.Array) -> None:
    draws = Rng(0).gumbel(ids)
    assert draws.mean() == pytest.approx(0.5772, abs=5 * 1.2825 / np.sqrt(N))
    assert draws.var() == pytest.approx(np.pi**2 / 6, rel=0.03)
    assert np.isfinite(draws).all()


@pytest.mark.parametrize(
    "other", [Rng(1), Rng(0).at("a"), Rng(0).at("round", 1), Rng(0).at("round", 2)]
)
def test_paths_and_seeds_are_independent(ids: pa.Array, other: Rng) -> None:
    ours, theirs = Rng(0).uniform(ids), other.uniform(ids)
    assert abs(np.corrcoef(ours, theirs)[0, 1]) < 5 / np.sqrt(N)
    assert ks_uniform((ours + theirs) % 1) < KS


def test_paths_are_told_apart() -> None:
    paths = [Rng(0), Rng(0).at("a", "b"), Rng(0).at("ab"), Rng(0).at("a").at("b", "c"), Rng(10)]
    assert len({p.key for p in paths}) == len(paths)
    assert Rng(0).at("round", 1) == Rng(0).at("round").at("1")


def test_a_draw_belongs_to_its_id_not_to_its_row(ids: pa.Array) -> None:
    rng = Rng(3).at("x")
    whole = rng.uniform(ids)
    order = np.random.default_rng(1).permutation(N)
    np.testing.assert_array_equal(rng.uniform(ids.take(pa.array(order))), whole[order])
    np.testing.assert_array_equal(rng.uniform(ids.slice(7, 100)), whole[7:107])
    chunked = pa.chunked_array([ids.slice(0, 3), ids.slice(3, 0), ids.slice(3, 10)])
    np.testing.assert_array_equal(rng.uniform(chunked), whole[:13])
    assert rng.uniform(pa.chunked_array([], pa.binary(16))).shape == (0,)
    assert rng.uniform(ids.slice(0, 0)).shape == (0,)


def test_draws_never_change_between_releases() -> None:
    """Published selections must stay reproducible: these numbers are part of the format."""
    ids = pa.array([bytes(range(16)), b"\xff" * 16, b"\x00" * 16], pa.binary(16))
    draws = Rng(0).at("round", 1).uniform(ids)
    np.testing.assert_allclose(draws, FROZEN, rtol=0, atol=0)


def test_generators_follow_seed_and_path() -> None:
    first, again = Rng(0).at("a").generator(), Rng(0).at("a").generator()
    assert first.integers(1 << 60) == again.integers(1 << 60)
    assert Rng(0).at("a").generator().random() != Rng(0).at("b").generator().random()
