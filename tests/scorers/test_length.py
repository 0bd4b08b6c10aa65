"""Lengths against Python's own counts, in any batch and for every kind of content."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.parts import find
from foresift.scorers.length import Length

NASTY = ["", None, " ", "\n", "a\nb\r\n\nc", "é 😀\u2028x", "tab\tand\x0bfeed\x0c end", "w " * 1000]


def score(table: pa.Table, tokenizer: str = "") -> dict[str, list[int]]:
    found = Length(tokenizer=tokenizer).score(table)
    assert list(found) == list(Length.columns)
    for name, values in found.items():
        assert values.dtype == np.int64, name
        assert len(values) == table.num_rows, name
    return {name: values.tolist() for name, values in found.items()}


def expected(text: str) -> dict[str, int]:
    size = len(text.encode())
    return {
        "chars": len(text),
        "bytes": size,
        "words": len(re.findall(r"[^ \t\n\v\f\r]+", text)),
        "lines": text.count("\n") + 1 if text else 0,
        "tokens": (size + 3) // 4,
    }


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]))))
def test_agrees_with_python(texts: list[str]) -> None:
    found = score(pa.table({"text": pa.array(texts, pa.string())}))
    for row, text in enumerate(texts):
        assert {name: found[name][row] for name in found} == expected(text)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_nulls_types_and_batches(kind: pa.DataType) -> None:
    whole = pa.table({"text": pa.array(NASTY, kind)})
    found = score(whole)
    assert found == {n: [expected(t or "")[n] for t in NASTY] for n in found}
    parts = [score(whole.slice(k, 3)) for k in range(0, len(NASTY), 3)]
    assert {n: [v for p in parts for v in p[n]] for n in found} == found
    assert score(whole.slice(0, 0)) == {n: [] for n in found}
    order = np.random.default_rng(0).permutation(len(NASTY))
    shuffled = score(whole.take(pa.array(order)))
    assert shuffled == {n: [values[i] for i in order] for n, values in found.items()}


def test_pairs_and_conversations() -> None:
    pairs = pa.table({"prompt": ["a b", None], "response": ["é\nc", "x"]})
    assert score(pairs) == {
        "chars": [7, 2], "bytes": [7, 1], "words": [4, 1], "lines": [3, 2], "tokens": [2, 1],
    }  # fmt: skip
    turns = [[{"role": "u", "content": "a b"}, {"role": "a", "content": "c"}], [], None]
    found = score(pa.table({"messages": turns}))
    assert found["chars"] == [5, 0, 0]
    assert found["bytes"] == [4, 0, 0]
    assert found["words"] == [3, 0, 0]
    assert found["lines"] == [2, 0, 0]


def test_tokens_as_bytes() -> None:
    assert score(pa.table({"text": ["é", "abc"]}), "bytes")["tokens"] == [2, 3]


def test_is_found_by_name() -> None:
    assert find("score", "length") is Length
    assert Length().fingerprint != Length(tokenizer="bytes").fingerprint
