"""Normal forms: known answers, a plain oracle, and independence of the batch."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.normal_text import WORD_BYTES, words


def plain_oracle(text: str) -> str:
    """The definition, one character after another."""
    kept = []
    for char in "".join(c.lower() for c in text):
        kind = unicodedata.category(char)
        if kind != "Cf":
            kept.append(char if kind[0] in "LNM" else " ")
    return " ".join("".join(kept).split())


def loose_oracle(text: str) -> str:
    """The definition, starting from the plain form."""
    kept = []
    for char in unicodedata.normalize("NFD", plain_oracle(text)):
        kind = unicodedata.category(char)
        if kind != "Mn":
            kept.append("0" if kind == "Nd" else char if kind[0] in "LNM" else " ")
    joined = re.sub("0+", "0", " ".join("".join(kept).split()))
    while "0 0" in joined:
        joined = joined.replace("0 0", "0")
    return joined


def forms(texts: list[str], loose: bool) -> list[str]:
    batch = words([t.encode() for t in texts], loose=loose)
    return [bytes(batch.text(i)).decode() for i in range(len(texts))]


KNOWN = [
    ("costs 12.50 dollars", "costs 12 50 dollars", "costs 0 dollars"),
    ("COSTS 7 dollars!", "costs 7 dollars", "costs 0 dollars"),
    ("  It's\n\tCaf\u00e9--time  ", "it s caf\u00e9 time", "it s cafe time"),
    ("cafe\u0301", "cafe\u0301", "cafe"),
    ("1,2, 3 v4.5b", "1 2 3 v4 5b", "0 v0b"),
    ("so\u00adft \u200bzero\ufeff", "soft zero", "soft zero"),
    ("\u0661\u0662 \u4f60\u597d\u3002\u518d\u89c1", "\u0661\u0662 你好 再见", "0 你好 再见"),
    ("", "", ""),
    ("\u00a3 \u2026 :-)", "", ""),
    ("a\x00b\x85c", "a b c", "a b c"),
    ("\u00c5 \u212b", "\u00e5 \u00e5", "a a"),
]


@pytest.mark.parametrize(("text", "plain", "loose"), KNOWN)
def test_known_forms(text: str, plain: str, loose: str) -> None:
    assert forms([text], False) == [plain]
    assert forms([text], True) == [loose]


def test_a_batch_gives_what_each_document_gives_alone() -> None:
    texts = [text for text, _, _ in KNOWN]
    for loose in (False, True):
        assert forms(texts, loose) == [forms([t], loose)[0] for t in texts]


LETTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from(" 0019.,aAé\u0301\u2019\n")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(LETTERS, max_size=30), max_size=5))
def test_forms_agree_with_the_definition(texts: list[str]) -> None:
    assert forms(texts, False) == [plain_oracle(t) for t in texts]
    assert forms(texts, True) == [loose_oracle(t) for t in texts]


@settings(max_examples=200, deadline=None)
@given(st.text(LETTERS, max_size=60))
def test_the_loose_form_is_a_function_of_the_plain_form(text: str) -> None:
    assert forms(forms([text], False), True) == forms([text], True)


def test_words_lie_where_they_say() -> None:
    batch = words([b"one  two", b"", b"!", b"three"], loose=True)
    found = [bytes(batch.buffer[s:e]) for s, e in zip(batch.starts, batch.ends, strict=True)]
    assert found == [b"one", b"two", b"three"]
    assert batch.offsets.tolist() == [0, 2, 2, 2, 3]


def test_long_words_are_cut_and_short_ones_left() -> None:
    batch = words([b"x", b"a " + b"y" * (2 * WORD_BYTES + 1) + b" b"], loose=True).cut()
    assert (batch.ends - batch.starts).tolist() == [1, 1, WORD_BYTES, WORD_BYTES, 1, 1]
    assert batch.offsets.tolist() == [0, 1, 6]
