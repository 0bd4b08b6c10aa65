"""Parts that only tests use, named `tests.parts:Class` in recipes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.nouns import Column, FittedScorer, Inputs, Job, Scorer, Shard, Stage, StepDir
from foresift.pipeline.parts import tuning
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts, ShardWriter
from foresift.pipeline.tables import content_bytes, content_ids, content_texts


@dataclass(frozen=True)
class WriteTexts:
    """Writes one shard of random words."""

    out: Path
    rows: int
    seed: int
    holdout: float

    def __call__(self, number: int) -> Facts:
        rng = np.random.default_rng([self.seed, number])
        words = [f"w{w}" for w in range(200)]
        texts = [" ".join(rng.choice(words, rng.integers(1, 60))) for _ in range(self.rows)]
        table = pa.table({"text": texts})
        ids = content_ids(table)
        size = content_bytes(table)
        table = (
            table.append_column("id", ids)
            .append_column(
                "source", pa.array([f"bucket{number % 2}/f#{i}" for i in range(self.rows)])
            )
            .append_column("holdout", pa.array(Rng(0).at("holdout").uniform(ids) < self.holdout))
            .append_column("n_bytes", pa.array(size))
            .append_column("n_tokens", pa.array(-(-size // 4)))
        )
        with ShardWriter(StepDir(self.out).shard(f"part-{number:05d}"), table.schema) as writer:
            writer.facts["n_bytes"] = int(size.sum())
            writer.write(table)
        return {}


@dataclass(frozen=True, kw_only=True)
class Texts(Stage):
    """A reader that makes its own text."""

    shards: int = 4
    rows: int = 40
    seed: int = 0
    holdout: float = 0.05
    pretend_bytes: int = 1 << 30
    """What it claims to have read; large, so that engines do not keep the work in this process."""
    columns: list[str] = field(default_factory=list)

    def inputs(self) -> list[tuple[str, str]]:
        return []

    def run(self, inputs: Inputs, out: StepDir, job: Job) -> Facts:
        task = WriteTexts(out.path, self.rows, self.seed, self.holdout)
        paths = [out.shard(f"part-{n:05d}") for n in range(self.shards)]
        facts = job.map_shards(task, list(range(self.shards)), paths, label="read texts")
        rows = sum(f["rows"] for f in facts)
        return {"rows_in": rows, "rows": rows, "rejected": 0, "n_bytes": self.pretend_bytes}


@dataclass(frozen=True, kw_only=True)
class Letters(Scorer):
    """Counts letters, slowly if asked, and dies now and then if asked."""

    columns: ClassVar[Mapping[str, Column]] = {
        "count": Column(pa.int64(), "characters"),
        "share": Column(pa.float32(), "fraction of letters", "higher"),
    }
    letter: str = "w"
    seconds: float = tuning(0.0)
    """Pause for each batch."""
    lethal: str = tuning("")
    """A folder: kills its own process once for every file found there."""

    def score(self, batch: pa.Table) -> dict[str, Any]:
        time.sleep(self.seconds)
        for file in sorted(Path(self.lethal).glob("*")) if self.lethal else []:
            try:
                file.unlink()
            except FileNotFoundError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        texts = content_texts(batch)
        count = np.asarray([t.count(self.letter) for t in texts], dtype=np.int64)
        return {"count": count, "share": count / np.maximum([len(t) for t in texts], 1)}


@dataclass(frozen=True, kw_only=True)
class Centred(FittedScorer):
    """The length of a document less the mean length of all alive ones."""

    columns: ClassVar[Mapping[str, Column]] = {
        "chars": Column(pa.float64(), "characters", "higher")
    }

    def fit(self, tables: Iterable[pa.Table], out: Path) -> None:
        lengths = [len(t) for table in tables for t in content_texts(table)]
        (out / "mean.json").write_text(json.dumps(float(np.mean(lengths))))

    def score(self, batch: pa.Table, out: Path) -> dict[str, Any]:
        mean = json.loads((out / "mean.json").read_text())
        return {"chars": [len(t) - mean for t in content_texts(batch)]}


@dataclass(frozen=True, kw_only=True)
class Wrong(Scorer):
    """Scores that are NaN, all the same, or missing, to see what becomes of them."""

    columns: ClassVar[Mapping[str, Column]] = {
        "nan": Column(pa.float32(), "none", "higher"),
        "same": Column(pa.float32(), "none", "higher"),
        "some": Column(pa.float32(), "none", "higher"),
    }

    def score(self, batch: pa.Table) -> dict[str, Any]:
        n = batch.num_rows
        lengths = np.asarray([len(t) for t in content_texts(batch)], dtype=np.float32)
        some = np.where(lengths % 2 == 0, np.nan, lengths)
        return {"nan": np.full(n, np.nan), "same": np.ones(n), "some": some}


__all__ = ["Centred", "Letters", "Shard", "Texts", "Wrong"]
