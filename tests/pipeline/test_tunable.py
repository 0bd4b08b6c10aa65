"""Which tensors may move: known answers, numpy's condition numbers, a model that is frozen."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foresift.pipeline.errors import ModelError
from foresift.pipeline.tunable import (
    bursts,
    freeze,
    kappa,
    kappas,
    most_moved,
    movement,
    smallest,
)


def test_kappa_has_its_known_answers() -> None:
    assert kappa(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(3.0)
    assert kappa(torch.eye(4)) == pytest.approx(1.0)
    assert kappa(torch.diag(torch.tensor([3.0, 1.0, 1e-9]))) == pytest.approx(3.0)  # rank 2
    assert kappa(torch.diag(torch.tensor([3.0, 1.0, 0.2])), 0.1) == pytest.approx(3.0)
    assert kappa(torch.zeros(2, 3)) == float("inf")
    assert kappa(torch.ones(3, 2, 2)) == pytest.approx(1.0)  # of rank 1
    with pytest.raises(ModelError, match="no condition number"):
        kappa(torch.ones(3))


@settings(deadline=None)
@given(st.integers(2, 7), st.integers(2, 7), st.floats(0.01, 100), st.integers(0, 9999))
def test_kappa_is_that_of_numpy_at_any_scale(m: int, n: int, scale: float, seed: int) -> None:
    w = np.random.default_rng(seed).standard_normal((m, n))
    expected = np.linalg.cond(w)
    assert kappa(torch.from_numpy(w * scale)) == pytest.approx(expected, rel=1e-6)
    assert kappa(torch.from_numpy(w.T.copy())) == pytest.approx(expected, rel=1e-6)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.words.weight
        with torch.no_grad():
            self.first.weight.copy_(torch.diag(torch.tensor([4.0, 2.0, 1.0])))
            self.second.weight.copy_(torch.eye(3))


def test_embeddings_vectors_and_wide_matrices_have_none() -> None:
    model = Small()
    found = kappas(model)
    assert found == {"first.weight": pytest.approx(4.0), "second.weight": pytest.approx(1.0)}
    assert smallest(found, 1) == ["second.weight"]
    assert smallest({"b": 1.0, "a": 1.0, "c": 0.5}, 2) == ["c", "a"]
    assert kappas(model, widest=2) == {}


def test_movement_is_the_mean_change_of_a_module() -> None:
    before = {"a.weight": torch.zeros(2), "b.weight": torch.zeros(1), "b.bias": torch.zeros(1)}
    after = {
        "a.weight": torch.tensor([1.0, -1.0]),
        "b.weight": torch.tensor([0.0]),
        "b.bias": torch.tensor([4.0]),
    }
    assert movement(before, after) == {"a": 1.0, "b": 2.0}
    assert most_moved(before, after, 1) == ["b.weight", "b.bias"]
    assert most_moved(before, after, 9) == list(after)
    with pytest.raises(ModelError, match=r"a\.weight has shape \(2,\), and before there was none"):
        movement({}, after)
    with pytest.raises(ModelError, match=r"one of shape \(3,\)"):
        movement({**before, "a.weight": torch.zeros(3)}, after)


@given(st.integers(0, 200), st.integers(0, 60))
def test_bursts_are_even(steps: int, k: int) -> None:
    found = bursts(steps, k)
    assert len(found) == min(k, steps)
    assert found == sorted(set(found))
    if found:
        assert found[-1] == steps
        gaps = [b - a for a, b in pairwise([0, *found])]
        assert max(gaps) - min(gaps) <= 1
    assert bursts(100, 4) == [25, 50, 75, 100]


def test_what_is_frozen_stays() -> None:
    model = Small()
    assert freeze(model, ["second.weight", "norm.bias"]) == 12
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(free, 0.1)
    hidden = model.second(model.first(model.norm(model.words(torch.arange(5)))))
    model.out(hidden).square().sum().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"second.weight", "norm.bias"}
    freeze(model, ["first.bias"])
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["first.bias"]
    with pytest.raises(ModelError, match="tune: no tensor 'third'"):
        freeze(model, ["third"])
    with pytest.raises(ModelError, match="no tensor at all"):
        freeze(model, [])
