"""Statistics of the surface against counts by hand and against a plain version, in any batch."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.scorers.surface import STOP_WORDS, Surface, syllables


def score(texts: list[str | None]) -> dict[str, list[float]]:
    found = Surface().score(pa.table({"text": pa.array(texts, pa.string())}))
    assert list(found) == list(Surface.columns)
    assert {v.dtype for v in found.values()} == {np.dtype(np.float32)}
    return {name: values.tolist() for name, values in found.items()}


def plain(text: str) -> dict[str, float]:
    """Character by character and word by word."""
    black = [c for c in text if not c.isspace()]
    digits = [c for c in black if c.isdecimal()]
    marks = [c for c in black if not c.isalnum() and not unicodedata.category(c).startswith("M")
             and not c.isupper() and not c.islower()]  # fmt: skip
    upper = [c for c in black if c.isupper()]
    cased = upper + [c for c in black if c.islower()]
    words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text.lower())
    parts = re.split(r"[.!?]+(?=\s|$)|\n[^\S\n]*\n", text)
    sentences = sum(bool(re.search(r"[^\W\d_]", p)) for p in parts)
    lines = [line.strip() for line in text.split("\n") if line.strip()]

    def over(a: float, b: float) -> float:
        return a / b if b else np.nan

    n = len(words)
    told = sum(syllables(w) for w in words)
    return {
        "log_length": np.log(len(text)) if text else np.nan,
        "type_token_ratio": over(len(set(words)), n),
        "mean_word_length": over(sum(map(len, words)), n),
        "stop_word_share": over(sum(w in STOP_WORDS for w in words), n),
        "punctuation_share": over(len(marks), len(black)),
        "digit_share": over(len(digits), len(black)),
        "capital_share": over(len(upper), len(cased)),
        "readability": 206.835 - 1.015 * over(n, sentences) - 84.6 * over(told, n),
        "duplicate_line_share": 1 - over(len(set(lines)), len(lines)),
    }


def test_counts_by_hand() -> None:
    found = score(["The cat sat. THE END!\n\nList 12, 7\nx\n x "])
    assert found["log_length"] == pytest.approx([np.log(39)])
    assert found["type_token_ratio"] == pytest.approx([6 / 8])  # the cat sat the end list x x
    assert found["mean_word_length"] == pytest.approx([21 / 8])
    assert found["stop_word_share"] == pytest.approx([2 / 8])
    assert found["punctuation_share"] == pytest.approx([3 / 27])
    assert found["digit_share"] == pytest.approx([3 / 27])
    assert found["capital_share"] == pytest.approx([8 / 21])
    # "The cat sat." "THE END!" "List ... x": 3 sentences, one syllable in every word
    assert found["readability"] == pytest.approx([206.835 - 1.015 * 8 / 3 - 84.6])
    assert found["duplicate_line_share"] == pytest.approx([1 - 3 / 4])


@pytest.mark.parametrize(
    ("word", "count"),
    [("cat", 1), ("make", 1), ("table", 2), ("reading", 2), ("the", 1), ("idea", 2), ("see", 1),
     ("strengths", 1), ("beautiful", 3), ("pst", 1)],
)  # fmt: skip
def test_syllables(word: str, count: int) -> None:
    assert syllables(word) == count


def test_what_cannot_be_divided_is_missing() -> None:
    found = score([None, "", " \n ", "12 34", "東京"])
    assert all(np.isnan(values[:2]).all() for values in found.values())
    assert found["log_length"][2] == pytest.approx(np.log(3))
    assert np.isnan([found["digit_share"][2], found["duplicate_line_share"][2]]).all()
    assert found["digit_share"][3] == 1.0
    assert np.isnan([found["readability"][3], found["type_token_ratio"][3]]).all()
    assert np.isnan(found["capital_share"][4]), "letters without a case have no share of capitals"
    assert found["punctuation_share"][4] == 0.0


ALPHABET = st.one_of(
    st.sampled_from(list(" \n.!?aeEIXyl'’-_19é")), st.characters(exclude_categories=["Cs"])
)


@given(st.lists(st.text(alphabet=ALPHABET), max_size=6))
def test_agrees_with_the_plain_version(texts: list[str]) -> None:
    found = score(list(texts))
    for row, text in enumerate(texts):
        for name, value in plain(text).items():
            np.testing.assert_allclose(found[name][row], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_more_words_leave_shares_alone() -> None:
    once, twice = score(["A fine day. "]), score(["A fine day. " * 2])
    for name in set(once) - {"log_length", "type_token_ratio"}:
        assert twice[name] == once[name], name
    assert twice["type_token_ratio"] == pytest.approx([0.5])
    lines = score(["same line\n" * 4])["duplicate_line_share"]
    assert lines == pytest.approx([0.75])
