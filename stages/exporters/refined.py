"""The refined data set of Middo's loop: flagged rows rewritten, new rows beside isolated ones.

    neither hard nor low     kept as it is
    hard                     simplified (replaced)             low   improved (replaced)
    hard and low             replaced once, as `both` says; `twice`, as released: two rows
    sparse                   whatever becomes of the row itself, one new row is added behind it

    rows out = rows in + sparse (+ hard and low, with `twice`) - new rows that failed

The data are pairs of prompt and response. Rows come in the order of the corpus or, behind an
`order` or a training step, of the plan; none is dropped or merged, however alike two are. Each has
`id` (that of the row it came from; of an added row its own), `origin` (the row it was made from),
`action` (kept, simplified, improved, added), `hints` (ids of the neighbours that an added row was
shown), prompt, response, source and weight. Exact copies are refined once and alike.

`refiner` is `endpoint` (two requests an item), `module:function`, or `stub`; see `_refining.py`. A
row whose refinement fails stays as it is (nothing is added for a sparse one) and is counted by
reason; DataError where more than `max_failed` of the items fail. Answers are kept in
`answers.jsonl` of the step as they come: a killed or failed run asks only for the rest.

Facts: rows in and out, how many of each action, failures by reason, tokens in and out (as the
reader counts). Files `part-00000.jsonl.gz` (or `.parquet`). Memory: the texts of flagged rows and
of the neighbours of sparse ones. Cost: the refiner's.
Source: Middo (Tang et al. 2025), section 3; the merge by ids and the accounts are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.corpus import Corpus, Shard
from foresift.pipeline.endpoint import Answers, Asks
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Inputs, Job, Stage
from foresift.pipeline.plan_rows import rows_in_plan_order
from foresift.pipeline.store import Facts, ShardWriter, StepDir, publish, temporary
from foresift.pipeline.tables import ID, content_columns, content_ids
from foresift.pipeline.token_counts import count_tokens
from foresift.stages.exporters._exporting import Sink
from foresift.stages.exporters._refining import DONE, Item, Refining, reasons
from foresift.stages.exporters.jsonl import Jsonl
from foresift.stages.exporters.parquet import Parquet

_WEIGHT = "export.weight"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()), ("origin", pa.string()), ("action", pa.string()),
        ("prompt", pa.string()), ("response", pa.string()), ("source", pa.string()),
        ("weight", pa.float32()), ("hints", pa.list_(pa.string())),
    ]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Refined(Asks, Stage):
    """Instruction pairs with hard and poor ones rewritten and new ones beside isolated ones."""

    refiner: str
    """`endpoint`, `module:function` (a list of rows -> a list of pairs), or `stub` (for tests)."""
    hard: str = "middo.hard"
    """Column of flags: rows to be simplified. Empty: none."""
    low: str = "middo.low"
    """Column of flags: rows to be improved. Empty: none."""
    sparse: str = "middo.sparse"
    """Column of flags: rows beside which a new one is made. Empty: none."""
    neighbours: str = "middo.neighbours"
    """Column with the ids (hex) of a sparse row's neighbours. Empty: made from the row alone."""
    both: Literal["simplified", "improved", "twice"] = "simplified"
    """What becomes of a row that is hard and low; `twice`, as released: both."""
    max_failed: float = 0.1
    """Share of the items that may fail; above, the run stops and keeps what was answered."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """Of the files; JSON lines are compressed with gzip."""
    shard_mb: int = 128
    """Megabytes of content in one file, about."""

    def __post_init__(self) -> None:
        self.check_asks(self.refiner, "refiner")
        if not (self.hard or self.low or self.sparse):
            raise ValueError("give at least one of: hard, low, sparse")
        if not 0 <= self.max_failed <= 1 or self.shard_mb < 1:
            raise ValueError("max_failed is a share, shard_mb is at least 1")

    @property
    def needs(self) -> tuple[str, ...]:
        near = self.neighbours if self.sparse else ""
        names = (self.hard, self.low, self.sparse, near)
        return tuple(dict.fromkeys(name for name in names if name))

    def run(self, inputs: Inputs, out: StepDir, job: Job) -> Facts:
        assert inputs.corpus is not None, "an exporter is given a corpus"
        about = StepDir(inputs.corpus.base)
        tokenizer = about.facts()["fields"].get("tokenizer", "") if about.done else ""
        todo = plan_actions(self, inputs.corpus)
        texts = texts_of(inputs.corpus, todo.wanted)
        items = todo.items(texts)
        answers = Answers(out.path / "answers.jsonl")
        refining = Refining(
            self.refiner, self, answers, self.max_failed,
            lambda done, total: job.progress(done, total, "refine"),
        )  # fmt: skip
        refining.run(items)
        writing = _Writing(self, out.path, todo, answers, str(tokenizer))
        for table in _tables(inputs):
            writing.add(table)
        facts = writing.close(refining.failed)
        job.log.info("refined: %s", told(facts))
        return facts


@dataclass(frozen=True)
class Todo:
    """What is to be done with which document, by id."""

    actions: dict[bytes, tuple[str, ...]]
    """Replacements (`simplify`, `improve`), and `add` last."""
    near: dict[bytes, tuple[bytes, ...]]

    @property
    def wanted(self) -> set[bytes]:
        """The documents whose text is needed."""
        return {*self.actions, *(k for keys in self.near.values() for k in keys)}

    def items(self, texts: dict[bytes, tuple[str, str]]) -> list[Item]:
        """In the order of ids, so that nothing depends on the order of rows."""
        found = []
        for key in sorted(self.actions):
            hints = tuple(texts[k] for k in self.near.get(key, ()) if k in texts)
            for action in self.actions[key]:
                shown = hints if action == "add" else ()
                found.append(Item(key.hex(), action, *texts[key], hints=shown))
        return found


def plan_actions(part: Refined, corpus: Corpus) -> Todo:
    """What the flags ask for; a copy of a flagged row is flagged alike."""
    table, _ = corpus.table(list(part.needs))
    hard, low, sparse = (_flags(table, name) for name in (part.hard, part.low, part.sparse))
    ids = table["id"].to_pylist()
    actions: dict[bytes, tuple[str, ...]] = {}
    near: dict[bytes, tuple[bytes, ...]] = {}
    whose = table[part.neighbours] if part.sparse and part.neighbours else None
    for row in np.flatnonzero(hard | low | sparse).tolist():
        found = _replacements(bool(hard[row]), bool(low[row]), part.both)
        if sparse[row]:
            found = (*found, "add")
            if whose is not None:
                near[ids[row]] = tuple(bytes.fromhex(k) for k in whose[row].as_py() or ())
        actions[ids[row]] = found
    return Todo(actions, near)


def _replacements(hard: bool, low: bool, both: str) -> tuple[str, ...]:
    if hard and low:
        once = ("improve",) if both == "improved" else ("simplify",)
        return ("simplify", "improve") if both == "twice" else once
    return ("simplify",) if hard else ("improve",) if low else ()


def _flags(table: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    if not name:
        return np.zeros(table.num_rows, dtype=np.bool_)
    column = table[name]
    if not pa.types.is_boolean(column.type) and not pa.types.is_null(column.type):
        raise DataError(f"flags are true or false, not {column.type}", where=name)
    return np.asarray(column.cast(pa.bool_()).fill_null(False), dtype=np.bool_)


def texts_of(corpus: Corpus, wanted: set[bytes]) -> dict[bytes, tuple[str, str]]:
    """(prompt, response) of some documents; one pass over the content."""
    found: dict[bytes, tuple[str, str]] = {}
    for shard in corpus.shards():
        for table, _ in shard.stream():
            if content_columns(table.column_names) != ["prompt", "response"]:
                raise DataError("only pairs of prompt and response are refined", where="refined")
            rows = [i for i, k in enumerate(table["id"].to_pylist()) if k in wanted]
            some = table.take(pa.array(rows, pa.int64()))
            pairs = zip(some["prompt"].to_pylist(), some["response"].to_pylist(), strict=True)
            for key, (prompt, response) in zip(some["id"].to_pylist(), pairs, strict=True):
                found[key] = (prompt or "", response or "")
    return found


def _tables(inputs: Inputs) -> Iterator[pa.Table]:
    """The rows in their order, with source, n_tokens and weight."""
    columns = ["source", "n_bytes", "n_tokens"]
    assert inputs.corpus is not None
    if inputs.plan is not None:
        yield from rows_in_plan_order(inputs.corpus, inputs.plan, columns)
        return
    for shard in inputs.corpus.shards():
        yield from _of_shard(shard, columns)


def _of_shard(shard: Shard, columns: list[str]) -> Iterator[pa.Table]:
    decided = [mask.path for mask in shard.masks if mask.want]
    if decided:
        shard = replace(shard, columns=(*shard.columns, (_WEIGHT, decided[-1], "weight")))
        columns = [*columns, _WEIGHT]
    for table, rows in shard.stream(columns):
        weight = table[_WEIGHT] if decided else pa.array(np.ones(len(rows), dtype=np.float32))
        yield table.append_column("weight", weight)


@dataclass
class _Writing:
    """Writes the rows out, file after file, and counts."""

    part: Refined
    out: Path
    todo: Todo
    answers: Answers
    tokenizer: str
    counts: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    _sink: Sink | None = None
    _held: int = 0

    def add(self, table: pa.Table) -> None:
        """Write a table of rows and what became of them."""
        rows = [row for given in table.to_pylist() for row in self._rows(given)]
        self.counts["tokens_in"] += int(np.asarray(table["n_tokens"], dtype=np.int64).sum())
        if not rows:
            return
        made = pa.Table.from_pylist([row for row, _ in rows], _SCHEMA)
        fresh = np.flatnonzero([tokens < 0 for _, tokens in rows])
        counted = count_tokens(made.select(["prompt", "response"]).take(pa.array(fresh)),
                               self.tokenizer)  # fmt: skip
        self.counts["tokens_out"] += int(counted.sum()) + sum(t for _, t in rows if t >= 0)
        self._write(made)

    def _rows(self, given: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
        """(output row, its tokens or -1) for one row of the corpus."""
        key, origin = given["id"], given["id"].hex()
        same = {"id": origin, "origin": origin, "source": given["source"],
                "weight": given["weight"], "hints": []}  # fmt: skip
        self.counts["rows_in"] += 1
        actions = self.todo.actions.get(key, ())
        refined = {a: self.answers[f"{a} {origin}"] for a in actions if self._has(a, origin)}
        replaced = [a for a in ("simplify", "improve") if a in refined]
        for action in replaced:
            yield self._row(same, DONE[action], refined[action]), -1
        if not replaced:
            kept = [given["prompt"] or "", given["response"] or ""]
            yield self._row(same, "kept", kept), given["n_tokens"]
        if "add" in refined:
            hints = [k.hex() for k in self.todo.near.get(key, ())]
            own = _own_id(refined["add"])
            yield self._row({**same, "id": own, "hints": hints}, "added", refined["add"]), -1

    def _has(self, action: str, origin: str) -> bool:
        return f"{action} {origin}" in self.answers

    def _row(self, same: dict[str, Any], action: str, pair: Sequence[str]) -> dict[str, Any]:
        self.counts[action] += 1
        return {**same, "action": action, "prompt": pair[0], "response": pair[1]}

    def _write(self, table: pa.Table) -> None:
        if self._sink is not None and self._held > self.part.shard_mb << 20:
            self._end()
        if self._sink is None:
            ending = ".parquet" if self.part.format == "parquet" else ".jsonl.gz"
            self.files.append(f"part-{len(self.files):05d}{ending}")
            kind = Parquet() if self.part.format == "parquet" else Jsonl()
            self._sink = kind.sink(temporary(self._path), _SCHEMA)
            self._ids = ShardWriter(self._ids_path, pa.schema([("id", ID)]))
            self._ids.__enter__()
        self._sink.write(table)
        origins = [bytes.fromhex(value) for value in table["origin"].to_pylist()]
        self._ids.write(pa.table({"id": pa.array(origins, ID)}))
        self._held += table.nbytes

    @property
    def _path(self) -> Path:
        return self.out / self.files[-1]

    @property
    def _ids_path(self) -> Path:
        return self.out / "ids" / f"{self.files[-1].partition('.')[0]}.parquet"

    def _end(self) -> None:
        assert self._sink is not None
        self._sink.close()
        publish(temporary(self._path), self._path)
        self._ids.facts["file"] = self._path.name
        self._ids.__exit__(None, None, None)
        self._sink, self._held = None, 0

    def close(self, failed: dict[str, str]) -> Facts:
        """Finish the last file; the accounts."""
        if not self.counts["rows_in"]:
            raise DataError("nothing was chosen, so there is nothing to refine", where="refined")
        self._end()
        names = ("rows_in", "kept", "simplified", "improved", "added", "tokens_in", "tokens_out")
        counts = {name: self.counts[name] for name in names}
        rows = sum(counts[name] for name in ("kept", "simplified", "improved", "added"))
        return {
            **counts,
            "rows": rows,
            "n_tokens": counts["tokens_out"],
            "failed": reasons(failed.values()),
            "files": self.files,
        }


def _own_id(pair: Sequence[str]) -> str:
    table = pa.table({"prompt": [pair[0]], "response": [pair[1]]})
    found: bytes = content_ids(table)[0].as_py()
    return found.hex()


def told(facts: Facts) -> str:
    """The accounts in one line."""
    names = ("kept", "simplified", "improved", "added")
    parts = ", ".join(f"{facts[name]:,} {name}" for name in names)
    lost = sum(facts["failed"].values())
    return (
        f"{facts['rows_in']:,} rows in; {parts}; {lost:,} failed; {facts['rows']:,} rows out; "
        f"tokens {facts['tokens_in']:,} in, {facts['tokens_out']:,} out"
    )
