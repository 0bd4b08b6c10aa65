"""Shared arithmetic of token selectors: shares, ties, labels in any padding, spans, audits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.live import LiveModel
from foresift.pipeline.online import IGNORED
from foresift.stages.samplers import _tokens
from foresift.stages.samplers.random_tokens import RandomTokens
from tests.stages.samplers import token_rows


@pytest.mark.parametrize(("share", "n", "kept"), [(0.07, 100, 7), (0.28, 25, 7), (0.6, 5, 3)])
def test_a_share_is_not_rounded_up_by_floating_point(share: float, n: int, kept: int) -> None:
    assert _tokens.quota(share, np.array([n, 0, 1])).tolist() == [kept, 0, 1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), max_size=9), max_size=5), st.floats(0.01, 1))
def test_the_largest_of_each_sample_are_kept(samples: list[list[int]], share: float) -> None:
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in samples])]).astype(np.int64)
    scores = np.array([x for s in samples for x in s], dtype=np.float64)
    kept = _tokens.keep_largest(scores, offsets, share)
    assert kept.tolist() == [k for s in samples for k in token_rows.top(s, share)]


def test_ties_in_a_batch_go_by_id_whatever_the_order_of_rows() -> None:
    scores, offsets = np.array([1.0, 0.0, 1.0, 1.0]), np.array([0, 2, 4])
    kept = _tokens.keep_largest_of_batch(scores, offsets, ("z", "a"), 0.5)
    assert kept.tolist() == [False, False, True, True]
    turned = _tokens.keep_largest_of_batch(scores[[2, 3, 0, 1]], offsets, ("a", "z"), 0.5)
    assert turned.tolist() == [True, True, False, False]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("width", [8, 13])
def test_labels_change_only_where_a_counted_token_is_dropped(side: str, width: int) -> None:
    rows = token_rows.candidates(width, side)
    seen = token_rows.seen(rows)
    kept = np.array([True, False, False, True, False, True, True, True, False, True])
    labels = _tokens.masked_labels(seen, kept)
    assert token_rows.flat(labels, rows) == kept.tolist()
    assert ((labels == rows.labels) | (labels == IGNORED)).all()
    assert (labels[1] == rows.labels[1]).all()
    assert labels.shape == rows.labels.shape
    start = 0 if side == "right" else width - 8
    assert labels[0, start : start + 8].tolist() == [-100, -100, 7, -100, -100, -100, 3, -100]


def test_a_label_on_the_first_token_stays() -> None:
    rows = token_rows.candidates(4, rows=[[5, 6, 7]], counts=[[1, 1, 1]], ids=("a",))
    seen = token_rows.seen(rows)
    assert seen.signals.counts.tolist() == [2]
    assert _tokens.masked_labels(seen, np.zeros(2, bool))[0].tolist() == [5, -100, -100, -100]
    assert _tokens.span_starts(seen)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_prompt_of_a_turn_is_all_that_stands_before_it(side: str) -> None:
    seen = token_rows.seen(token_rows.candidates(12, side))
    starts = _tokens.span_starts(seen)
    assert starts[seen.counted].tolist() == [2, 2, 5, 5, 1, 1, 1, 1, 1, 1]


def test_an_audit_counts_tokens_and_samples() -> None:
    kept = np.array([True, False, False, False, False, True])
    facts = _tokens.audit(kept, np.array([0, 2, 2, 5, 6]))
    assert facts == {
        "tokens": 6, "kept": 2, "share_min": 0.0, "share_mean": 0.5,
        "samples_without_tokens": 1, "samples_emptied": 1,
    }  # fmt: skip
    assert _tokens.audit(kept[:0], np.array([0, 0]))["share_min"] is None


def test_a_number_that_is_none_names_its_row() -> None:
    values = np.arange(10.0)
    values[6] = np.nan
    seen = token_rows.seen(token_rows.candidates())
    with pytest.raises(DataError, match=r"here: 1 of 10 are not finite.* token 2 of row c"):
        _tokens.checked(values, seen, "here")


def test_random_tokens_depend_on_seed_step_and_id_alone() -> None:
    live = LiveModel(token_rows.model())
    rows = token_rows.candidates()
    seen = token_rows.seen(rows)
    masker = RandomTokens(share=0.5).open(live)
    first = masker.labels(seen, 3)
    turned = rows.take(np.array([2, 0]))
    again = RandomTokens(share=0.5).open(live).labels(token_rows.seen(turned), 3)
    torch.testing.assert_close(again, first[[2, 0]])
    others = [masker.labels(seen, step) for step in range(4, 12)]
    assert any((other != first).any() for other in others)
    fixed = RandomTokens(share=0.5, redraw=False).open(live)
    torch.testing.assert_close(fixed.labels(seen, 1), fixed.labels(seen, 9))
    assert [sum(x) for x in np.split(np.array(token_rows.flat(first, rows)), [4, 9])] == [2, 3, 1]


def test_random_tokens_fall_evenly() -> None:
    rows = token_rows.candidates(12, rows=[list(range(11))], counts=[[0] + [1] * 10], ids=("x",))
    masker, seen = (
        RandomTokens(share=0.3).open(LiveModel(token_rows.model())),
        token_rows.seen(rows),
    )
    kept = np.mean([token_rows.flat(masker.labels(seen, s), rows) for s in range(600)], axis=0)
    assert kept.sum() == pytest.approx(3)
    assert np.abs(kept - 0.3).max() < 0.09  # 0.0187 is one standard deviation


@pytest.mark.parametrize("share", [0, 1.01, float("nan")])
def test_a_share_is_above_zero(share: float) -> None:
    with pytest.raises(ValueError, match="share must be above 0"):
        RandomTokens(share=share)
