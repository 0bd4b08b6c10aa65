"""A stream of requests: each is answered once, in some layers, and what repeats is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.unlearn.blocks import names_in
from foresift.pipeline.unlearn.documents import document_losses, documents
from foresift.pipeline.unlearn.fit import Seen


def test_requests_are_forgotten_one_after_another(memorised: Any) -> None:
    model, history = memorised.model, Seen(epsilon=100.0)
    vectors = np.eye(8)
    first, second = memorised.forget[:4], memorised.forget[4:]
    one = history.answer(model, first, memorised.retain, vectors[:4], steps=20)
    assert not one.redundant.any()
    assert len(one.layers) == 1
    assert set(one.classes) == set(one.outcomes)
    moved = names_in(model, one.layers)
    before = dict(memorised.trained.named_parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n not in moved)
    assert one.flops > sum(o.flops for o in one.outcomes.values())
    history.answer(model, second, memorised.retain, vectors[4:], steps=20)
    forgotten = document_losses(model, documents(memorised.forget)[0])
    kept = document_losses(model, documents(memorised.retain)[0])
    assert float(forgotten.mean()) > 1.0 > 2 * float(kept.mean())


def test_a_request_that_repeats_changes_nothing(memorised: Any) -> None:
    model, history = memorised.model, Seen(epsilon=100.0, vectors=[np.array([1.0, 0.0])])
    found = history.answer(model, memorised.forget[:2], memorised.retain, [[2.0, 0.0], [1.0, 0.1]])
    assert found.redundant.all()
    assert found.outcomes == {}
    assert found.layers == ()
    after = dict(model.named_parameters())
    assert all(torch.equal(p, after[n]) for n, p in memorised.trained.named_parameters())
    assert len(history.vectors) == 1


def test_a_chunk_that_the_loss_needs_stays(memorised: Any) -> None:
    """One chunk never learned carries the request's loss; the filter may not drop it."""
    rows = [*memorised.forget[:3], [1] * 15 + [2]]
    history = Seen(epsilon=0.5, vectors=[np.array([1.0, 0.0])])
    found = history.answer(memorised.model, rows, memorised.retain, [[1.0, 0.0]] * 4, steps=1)
    assert not found.redundant[3]


def test_bad_requests(memorised: Any) -> None:
    with pytest.raises(DataError, match="vectors for 0 chunks"):
        Seen().answer(memorised.trained, [], memorised.retain, np.empty((0, 2)))
    with pytest.raises(DataError, match="vectors for 1 chunks"):
        Seen().answer(memorised.trained, [[1, 2]], memorised.retain, np.eye(2))
