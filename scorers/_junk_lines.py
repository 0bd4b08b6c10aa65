"""Which lines of a page are content: a small logistic model of each line and its neighbours.

    p(content) = 1 / (1 + exp(-(w . x + b)))     x: the FEATURES of a line, empty lines left out

    words, before, behind, around   ln(1 + words) of the line, of the one before, of the one behind,
                                    and mean over the 3 lines on either side and itself
    ends      whether it ends a sentence
    titled    share of words that begin with a capital
    digits    share of digits
    menu      whether it has a phrase of menus and notices

The weights are a logistic regression on every second page of the article-extraction benchmark
(lines of the whole page against the marked body). On the lines of the other pages the area under
the ROC curve is 0.948, and 0.866 for the words of a line alone; `benchmarks/_detectors_junk.py`
measures it. Source of the idea: shallow text features (Kohlschütter et al. 2010, "boilerpipe").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
#: of a line in lower case
MENU = re.compile(
    r"\b(?:cookies?|subscri(?:be|ption)|newsletters?|sign (?:up|in)|log ?in|all rights|copyright|"
    r"privacy|terms (?:of|and)|advertis\w*|read more|see more|show more|learn more|click here|"
    r"share (?:this|on)|follow us|contact us|about us|skip to|back to|related|comments?|password|"
    r"menu|search|home ?page|site ?map|powered by|facebook|twitter|instagram|whatsapp|download|"
    r"e-?mail|next|previous|posted (?:by|in|on)|tags?|categor(?:y|ies)|loading|javascript|browser)"
    r"\b|©",
)
_END = re.compile(r"[.!?…][\"'”’)\]]*$")
FEATURES = ("words", "before", "behind", "around", "ends", "titled", "digits", "menu")
#: of the features above, and of the constant
WEIGHTS = np.array([-0.08, 0.17, 0.16, 2.36, 1.51, -1.31, -0.70, -1.49])
BIAS = -6.64
_AROUND = 3


@dataclass(frozen=True)
class Lines:
    """The lines of a text that are not empty."""

    spans: list[tuple[int, int]]
    """Characters of each, without spaces at its ends."""
    texts: list[str]

    @classmethod
    def of(cls, text: str) -> Lines:
        spans, texts, at = [], [], 0
        for line in text.split("\n"):
            bare = line.strip()
            if bare:
                start = at + line.index(bare[0])
                spans.append((start, start + len(bare)))
                texts.append(bare)
            at += len(line) + 1
        return cls(spans, texts)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return np.array([len(t) for t in self.texts], dtype=np.int64)

    def features(self) -> Floats:
        """[lines, FEATURES]."""
        own = np.array([_line(t) for t in self.texts], dtype=np.float64).reshape(-1, 5)
        long = np.log1p(own[:, 0])
        padded = np.concatenate([[0.0], long, [0.0]])
        sums = np.cumsum(np.concatenate([[0.0], long]))
        place = np.arange(len(long))
        low, high = np.maximum(place - _AROUND, 0), np.minimum(place + _AROUND + 1, len(long))
        around = (sums[high] - sums[low]) / np.maximum(high - low, 1)
        return np.column_stack([long, padded[:-2], padded[2:], around, own[:, 1:]])

    def content(self) -> Floats:
        """[lines] the probability that each is content."""
        found: Floats = 1.0 / (1.0 + np.exp(-(self.features() @ WEIGHTS + BIAS)))
        return found


def _line(text: str) -> tuple[float, ...]:
    words = text.split()
    count = len(words)
    return (
        count,
        _END.search(text) is not None,
        sum(w[0].isupper() for w in words) / count,
        sum(map(str.isdigit, text)) / len(text),
        MENU.search(text.lower()) is not None,
    )
