"""Packing: exact order, no token lost, and no document that sees another."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.model import load
from foresift.stages.trainers._packing import (
    IGNORED,
    MODES,
    Document,
    Place,
    Row,
    attention_mode,
    block_mask,
    collate,
    logits_of,
    pack,
    total_weight,
    weighted_loss,
)
from tests.stages.trainers.conftest import SHAPES


def document(ids: list[int], weight: float = 1.0, prompt: int = 1) -> Document:
    counts = np.arange(len(ids)) >= prompt
    place = Place(bytes([ids[0]]) * 16, 0, ids[0])
    return Document(np.asarray(ids, np.int32), counts, place, weight)


def test_known_rows() -> None:
    rows = list(pack([document([1, 2, 3]), document([4, 5]), document([6, 7, 8, 9])], 4))
    assert [r.ids.tolist() for r in rows] == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert [r.positions.tolist() for r in rows] == [[0, 1, 2, 0], [0, 0, 1, 2], [0]]
    no = IGNORED
    assert [r.labels.tolist() for r in rows] == [[no, 2, 3, no], [no, no, 7, 8], [no]]
    places = [[(number, place.shard, n) for number, place, n in r.pieces] for r in rows]
    assert places == [[(0, 1, 3), (1, 4, 1)], [(1, 4, 1), (2, 6, 3)], [(2, 6, 1)]]


def test_prompt_tokens_do_not_count() -> None:
    (row,) = pack([document([1, 2, 3, 4], prompt=3)], 8)
    assert row.labels.tolist() == [IGNORED, IGNORED, IGNORED, 4]


def test_limit_cuts_the_stream_at_a_token() -> None:
    rows = list(pack([document([1, 2, 3]), document([4, 5, 6]), document([7])], 4, limit=5))
    assert np.concatenate([r.ids for r in rows]).tolist() == [1, 2, 3, 4, 5]


@given(
    lengths=st.lists(st.integers(0, 40), max_size=20),
    length=st.integers(2, 17),
    limit=st.none() | st.integers(0, 300),
)
@settings(deadline=None, max_examples=60)
def test_every_token_once_in_order(lengths: list[int], length: int, limit: int | None) -> None:
    stream = np.arange(sum(lengths), dtype=np.int32)
    parts = np.split(stream, np.cumsum(lengths)[:-1]) if lengths else []
    place = Place(b"", 0, 0)
    documents = [Document(p, np.ones(len(p), dtype=bool), place) for p in parts]
    rows = list(pack(documents, length, limit))
    seen = np.concatenate([r.ids for r in rows]) if rows else stream[:0]
    assert np.array_equal(seen, stream[:limit])
    assert all(len(r.ids) == length for r in rows[:-1])
    numbers = np.repeat(np.arange(len(lengths)), lengths)[: len(seen)]
    told = [number for r in rows for number, _, n in r.pieces for _ in range(n)]
    assert np.array_equal(told, numbers)


def test_block_mask_known_answer() -> None:
    open_ = block_mask(torch.tensor([[0, 1, 0, 1]]))[0, 0] == 0
    assert open_.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def some_documents() -> list[Document]:
    rng = np.random.default_rng(0)
    sizes = (1, 7, 3, 12, 2, 9, 1, 1, 5)
    made = [rng.integers(0, 257, n).astype(np.int32) for n in sizes]
    return [
        Document(ids, np.arange(len(ids)) > k % 3, Place(b"", 0, k), 1.0 + k % 2)
        for k, ids in enumerate(made)
    ]


def alone(model: Any, rows: list[Row]) -> tuple[float, float]:
    """The loss of each segment on its own, with plain indexing: sum of w * nll, sum of w."""
    total = weight = 0.0
    for row in rows:
        bounds = [*np.flatnonzero(row.positions == 0), len(row.ids)]
        for a, b in itertools.pairwise(bounds):
            ids = torch.tensor(row.ids[a:b].astype(np.int64))
            logp = model(ids[None]).logits[0].float().log_softmax(-1)
            for t in range(1, b - a):
                if row.labels[a + t] != IGNORED:
                    total -= float(row.weights[a + t] * logp[t - 1, ids[t]])
                    weight += float(row.weights[a + t])
    return total, weight


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_loss_is_the_loss_of_each_document(kind: str, attention: str, model: Any) -> None:
    net = load.__wrapped__(model(kind, attention=attention)).model
    assert attention_mode(net) == "positions"
    rows = list(pack(some_documents(), 16))
    assert len(rows) > 2
    with torch.no_grad():
        want, weight = alone(net, rows)
        assert total_weight(rows) == pytest.approx(weight)
        for mode in MODES if kind != "mistral" else ("positions", "apart"):
            batch = collate(rows, mode)
            loss = float(weighted_loss(logits_of(net, batch), batch))
            assert loss == pytest.approx(want, rel=1e-5), mode


class _Deaf(torch.nn.Module):
    """Mixes all tokens of a row: neither positions nor a mask keep documents apart in it."""

    def __init__(self, takes_rows: bool) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(257, 8)
        self.takes_rows = takes_rows
        self.config = type("Config", (), {"model_type": "deaf"})()

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding

    def forward(self, input_ids: Any, attention_mask: Any = None, **rest: Any) -> Any:
        if "position_ids" in rest:
            raise TypeError("no position_ids here")
        if not self.takes_rows and input_ids.shape[0] > 1:
            raise ValueError("one row only")
        hidden = self.embedding(input_ids)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mixed = (hidden * real[..., None]).cumsum(1)
        return type("Output", (), {"logits": mixed})()


def test_a_model_without_positions_gets_one_segment_a_row() -> None:
    assert attention_mode(_Deaf(takes_rows=True)) == "apart"


def test_a_model_that_cannot_keep_documents_apart_is_refused() -> None:
    with pytest.raises(ModelError, match="deaf: documents cannot be kept apart"):
        attention_mode(_Deaf(takes_rows=False))
