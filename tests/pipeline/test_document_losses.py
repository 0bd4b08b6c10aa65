"""Losses of documents: the model's own where a line is one, and the same when they are packed."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.document_losses import (
    document_losses,
    segment_means,
    segments_of,
    weighted,
)
from foresift.pipeline.errors import DataError
from tests.pipeline.streams import collate, model, rows

PLAIN = [{"input_ids": row["input_ids"]} for row in rows(6)]


def test_a_line_has_the_models_own_loss() -> None:
    net, batch = model().eval(), collate(PLAIN)
    logits = net(**{k: v for k, v in batch.items() if k != "labels"}).logits
    found = document_losses(logits, batch["labels"])
    for row, loss in zip(PLAIN, found, strict=True):
        ids = torch.tensor([row["input_ids"]])
        torch.testing.assert_close(loss, net(input_ids=ids, labels=ids).loss, rtol=1e-5, atol=1e-6)


def plain(
    logits: torch.Tensor, labels: torch.Tensor, segments: torch.Tensor, n: int
) -> list[float]:
    """The definition, a token at a time."""
    found: list[list[float]] = [[] for _ in range(n)]
    for b in range(len(labels)):
        for t in range(1, labels.shape[1]):
            d, label = int(segments[b, t]), int(labels[b, t])
            if d >= 0 and label != -100 and d == int(segments[b, t - 1]):
                found[d].append(-float(logits[b, t - 1].log_softmax(0)[label]))
    return [sum(v) / len(v) if v else float("nan") for v in found]


@given(
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3), st.data()
)
def test_packed_documents_have_the_losses_of_the_definition(
    lines: list[list[int]], data: st.DataObject
) -> None:
    width = max(map(sum, lines))
    positions, mask = (torch.zeros((len(lines), width), dtype=torch.long) for _ in range(2))
    for b, lengths in enumerate(lines):
        places = [p for length in lengths for p in range(length)]
        positions[b, : len(places)], mask[b, : len(places)] = torch.tensor(places), 1
    torch.manual_seed(data.draw(st.integers(0, 99)))
    logits, labels = torch.randn(*mask.shape, 7), torch.randint(0, 7, mask.shape)
    labels[torch.rand(mask.shape) < 0.2] = -100
    segments, n = segments_of(positions, mask), sum(map(len, lines))
    assert segments[mask.bool()].tolist() == [
        d for d, length in enumerate(itertools.chain(*lines)) for _ in range(length)
    ]
    expected = torch.tensor(plain(logits, labels, segments, n))
    torch.testing.assert_close(
        document_losses(logits, labels, segments, n), expected, equal_nan=True
    )


def test_what_is_before_a_document_in_its_line_is_not_asked_for_its_first_token() -> None:
    logits = torch.zeros(1, 4, 2)
    logits[0, 1] = torch.tensor([100.0, -100.0])  # wrong about the first token of document 1
    labels = torch.ones((1, 4), dtype=torch.long)
    segments = segments_of(torch.tensor([[0, 1, 0, 1]]))
    expected = torch.full((2,), 2.0).log()
    torch.testing.assert_close(document_losses(logits, labels, segments), expected)


def test_a_document_without_a_counted_token_changes_no_gradient() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    labels = torch.tensor([[1, 2, 3], [1, -100, -100]])
    losses = document_losses(logits, labels)
    assert losses.isnan().tolist() == [False, True]
    loss = weighted(losses, torch.tensor([2.0, 5.0]))
    assert loss.item() == pytest.approx(2 * losses[0].item())
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[0] != 0).any()
    assert (logits.grad[1] == 0).all()
    nothing = weighted(document_losses(logits, torch.full((2, 3), -100)), torch.ones(2))
    nothing.backward()
    assert nothing.item() == 0
    assert torch.isfinite(logits.grad).all()


def test_means_by_segment() -> None:
    found = segment_means(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([2, 0, 2]), 4)
    torch.testing.assert_close(
        found, torch.tensor([5.0, torch.nan, 2.0, torch.nan]), equal_nan=True
    )


def test_shapes_that_do_not_fit() -> None:
    logits, labels = torch.zeros(2, 3, 5), torch.zeros((2, 3), dtype=torch.long)
    with pytest.raises(DataError, match=r"logits \[2, 3, 5\] do not fit labels \[2, 2\]"):
        document_losses(logits, labels[:, :2])
    with pytest.raises(DataError, match=r"segments \[2, 2\]"):
        document_losses(logits, labels, labels[:, :2])
    with pytest.raises(DataError, match="document 3 of 3"):
        document_losses(logits, labels, labels + 3, n=3)
    with pytest.raises(DataError, match="2 losses, 3 weights"):
        weighted(torch.zeros(2), torch.zeros(3))
