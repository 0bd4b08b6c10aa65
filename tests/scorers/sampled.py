"""Parts that ask the model about a sample, fitted and read as the pipeline does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline.lm.forward import score_window
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.nouns import FittedModelScorer, Job, Look, Reference, Rng
from foresift.pipeline.tables import content_ids
from tests.corpora import Serial, make_corpus

WORDS = ["the", "cow", "dog", "sat", "ran", "on", "mat", "hill", "a", "red", "big", "1", "2", "3"]


def texts(number: int, seed: int = 0) -> list[str]:
    """Short ones, each of them once."""
    rng = np.random.default_rng(seed)
    return [f"{k} " + " ".join(rng.choice(WORDS, rng.integers(2, 6))) for k in range(number)]


def fit(
    part: FittedModelScorer,
    shards: Sequence[Sequence[str]],
    spec: ModelSpec,
    tmp: Path,
    columns: Mapping[str, Any] | None = None,
    aim: Sequence[str] = (),
    out: str = "out",
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The columns of all rows in the order of the shards, and the facts."""
    pool = make_corpus(tmp / "pool", shards, columns=columns)
    aims = (Reference("aim", make_corpus(tmp / "aim", [aim])),) if aim else ()
    folder = tmp / out
    folder.mkdir(parents=True, exist_ok=True)
    facts = part.fit(Look(pool, aims, spec, Job(engine=Serial(), rng=Rng(3))), folder)
    table = pa.table({"text": [text for shard in shards for text in shard]})
    table = table.append_column("id", content_ids(table))
    for name, values in (columns or {}).items():
        table = table.append_column(name, pa.array([v for shard in values for v in shard]))
    found = score_window(table, spec, [part], [folder])[0][0]
    return {n: np.asarray(v, dtype=np.float64) for n, v in found.items()}, dict(facts)
