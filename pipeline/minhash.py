"""From words to MinHash signatures and band keys: 64-bit shingle hashes by prefix sums, then Rust.

The hash of a shingle (n consecutive words with single spaces between them) is the polynomial

    h(b_0 .. b_m) = sum_i T[b_i] P^i  (mod 2^64),   T random, P odd,

of its bytes, read off prefix sums of the whole batch: h = (S[end] - S[start]) P^-start. Its cost
does not depend on n. The SplitMix64 finaliser spreads it over all bits.

Signatures are R-MinHash (rensa; Dahlgaard, Knudsen, Thorup, "Fast Similarity Sketching", 2017):
`bands * rows` slots of 32 bits, each slot equal in two documents with probability J, the Jaccard
similarity of their shingle sets. The key of a band is a 64-bit hash of its `rows` slots.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash
from rensa import RMinHash

from foresift.pipeline.normal_text import Buffer, Bytes, Ints, Words, words
from foresift.pipeline.rng import mix

Keys = npt.NDArray[np.uint64]
_ODD = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
#: words hashed at a time: the working set stays in the second-level cache
_WORDS = 8192


_BYTE = mix(np.arange(1, 257, dtype=np.uint64) * _ODD)


@functools.lru_cache(maxsize=2)
def _powers(length: int) -> tuple[Keys, Keys]:
    """P^i and P^-i for i < length."""
    both = []
    for base in (_ODD, _INVERSE):
        factors = np.full(length, base, dtype=np.uint64)
        factors[0] = 1
        both.append(np.cumprod(factors, dtype=np.uint64))
    return both[0], both[1]


def span_hashes(buffer: Bytes, starts: Ints, ends: Ints) -> Keys:
    """A 64-bit hash of `buffer[starts[i]:ends[i]]` for each i; starts and ends ascend."""
    out = np.empty(len(starts), dtype=np.uint64)
    for at in range(0, len(starts), _WORDS):
        first, last = starts[at : at + _WORDS], ends[at : at + _WORDS]
        low, high = int(first[0]), int(last[-1])
        power, inverse = _powers(max(1 << 17, 1 << (high - low).bit_length()))
        sums = np.zeros(high - low + 1, dtype=np.uint64)
        terms = _BYTE[buffer[low:high]]
        terms *= power[: high - low]
        np.cumsum(terms, out=sums[1:])
        out[at : at + _WORDS] = (sums[last - low] - sums[first - low]) * inverse[first - low]
    return mix(out)


def shingles(batch: Words, ngram: int) -> tuple[Keys, Ints]:
    """Shingle hashes of a batch and the offsets of each document; a short document has none."""
    counts = np.maximum(np.diff(batch.offsets) - (ngram - 1), 0)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    first = np.repeat(batch.offsets[:-1], counts) + inside
    return span_hashes(batch.buffer, batch.starts[first], batch.ends[first + (ngram - 1)]), offsets


def document_hashes(
    documents: Sequence[Buffer], ngram: int, loose: bool = True
) -> tuple[Keys, Ints]:
    """Shingle hashes of a batch of documents in loose or plain form, at least one for each.

    Documents of fewer than `ngram` words have one shingle: their whole plain form (numbers and
    accents kept), or their very bytes where that is empty.
    """
    hashes, offsets = shingles(words(documents, loose=loose).cut(), ngram)
    counts = np.diff(offsets)
    short = np.flatnonzero(counts == 0)
    if len(short) == 0:
        return hashes, offsets
    few = [documents[i] for i in short.tolist()]
    plain = words(few, loose=False)
    texts = [plain.text(i) for i in range(len(few))]
    whole = [
        xxhash.xxh3_64_intdigest(text, 1) if len(text) else xxhash.xxh3_64_intdigest(raw, 2)
        for text, raw in zip(texts, few, strict=True)
    ]
    hashes = np.insert(hashes, offsets[short], np.array(whole, dtype=np.uint64))
    return hashes, np.concatenate([[0], np.cumsum(np.maximum(counts, 1))]).astype(np.int64)


def signatures(hashes: Keys, offsets: Ints, slots: int, seed: int) -> npt.NDArray[np.uint32]:
    """[documents, slots] minima; document d has the hashes `offsets[d]` to `offsets[d + 1]`."""
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, offsets.astype(np.uint64), slots, seed
    )
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(offsets) - 1, slots)


def band_keys(minima: npt.NDArray[np.uint32], bands: int) -> Keys:
    """[documents, bands] hashes of the slots of each band."""
    parts = minima.reshape(len(minima), bands, -1)
    keys = np.zeros(parts.shape[:2], dtype=np.uint64)
    for row in range(parts.shape[2]):
        keys = mix((keys + _ODD) ^ parts[:, :, row])
    return keys
