"""Ignore-top-k, IAU's one step and RMU's control vector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import RecipeError
from foresift.pipeline.unlearn.rmu import control
from foresift.pipeline.unlearn.run import unlearn
from foresift.pipeline.unlearn.sparse import ignore_top_k


def test_ignore_top_k_at_its_known_answer() -> None:
    update = torch.tensor([5.0, -3.0, 1.0, 0.5])
    assert ignore_top_k(update, 0.25).tolist() == [0.0, -3.0, 1.0, 0.5]
    assert ignore_top_k(update, 0.5).tolist() == [0.0, 0.0, 1.0, 0.5]
    assert ignore_top_k(update, 0.24).tolist() == update.tolist()
    assert ignore_top_k(update, 1.0).tolist() == [0.0] * 4
    with pytest.raises(ValueError, match="share"):
        ignore_top_k(update, 1.5)


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=30), st.floats(0, 1))
def test_ignore_top_k_drops_the_largest(values: list[float], share: float) -> None:
    update = torch.tensor(values)
    found = ignore_top_k(update, share)
    dropped = (found != update).numpy() | (update.numpy() == 0)
    kept = np.abs(update.numpy()[~dropped])
    assert torch.equal(found[found != 0], update[found != 0])
    assert (found == 0).sum() >= int(share * len(values) + 1e-9)
    if len(kept) and (found != update).any():
        assert kept.max() <= update.abs().numpy()[(found != update).numpy()].min()


def test_iau_takes_one_step_along_the_sign_of_the_difference(memorised: Any) -> None:
    outcome = unlearn(
        memorised.model, memorised.forget, memorised.retain, "iau", learning_rate=1e-3
    )
    before = dict(memorised.trained.named_parameters())
    steps = torch.cat(
        [(p - before[n]).detach().reshape(-1) for n, p in outcome.model.named_parameters()]
    )
    assert outcome.steps == 1
    assert float(steps.abs().max()) <= 1e-3 * (1 + 1e-3)
    assert float((steps.abs() > 0.99e-3).float().mean()) > 0.9
    assert outcome.facts["forget_nll_after"] > outcome.facts["forget_nll_before"]


def test_the_control_vector_has_its_length_in_the_positive_orthant() -> None:
    u = control(64, 6.5, seed=3)
    assert float(u.norm()) == pytest.approx(6.5)
    assert bool((u >= 0).all())
    assert torch.equal(u, control(64, 6.5, seed=3))
    assert not torch.equal(u, control(64, 6.5, seed=4))


def test_rmu_moves_nothing_behind_its_layer(memorised: Any) -> None:
    outcome = unlearn(
        memorised.model, memorised.forget, memorised.retain, "rmu", steps=5, options={"layer": 0}
    )
    before = dict(memorised.trained.named_parameters())
    moved = {n for n, p in outcome.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all(".layers.0." in name for name in moved)
    with pytest.raises(RecipeError, match="blocks 0 to 1"):
        unlearn(memorised.model, memorised.forget, memorised.retain, "rmu", options={"layer": 2})
