"""What the detectors of wrong labels share: their samples, and what they say of each.

    sample     a document with a label: exact copies with one label are one sample, a document that
               stands there with two labels is two
    flagged    a sample whose label a detector takes for wrong, by its own rule
    proposal   keep         not flagged, or not judged
               re_annotate  flagged, and the evidence for the suggested label is at least
                            `re_annotate_at`
               eliminate    flagged, and no other label is sure enough

A sample without evidence (no vector, no word, not in the log) is not judged: NaN, no suggestion,
`keep`. A row without a label has no proposal. Results are kept by a key of id and label, so that a
row gets what was found for its document and its own label. Cost: some 100 bytes a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.labels import LISTED, labels, named
from foresift.pipeline.nouns import Arrays
from foresift.pipeline.store import Facts, read_json, write_json
from foresift.pipeline.tables import ID, Column, first_copies, id_words

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]
REASON = "label_noise"
PROPOSALS = ("keep", "re_annotate", "eliminate")
KEEP, RE_ANNOTATE, ELIMINATE = range(3)
_NAMES = "labels.json"

#: columns that every detector of wrong labels gives
COLUMNS: Mapping[str, Column] = {
    "noise": Column(pa.float32(), "probability that the label is wrong", "lower"),
    "utility": Column(pa.float32(), "1 - noise", "higher"),
    "quality": Column(pa.float32(), "quality of the label, 0 to 1", "higher"),
    "suggested": Column(pa.string(), "label with the most evidence"),
    "proposal": Column(pa.string(), "keep, re_annotate or eliminate"),
    "findings": FOUND,
}


@dataclass(frozen=True, eq=False)
class Samples:
    """The distinct (document, label) pairs of a table, by the ids of their documents."""

    names: Sequence[str]
    """Labels; numbers of labels are places in it."""
    label: Rows
    """[m] number of each sample's label."""
    document: Rows
    """[m] which of the documents it is, ascending."""
    words: Words
    """[d, 2] ids of the documents, ascending."""
    rows: Rows
    """[d] a row of the table for each document: its first with a label."""
    first: Rows
    """[m] the first row of each sample."""
    unlabelled: int
    """Rows without a label."""

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def of(cls, table: pa.Table, column: str, usable: Bools | None = None) -> Samples:
        """The samples of a table with columns `id` and `column`, or of its usable rows."""
        names, code = labels(table, column)
        have = code >= 0
        rows = np.flatnonzero(have if usable is None else have & usable)
        words = id_words(table["id"])[rows]
        order = np.lexsort((code[rows], words[:, 1], words[:, 0]))  # stable
        rows, words = rows[order], words[order]
        new = first_copies(words)
        document = np.cumsum(new) - 1
        pair = new.copy()
        pair[1:] |= code[rows][1:] != code[rows][:-1]
        return cls(
            names=names, label=code[rows][pair], document=document[pair], words=words[new],
            rows=rows[new], first=rows[pair], unlabelled=int((~have).sum()),
        )  # fmt: skip

    @property
    def counts(self) -> Rows:
        """[K] samples of each label."""
        return np.bincount(self.label, minlength=len(self.names)).astype(np.int64)

    @property
    def ids(self) -> pa.Array:
        """The ids of the documents as a column."""
        return as_ids(self.words)

    def among(self, classes: Sequence[str], where: str) -> Samples:
        """The same with these labels, in this order; DataError where one is not among them."""
        place = {name: i for i, name in enumerate(classes)}
        if lost := [name for name in self.names if name not in place]:
            raise DataError(f"labels that `classes` does not name: {named(lost)}", where=where)
        number = np.array([place[name] for name in self.names], dtype=np.int64)
        return replace(self, names=list(classes), label=number[self.label])

    def several(self, where: str) -> None:
        """DataError where there are not two labels: nothing could be said of them."""
        present = np.flatnonzero(self.counts)
        if len(present) < 2:
            have = f"the one label {self.names[present[0]]!r}" if len(present) else "no label"
            raise DataError(
                f"{len(self.words)} documents that could be judged have {have}; at least two are "
                "needed to tell a wrong one",
                where=where,
            )


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What a detector says of samples; [m] each."""

    noise: Floats
    """NaN: not judged."""
    quality: Floats
    suggested: Rows
    """Number of a label, -1: none."""
    sure: Floats
    """Evidence for the suggested label, 0 to 1."""
    flagged: Bools
    more: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Further columns of floats; whole numbers are those of labels."""

    def spread(self, which: Rows, m: int) -> Verdicts:
        """The same for m samples, of which these were judged and the others were not."""

        def wide(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            nothing: Any = {"f": np.nan, "i": -1, "b": False}[values.dtype.kind]
            found = np.full(m, nothing, dtype=values.dtype)
            found[which] = values
            return found

        return Verdicts(
            noise=wide(self.noise), quality=wide(self.quality), suggested=wide(self.suggested),
            sure=wide(self.sure), flagged=wide(self.flagged),
            more={name: wide(values) for name, values in self.more.items()},
        )  # fmt: skip

    def proposals(self, samples: Samples, re_annotate_at: float | None) -> npt.NDArray[np.int8]:
        """[m] places in PROPOSALS."""
        found = np.where(self.flagged & ~np.isnan(self.noise), ELIMINATE, KEEP).astype(np.int8)
        other = (self.suggested >= 0) & (self.suggested != samples.label)
        if re_annotate_at is not None:
            found[(found == ELIMINATE) & other & (self.sure >= re_annotate_at)] = RE_ANNOTATE
        return found


def aligned(
    samples: Samples, classes: Sequence[str], width: int, column: str, label: str
) -> Samples:
    """Samples whose labels are the places of probabilities of this width; DataError otherwise."""
    if classes:
        samples = samples.among(classes, label)
    if width != len(samples.names):
        raise DataError(
            f"{width} probabilities a row for {len(samples.names)} "
            + ("classes" if classes else "labels; name the label of each place in `classes`"),
            where=column,
        )
    return samples


def checked_threshold(name: str, value: float | None) -> None:
    """ValueError where a threshold is no probability."""
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1")


def as_ids(words: Words) -> pa.Array:
    """[n, 2] words as a column of ids."""
    raw = np.ascontiguousarray(words).tobytes()
    return pa.Array.from_buffers(ID, len(words), [None, pa.py_buffer(raw)])


def keys(words: Words, label: Rows, names: Sequence[str]) -> Words:
    """[m, 2] a key of id and label: the label's hash is folded into the second word."""
    hashes = [xxhash.xxh3_64_intdigest(f"label {name}".encode()) for name in names]
    found = words.copy()
    if len(names):
        known = label >= 0
        found[known, 1] ^= np.array(hashes, dtype=np.uint64)[label[known]]
    return found


def places(known: Words, wanted: Words) -> Rows:
    """The place of each wanted id among the known ones (both distinct), -1 where it is not."""
    both = np.concatenate([known, wanted])
    order = np.lexsort((np.arange(len(both)), both[:, 1], both[:, 0]))
    ranked = both[order]
    group = np.cumsum(first_copies(ranked)) - 1
    at = np.full(group[-1] + 1 if len(group) else 0, -1, dtype=np.int64)
    mine = order < len(known)
    at[group[mine]] = order[mine]
    found = np.empty(len(wanted), dtype=np.int64)
    found[order[~mine] - len(known)] = at[group[~mine]]
    return found


def write(out: Path, samples: Samples, verdicts: Verdicts, re_annotate_at: float | None) -> Facts:
    """Keep what was found of each sample; the counts of it."""
    proposals = verdicts.proposals(samples, re_annotate_at)
    key = keys(samples.words[samples.document], samples.label, samples.names)
    order = np.lexsort((key[:, 1], key[:, 0]))
    judged = ~np.isnan(verdicts.noise)
    arrays: dict[str, npt.NDArray[Any]] = {
        "noise": verdicts.noise.astype(np.float32),
        "quality": verdicts.quality.astype(np.float32),
        "suggested": np.where(judged, verdicts.suggested, -1).astype(np.int32),
        "proposal": proposals,
        **verdicts.more,
    }
    write_by_id(out, key[order], {name: values[order] for name, values in arrays.items()})
    write_json(out / _NAMES, {"names": list(samples.names)})
    return _counted(samples, verdicts, proposals)


def read(out: Path, batch: pa.Table, column: str) -> Arrays:
    """The columns of the rows of a batch, COLUMNS and `more`."""
    known = read_json(out / _NAMES)["names"]
    names, code = labels(batch, column)
    found = read_by_id(out, as_ids(keys(id_words(batch["id"]), code, names)))
    for values in found.values():
        values[code < 0] = np.nan if values.dtype.kind == "f" else -1
    proposal: npt.NDArray[np.int8] = np.maximum(found.pop("proposal"), KEEP)
    told = Findings(batch.num_rows)
    told.whole(REASON, proposal > KEEP, found["noise"])
    columns = {n: v if v.dtype.kind == "f" else _strings(known, v) for n, v in found.items()}
    return {
        **columns, "utility": 1 - found["noise"], "findings": told.array(),
        "proposal": _strings(PROPOSALS, np.where(code < 0, -1, proposal)),
    }  # fmt: skip


def _strings(names: Sequence[str], number: npt.NDArray[Any]) -> pa.Array:
    """Names by number, null for -1."""
    values = pa.array(names, pa.string())
    return values.take(pa.array(number.astype(np.int64), mask=number < 0))


def _counted(samples: Samples, verdicts: Verdicts, proposals: npt.NDArray[np.int8]) -> Facts:
    """Documents, labels, what was judged, and what is proposed, with warnings."""
    judged = ~np.isnan(verdicts.noise)
    several = int((np.bincount(samples.document) > 1).sum()) if len(samples) else 0
    counts = samples.counts
    warnings = []
    if samples.unlabelled:
        warnings.append(f"{samples.unlabelled} rows have no label and are not judged")
    if several:
        warnings.append(
            f"{several} documents stand there with more than one label; each label is judged by "
            "itself"
        )
    if unjudged := int((~judged).sum()):
        warnings.append(
            f"{unjudged} of {len(judged)} labels are not judged for want of evidence and kept"
        )
    single = [samples.names[i] for i in np.flatnonzero(counts == 1).tolist()]
    if single:
        warnings.append(f"labels of one document, which nothing supports: {named(single)}")
    return {
        "documents": len(samples.words), "labels": int((counts > 0).sum()),
        "unlabelled": samples.unlabelled, "several": several, "judged": int(judged.sum()),
        "proposals": {n: int((proposals == i).sum()) for i, n in enumerate(PROPOSALS)},
        "confusions": confusions(samples, verdicts), "warnings": warnings,
    }  # fmt: skip


def confusions(samples: Samples, verdicts: Verdicts) -> list[dict[str, Any]]:
    """Given and suggested labels of what was flagged, the most frequent pairs first."""
    flagged = verdicts.flagged & (verdicts.suggested >= 0) & ~np.isnan(verdicts.noise)
    wide = len(samples.names) + 1
    pair = samples.label[flagged] * wide + verdicts.suggested[flagged]
    kinds, number = np.unique(pair, return_counts=True)
    shown = np.argsort(-number, kind="stable")[:LISTED]
    return [
        {
            "given": samples.names[kinds[i] // wide], "suggested": samples.names[kinds[i] % wide],
            "documents": int(number[i]),
        }
        for i in shown
    ]  # fmt: skip
