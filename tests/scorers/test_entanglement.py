"""Entanglement: known answer, linear algebra on per-sample gradients, what is kept, projection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.model import load
from foresift.scorers import entanglement as module
from foresift.scorers.entanglement import Entanglement, basis
from tests.scorers.sampled import fit, texts
from tests.scorers.tiny import gradients, llama, unit

AIM = ["the cow sat down", "a bird sat", "3 + 3 = 6", "red hill"]


def share(g: torch.Tensor, q: torch.Tensor) -> float:
    return float((q @ g).square().sum() / g.square().sum())


def test_the_known_answer() -> None:
    q, captured = basis(torch.tensor([[2.0, 0.0], [-1.0, 0.0]]), 8)
    assert (q.abs().tolist(), captured) == ([[1.0, 0.0]], pytest.approx(1.0))
    assert share(torch.tensor([3.0, 4.0]), q) == pytest.approx(0.36)
    both, _ = basis(torch.eye(2), 8)
    assert share(torch.tensor([3.0, 4.0]), both) == pytest.approx(1.0)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10_000))
def test_a_basis_is_that_of_the_singular_values(n: int, rank: int, seed: int) -> None:
    rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 9)))
    q, captured = basis(rows, rank)
    assert q.shape == (min(n, rank), 9)
    torch.testing.assert_close(q @ q.T, torch.eye(len(q), dtype=rows.dtype), atol=1e-6, rtol=0)
    s = torch.linalg.svdvals(rows)
    held = s[:rank].square().sum() / s.square().sum()
    assert captured == pytest.approx(float(held), abs=1e-9)
    left = rows - rows @ q.T @ q
    assert float(left.square().sum()) == pytest.approx(float(s[rank:].square().sum()), abs=1e-6)


def oracle(pool: list[str], aim: list[str], rank: int, spec: Any) -> Any:
    """By the definition, with a QR of per-sample gradients where the rank is full."""
    loaded = load(spec)
    code = lambda rows: encode(pa.table({"text": rows}), loaded.tokenizer, spec)  # noqa: E731
    g, kept = gradients(code(pool), loaded), unit(gradients(code(aim), loaded))
    _, _, vectors = np.linalg.svd(kept, full_matrices=False)
    q, mean = vectors[:rank], kept.mean(axis=0)
    e = np.square(g @ q.T).sum(axis=1) / np.square(g).sum(axis=1)
    return e, unit(g) @ mean / np.linalg.norm(mean)


@pytest.mark.parametrize("rank", [2, 9])
def test_it_is_the_definition(tmp_path: Path, rank: int) -> None:
    spec, pool = llama(tmp_path), [*texts(9), AIM[0] + "."]
    part = Entanglement(reference="aim", sample="100%", rank=rank)
    found, facts = fit(part, [pool[:4], pool[4:]], spec, tmp_path, aim=AIM)
    e, cosine = oracle(pool, AIM, rank, spec)
    np.testing.assert_allclose(found["entanglement"], e, rtol=1e-4)
    np.testing.assert_allclose(found["cosine"], cosine, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found["utility"], -found["entanglement"])
    assert (facts["rank"], facts["retain"]) == (min(rank, 4), 4)
    assert (facts["captured"] > 0.999) == (rank == 9)
    assert found["entanglement"].argmax() == 9  # nearly a copy of what is kept


def test_a_projection_estimates_it_and_a_foreign_layer_is_asked_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, pool = llama(tmp_path), texts(12)
    e, _ = oracle(pool, AIM, 4, spec)
    part = Entanglement(reference="aim", sample=12, projection=2048)
    found, _ = fit(part, [pool], spec, tmp_path / "a", aim=AIM)
    assert np.abs(found["entanglement"] - e).max() < 5 / np.sqrt(2048)

    def refuse(*_: Any, **__: Any) -> Any:
        raise module.ModelError("odd layer")

    monkeypatch.setattr(module, "products", refuse)
    plain = Entanglement(reference="aim", sample=12)
    found, _ = fit(plain, [pool], spec, tmp_path / "b", aim=AIM)
    np.testing.assert_allclose(found["entanglement"], e, rtol=1e-4)


def test_without_a_reference_the_rest_of_the_pool_is_kept(tmp_path: Path) -> None:
    spec, pool = llama(tmp_path), texts(14)
    part = Entanglement(sample=6, retain=3, cluster="s.kind")
    columns = {"s.kind": [[1] * 7 + [2] * 7]}
    found, facts = fit(part, [pool], spec, tmp_path / "a", columns)
    asked = np.isfinite(found["entanglement"])
    assert (asked.sum(), facts["retain"], facts["rank"], facts["clusters"]) == (6, 3, 3, 2)
    assert ((found["entanglement"][asked] > 0) & (found["entanglement"][asked] < 1)).all()
    order = np.random.default_rng(0).permutation(14)
    turned = {"s.kind": [[columns["s.kind"][0][k] for k in order]]}
    again, _ = fit(part, [[pool[k] for k in order]], spec, tmp_path / "b", turned)
    np.testing.assert_array_equal(again["utility"], found["utility"][order])
    with pytest.raises(DataError, match="retain: the sample is the whole pool of 3 documents"):
        fit(Entanglement(), [texts(3)], spec, tmp_path / "c")


@pytest.mark.parametrize("field", ["rank", "retain"])
def test_bad_fields_are_refused(field: str) -> None:
    with pytest.raises(RecipeError, match="rank and retain are at least 1"):
        Entanglement.parse({field: 0}, "score entanglement")
