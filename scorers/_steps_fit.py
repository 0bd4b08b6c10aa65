"""Scores that ask the model about each document with its text at hand, shard by shard.

What a part measures is written beside what it learned, one whole file a shard, so a killed run goes
on where it was, and workers share the shards. `score` finds the numbers again by id: exact copies
have the numbers of the first of them, whatever batch they come in.

    <out>/asked/<shard>.parquet    id and the part's columns        <out>/asked.arrow    all, by id

The model reads a document as the shared pass does (same tokens, same template), but in passes of
its own: over texts that are altered, or for attention, which the shared signals do not carry. What
needs the text and the shared signals alone is a ModelScorer that reads content, as `step_noise`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.corpus import Shard
from foresift.pipeline.estimate import count_parameters
from foresift.pipeline.job import Resources
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.forward import compute, cpu_threads
from foresift.pipeline.lm.model import Loaded, ModelSpec, load, pick_device
from foresift.pipeline.lm.signals import Window
from foresift.pipeline.nouns import Arrays, Facts, FittedModelScorer, Look
from foresift.pipeline.scoring import stored
from foresift.pipeline.store import add_counts, temporary, write_shard
from foresift.pipeline.tables import MESSAGES, first_copies, id_words
from foresift.scorers._steps import Trace

Floats = npt.NDArray[np.float64]
#: what stands before an answer: a prompt, or turns
Before = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class AsksByDocument(FittedModelScorer):
    """What a part of this kind writes is `measure`; the rest is here."""

    forwards: ClassVar[float] = 1.0
    """Forwards over a document, for estimates."""

    @abstractmethod
    def measure(self, table: pa.Table, ask: Ask) -> Arrays:
        """The columns of some rows, which have `id`, the content and `needs`."""

    def fit(self, look: Look, out: Path) -> Facts:
        folder = out / "asked"
        folder.mkdir(parents=True, exist_ok=True)
        shards = look.corpus.shards()
        paths = [folder / f"{shard.name}.parquet" for shard in shards]
        gpus = 1.0 if pick_device(look.model.device).startswith("cuda") else 0.0
        held = Resources(cpus=look.model.threads, gpus=gpus, small=len(shards) == 1)
        task = _Measure(self, look.model, folder)
        told = add_counts(look.job.map_shards(task, shards, paths, held, "asked"))
        if not (out / "asked.arrow").exists():
            _join(paths, out)
        flops = 2.0 * count_parameters(look.model) * told["asked_tokens"]
        return {"asked_tokens": told["asked_tokens"], "flops": flops}

    def signals(self, out: Path) -> tuple[str, ...]:
        return ()

    def score(self, window: Window, out: Path) -> Arrays:
        rows = read_by_id(out, window.tokens.table["id"])["row"]
        with pa.memory_map(str(out / "asked.arrow")) as source:
            found = pa.ipc.open_file(source).read_all()
            taken = found.take(pa.array(rows, mask=rows < 0)).combine_chunks()
        return {
            name: pa.concat_arrays(taken[name].chunks)
            if taken[name].num_chunks
            else pa.array([], column.dtype)
            for name, column in self.columns.items()
        }

    def estimate(self, parameters: int, pool: int, references: int) -> tuple[float, float]:
        return 2.0 * parameters * pool * self.forwards, 0.0


@dataclass(frozen=True)
class _Measure:
    """The answers about one shard."""

    part: AsksByDocument
    spec: ModelSpec
    folder: Path

    def __call__(self, shard: Shard) -> Facts:
        loaded = load(self.spec)
        ask, columns = Ask(loaded, self.spec), self.part.columns
        schema = pa.schema([("id", pa.binary(16)), *((n, c.dtype) for n, c in columns.items())])
        found = [schema.empty_table()]
        with cpu_threads(self.spec.threads if loaded.device == "cpu" else 0):
            for table, _ in shard.stream(self.part.needs):
                told = self.part.measure(table, ask)
                arrays = [stored(told[n], c.dtype) for n, c in columns.items()]
                ids = table["id"].combine_chunks()
                found.append(pa.table([ids, *arrays], schema=schema))
        path = self.folder / f"{shard.name}.parquet"
        return write_shard(path, pa.concat_tables(found), {"asked_tokens": ask.tokens})


def _join(paths: Sequence[Path], out: Path) -> None:
    """All answers in one file that can be mapped, and the row of each id."""
    every = pa.concat_tables([pq.read_table(path) for path in paths])
    words = id_words(every["id"])
    order = np.lexsort((words[:, 1], words[:, 0]))
    order = order[first_copies(words[order])]
    write_by_id(out, words[order], {"row": np.arange(len(order))})
    path = out / "asked.arrow"
    partial = temporary(path)
    joined = every.drop(["id"]).take(pa.array(order)).combine_chunks()
    with pa.ipc.new_file(partial, joined.schema) as writer:
        writer.write_table(joined)
    partial.rename(path)


class Ask:
    """The model, and how many tokens it was given."""

    def __init__(self, loaded: Loaded, spec: ModelSpec) -> None:
        self.loaded, self.spec, self.tokens = loaded, spec, 0

    def encode(self, table: pa.Table) -> Encoded:
        """Token ids as the model reads them."""
        return encode(table, self.loaded.tokenizer, self.spec)

    def nll(self, encoded: Encoded) -> list[Floats]:
        """The NLL of each document's counted tokens."""
        self.tokens += int(encoded.lengths.sum())
        found = compute(encoded, self.loaded, ("nll",), self.spec.batch_tokens)
        return np.split(found.token["nll"].astype(np.float64), found.offsets[1:-1])

    def answers(self, some: Sequence[Trace], before: Sequence[Before]) -> list[Floats]:
        """NLL of the tokens of each answer behind what is to stand before it; none if it is cut."""
        return self.last(pairs(some, before)) if some else []

    def last(self, table: pa.Table) -> list[Floats]:
        """NLL of the tokens of each row's (last) answer; none where the document is cut."""
        encoded = self.encode(table)
        found = []
        for row, nll in enumerate(self.nll(encoded)):
            _, last = last_run(encoded, row)
            found.append(nll[len(nll) - len(last) :] if not encoded.cut[row] else nll[:0])
        return found


