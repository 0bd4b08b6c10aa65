"""Neighbours: documents that stay, and are most likely to be harmed by unlearning.

    direct     the same family: the longest head of the key path in common with a forgotten document
               (at least its first component); within a file the nearest row numbers first. Where a
               longer head is found, what has only a part of that head is no family
    indirect   linked: sum of log((N + 1) / (df + 1)) over the names and words that stand in it and
               in the forget set, and in few of the N kept documents (`few`: 1 %, 4 to 16)
    style      near by form: distance to the nearest of up to 512 forgotten documents over log2 of
               the length and ten times the shares of capitals, lower case, digits, punctuation,
               space and line ends; 1 more where the first component of the source is another

Ranks depend on the document and the forget set (and df) alone; ties go by the draw of (seed, id).
Memory: the vocabulary of the forget set, 16 places for each of its words, and what is chosen.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foresift.pipeline.rng import Rng
from foresift.stages.forget import _language as language
from foresift.stages.forget._rows import Place, Row, draws_of

Floats = npt.NDArray[np.float64]
#: most documents that may hold a word which links, and forgotten documents that style looks at
POSTINGS, LOOKED_AT = 16, 512
#: characters from which a word links
LINKING = 5
_KINDS = bytes(
    ord("U") if 65 <= c <= 90 else ord("d") if 48 <= c <= 57 else ord("n") if c in (10, 13)
    else ord("s") if c in (9, 32) else ord("l") if 97 <= c <= 122 or c > 127 else ord("p")
    for c in range(256)
)  # fmt: skip
Found = tuple[tuple[Any, ...], str, Place, str]


class Best:
    """The `size` smallest keys, one for each id: (key, source, place, relation)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._held: dict[bytes, Found] = {}
        self._bound: tuple[Any, ...] | None = None

    def add(self, id_: bytes, key: tuple[Any, ...], source: str, place: Place, why: str) -> None:
        """Hold it if it may be among the smallest."""
        if self._bound is not None and key > self._bound:
            return
        found = (key, source, place, why)
        if id_ not in self._held or found[:2] < self._held[id_][:2]:
            self._held[id_] = found
        if len(self._held) > 2 * self.size + 64:
            self._held = dict(self.ranked())
            self._bound = max((f[0] for f in self._held.values()), default=())

    def ranked(self) -> list[tuple[bytes, Found]]:
        """The smallest, in order; equal keys by id."""
        every = sorted(self._held.items(), key=lambda item: (item[1][0], item[0]))
        return every[: self.size]


def key_path(source: str) -> tuple[str, ...]:
    """`bucket/file#row` as its components."""
    return tuple(part for part in re.split(r"[/#]", source) if part)


class Family:
    """The heads of the key paths of the forget set."""

    def __init__(self, sources: Iterable[str]) -> None:
        self._rows: dict[tuple[str, ...], list[int]] = {}
        for path in sorted({key_path(source) for source in sources}):
            for depth in range(1, len(path)):
                self._rows.setdefault(path[:depth], [])
            if len(path) > 1 and path[-1].isdecimal():
                bisect.insort(self._rows[path[:-1]], int(path[-1]))

    def rank(self, source: str) -> tuple[tuple[int, int], tuple[str, ...]] | None:
        """((-components in common, distance of row numbers), the head in common)."""
        path = key_path(source)
        for depth in range(len(path) - 1, 0, -1):
            rows = self._rows.get(path[:depth])
            if rows is None:
                continue
            if rows and depth == len(path) - 1 and path[-1].isdecimal():
                return (-depth, _distance(rows, int(path[-1]))), path[:depth]
            return (-depth, 1 << 62), path[:depth]
        return None


def _distance(rows: Sequence[int], row: int) -> int:
    at = bisect.bisect_left(rows, row)
    return min(abs(row - other) for other in rows[max(0, at - 1) : at + 1])


def closest_families(found: Sequence[tuple[bytes, Found]]) -> list[tuple[bytes, Found]]:
    """Those whose head in common is not a part of a longer one that was found."""
    heads = {key_path(f[3]) for _, f in found}
    parts = {head[:n] for head in heads for n in range(1, len(head))}
    return [(id_, f) for id_, f in found if key_path(f[3]) not in parts]


class Links:
    """Names and words of the forget set, and the few kept documents that hold each."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._names: dict[str, set[str]] = {}
        self._words: set[str] = set()
        for text in texts:
            for start, stop in language.names(text):
                name = " ".join(text[start:stop].split())
                self._names.setdefault(language.words(name)[-1], set()).add(name)
            self._words.update(
                w for w in language.content_words(text) if len(w) >= LINKING and w.isalpha()
            )
        self._held: dict[str, dict[bytes, tuple[str, Place]] | None] = {}

    @property
    def vocabulary(self) -> set[str]:
        """Words by which a document is known to hold a link."""
        return self._words | set(self._names)

    def look(self, id_: bytes, source: str, place: Place, text: str, found: set[str]) -> None:
        """A kept document with these words of the vocabulary."""
        terms = [word for word in found if word in self._words]
        terms += [n for w in found for n in self._names.get(w, ()) if n in text]
        for term in terms:
            held = self._held.setdefault(term, {})
            if held is None:
                continue
            if id_ not in held or source < held[id_][0]:
                held[id_] = (source, place)
            if len(held) > POSTINGS:
                self._held[term] = None

    def ranked(self, documents: int, rng: Rng) -> list[tuple[bytes, Found]]:
        """Every linked document, the strongest link first; `relation` is its best term."""
        few = max(4, min(POSTINGS, documents // 100))
        score: dict[bytes, list[tuple[float, str]]] = {}
        places: dict[bytes, tuple[str, Place]] = {}
        for term, held in self._held.items():
            if held and len(held) <= few:
                weight = math.log((documents + 1) / (len(held) + 1))
                for id_, place in held.items():
                    score.setdefault(id_, []).append((weight, term))
                    places[id_] = min(place, places.get(id_, place))
        draws = draws_of(rng, score)
        found: list[tuple[bytes, Found]] = []
        for id_, terms in score.items():
            best = min(terms, key=lambda t: (" " not in t[1], -t[0], t[1]))[1]
            total = math.fsum(weight for weight, _ in terms)
            found.append((id_, ((-total, draws[id_]), *places[id_], best)))
        return sorted(found, key=lambda item: (item[1][0], item[0]))


class Style:
    """The form of the forget set."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._forms = forms([row.text for row in rows[:LOOKED_AT]])
        self._heads = {key_path(row.source)[:1] for row in rows}

    def distances(self, texts: Sequence[str], sources: Sequence[str]) -> Floats:
        """[n] distance of each text to the nearest forgotten document."""
        mine = forms(texts)
        nearest = np.full(len(texts), np.inf)
        for form in self._forms:
            nearest = np.minimum(nearest, np.sqrt(((mine - form) ** 2).sum(axis=1)))
        away = [key_path(source)[:1] not in self._heads for source in sources]
        found: Floats = nearest + np.asarray(away, dtype=np.float64)
        return found


def forms(texts: Sequence[str]) -> Floats:
    """[n, 7] log2 of the length and ten times the shares of six kinds of characters (bytes)."""
    found = np.zeros((len(texts), 7))
    for row, text in enumerate(texts):
        raw = text.encode().translate(_KINDS)
        shares = [10 * raw.count(kind) / max(len(raw), 1) for kind in b"Uldpsn"]
        found[row] = [math.log2(len(raw) + 1), *shares]
    return found
