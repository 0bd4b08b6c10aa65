"""What is looked for, held so that a corpus can stream by: trigrams of words -> texts that hold it.

A text of the corpus is compared with a sought one when they share enough trigrams of words:

    near       a fifth of those of the shorter one
    substring  half of min(50 words, the sought text), counted in stretches of the corpus's text
               that are all trigrams of sought texts

Both are far below what a copy shares (at similarity 0.8 with words replaced evenly: two fifths).
Sought texts with the same plain form are one. A trigram names at most 64 of them.

Memory: about 30 bytes a word of the sought texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from foresift.pipeline.minhash import Keys, shingles
from foresift.pipeline.normal_text import Buffer, Ints, Words, words
from foresift.stages.forget._find_words import Flags, Text

#: words in a shingle, and texts that one shingle may name
NGRAM, OWNERS = 3, 64
#: shares of shingles from which a pair is looked at
NEAR_SHARE, RUN_SHARE = 0.2, 0.5


@dataclass(frozen=True)
class Sought:
    """A text that is looked for."""

    id: bytes
    key: int
    """Number of the key of the request that led to it."""
    raw: bytes
    given: bool = False
    """It stands in the request itself."""


@dataclass(frozen=True)
class Candidate:
    """A pair to be compared: number of the text in its batch, of the sought one, and as what."""

    text: int
    sought: int
    near: bool
    run: bool


@dataclass(frozen=True, eq=False)
class Index:
    """Sought texts, each plain form once."""

    sought: Sequence[Sought]
    texts: Sequence[Text]
    plain: dict[int, int]
    """xxh3-64 of the plain form -> number of the text."""
    sizes: Ints
    """Distinct shingles of each text."""
    hashes: Keys
    owners: npt.NDArray[np.int32]
    sieve: Flags
    """Whether a shingle whose first bits are these is sought."""
    least: int
    """Words below which a text has no near copies and lies in no other."""
    window: int
    """Words in a row that make a substring copy."""

    @classmethod
    def of(cls, sought: Iterable[Sought], least: int, window: int) -> Index:
        """Build it; of texts with one plain form the one given, or of the smallest id, stands."""
        kept: dict[int, Sought] = {}
        for one in sorted(sought, key=lambda s: (not s.given, s.id, s.key)):
            kept.setdefault(plain_key(words([one.raw], loose=False), 0, one.raw), one)
        texts = [Text.of(one.raw) for one in kept.values()]
        parts = [np.unique(shingles(t.batch, NGRAM)[0]) for t in texts if len(t) >= least]
        long = [n for n, t in enumerate(texts) if len(t) >= least]
        sizes = np.zeros(len(texts), dtype=np.int64)
        sizes[long] = [len(part) for part in parts]
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *parts])
        owners = np.repeat(np.arange(len(texts), dtype=np.int32), sizes)
        order = np.lexsort((owners, hashes))
        hashes, owners = hashes[order], owners[order]
        few = np.ones(len(hashes), dtype=np.bool_)
        few[OWNERS:] = hashes[OWNERS:] != hashes[:-OWNERS]
        hashes, owners = hashes[few], owners[few]
        sieve = np.zeros(1 << max(12, (8 * len(hashes)).bit_length()), dtype=np.bool_)
        sieve[_slot(hashes, sieve)] = True
        plain = {key: n for n, key in enumerate(kept)}
        numbers = list(kept.values())
        return cls(numbers, texts, plain, sizes, hashes, owners, sieve, least, window)

    def candidates(self, batch: Words) -> Iterator[Candidate]:
        """The pairs of a batch of texts that are worth comparing."""
        hashes, offsets = shingles(batch, NGRAM)
        hit = self.sieve[_slot(hashes, self.sieve)]
        places = np.flatnonzero(hit)
        if len(places) == 0 or len(self.hashes) == 0:
            return
        found = self.hashes[np.minimum(self._first(hashes[places]), len(self.hashes) - 1)]
        hit[places] = found == hashes[places]
        places = np.flatnonzero(hit)
        text = np.searchsorted(offsets, places, side="right") - 1
        counts = np.diff(offsets)
        near = self._shared(text, hashes[places])
        long = _stretches(hit, offsets)[places] >= self.least - (NGRAM - 1)
        runs = self._shared(text[long], hashes[places[long]])
        for (at, number), shared in sorted({**runs, **near}.items()):
            shortest = min(int(counts[at]), int(self.sizes[number]))
            whole = min(self.window - (NGRAM - 1), int(self.sizes[number]))
            close = near.get((at, number), 0) >= NEAR_SHARE * shortest
            within = runs.get((at, number), 0) >= RUN_SHARE * whole
            if shared and (close or within):
                yield Candidate(at, number, close, within)

    def _first(self, hashes: Keys) -> Ints:
        return np.searchsorted(self.hashes, hashes)

    def _shared(self, text: Ints, hashes: Keys) -> dict[tuple[int, int], int]:
        """(text, sought) -> distinct shingles that both have."""
        if len(text) == 0:
            return {}
        pairs = np.unique(np.stack([text.astype(np.uint64), hashes], axis=1), axis=0)
        low = self._first(pairs[:, 1])
        high = np.searchsorted(self.hashes, pairs[:, 1], side="right")
        counts = high - low
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        owner = self.owners[np.repeat(low, counts) + inside].astype(np.int64)
        both = np.repeat(pairs[:, 0].astype(np.int64), counts) * len(self.texts) + owner
        found, shared = np.unique(both, return_counts=True)
        at, number = np.divmod(found, len(self.texts))
        return dict(
            zip(zip(at.tolist(), number.tolist(), strict=True), shared.tolist(), strict=True)
        )


def plain_key(batch: Words, text: int, raw: Buffer) -> int:
    """A 64-bit hash of a plain form, or of the very bytes where it is empty."""
    plain = batch.text(text)
    if len(plain):
        return xxhash.xxh3_64_intdigest(plain, 1)
    return xxhash.xxh3_64_intdigest(raw, 2)


def _slot(hashes: Keys, sieve: Flags) -> npt.NDArray[np.int64]:
    slots: npt.NDArray[np.int64] = (hashes & np.uint64(len(sieve) - 1)).astype(np.int64)
    return slots


def _stretches(hit: Flags, offsets: Ints) -> Ints:
    """For each shingle the length of the stretch of hits it lies in, within its text; else 0."""
    fresh = np.ones(len(hit), dtype=np.bool_)
    fresh[1:] = hit[1:] != hit[:-1]
    fresh[offsets[:-1][np.diff(offsets) > 0]] = True
    starts = np.flatnonzero(fresh)
    lengths = np.diff([*starts, len(hit)])
    found: Ints = np.repeat(lengths, lengths) * hit
    return found