def mean(nll: Floats) -> float:
    """Nats per token; NaN where there is no token."""
    return float(nll.mean()) if len(nll) else math.nan


def pairs(some: Sequence[Trace], before: Sequence[Before]) -> pa.Table:
    """Prompts and answers, or conversations, of one kind of content."""
    if isinstance(before[0], str):
        columns = {"prompt": list(before), "response": [t.text for t in some]}
        return pa.table({n: pa.array(v, pa.string()) for n, v in columns.items()})
    said = [{"role": "assistant", "content": t.text} for t in some]
    turns = [[*told, answer] for told, answer in zip(before, said, strict=True)]
    return pa.table({"messages": pa.array(turns, MESSAGES)})


def last_run(encoded: Encoded, row: int) -> tuple[int, npt.NDArray[np.int32]]:
    """The last stretch of counted tokens of a document: where it begins in it, and its ids."""
    part = slice(encoded.offsets[row], encoded.offsets[row + 1])
    counted = np.flatnonzero(encoded.counts[part])
    if not len(counted):
        return 0, encoded.ids[:0]
    breaks = np.flatnonzero(np.diff(counted) > 1)
    first = int(counted[breaks[-1] + 1] if len(breaks) else counted[0])
    return first, encoded.ids[part][first : int(counted[-1]) + 1]


def places(
    text: str, ids: npt.NDArray[np.int32], tokenizer: Any
) -> Iterator[tuple[int, int, int]] | None:
    """(token of `ids`, first character, one behind the last) of a text that the ids begin with.

    None where the ids are of another text; the last token of a text may be joined to what follows.
    """
    if not text:
        return None
    seen = text[: 32 * (len(ids) + 1)]
    told = tokenizer(seen, add_special_tokens=False, return_offsets_mapping=True)
    want, offsets = np.asarray(told["input_ids"], dtype=np.int64), told["offset_mapping"]
    for skip in (0, 1):  # without a start token the first token has nothing that predicts it
        n = min(len(want) - skip, len(ids))
        same = int(np.cumprod(want[skip : skip + n] == ids[:n]).sum()) if n > 0 else 0
        if same >= max(1, n - 2):
            spans = offsets[skip : skip + same]
            return iter([(k, int(a), int(b)) for k, (a, b) in enumerate(spans)])
    return None
