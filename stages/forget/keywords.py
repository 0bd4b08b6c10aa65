"""Keywords: the words, names and numbers that carry a request.

    score(word) = weight(word) log((N + 1) / (df + 1))        N kept documents, df of them hold it
    weight      = how often the word stands in the forget set; with a model: the mean rise of the
                  loss that forgetting it should cause (`drops`: word -> nats), where it is given

Function words and words of one character are left out. Names and numbers are listed apart, by how
often they stand there: where a request is about a person they are most of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from foresift.stages.forget import _language as language

Spans = Callable[[str], list[tuple[int, int]]]


def keywords(
    texts: Sequence[str], df: Mapping[str, int], documents: int, most: int,
    drops: Mapping[str, float] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`words`, `names` and `numbers`, at most so many of each."""
    count = Counter(word for text in texts for word in language.content_words(text))
    ranked: list[tuple[float, str]] = []
    for word, times in count.items():
        weight = drops.get(word, 0.0) if drops is not None else float(times)
        rarity = math.log((documents + 1) / (df.get(word, 0) + 1))
        ranked.append((-round(weight * rarity, 6), word))
    words = [
        {"word": word, "score": -score, "count": count[word], "df": df.get(word, 0)}
        for score, word in sorted(ranked)[:most]
    ]
    return {
        "words": words,
        "names": _runs(texts, language.names, most),
        "numbers": _runs(texts, language.numbers, most),
        "documents": documents,
    }


def _runs(texts: Iterable[str], spans: Spans, most: int) -> list[dict[str, Any]]:
    count = Counter(" ".join(t[a:b].split()) for t in texts for a, b in spans(t))
    ranked = sorted(count.items(), key=lambda item: (-item[1], item[0]))
    return [{"text": text, "count": times} for text, times in ranked[:most]]
