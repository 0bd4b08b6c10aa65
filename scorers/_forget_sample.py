"""Scores that are too dear for every document: asked of a sample, and told of its clusters.

    sample      documents drawn by (seed, id), each cluster in turn where a `cluster` column is
                named; of exact copies one; ascending by id
    own         what was measured of a document of the sample; NaN outside it
    by_cluster  mean of `own` over the sampled documents of the row's cluster; NaN without a
                cluster, and where none of it was sampled
    utility     own, or by_cluster outside of the sample; larger = keep first
    `shared`    names of columns that a cluster has as a whole: told of all its rows

Whatever was measured lies in files under `out` (`pieces`), so a killed run goes on where it was:

    <out>/pieces/<name>.parquet  what `piece` measured      <out>/by_id/   own numbers
    <out>/clusters.parquet       label, mean of each        <out>/sample.json   facts, written last

The model is asked in float32 whatever the precision of the step's model: a step of a thousandth of
the weights is lost in bfloat16.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline import sampling
from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.errors import DataError
from foresift.pipeline.estimate import count_parameters
from foresift.pipeline.labels import labels
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.forward import cpu_threads
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.pipeline.lm.signals import Window, segment_sums
from foresift.pipeline.nouns import Arrays, FittedModelScorer, Look
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts, read_json, shard_facts, write_json, write_shard
from foresift.pipeline.tables import id_words

Floats = npt.NDArray[np.float64]
Numbers = Mapping[str, Floats]
#: tokens of a document, where a cost is guessed before anything is read
TOKENS = 300
#: documents whose numbers are published together
BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class AsksSample(FittedModelScorer):
    """What a part of this kind writes is `measure`, `main` and `sign`; the rest is here."""

    sample: str | int = 256
    """Documents of the pool that are asked: a number, or a share of them."""
    cluster: str = ""
    """Column of clusters: each is sampled in turn, and its mean is told of all its rows."""
    seed: int = 0
    """Seed of the draw."""

    shared: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def main(self) -> tuple[str, float]:
        """The column that utility is made of, and the sign that makes larger = keep first."""

    @abstractmethod
    def measure(self, asked: Asked) -> tuple[Numbers, Facts]:
        """Numbers of each document of the sample, NaN where there is none, and facts."""

    def checked(self) -> None:
        """ValueError where a field that all samples have is no good."""
        sampling.share(self.sample, "sample")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.cluster,) if self.cluster else ()

    def fit(self, look: Look, out: Path) -> Facts:
        if (out / "sample.json").exists():
            return read_json(out / "sample.json")
        asked = Asked.of(self, look, out)
        with cpu_threads(asked.spec.threads if asked.loaded.device == "cpu" else 0):
            numbers, told = self.measure(asked)
        own = numbers[self.main[0]]
        write_by_id(out, asked.words, numbers)
        _write_clusters(out, asked.clusters, numbers)
        facts = {
            "sample": len(asked.words), "pool": sampling.alive(look.corpus),
            "measured": int(np.isfinite(own).sum()), "mean": _mean(own), **told,
        }  # fmt: skip
        if self.cluster:
            facts["clusters"] = len(set(asked.clusters) - {None})
        write_json(out / "sample.json", facts)
        return read_json(out / "sample.json")

    def signals(self, out: Path) -> tuple[str, ...]:
        return ()

    def score(self, window: Window, out: Path) -> Arrays:
        table = window.tokens.table
        found = {n: v for n, v in read_by_id(out, table["id"]).items() if n in self.columns}
        means = _read_clusters(out, table, self.cluster)
        name, sign = self.main
        apart = means.get(name, np.full(table.num_rows, math.nan))
        utility = sign * np.where(np.isnan(found[name]), apart, found[name])
        for each in self.shared if means else ():
            found[each] = np.where(np.isnan(found[each]), means[each], found[each])
        return {"utility": utility, **found, "by_cluster": apart}

    def asked_tokens(self, pool: int) -> float:
        """About how many tokens the sample of a pool of so many has."""
        budget = sampling.share(self.sample, "sample")
        return budget.amount * pool if budget.relative else min(pool, TOKENS * budget.amount)


@dataclass(frozen=True)
class Asked:
    """The sample, its tokens, and the model to ask."""

    look: Look
    out: Path
    spec: ModelSpec
    loaded: Loaded
    table: pa.Table
    words: npt.NDArray[np.uint64]
    """[n, 2] ids, ascending."""
    clusters: list[str | None]
    """[n] labels, None without one."""
    encoded: Encoded
    rng: Rng

    @classmethod
    def of(cls, part: AsksSample, look: Look, out: Path) -> Asked:
        """Draw, tokenise, and load the model that scorers of this process share."""
        number = sampling.count(part.sample, sampling.alive(look.corpus))
        rng = look.job.rng.at("sample", part.seed)
        columns = [part.cluster] if part.cluster else []
        table = sampling.draw(look.corpus, number, rng, columns, by=part.cluster, distinct=True)
        if not table.num_rows:
            raise DataError("the pool has no documents to draw a sample of", where="sample")
        words = id_words(table["id"])
        order = np.lexsort((words[:, 1], words[:, 0]))
        table, words = table.take(pa.array(order)), words[order]
        spec = replace(look.model, dtype="float32")
        loaded = load(spec)
        clusters: list[str | None] = [None] * len(words)
        if part.cluster:
            clusters = _labels(table, part.cluster)
        encoded = encode(table, loaded.tokenizer, spec)
        return cls(look, out, spec, loaded, table, words, clusters, encoded, rng)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def counted(self) -> npt.NDArray[np.int64]:
        """The documents that have a token to predict."""
        return np.flatnonzero(segment_sums(self.encoded.counts, self.encoded.offsets))

    def flops(self, forwards: float) -> float:
        """Operations of so many forwards over the sample (a backward is two)."""
        return 2.0 * forwards * count_parameters(self.spec) * len(self.encoded.ids)

    def piece(self, name: str, ask: Callable[[], tuple[Numbers, Facts]]) -> tuple[Numbers, Facts]:
        """What `ask` says, asked once: its arrays and facts are kept under this name."""
        path = self.out / "pieces" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            numbers, facts = ask()
            write_shard(path, pa.table({n: pa.array(v) for n, v in numbers.items()}), facts)
        table = pq.read_table(path)
        told = {k: v for k, v in shard_facts(path).items() if k not in ("rows", "ids")}
        return {n: np.array(table[n], dtype=np.float64) for n in table.column_names}, told

    def by_document(
        self, names: tuple[str, ...], ask: Callable[[npt.NDArray[np.int64]], Numbers], what: str
    ) -> Numbers:
        """Numbers of each document, a block at a time; `ask` is given rows that have tokens."""
        found = {name: np.full(len(self), math.nan) for name in names}
        counted, done = self.counted, 0
        for number, rows in enumerate(_blocks(counted)):
            told, _ = self.piece(f"{number:05d}", functools.partial(_bare, ask, rows))
            for name in names:
                found[name][rows] = told[name]
            done += len(rows)
            self.look.job.progress(done, len(counted), what)
        return found


def _bare(
    ask: Callable[[npt.NDArray[np.int64]], Numbers], rows: npt.NDArray[np.int64]
) -> tuple[Numbers, Facts]:
    return ask(rows), {}


def _blocks(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK]


def _labels(table: pa.Table, name: str) -> list[str | None]:
    known, codes = labels(table, name)
    return [known[code] if code >= 0 else None for code in codes.tolist()]


def _write_clusters(out: Path, clusters: list[str | None], numbers: Numbers) -> None:
    """Means of each cluster over its documents that were measured."""
    names = sorted({label for label in clusters if label is not None})
    place = {name: k for k, name in enumerate(names)}
    code = np.array(
        [place.get(label, -1) if label is not None else -1 for label in clusters], dtype=np.int64
    )
    columns: dict[str, Any] = {"cluster": pa.array(names, pa.string())}
    for name, values in numbers.items():
        known = (code >= 0) & np.isfinite(values)
        counts = np.bincount(code[known], minlength=len(names))
        sums = np.bincount(code[known], weights=values[known], minlength=len(names))
        columns[name] = np.divide(sums, counts, out=np.full(len(names), math.nan), where=counts > 0)
    write_shard(out / "clusters.parquet", pa.table(columns))


def _read_clusters(out: Path, table: pa.Table, cluster: str) -> dict[str, Floats]:
    """[rows] means of each row's cluster, by name; nothing where no cluster is named."""
    if not cluster:
        return {}
    known = pq.read_table(out / "clusters.parquet")
    place = {label: k for k, label in enumerate(known["cluster"].to_pylist())}
    rows = [place.get(label, -1) for label in _labels(table, cluster)]
    code = np.array(rows, dtype=np.int64)
    found = {}
    for name in known.column_names[1:]:
        values = np.append(np.asarray(known[name], dtype=np.float64), math.nan)
        found[name] = values[code]  # -1 is the NaN behind the last
    return found


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
