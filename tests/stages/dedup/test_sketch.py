"""Shingle hashes against big integers, signatures against exact Jaccard, bands against P(s)."""

from __future__ import annotations

import numpy as np
import pytest

from foresift.pipeline.minhash import (
    _BYTE,
    _ODD,
    band_keys,
    document_hashes,
    mix,
    shingles,
    signatures,
    span_hashes,
)
from foresift.pipeline.normal_text import words

BANDS, ROWS = 14, 8


def oracle_hash(raw: bytes) -> int:
    """The polynomial with Python's integers."""
    total = sum(int(_BYTE[b]) * pow(int(_ODD), i, 1 << 64) for i, b in enumerate(raw))
    return int(mix(np.array([total % (1 << 64)], dtype=np.uint64))[0])


def test_span_hashes_are_the_polynomial_wherever_the_span_lies() -> None:
    raw = b"the cat sat on the mat and the cat sat still"
    buffer = np.frombuffer(raw, dtype=np.uint8)
    spans = [(0, 7), (4, 11), (19, 22), (27, 38), (31, 38), (39, 44)]
    starts, ends = np.array(spans, dtype=np.int64).T
    got = span_hashes(buffer, starts, ends).tolist()
    assert got == [oracle_hash(raw[s:e]) for s, e in spans]
    assert got[1] == got[4]  # "cat sat" twice


@pytest.mark.parametrize("ngram", [1, 2, 5])
def test_shingles_are_the_ngrams_of_each_document(ngram: int) -> None:
    texts = ["a b c d e f", "", "a b", "b c d e f g h", "x y z x y z x y z"]
    hashes, offsets = shingles(words([t.encode() for t in texts], loose=True), ngram)
    for number, text in enumerate(texts):
        parts = text.split()
        grams = [" ".join(parts[i : i + ngram]) for i in range(len(parts) - ngram + 1)]
        here = hashes[offsets[number] : offsets[number + 1]].tolist()
        assert here == [oracle_hash(g.encode()) for g in grams]


def test_hashes_do_not_depend_on_the_batch_or_its_size() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 50, n) * 7919)) for n in (3, 30_000, 4, 9, 20)]
    texts = [t.translate(str.maketrans("0123456789", "abcdefghij")).encode() for t in texts]
    together, offsets = document_hashes(texts, 5)
    for number, text in enumerate(texts):
        alone, _ = document_hashes([text], 5)
        assert together[offsets[number] : offsets[number + 1]].tolist() == alone.tolist()


def test_short_documents_have_one_shingle_that_keeps_numbers() -> None:
    texts = [b"question 3", b"Question, 3!", b"question 4", b":-)", b"!!!", b":-)", b""]
    hashes, offsets = document_hashes(texts, 5)
    assert offsets.tolist() == list(range(len(texts) + 1))
    same = (hashes[:, None] == hashes[None, :]).tolist()
    pairs = {(i, j) for i in range(len(texts)) for j in range(i) if same[i][j]}
    assert pairs == {(1, 0), (5, 3)}


def _pairs(shared: int, own: int, count: int, seed: int) -> list[np.ndarray]:
    """Signatures of `count` pairs of random sets with `shared` of `shared + 2 own` in common."""
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.integers(0, 1 << 64, (count, n), dtype=np.uint64)  # noqa: E731
    common = draw(shared)
    sets = [np.concatenate([common, draw(own)], axis=1) for _ in range(2)]
    offsets = np.arange(count + 1) * (shared + own)
    return [signatures(s.ravel(), offsets, BANDS * ROWS, seed) for s in sets]


@pytest.mark.parametrize(("shared", "own"), [(100, 50), (90, 30), (140, 30), (400, 50), (180, 10)])
def test_candidates_follow_the_formula_and_the_share_estimates_jaccard(
    shared: int, own: int
) -> None:
    count = 1000
    left, right = _pairs(shared, own, count, seed=3)
    s = shared / (shared + 2 * own)
    expected = 1 - (1 - s**ROWS) ** BANDS
    rate = (band_keys(left, BANDS) == band_keys(right, BANDS)).any(axis=1).mean()
    spread = np.sqrt(expected * (1 - expected) / count)
    assert abs(rate - expected) < 3.5 * spread + 0.005
    share = (left == right).mean(axis=1)
    assert abs(share.mean() - s) < 0.005
    assert share.std() < 1.1 * np.sqrt(s * (1 - s) / (BANDS * ROWS))


def test_candidate_rate_at_four_fifths() -> None:
    left, right = _pairs(400, 50, 1000, seed=0)
    rate = (band_keys(left, BANDS) == band_keys(right, BANDS)).any(axis=1).mean()
    assert abs(rate - 0.924) < 0.025


def test_signatures_are_those_of_sets_and_change_with_the_seed() -> None:
    rng = np.random.default_rng(1)
    one = rng.integers(0, 1 << 64, 300, dtype=np.uint64)
    again = np.concatenate([one[::-1], one[:50]])
    both = np.concatenate([one, again])
    a, b = signatures(both, np.array([0, 300, 650]), 112, 0)
    assert a.tolist() == b.tolist()
    other = signatures(one, np.array([0, 300]), 112, 1)[0]
    assert (a != other).mean() > 0.9


def test_band_keys_agree_exactly_where_the_rows_of_a_band_agree() -> None:
    minima = np.arange(24, dtype=np.uint32).reshape(1, 24).repeat(2, axis=0)
    minima[1, 9] += 1
    keys = band_keys(minima, 3)
    assert (keys[0] == keys[1]).tolist() == [True, False, True]
    assert len(set(keys[0].tolist())) == 3
