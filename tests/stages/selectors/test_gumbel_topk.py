"""Gumbel top-k against exact Plackett-Luce probabilities and the figures of a large sample."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.nouns import Budget, Rng
from foresift.stages.selectors.gumbel_topk import GumbelTopK
from foresift.stages.selectors.random import Random
from foresift.stages.selectors.topk import TopK
from tests.stages.selectors.tables import corpus, ids

Variant = Literal["textbook", "discard_pl"]
ONE = Budget.parse("1 row")


@pytest.mark.parametrize(
    ("variant", "expected"),
    [("textbook", (0.6652, 0.2447, 0.0900)), ("discard_pl", (0.7019, 0.2447, 0.0534))],
)
def test_three_rows_one_kept(variant: Variant, expected: tuple[float, ...]) -> None:
    table = pa.table({"id": ids(3), "n_tokens": [1, 1, 1], "u": [0.0, -1.0, -2.0]})
    selector = GumbelTopK(by="u", temperature=1.0, variant=variant)
    draws = 6000
    counts = sum(selector.select(table, ONE, Rng(seed)).kept.astype(int) for seed in range(draws))
    for share, p in zip(counts / draws, expected, strict=True):
        assert share == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / draws))


@pytest.mark.parametrize(
    ("variant", "temperature", "share", "mean"),
    [
        ("textbook", 0.5, 0.671, -1.141),
        ("discard_pl", 0.5, 0.728, -1.241),
        ("textbook", 1.0, 0.482, -0.780),
        ("discard_pl", 1.0, 0.569, -1.002),
    ],
)
def test_how_much_of_the_best_fifth_is_kept(
    variant: Variant, temperature: float, share: float, mean: float
) -> None:
    table = corpus(200_000)
    score = np.asarray(table["s.u"])
    best = score >= np.quantile(score, 0.8)
    selector = GumbelTopK(by="s.u", temperature=temperature, variant=variant)
    kept = selector.select(table, Budget.parse("20% rows"), Rng(0)).kept
    assert kept.sum() == 40_000
    assert (kept & best).sum() / 40_000 == pytest.approx(share, abs=0.006)
    assert -score[kept].mean() == pytest.approx(mean, abs=0.012)


@pytest.mark.parametrize("variant", ["textbook", "discard_pl"])
def test_the_limits_are_topk_and_random(variant: Variant) -> None:
    table, budget = corpus(2000), Budget.parse("20%")
    hard = TopK(by="s.u").select(table, budget, Rng(0))
    for temperature in (0.0, 1e-300, 1e-12):
        cold = GumbelTopK(by="s.u", temperature=temperature, variant=variant)
        np.testing.assert_array_equal(cold.select(table, budget, Rng(0)).kept, hard.kept)
    hot = GumbelTopK(by="s.u", temperature=1e300, variant=variant).select(table, budget, Rng(0))
    uniform = Random().select(table, budget, Rng(0))
    if variant == "textbook":  # the Gumbel draw is a growing function of the uniform draw
        np.testing.assert_array_equal(hot.kept, uniform.kept)
    assert abs(np.asarray(table["s.u"])[hot.kept].mean()) < 0.2


def test_standardising_takes_the_unit_away() -> None:
    table = corpus(2000)
    budget = Budget.parse("20%")
    raw = np.asarray(table["s.u"])
    scaled = table.append_column("s.v", pa.array(1000 * raw + 7))
    with_unit = [
        GumbelTopK(by=by, standardise=True).select(scaled, budget, Rng(0)).kept
        for by in ("s.u", "s.v")
    ]
    np.testing.assert_array_equal(*with_unit)
    plain = GumbelTopK(by="s.v").select(scaled, budget, Rng(0)).kept
    assert (plain != with_unit[0]).any()


def test_lowest_is_the_mirror_image() -> None:
    table = corpus(500)
    mirrored = table.append_column("m", pa.array(-np.asarray(table["s.u"])))
    one = GumbelTopK(by="s.u", lowest=True).select(mirrored, Budget(3000), Rng(0))
    other = GumbelTopK(by="m").select(mirrored, Budget(3000), Rng(0))
    np.testing.assert_array_equal(one.kept, other.kept)


def test_infinite_scores_have_their_place() -> None:
    score = np.zeros(100)
    score[3], score[5] = np.inf, -np.inf
    table = corpus(100, u=score)
    for standardise in (False, True):
        part = GumbelTopK(by="u", standardise=standardise)
        choice = part.select(table, Budget.parse("99 rows"), Rng(0))
        assert choice.rank[3] == 0
        assert np.flatnonzero(~choice.kept).tolist() == [5]


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_a_bad_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        GumbelTopK(by="u", temperature=temperature)
