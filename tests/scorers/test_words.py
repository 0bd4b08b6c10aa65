"""The words of pieces: known answers of spaCy's English rules, and all pieces at once as each."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.scorers import _words
from foresift.scorers._words import Lexicon, kind_of, lexicon
from foresift.scorers._words_english import SPECIAL, words_of
from foresift.scorers._words_hash import PADDING, range_hashes, repeated

#: as spaCy 3.8's blank English tokenizer splits them
KNOWN = {
    "don't": "do n't", "don’t,": "do n’t ,", "Cannot.": "Can not .", "well": "well",
    "Ill": "Ill", "I'll've": "I 'll 've", "U.S.": "U.S.", "U.N.,": "U.N. ,", "USA.": "USA .",
    "end.": "end .", "Mr.": "Mr.", "(Mr.)": "( Mr. )", "a.m.": "a.m.", "10am": "10 am",
    "5km": "5 km", "5km.": "5 km .", "50%": "50 %", "$5.00": "$ 5.00", "US$5": "US$ 5",
    "+1": "+1", "+x": "+ x", "x...": "x ...", "...and": "... and", "well-known": "well - known",
    "a--b": "a -- b", "5--3": "5 - -3", "1-2": "1 - 2", "and/or": "and/or", "he/she": "he / she",
    "a,b": "a , b", "1,2": "1,2", "end.Start": "end . Start", "end.start": "end.start",
    "http://a.org/b?c=d,": "http://a.org/b?c=d ,", "me@a.org": "me@a.org", ":-)": ":-)",
    "(8)": "( 8) ", "“so”": "“ so ”", "it’s": "it ’s", "dog's": "dog 's", "-": "-", "--": "--",
    "***": "* * *", "=x=": "= x=", "漢字。": "漢字 。", "😀x": "😀 x", "°C.": "° C .",
    "Homeland.,...and": "Homeland . , ... and",
}  # fmt: skip


@pytest.mark.parametrize(("piece", "words"), KNOWN.items())
def test_known_words(piece: str, words: str) -> None:
    assert words_of(piece) == words.split()


def test_a_very_long_piece_is_one_word() -> None:
    assert words_of("*" * 10_001) == ["*" * 10_001]
    assert len(words_of("*" * 10_000)) == 10_000


def looked_up(pieces: list[str], lexicon: Lexicon) -> list[list[tuple[int, int]]]:
    """(characters, kind) of each word of each piece, all pieces at once."""
    raw = [p.encode() for p in pieces]
    ends = np.cumsum([len(r) for r in raw], dtype=np.int64)
    buffer = np.frombuffer(b"".join(raw) + bytes(PADDING), dtype=np.uint8)
    found = lexicon.words(buffer, np.append(0, ends)[:-1], ends)
    pairs = list(zip(found.length.tolist(), found.kind.tolist(), strict=True))
    bounds = found.offsets.tolist()
    return [pairs[a:b] for a, b in itertools.pairwise(bounds)]


def expected(pieces: list[str]) -> list[list[tuple[int, int]]]:
    return [[(len(w), kind_of(w)) for w in words_of(p)] for p in pieces]


def fresh() -> Lexicon:
    return Lexicon(("the", "of"), True)


def test_all_at_once_on_special_and_known_pieces() -> None:
    marks = ["", ",", ".", ")", "(", '"', "'", "...", "?!", "'s", ":", "-", "5", "x"]
    pieces = [a + p + b for p in [*SPECIAL, *KNOWN] for a in ["", "(", '"'] for b in marks]
    pieces = [p for p in pieces if p]
    assert looked_up(pieces, fresh()) == expected(pieces)


ALPHABET = "aZbm'sS.,;:-+*/=<>()[]{}\"$%#@_~^&!?059kUSCA|\\`’…°éß漢😀"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(ALPHABET, min_size=1, max_size=14), min_size=1, max_size=200))
def test_all_at_once_as_one_by_one(pieces: list[str]) -> None:
    assert looked_up(pieces, fresh()) == expected(pieces)


def test_what_was_seen_before_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    rows = [["".join(rng.choices(ALPHABET, k=rng.randint(1, 6))) for _ in range(300)]
            for _ in range(8)]  # fmt: skip
    plain = [expected(row) for row in rows]
    monkeypatch.setattr(_words, "_PIECES", 500)  # forgets and grows
    monkeypatch.setattr(_words, "_WORDS", 700)
    monkeypatch.setattr(_words, "_SLICE", 128)
    small = fresh()
    assert [looked_up(row, small) for row in rows] == plain
    assert [looked_up(row, small) for row in rows[::-1]] == plain[::-1]


def test_stop_words_are_numbered() -> None:
    buffer = np.frombuffer(b"the of The" + bytes(PADDING), dtype=np.uint8)
    found = fresh().words(buffer, np.array([0, 4, 7]), np.array([3, 6, 10]))
    assert set(found.stop[:2].tolist()) == {1, 2}
    assert found.stop[2] == 0


def test_one_lexicon_a_process() -> None:
    assert lexicon(("the",), True) is lexicon(("the",), True)
    assert lexicon(("the",), True) is not lexicon(("the",), False)


def test_hashes_tell_pieces_apart_and_find_them_anywhere() -> None:
    rng = random.Random(1)
    pieces = [rng.randbytes(rng.choice([0, 1, 7, 8, 9, 40, 512, 513, 900])) for _ in range(400)]
    raw = b"".join(b"." + p for p in pieces) + bytes(PADDING)
    stops = np.cumsum([len(p) + 1 for p in pieces])
    starts = stops - [len(p) for p in pieces]
    keys = range_hashes(np.frombuffer(raw, dtype=np.uint8), starts, stops)
    by_key: dict[int, set[bytes]] = {}
    for key, piece in zip(keys.tolist(), pieces, strict=True):
        by_key.setdefault(key, set()).add(piece)
    assert len(by_key) == len(set(pieces))


@given(st.lists(st.integers(0, 6), max_size=60), st.booleans())
def test_repeated_keys_by_group(values: list[int], alike_above: bool) -> None:
    # keys that differ in their low bits only do not fit into the short sort
    keys = np.array(values, dtype=np.uint64) << np.uint64(0 if alike_above else 60)
    groups = repeated(keys)
    found = [g.tolist() for g in np.split(groups.members, groups.starts[1:])] if values else []
    places = [[i for i, v in enumerate(values) if v == value] for value in set(values)]
    assert sorted(g for g in found if g) == sorted(p for p in places if len(p) > 1)
