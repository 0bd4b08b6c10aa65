"""Surprise: percentiles by hand, words under their characters, and a model that knows a fact."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from foresift.pipeline.errors import RecipeError
from foresift.pipeline.findings import findings
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.forward import score_table
from foresift.pipeline.lm.model import ModelSpec, load_tokenizer
from foresift.pipeline.lm.signals import Signals, Tokens
from foresift.pipeline.tables import content_ids
from foresift.scorers.surprise import Surprise, percentiles, telling, words
from tests.scorers.tiny import LLAMA

BYTES = load_tokenizer("bytes")


def given(table: pa.Table, nll: list[list[float]], tokenizer: Any = BYTES) -> tuple[Any, Signals]:
    """Documents over bytes, with a loss for each of their counted tokens."""
    encoded = encode(table, BYTES, ModelSpec(init="none", max_length=64))
    counts = [len(each) for each in nll]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    flat = np.array([x for each in nll for x in each], dtype=np.float32)
    n = len(counts)
    tokens = Tokens(
        table, offsets, encoded.lengths, encoded.cut, np.zeros(n, bool), encoded, tokenizer
    )
    return tokens, Signals({"nll": flat}, {}, offsets)


def losses(text: str, peaks: dict[int, float], rest: float = 1.0) -> list[float]:
    """One a byte and one for the end, all alike but for those at some places."""
    return [peaks.get(k, rest) for k in range(len(text.encode()) + 1)]


def test_percentiles_have_their_known_answers() -> None:
    offsets = np.array([0, 101, 101, 102, 106])
    nll = np.array([*range(101), 7.0, 1, 2, 3, 10], dtype=np.float32)
    p99, median = percentiles(nll, offsets)
    assert p99.tolist() == pytest.approx([99.0, math.nan, 7.0, 3 + 0.97 * 7], nan_ok=True)
    assert median.tolist() == pytest.approx([50.0, math.nan, 7.0, 2.5], nan_ok=True)


@for_all(
    st.lists(st.lists(st.floats(0, 30, width=32), max_size=40), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_a_document_depends_on_its_own_tokens_in_any_order(rows: Any, random: Any) -> None:
    def of(rows: list[list[float]]) -> Any:
        offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        return percentiles(np.array([x for r in rows for x in r], np.float32), offsets)

    p99, median = of(rows)
    for k, row in enumerate(rows):
        random.shuffle(row)
        alone = of([row])
        np.testing.assert_allclose([alone[0][0], alone[1][0]], [p99[k], median[k]])
        assert math.isnan(p99[k]) == (not row)
        assert not row or p99[k] >= median[k]


def test_a_peak_in_easy_text_is_flagged_and_its_word_is_told() -> None:
    text = "the sky is greenish today"
    where = text.index("greenish")
    peaks = {where: 12.0, where + 3: 14.0, 0: 3.0}
    hard = [5.0 + 9.0 * (k == where) for k in range(len(text) + 1)]  # all of it is unexpected
    table = pa.table({"text": [text, text, text, ""]})
    rows = [losses(text, peaks), losses(text, {}), hard, [0.5]]
    found = Surprise(spans=2).score(*given(table, rows))
    assert found["flagged"].tolist() == [True, False, False, False]
    np.testing.assert_allclose(found["peak"], found["p99"] - found["median"])
    np.testing.assert_allclose(found["utility"], -found["peak"])
    assert found["median"].tolist() == [1.0, 1.0, 5.0, 0.5]
    assert found["priming"][:3].tolist() == [12.0, 1.0, 14.0]  # the first byte of a word
    assert math.isnan(found["priming"][3])
    told, *none = list(findings(found["findings"]))
    assert [(f.reason, text[f.start : f.stop], f.value) for f in told] == [
        ("surprising", "the", 3.0), ("surprising", "greenish", 14.0)
    ]  # fmt: skip
    assert none == [[], [], []]


def test_spans_lie_in_the_content_of_an_answer() -> None:
    answer = "it is 42 now"
    table = pa.table({"prompt": ["why, says he"], "response": [answer]})
    rows = [losses(answer, {6: 13.0})]
    found = Surprise(spans=1).score(*given(table, rows))
    (told,) = next(iter(findings(found["findings"])))
    content = f"why, says he\n{answer}"
    assert content[told.start : told.stop] == "42"
    assert found["priming"].tolist() == [13.0]


def test_text_that_cannot_be_placed_is_told_as_a_whole() -> None:
    text = "the sky is green today"
    other = lambda text, **_: {"input_ids": [999] * len(text), "offset_mapping": []}  # noqa: E731
    tokens, signals = given(pa.table({"text": [text]}), [losses(text, {4: 20.0})], other)
    found = Surprise(high=1.0).score(tokens, signals)
    (told,) = next(iter(findings(found["findings"])))
    assert (told.whole, told.value) == (True, pytest.approx(found["p99"][0]))
    assert math.isnan(found["priming"][0])


@pytest.mark.parametrize(
    ("piece", "tells"), [
        ("green", True), (" green", True), ("een", False), ("42", True), ("2", True),
        ("!", False), (" ", False), ("", False),
    ],
)  # fmt: skip
def test_which_tokens_tell(piece: str, tells: bool) -> None:
    text = "a green! 42 "
    start = text.index(piece)
    if piece == "":
        start = 3
    assert telling(text, (start, start + len(piece))) is tells


def test_words_are_whole_and_told_once() -> None:
    text = " one,two  x"
    placed = [(1.0, 0, 2), (9.0, 2, 4), (8.0, 5, 6), (7.0, 4, 5), (99.0, 8, 10)]
    assert words(text, placed, 9) == {(1, 4): 9.0, (5, 8): 8.0, (4, 5): 7.0}
    assert words(text, placed, 1) == {(1, 4): 9.0}


def test_it_scores_with_a_model(tmp_path: Path) -> None:
    path = tmp_path / "llama.json"
    path.write_text(json.dumps(LLAMA))
    spec = ModelSpec(init=str(path), tokenizer="bytes", device="cpu", max_length=32)
    table = pa.table({"text": ["the cat sat", None, "x" * 90]})
    table = table.append_column("id", content_ids(table))
    (found,) = score_table(table, spec, [Surprise(high=0.01, low=50)])
    assert found["flagged"].tolist() == [True, False, True]
    spans = list(findings(found["findings"]))
    assert [len(s) for s in spans] == [3, 0, 1]
    assert found["priming"][0] <= found["p99"][0] + 1


@pytest.mark.parametrize("fields", [{"high": 0}, {"low": -1}, {"spans": 0}])
def test_bad_fields_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="must be positive"):
        Surprise.parse(fields, "score surprise")
