"""Sharpness: its known answer, autograd by the definition, samples, clusters, restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.model import load
from foresift.pipeline.store import write_shard
from foresift.pipeline.unlearn.sharpness import ascent_rise
from foresift.scorers import _forget_sample
from foresift.scorers.sharpness import Sharpness, ascent
from tests.scorers.sampled import fit, texts
from tests.scorers.tiny import gradients, llama, losses


class Parabola(torch.nn.Module):
    """l = h |x|^2 / 2."""

    def __init__(self, *x: float) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(x, dtype=torch.float64))

    def loss(self) -> torch.Tensor:
        return 2.0 * self.x.square().sum()


def test_the_known_answer() -> None:
    model = Parabola(0.5)
    assert ascent(model, model.loss, 0.1) == (pytest.approx(0.22, abs=1e-12), pytest.approx(2.0))
    assert model.x.item() == 0.5
    assert ascent_rise(model.loss, [model.x], 0.1) == pytest.approx(0.22, abs=1e-12)
    there = Parabola(0.0)
    rise, length = ascent(there, there.loss, 0.1)
    assert np.isnan(rise)
    assert length == 0


def test_it_is_the_definition(tmp_path: Path) -> None:
    spec, pool = llama(tmp_path), [*texts(9), ""]
    found, facts = fit(Sharpness(sample="100%", eta=0.1), [pool[:4], pool[4:]], spec, tmp_path)
    loaded = load(spec)
    encoded = encode(pa.table({"text": pool}), loaded.tokenizer, spec)
    exact = gradients(encoded, loaded)
    np.testing.assert_allclose(found["gradient_norm"], np.linalg.norm(exact, axis=1), rtol=1e-5)
    before = losses(encoded, loaded)
    whole = torch.nn.utils.parameters_to_vector(loaded.model.parameters())
    start = whole.detach().clone()
    for row, g in enumerate(exact):
        step = torch.from_numpy(0.1 * g / np.linalg.norm(g)).float()
        torch.nn.utils.vector_to_parameters(start + step, loaded.model.parameters())
        after = losses(encoded, loaded)[row]
        torch.nn.utils.vector_to_parameters(start, loaded.model.parameters())
        assert found["sharpness"][row] == pytest.approx(after - before[row], abs=2e-5)
    assert (facts["sample"], facts["pool"], facts["measured"]) == (10, 10, 10)
    assert (found["sharpness"] > 0).all()
    np.testing.assert_array_equal(found["utility"], found["sharpness"])
    assert np.isnan(found["by_cluster"]).all()


def test_a_sample_is_of_ids_and_the_rest_is_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, pool = llama(tmp_path), texts(12)
    part = Sharpness(sample=5)
    found, facts = fit(part, [pool], spec, tmp_path / "a")
    asked = np.flatnonzero(np.isfinite(found["sharpness"]))
    assert (len(asked), facts["sample"]) == (5, 5)
    np.testing.assert_array_equal(np.isnan(found["utility"]), np.isnan(found["sharpness"]))
    monkeypatch.setattr(_forget_sample, "BLOCK", 2)
    order = np.random.default_rng(0).permutation(12)
    turned = [pool[k] for k in order] + [pool[asked[0]]]  # and a copy of one that is asked
    again, _ = fit(part, [turned[:7], turned[7:]], spec, tmp_path / "b")
    np.testing.assert_array_equal(again["sharpness"][:12], found["sharpness"][order])
    assert again["sharpness"][12] == found["sharpness"][asked[0]]
    other, _ = fit(Sharpness(sample=5, seed=1), [pool], spec, tmp_path / "c")
    assert set(np.flatnonzero(np.isfinite(other["sharpness"]))) != set(asked)


def test_clusters_are_sampled_in_turn_and_their_means_told(tmp_path: Path) -> None:
    pool = texts(12)
    kinds = [["a"] * 8 + ["b"] * 2 + [None] * 2]
    part = Sharpness(sample=6, cluster="s.kind")
    found, facts = fit(part, [pool], llama(tmp_path), tmp_path, {"s.kind": kinds})
    own, shared = found["sharpness"], found["by_cluster"]
    assert facts["clusters"] == 2
    assert [np.isfinite(own[k]).sum() for k in (slice(0, 8), slice(8, 10), slice(10, 12))] == [
        2
    ] * 3
    for rows in (slice(0, 8), slice(8, 10)):
        np.testing.assert_allclose(shared[rows], np.nanmean(own[rows]), rtol=1e-6)
    assert np.isnan(shared[10:]).all()
    np.testing.assert_allclose(found["utility"], np.where(np.isnan(own), shared, own))


def test_a_killed_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_forget_sample, "BLOCK", 3)
    spec, pool, part = llama(tmp_path), texts(8), Sharpness(sample=8)
    whole, facts = fit(part, [pool], spec, tmp_path / "a")
    first = tmp_path / "b" / "out" / "pieces" / "00000.parquet"
    first.parent.mkdir(parents=True)
    marked = pq.read_table(tmp_path / "a" / "out" / "pieces" / "00000.parquet")
    gone = pa.array([7.0] * 3)
    write_shard(first, marked.set_column(0, "sharpness", gone))
    found, _ = fit(part, [pool], spec, tmp_path / "b")
    assert (found["sharpness"] == 7.0).sum() == 3  # what was there is not asked again
    same = found["sharpness"] != 7.0
    np.testing.assert_array_equal(found["sharpness"][same], whole["sharpness"][same])
    assert facts["flops"] > 0


def test_bad_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sample: the pool has no documents"):
        fit(Sharpness(), [[]], llama(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("fields", "says"), [({"eta": 0}, "eta must be positive"), ({"sample": 0}, "sample")]
)
def test_bad_fields_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Sharpness.parse(fields, "score sharpness")
