"""What a report may show of a text."""

from __future__ import annotations

import re
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.stages.report.mask import MASK, clean, excerpt, mask


@pytest.mark.parametrize(
    "text",
    [
        "bob@example.org",
        "first.last+tag@mail.example.co.uk",
        "10.0.0.1",
        "255.255.255.255",
        "2a02:8109:9c80:1234::1",
        "2001:db8:85a3::8a2e:370:7334",
        "fe80::1ff:fe23:4567:890a",
        "+1 (415) 555-2671",
        "(0221) 4710-123",
        "415-555-2671",
        "415.555.2671",
        "+49 30 901820",
        "+442079460958",
        "123-45-6789",
        "4111 1111 1111 1111",
        "4111111111111111",
        "1234567",
    ],
)
def test_personal_data_is_masked_and_the_rest_is_left(text: str) -> None:
    assert mask(f"Write to {text}, please.") == f"Write to {MASK}, please."


@pytest.mark.parametrize(
    "text",
    [
        "in 2026",
        "on 2026-11-20",
        "on 20.11.2026",
        "from 1914-1918 to 1939-1945",
        "pi is 3.14159265 or so",
        "version 2.13.0",
        "123,456 rows",
        "pages 12-14",
        "a @ b",
        "x@y",
        "300.1.2.3",
        "1.2.3.4.5.6",
        "at 12:34:56",
        "std::vector<a::b>",
        "Foo::bar::baz1",
        "x[1::2]",
    ],
)
def test_ordinary_numbers_are_left_alone(text: str) -> None:
    assert mask(text) == text


def test_several_in_one_line() -> None:
    assert mask("a@b.org, 10.1.2.3 and +49 221 4710123") == f"{MASK}, {MASK} and {MASK}"


@given(st.text(string.ascii_letters + string.digits + " .-@+()/", max_size=200))
def test_no_long_run_of_digits_survives(text: str) -> None:
    shown = mask(text)
    assert not re.search(r"(?<![\d.])\d{7,}(?![\d.])", shown)
    assert not re.search(r"(?<![\w.+%-])\w+@\w+\.[a-z]{2,}(?!\w)", shown)


def test_masking_is_idempotent() -> None:
    once = mask("bob@example.org 10.0.0.1 415-555-2671 1234567890")
    assert mask(once) == once


def test_long_input_without_any_hit_is_fast_enough_to_finish() -> None:
    for piece in ("a", "1.", "a.", "12 ", "(1", "+1 "):
        assert mask(piece * 20_000).count("@") == 0


def test_clean_removes_what_html_forbids_and_what_turns_text_round() -> None:
    assert clean("a\x00b\x1b[31mc\u202ed\u2066e\x9ff\ufffe") == "a�b�[31mc�d�e�f�"
    assert clean("tab\tline\nمرحبا 你好 é 👩‍💻") == "tab\tline\nمرحبا 你好 é 👩‍💻"
    clean("\ud800 half a pair").encode("utf-8")


def test_clean_looks_at_every_character() -> None:
    turning = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    for code in [*range(0xD800), *range(0xE000, 0x11000)]:
        c = chr(code)
        control = unicodedata.category(c) == "Cc" and c not in "\n\t"
        unfit = control or c in turning or c in "\ufffe\uffff"
        assert clean(c) == ("\ufffd" if unfit else c)


def test_excerpt_cuts_after_masking() -> None:
    text = "x" * 270 + " bob.the.builder@example.org and more " * 200
    shown = excerpt(text)
    assert shown.endswith("…")
    assert len(shown) <= 282
    assert "bob" not in shown
    assert excerpt("  two\n words ") == "two words"
    assert excerpt("") == ""


def test_excerpt_of_a_huge_document() -> None:
    assert len(excerpt("word " * 10_000_000)) <= 282
