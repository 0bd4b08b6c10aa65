"""Junk by the rules of the brain-rot study, and by what can be seen in the text alone.

    m1    true:  engagement > 500 and length < 30       popular and short
          false: engagement <= 500 and length > 100     the study's control
          null:  neither, or no engagement column
    m2    true / false: what a judge said of the text: an answer with JUNK or HIGH-QUALITY in it, or
          a rating below / from `quality_below`; null: nothing, or an answer that cannot be read
    junk  1 - (1 - repetition)(1 - noise)(1 - brevity)(1 - cues)               utility = -junk

    zlib_ratio   bytes after deflate (level 6) / bytes of the first 64 KiB; NaN for an empty text
    repetition   1 below a ratio of 0.1, falling to 0 at 0.3      } texts of 512 bytes and more; in
    noise        0 below 0.7, 1 from 0.8 on (random text, keys)   } shorter ones nothing repeats
    brevity      1 - words / brief below `brief` words (30)
    cues         1 - exp(-x / 8), x = signs of junk in 100 words, or in all where there are fewer

Half of ordinary pages have a ratio of 0.41 (long) to 0.57 (short), one in a hundred less than 0.3;
of source code one in ten less than 0.2. Signs are bait, promotion, shouting and small talk
(`_junk_cues.py`; English). M1 and M2 are labels, not part of `junk`: length and popularity
are not the same harm, and popularity was the better predictor. Junk is short, so compare selections
at equal tokens, never at equal documents.

These are rules, not a judge of quality. They tell a third of junk planted among tweets with an area
under the ROC curve of 0.71 (length: 0.63), pages that people keep from others hardly (0.53); SMS
spam is longer than other messages, so that brevity points the wrong way there (0.24), and the signs
alone (0.82) are behind length (0.88). `quality_classifier`, given labels, reaches 0.90, 0.87 and
0.99.

For M2 score with `judge` before and name `judge.utility`, or bring a column of answers; or use
`quality_classifier`, which learns from labels. Findings: the signs with their places; repetitive,
incompressible (value: ratio), brief (words), m1, m2 for the whole document. Rows stand alone.
Errors: engagement or length that is no number. Cost: some 2 MB/s. Source: Xing et al. 2025, "LLMs
Can Get Brain Rot", its definitions of M1 and M2; `junk` and its cut points are ours.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.labels import numbers
from foresift.pipeline.nouns import Arrays, Scorer
from foresift.pipeline.tables import Column, content_texts
from foresift.scorers._junk_cues import cues

Floats = npt.NDArray[np.float64]
READ, LEAST = 1 << 16, 512
#: ratio at which repetition begins and is whole, and the same of noise
REPEATS, NOISE = (0.3, 0.1), (0.7, 0.8)
CUES = 8.0
_JUNK, _GOOD = re.compile(r"\bjunk\b", re.I), re.compile(r"\bhigh[-_ ]?quality\b", re.I)


@dataclass(frozen=True, kw_only=True)
class Junk(Scorer):
    """Junk: popular and short (M1), rated low (M2), repetitive, random, brief, or full of bait."""

    engagement: str = ""
    """Column of likes, shares or views; none if empty: no M1."""
    popular: float = 500.0
    """Engagement above which a document is popular (M1)."""
    length: str = "n_tokens"
    """Column of lengths for M1."""
    short: float = 30.0
    """Length below which a popular document is junk (M1)."""
    long: float = 100.0
    """Length above which an unpopular one is control (M1)."""
    brief: int = 30
    """Words below which a text says little; 0: none does (chats, questions, messages)."""
    quality: str = ""
    """Column with a rating, or with the answer of a judge; none if empty: no M2."""
    quality_below: float = 5.0
    """Rating below which a document is junk (M2)."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "minus junk", "higher"),
        "junk": Column(pa.float64(), "0 to 1", "lower"),
        "zlib_ratio": Column(pa.float64(), "bytes after deflate / bytes"),
        "cues": Column(pa.float64(), "signs of junk in 100 words", "lower"),
        "m1": Column(pa.bool_(), "junk by engagement and length"),
        "m2": Column(pa.bool_(), "junk by a judge"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        if not self.short <= self.long or self.brief < 0:
            raise ValueError("short is at most long, and brief not negative")

    @property
    def needs(self) -> tuple[str, ...]:
        length = self.length if self.engagement else ""
        return tuple(dict.fromkeys(n for n in (self.engagement, length, self.quality) if n))

    def score(self, batch: pa.Table) -> Arrays:
        texts, found = content_texts(batch), Findings(batch.num_rows)
        sizes = np.array([len(t.encode()) for t in texts], dtype=np.int64)
        ratio = np.array([zlib_ratio(t) for t in texts], dtype=np.float64)
        words = np.array([len(t.split()) for t in texts], dtype=np.float64)
        signs = np.zeros(len(texts))
        for row, text in enumerate(texts):
            for reason, start, stop in cues(text):
                found.add(row, reason, start, stop)
                signs[row] += 1
        per_hundred = signs / np.maximum(words / 100, 1)
        enough = sizes >= LEAST
        repetition = np.where(enough, _ramp(ratio, *REPEATS), 0.0)
        noise = np.where(enough, _ramp(ratio, *NOISE), 0.0)
        brevity = np.maximum(1 - words / self.brief, 0.0) if self.brief else 0 * words
        clean = (1 - repetition) * (1 - noise) * (1 - brevity) * np.exp(-per_hundred / CUES)
        m1, m2 = self._m1(batch), self._m2(batch)
        found.whole("repetitive", repetition > 0, ratio)
        found.whole("incompressible", noise > 0, ratio)
        found.whole("brief", brevity > 0, words)
        for reason, said in (("m1", m1), ("m2", m2)):
            found.whole(reason, np.array([s is True for s in said], np.bool_), np.ones(len(texts)))
        return {
            "utility": clean - 1, "junk": 1 - clean, "zlib_ratio": ratio, "cues": per_hundred,
            "m1": m1, "m2": m2, "findings": found.array(),
        }  # fmt: skip

    def _m1(self, batch: pa.Table) -> list[bool | None]:
        if not self.engagement:
            return [None] * batch.num_rows
        likes, length = (
            numbers(batch, name, "engagement and length") for name in (self.engagement, self.length)
        )
        junk = (likes > self.popular) & (length < self.short)
        control = (likes <= self.popular) & (length > self.long)
        return [True if j else False if c else None for j, c in zip(junk, control, strict=True)]

    def _m2(self, batch: pa.Table) -> list[bool | None]:
        if not self.quality:
            return [None] * batch.num_rows
        return [verdict(v, self.quality_below) for v in batch[self.quality].to_pylist()]


def _ramp(values: Floats, start: float, end: float) -> Floats:
    """0 at `start`, 1 at `end`, in a line between; 0 for NaN."""
    found: Floats = np.clip((np.nan_to_num(values, nan=start) - start) / (end - start), 0, 1)
    return found


def verdict(value: Any, below: float) -> bool | None:
    """Whether a judge called it junk: a rating, or an answer that names one of the two classes."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return None if value != value else value < below
    junk, good = (bool(p.search(str(value or ""))) for p in (_JUNK, _GOOD))
    return junk if junk != good else None


def zlib_ratio(text: str) -> float:
    """Bytes after deflate without a header / bytes, of the beginning of a text."""
    raw = text.encode()[:READ]
    if not raw:
        return float("nan")
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return (len(packer.compress(raw)) + len(packer.flush())) / len(raw)
