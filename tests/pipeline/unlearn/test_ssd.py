"""SSD: known answers of its factors and importances, and which weights it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foresift.pipeline.unlearn.run import unlearn
from foresift.pipeline.unlearn.ssd import dampening, importance


def test_the_known_answer() -> None:
    forget, whole = torch.tensor([10.0, 1.0]), torch.tensor([1.0, 1.0])
    assert dampening(forget, whole, 5.0).tolist() == pytest.approx([0.1, 1.0])
    assert dampening(forget, whole, 5.0, strength=3.0).tolist() == pytest.approx([0.3, 1.0])
    assert dampening(forget, whole, 5.0, exponent=2.0).tolist() == pytest.approx([0.01, 1.0])
    assert dampening(forget, whole, 5.0, strength=50.0).tolist() == [1.0, 1.0]
    assert dampening(forget, whole, 10.0).tolist() == [1.0, 1.0]  # not above the threshold


def test_weights_without_any_importance_stay() -> None:
    zero, one = torch.zeros(2), torch.tensor([0.0, 1.0])
    assert dampening(zero, zero, 5.0).tolist() == [1.0, 1.0]
    assert dampening(one, zero, 5.0).tolist() == [1.0, 0.0]  # what only forget documents use


def test_importance_is_of_single_documents_and_the_variance_of_a_constant_is_zero() -> None:
    constant = [torch.tensor([2.0, -3.0])] * 4
    assert importance(constant).tolist() == [4.0, 9.0]
    assert importance(constant, "variance").tolist() == [0.0, 0.0]
    opposed = [torch.tensor([2.0]), torch.tensor([-2.0])]  # a batch's gradient would be 0
    assert importance(opposed).tolist() == [4.0]
    assert importance(opposed, "variance").tolist() == [4.0]


@pytest.mark.parametrize("kind", ["square", "variance"])
def test_embeddings_and_norms_are_left_alone(memorised: Any, kind: str) -> None:
    options = {"threshold": 1.5, "sample": 0, "importance": kind}
    outcome = unlearn(memorised.model, memorised.forget, memorised.retain, "ssd", options=options)
    before = dict(memorised.trained.named_parameters())
    moved = {n for n, p in outcome.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert not any("norm" in name or "embed" in name or "lm_head" in name for name in moved)
    facts = outcome.facts
    changed = sum(int((p != before[n]).sum()) for n, p in outcome.model.named_parameters())
    assert changed <= facts["dampened"]  # a weight of 0 stays one
    assert facts["dampened"] - changed < 10
    assert 0 < facts["dampened_share"] < facts["dampened_share_of_eligible"] < 1
    assert facts["forget_nll_after"] - facts["forget_nll_before"] > 0.5


def test_everything_is_dampened_only_when_asked(memorised: Any) -> None:
    options = {"threshold": 1.5, "sample": 0, "everything": True}
    outcome = unlearn(memorised.model, memorised.forget, memorised.retain, "ssd", options=options)
    before = memorised.trained.get_input_embeddings().weight
    assert not torch.equal(outcome.model.get_input_embeddings().weight, before)


def test_a_threshold_that_nothing_reaches_changes_nothing(memorised: Any) -> None:
    outcome = unlearn(
        memorised.model, memorised.forget, memorised.retain, "ssd", options={"threshold": 1e9}
    )
    assert outcome.facts["dampened"] == 0
    after = dict(outcome.model.named_parameters())
    assert all(torch.equal(p, after[n]) for n, p in memorised.trained.named_parameters())
