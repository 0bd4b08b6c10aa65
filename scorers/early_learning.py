"""Labels that are likely wrong because a classifier that learned them first believed another one.

    t_i       <- beta t_i + (1 - beta) pbar_i      once an epoch, in the order of epochs (ELR)
    noise     = 1 - t_i[y] / sum t_i
    quality   = (margin + 1) / 2,   margin = t_i[y] - max_{c != y} t_i[c], of t over its sum
    suggested = argmax_c t_i[c]
    drift     = p_i[y] of the last epoch that is read - t_i[y] / sum t_i: learned late
    flagged   = suggested != y and noise >= flag_at

Networks fit right labels first and remember wrong ones later. The target t is what was believed
on the way, so it must be read before memorisation is over: `until` stops at an epoch, and the run
warns where t has come to agree with labels that early epochs contradicted. `disagree` among the
facts lists, for each epoch, the share of documents whose likeliest label is another than the given.

`log` holds predictions of each epoch (`_label_log.py` has its columns), written by any loop:

    rows = {"id": ids, "epoch": [epoch] * len(ids), "probabilities": list(p.tolist())}
    pq.write_table(pa.table(rows), f"log/epoch-{epoch:03}-{rank}.parquet")

Probabilities stand in the order of the labels, or of `classes`. A log of losses gives the
probability of the given label alone: noise, quality (= 1 - noise) and drift as above, flagged where
noise >= flag_at, and no suggestion. It is for classifiers and reward heads; a target for each
token of a language model is too large.

Not judged, with NaN and `keep`: documents that the log does not have, or only with numbers that are
not finite. Facts: epochs, disagree, regulariser (ELR's, of the last epoch). The fingerprint of the
step has the log's contents. Errors: no log, or one that fits no document; another number of labels.
Cost: a pass over the log an epoch; memory documents x labels float64.
Source: Liu et al. 2020 (NeurIPS, arXiv 2007.00151).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.errors import DataError
from foresift.pipeline.labels import label_text
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.parts import digest
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column
from foresift.pipeline.vectors import spooled
from foresift.scorers._label_log import EpochLog, clamped, contents, regulariser, updated
from foresift.scorers._label_samples import (
    COLUMNS,
    Samples,
    Verdicts,
    aligned,
    checked_threshold,
    places,
    read,
    write,
)

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
#: share of the early disagreement below which the target is said to have followed the labels
FOLLOWED = 0.5
LISTED = 100


@dataclass(frozen=True, kw_only=True)
class EarlyLearning(FittedScorer):
    """Probability that a label is wrong, by what a classifier in training believed before (ELR)."""

    label: str
    """Column of labels, numbers or strings: those that were trained on."""
    log: str
    """Parquet file or folder with the predictions of each epoch."""
    classes: tuple[str | int, ...] = ()
    """The label of each place in `probabilities`; empty: the labels in ascending order."""
    beta: float = 0.7
    """Share of the target that an epoch leaves; larger remembers longer."""
    until: int | None = None
    """Last epoch that is read; null: all."""
    flag_at: float = 0.5
    """Noise from which on a label is flagged."""
    re_annotate_at: float | None = 0.8
    """Share of the suggested label in the target from which on it is proposed; null: never."""

    reads_content: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = {
        **COLUMNS,
        "drift": Column(pa.float32(), "probability that the label gained late"),
    }

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError("beta must lie in [0, 1)")
        if len({label_text(c) for c in self.classes}) < len(self.classes):
            raise ValueError("classes must be distinct")
        checked_threshold("flag_at", self.flag_at)
        checked_threshold("re_annotate_at", self.re_annotate_at)

    @property
    def fingerprint(self) -> str:
        """What every part has, and the contents of the log."""
        return digest([super().fingerprint, contents(self.log)])

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.label,)

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        log, path = EpochLog(self.log), out / "rows.arrow"
        table = spooled(tables, ["id", self.label], path)
        path.unlink(missing_ok=True)
        samples = Samples.of(table, self.label)
        samples.several(self.label)
        if log.kind == "probabilities":
            names = [label_text(c) for c in self.classes]
            samples = aligned(samples, names, log.width, self.log, self.label)
        target, last, seen, facts = self._followed(log, samples)
        if not seen.any():
            raise DataError(
                f"no id of the log is one of the {len(samples.words)} documents", where=self.log
            )
        verdicts = _verdicts(target, last, seen, samples, log.kind, self.flag_at)
        told = write(out, samples, verdicts, self.re_annotate_at)
        return {**told, **facts, "warnings": told["warnings"] + _late(facts["disagree"], verdicts)}

    def _followed(self, log: EpochLog, samples: Samples) -> tuple[Floats, Floats, Rows, Facts]:
        """Targets and last probabilities of documents, the epochs each was seen in, and facts."""
        epochs = [e for e in log.epochs if self.until is None or e <= self.until]
        if not epochs:
            raise DataError(f"no epoch up to {self.until}", where=self.log)
        d = len(samples.words)
        target, last = np.zeros((d, log.width)), np.full((d, log.width), np.nan)
        seen, disagree, agreement = np.zeros(d, dtype=np.int64), [], None

        def place(words: npt.NDArray[np.uint64]) -> Rows:
            kinds, back = np.unique(words, axis=0, return_inverse=True)
            return places(samples.words, kinds)[back.reshape(-1)]

        for epoch in epochs:
            p, counts = log.epoch(epoch, place, d)
            here = np.flatnonzero(counts)
            if log.kind == "loss":
                target[here] = self.beta * target[here] + (1 - self.beta) * clamped(p[here])
            else:
                target[here] = updated(target[here], p[here], self.beta)
                agreement = regulariser(target[here], p[here]) if len(here) else None
            last[here] = p[here]
            seen[here] += 1
            disagree.append(_disagreement(p, counts, samples, log.kind))
        if log.kind == "loss":
            target /= 1 - self.beta ** np.maximum(seen, 1)[:, None]
        facts = {"epochs": len(epochs), "disagree": disagree[-LISTED:], "regulariser": agreement}
        return target, last, seen, facts

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        return read(out, batch, self.label)


def _disagreement(p: Floats, counts: Rows, samples: Samples, kind: str) -> float | None:
    """Share of the samples of an epoch whose likeliest label is another one."""
    which = np.flatnonzero(counts[samples.document] > 0)
    if not len(which):
        return None
    mine = p[samples.document[which]]
    if kind == "loss":
        return float((mine[:, 0] < 0.5).mean())
    return float((mine.argmax(axis=1) != samples.label[which]).mean())


def _verdicts(
    target: Floats, last: Floats, seen: Rows, samples: Samples, kind: str, flag_at: float
) -> Verdicts:
    """What the targets say of each sample."""
    t, p = target[samples.document], last[samples.document]
    here, there = np.arange(len(samples)), seen[samples.document] > 0
    if kind == "loss":
        own, late = t[:, 0], p[:, 0]
        best, sure = np.full(len(samples), -1), np.zeros(len(samples))
        quality, other = own, np.ones(len(samples), dtype=np.bool_)
    else:
        t = t / np.maximum(t.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        own, late = t[here, samples.label], p[here, samples.label]
        best = np.where(t.max(axis=1) <= own, samples.label, t.argmax(axis=1))
        sure, other = t.max(axis=1), best != samples.label
        t[here, samples.label] = 0
        quality = (own - t.max(axis=1) + 1) / 2

    def known(values: Any) -> Any:
        return np.where(there, values, np.nan)

    return Verdicts(
        noise=known(1 - own), quality=known(quality), suggested=best.astype(np.int64), sure=sure,
        flagged=there & other & (1 - own >= flag_at),
        more={"drift": known(late - own).astype(np.float32)},
    )  # fmt: skip


def _late(disagree: list[float | None], verdicts: Verdicts) -> list[str]:
    """A warning where the labels have been memorised by the last epoch."""
    shares = [share for share in disagree if share is not None]
    flagged = float(verdicts.flagged.sum() / max((~np.isnan(verdicts.noise)).sum(), 1))
    if len(shares) < 3 or shares[-1] >= FOLLOWED * flagged or not flagged:
        return []
    return [
        f"the last epoch contradicts {shares[-1]:.1%} of the labels, the target {flagged:.1%}: "
        "labels have been memorised; read the target earlier with `until`"
    ]
