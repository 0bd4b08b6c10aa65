"""Scores taken while a reader has the text in its hands: one pass over the corpus instead of two.

A plain scorer that looks at the corpus as it was read gives the same numbers from the reader's
batches as from the finished shards. A reader therefore writes the sidecars of such steps with its
shards. This saves time and decides nothing: a sidecar that is not there, because the shard was or
because a process was killed in between, is made by the score step as ever, and the score step alone
says when it is done. The bytes are the same either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.errors import placed
from foresift.pipeline.nouns import Scorer
from foresift.pipeline.plan import Step
from foresift.pipeline.scoring import Sidecar
from foresift.pipeline.store import StepDir, shard_facts
from foresift.pipeline.tables import BASE, content_columns


@dataclass(frozen=True)
class Beside:
    """The scores to take; small and picklable."""

    parts: tuple[Scorer, ...]
    outs: tuple[Path, ...]
    places: tuple[str, ...]
    """Where the recipe names them."""

    def open(self, shard: str) -> Collector:
        """Begin a shard; scores that are there already are not taken again."""
        found = zip(self.parts, self.outs, self.places, strict=True)
        missing = [(p, o, w) for p, o, w in found if not StepDir(o).shard(shard).exists()]
        return Collector([Sidecar(p, o) for p, o, _ in missing], [w for _, _, w in missing])


@dataclass
class Collector:
    """The scores of one shard as its batches come by."""

    sidecars: Sequence[Sidecar]
    places: Sequence[str]
    rows: int = field(default=0, init=False)

    def add(self, batch: pa.Table) -> None:
        """Score the rows of a batch (content and BASE columns) that are not held out."""
        alive = ~np.asarray(batch["holdout"], dtype=np.bool_)
        numbers = np.flatnonzero(alive) + self.rows
        self.rows += batch.num_rows
        if not len(numbers):
            return
        content = content_columns(batch.column_names)
        for sidecar, place in zip(self.sidecars, self.places, strict=True):
            needs = [n for n in sidecar.part.needs if n not in content]
            table = batch.select(list(dict.fromkeys(["id", *needs, *content])))
            with placed(place):
                sidecar.add(sidecar.part.score(table.filter(pa.array(alive))), numbers)

    def publish(self, base: Path) -> None:
        """Write the sidecars of the finished shard `base`."""
        with pq.ParquetFile(base) as file:
            ids = file.read(columns=["id"])["id"]
        for sidecar, place in zip(self.sidecars, self.places, strict=True):
            with placed(place):
                sidecar.publish(base.stem, ids, shard_facts(base)["ids"])


def beside(step: Step, steps: Iterable[Step]) -> Beside | None:
    """The scores that the reader of `step` can take: plain ones, of the corpus as it was read."""
    found = [s for s in steps if not s.done and _takes(s, step)]
    if step.verb != "read" or step.done or not found:
        return None
    parts = tuple(s.part for s in found if isinstance(s.part, Scorer))
    return Beside(parts, tuple(s.path for s in found), tuple(s.where for s in found))


def _takes(score: Step, read: Step) -> bool:
    corpus = score.inputs.corpus
    return bool(
        isinstance(score.part, Scorer)
        and corpus is not None
        and corpus.base == read.path
        and not corpus.masks
        and not corpus.holdout
        and set(score.part.needs) <= set(BASE)
    )
