"""Facts that the forget set shares with documents that are kept: they must stay answerable (DUSK).

A fact is a sentence of a forgotten document with at least four content words. It is shared where
one sentence of a kept document holds at least `share` of its distinct content words. Wording may
differ in order and in function words, not in the words that carry the fact; a paraphrase by other
words is not found.

Of `share` n words that must agree, one is among the (n - ceil(share n) + 1) that are rarest in the
forget set; only these are looked up, and a document is cut into sentences only when enough words of
a fact stand anywhere in it. The result is that of comparing every pair.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foresift.stages.forget import _language as language
from foresift.stages.forget._rows import Row
from foresift.stages.forget.probes import cloze

#: content words from which a sentence counts as a fact; documents that are listed for one
LEAST, LISTED = 4, 8


@dataclass(frozen=True)
class Fact:
    """A sentence of the forget set."""

    document: bytes
    text: str
    words: frozenset[str]
    need: int
    """Of its words that a sentence must hold."""


class Facts:
    """The facts of the forget set, and the kept documents that state them too."""

    def __init__(self, rows: Sequence[Row], share: float) -> None:
        found: dict[frozenset[str], Fact] = {}
        for row in sorted(rows, key=lambda r: r.id):
            for sentence in language.sentences(row.text):
                words = frozenset(language.content_words(sentence))
                if len(words) >= LEAST:
                    need = math.ceil(share * len(words) - 1e-9)
                    found.setdefault(words, Fact(row.id, sentence, words, need))
        self.facts = list(found.values())
        rarity = Counter(word for fact in self.facts for word in fact.words)
        self._index: dict[str, list[int]] = {}
        for number, fact in enumerate(self.facts):
            rarest = sorted(fact.words, key=lambda w: (rarity[w], w))
            for word in rarest[: len(rarest) - fact.need + 1]:
                self._index.setdefault(word, []).append(number)
        self.vocabulary = {word for fact in self.facts for word in fact.words}
        self._support: dict[int, set[bytes]] = {}

    def look(self, id_: bytes, text: str, found: set[str]) -> None:
        """A kept document with these words of the vocabulary."""
        maybe = {number for word in found for number in self._index.get(word, ())}
        maybe = {n for n in maybe if len(self.facts[n].words & found) >= self.facts[n].need}
        if not maybe:
            return
        for sentence in language.sentences(text):
            words = set(language.content_words(sentence))
            for number in maybe:
                if len(self.facts[number].words & words) >= self.facts[number].need:
                    self._add(number, id_)

    def _add(self, number: int, id_: bytes) -> None:
        held = self._support.setdefault(number, set())
        held.add(id_)
        if len(held) > 8 * LISTED:
            self._support[number] = set(sorted(held)[:LISTED])

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the set `shared`: the fact, a question about it where it holds a name or
        number, and the first documents that keep it."""
        found = []
        for number, support in sorted(self._support.items()):
            fact = self.facts[number]
            asked = next(iter(cloze(fact.text)), None)
            found.append(
                {
                    "id": fact.document.hex(),
                    "text": fact.text,
                    "fact_question": asked[0] if asked else None,
                    "fact_answer": asked[1] if asked else None,
                    "supporting_doc_ids": [i.hex() for i in sorted(support)[:LISTED]],
                }
            )
        return found
