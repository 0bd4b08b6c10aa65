"""What detectors found: documents with each reason, and some of the places.

Read from every column of findings (`pipeline/findings.py`) beside the corpus. Of a detector:

    documents   those it judged
    any         those with a finding or more
    reason      those with a finding of that reason, and how many findings they have in all
    kept        the same among the judged documents that the run kept

Shares carry Wilson's 95 % interval: counts are exact, and the interval tells how far they would
move in other documents of the same kind. Examples of a reason are the documents with the smallest
draws of their ids, the first place in each, masked. Cost: one pass over the columns of findings,
and the row groups that hold the examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import StoreError
from foresift.pipeline.findings import is_findings
from foresift.pipeline.tables import hex_id
from foresift.stages.report.contents import Bools, Contents, Scored
from foresift.stages.report.examples import read_texts
from foresift.stages.report.highlight import Marked, marked
from foresift.stages.report.intervals import Interval, share
from foresift.stages.report.mask import origin
from foresift.stages.report.sample import draws

#: reasons listed of a detector, those with examples, and examples of each
LISTED, SHOWN, EACH = 40, 12, 2
#: reasons of a detector that are told apart; what comes later is summed up
MOST = 1000
OTHER = "(further reasons)"
Ints = npt.NDArray[np.int64]


class Place(NamedTuple):
    """Where an example lies; sorts by draw."""

    draw: float
    id: bytes
    shard: int
    row: int
    start: int
    stop: int
    value: float


@dataclass(frozen=True)
class Shown:
    """One place that was found, as the page shows it."""

    id: str
    source: str
    n_tokens: int
    value: float
    text: Marked


@dataclass(frozen=True)
class Reason:
    """One thing that a detector looks for."""

    name: str
    documents: int
    findings: int
    share: Interval | None
    """Of the documents that the detector judged."""
    kept: int
    kept_share: Interval | None
    """Of the judged documents that were kept."""
    examples: list[Shown]


@dataclass(frozen=True)
class Detector:
    """What one detector found."""

    name: str
    documents: int
    kept: int
    any: int
    """Documents with a finding."""
    any_share: Interval | None
    """Of the documents that it judged."""
    reasons: list[Reason]
    """The most frequent first."""
    further: int
    """Reasons that are not listed."""


@dataclass(frozen=True)
class Found:
    """The section; `trouble` says why no text could be read."""

    detectors: list[Detector]
    """In the order in which they ran."""
    trouble: str = ""


@dataclass
class _Tally:
    """Counts of one reason."""

    documents: int = 0
    findings: int = 0
    kept: int = 0
    places: list[Place] = field(default_factory=list)


@dataclass
class _Counts:
    """Counts of one detector."""

    documents: int = 0
    kept: int = 0
    any: int = 0
    reasons: dict[str, _Tally] = field(default_factory=dict)

    def tally(self, reason: str) -> _Tally:
        known = reason in self.reasons or len(self.reasons) < MOST
        return self.reasons.setdefault(reason if known else OTHER, _Tally())

    def ranked(self) -> list[tuple[str, _Tally]]:
        return sorted(self.reasons.items(), key=lambda pair: (-pair[1].documents, pair[0]))


def found(contents: Contents) -> Found | None:
    """The section; None where no detector ran."""
    columns = [c for c in contents.columns if is_findings(c.dtype)]
    if not columns:
        return None
    counts = count(contents, columns)
    shown = [t.places for each in counts.values() for _, t in each.ranked()[:SHOWN]]
    texts, trouble = _texts(contents, [place for places in shown for place in places])
    return Found([_detector(name, each, texts) for name, each in counts.items()], trouble)


def count(contents: Contents, columns: list[Scored]) -> dict[str, _Counts]:
    """Name of a step -> what its findings amount to, counted shard by shard."""
    counts = {c.step: _Counts() for c in columns}
    for number, (shard, plan) in enumerate(contents.plan(["kept"])):
        table = shard.load(["id", *(c.name for c in columns)])
        kept = np.asarray(plan["kept"])
        for column in columns if len(kept) else ():
            told = table[column.name].combine_chunks()
            _add(counts[column.step], told, table["id"], kept, number)
    return counts


def _add(
    counts: _Counts, told: pa.ListArray, ids: pa.ChunkedArray, kept: Bools, number: int
) -> None:
    """Add the findings of one shard."""
    judged = np.asarray(told.is_valid())
    counts.documents += int(judged.sum())
    counts.kept += int((judged & kept).sum())
    rows = np.asarray(pc.list_parent_indices(told), dtype=np.int64)
    counts.any += len(np.unique(rows))
    flat = pc.list_flatten(told)
    reasons = flat.field("reason").fill_null("").dictionary_encode()
    codes = np.asarray(reasons.indices, dtype=np.int64)
    pairs, first = np.unique(codes * len(told) + rows, return_index=True)
    names = reasons.dictionary.to_pylist()
    times = np.bincount(codes, minlength=len(names))
    draw = draws(ids)
    for code, name in enumerate(names):
        low, high = np.searchsorted(pairs, [code * len(told), (code + 1) * len(told)])
        where = first[low:high]
        tally = counts.tally(name)
        tally.documents += len(where)
        tally.findings += int(times[code])
        tally.kept += int(kept[rows[where]].sum())
        _, distinct = np.unique(draw[rows[where]], return_index=True)
        best = _places(flat, where[distinct[:EACH]], rows, ids, draw, number)
        tally.places = _best([*tally.places, *best])


def _places(
    flat: pa.StructArray, which: Ints, rows: Ints, ids: pa.ChunkedArray,
    draw: npt.NDArray[np.float64], number: int,
) -> Iterator[Place]:  # fmt: skip
    some = flat.take(pa.array(which))
    for at, row in enumerate(rows[which].tolist()):
        told = some[at].as_py()
        value = float("nan") if told["value"] is None else told["value"]
        place = Place(
            float(draw[row]), ids[row].as_py(), number, row, told["start"], told["stop"], value
        )
        yield place


def _best(places: list[Place]) -> list[Place]:
    """The smallest draws, each document once."""
    chosen: dict[bytes, Place] = {}
    for place in sorted(places, key=lambda p: p[:6]):
        chosen.setdefault(place.id, place)
    return list(chosen.values())[:EACH]


Texts = Mapping[Place, Shown]


def _texts(contents: Contents, places: list[Place]) -> tuple[dict[Place, Shown], str]:
    """Each place as it is shown, and what went wrong; a page without texts is better than none."""
    wanted: dict[tuple[int, int], list[Place]] = {}
    for place in places:
        wanted.setdefault((place.shard, place.row), []).append(place)
    cut: dict[Place, Marked] = {}
    trouble = ""
    where = sorted({(p.shard, p.row, p.id) for p in places})
    try:
        for key, text in read_texts(Corpus(contents.base), where):
            cut |= {place: marked(text, place.start, place.stop) for place in wanted[key]}
    except (OSError, StoreError, pa.ArrowException) as error:
        trouble = str(error)
    about = _about(contents, where)
    empty = Marked("", "", "")
    return {
        p: Shown(hex_id(p.id)[:12], *about[p.shard, p.row], p.value, cut.get(p, empty))
        for p in places
    }, trouble


def _about(
    contents: Contents, where: list[tuple[int, int, bytes]]
) -> dict[tuple[int, int], tuple[str, int]]:
    """(shard, row) -> source and tokens of a document."""
    found: dict[tuple[int, int], tuple[str, int]] = {}
    for number, shard in enumerate(contents.shards):
        rows = [row for n, row, _ in where if n == number]
        if rows:
            table = shard.load(["source", "n_tokens"]).take(pa.array(rows, pa.int64()))
            for row, told in zip(rows, table.to_pylist(), strict=True):
                found[number, row] = (origin(told["source"]), told["n_tokens"] or 0)
    return found


def _detector(name: str, counts: _Counts, texts: Texts) -> Detector:
    ranked = counts.ranked()
    reasons = [
        Reason(
            reason, t.documents, t.findings, share(t.documents, counts.documents),
            t.kept, share(t.kept, counts.kept), [texts[p] for p in t.places if p in texts],
        )
        for reason, t in ranked[:LISTED]
    ]  # fmt: skip
    any_share = share(counts.any, counts.documents)
    further = max(0, len(ranked) - LISTED)
    return Detector(name, counts.documents, counts.kept, counts.any, any_share, reasons, further)
