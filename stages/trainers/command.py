"""Train with a command of your own (torchrun, a container, a script in another language).

    command: [torchrun, --nproc-per-node, "8", train.py, --data, "{data}", --out, "{out}"]

The words may hold these places, and the command finds the same under FORESIFT_<NAME>:

    {plan}         plan.parquet: id, shard, row, weight, position, round, in the order to train in
    {data}         jsonl.gz of the documents in that order: id, content columns, weight
    {checkpoint}   the model to start from: a folder, a configuration or a hub id
    {out}          the folder in which a checkpoint must lie at the end
    {tokens}       the training budget, empty where there is none
    {seed}         the seed

At the end `{out}` holds `config.json` and safetensors weights; a missing tokenizer is added. A
`ledger.jsonl` or `ledger.parquet` there (`id`, `step`, and `tokens` if known) becomes the ledger;
without it every document of the plan is listed with an unknown step (null), because it may have
been trained on at any. Cost: that of the command, and one export of the documents.
"""

from __future__ import annotations

import collections
import gzip
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.errors import DataError, ModelError, RecipeError, nearest
from foresift.pipeline.ledger import FILE, SCHEMA
from foresift.pipeline.lm.model import ModelSpec, load_config, load_tokenizer, local
from foresift.pipeline.nouns import Inputs, Job, Stage
from foresift.pipeline.store import Facts, ShardWriter, StepDir, temporary
from foresift.pipeline.tables import content_columns
from foresift.stages.trainers import _checkpoint, _documents

PLACES = ("plan", "data", "checkpoint", "out", "tokens", "seed")
#: lines of the command's output that an error shows
TAIL = 20
PLAN = ("id", "shard", "row", "weight", "position", "round")


@dataclass(frozen=True, kw_only=True)
class Command(Stage):
    """Trains with your own command; keeps its checkpoint and the ledger."""

    command: list[str]
    """Program and arguments; {plan} {data} {checkpoint} {out} {tokens} {seed} are filled in."""
    tokens: int | None = None
    """Training budget in tokens, told to the command."""
    seed: int = 0
    """Told to the command."""
    export: bool = True
    """Whether the documents are written for the command as {data}."""

    def __post_init__(self) -> None:
        if not self.command:
            raise ValueError("command is empty")
        for name in re.findall(r"\{([A-Za-z_]+)\}", " ".join(self.command)):
            if name not in PLACES:
                raise ValueError(f"no place {{{name}}}{nearest(name, PLACES)}")
        if not self.export and any("{data}" in word for word in self.command):
            raise ValueError("the command reads {data}, but export is off")

    def run(self, inputs: Inputs, out: StepDir, job: Job) -> Facts:
        """Run the command in a directory of its own and publish what it left."""
        if inputs.model is None:
            raise ModelError("training needs a model; name one with `model:`", where="train")
        work = temporary(out.path / "train")
        shutil.rmtree(work, ignore_errors=True)
        folder = work / "checkpoint"
        folder.mkdir(parents=True)
        try:
            rows = _write_inputs(inputs, work, self.export)
            self._call(self._places(inputs, inputs.model, work), job)
            _check(folder, inputs.model)
            source = _ledger(folder, work)
            _publish(work, out.path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return {"documents": rows, "ledger": source}

    def _places(self, inputs: Inputs, model: ModelSpec, work: Path) -> dict[str, str]:
        return {
            "plan": str(work / "plan.parquet"),
            "data": str(work / "data.jsonl.gz") if self.export else "",
            "checkpoint": str(local(model.init) or model.init),
            "out": str(work / "checkpoint"),
            "tokens": "" if self.tokens is None else str(self.tokens),
            "seed": str(self.seed),
        }

    def _call(self, places: Mapping[str, str], job: Job) -> None:
        """Run to the end; its output goes to the log, its last lines into the error."""
        words = [_fill(word, places) for word in self.command]
        added = {f"FORESIFT_{name.upper()}": value for name, value in places.items()}
        tail: collections.deque[str] = collections.deque(maxlen=TAIL)
        try:
            process = subprocess.Popen(
                words,
                env={**os.environ, **added},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise RecipeError(
                f"cannot start {words[0]!r}: {error}", where="train.command"
            ) from None
        try:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    tail.append(line.rstrip("\n"))
                    job.log.info("%s", tail[-1])
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code:
            said = "\n".join(tail) or "(it said nothing)"
            raise ModelError(
                f"{words[0]!r} ended with exit code {code}; its last lines:\n{said}",
                where="train.command",
            )


def _fill(word: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def _write_inputs(inputs: Inputs, work: Path, export: bool) -> int:
    """Write the plan and the documents for the command; returns how many documents."""
    schema = pa.schema(
        [
            ("id", pa.binary(16)),
            ("shard", pa.int32()),
            ("row", pa.int64()),
            ("weight", pa.float32()),
            ("position", pa.int64()),
            ("round", pa.int32()),
        ]
    )
    rows = 0
    with ShardWriter(work / "plan.parquet", schema) as plan, _lines(work, export) as lines:
        for table in _documents.tables(inputs):
            if "position" not in table.column_names:
                place = pa.array(range(rows, rows + table.num_rows), pa.int64())
                table = table.append_column("position", place)
            rows += table.num_rows
            plan.write(table.select(PLAN))
            if export:
                lines.writelines(_json_lines(table))
    if not rows:
        raise DataError("nothing to train on: the plan is empty", where="train.command")
    return rows


def _lines(work: Path, export: bool) -> io.TextIOBase:
    """The export, or a place where nothing is written."""
    if not export:
        return io.StringIO()
    raw = gzip.GzipFile(work / "data.jsonl.gz", "wb", compresslevel=1, mtime=0)
    return io.TextIOWrapper(raw, encoding="utf-8", newline="\n")


def _json_lines(table: pa.Table) -> list[str]:
    names = ["id", *content_columns(table.column_names), "weight"]
    found = []
    for row in table.select(names).to_pylist():
        row["id"] = row["id"].hex()
        found.append(json.dumps(row, ensure_ascii=False) + "\n")
    return found


def _check(folder: Path, model: ModelSpec) -> None:
    """A located error unless the folder is a checkpoint; adds the tokenizer where it is missing."""
    from safetensors import SafetensorError, safe_open

    where = "train.command"
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").exists() or not weights:
        there = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise ModelError(
            f"the command left no checkpoint in {{out}}: config.json and *.safetensors are "
            f"needed, there is {there}",
            where=where,
        )
    for path in weights:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path.name} cannot be read: {error}", where=where) from error
    load_config(model.at(folder))
    if not (folder / "tokenizer_config.json").exists():
        name = model.tokenizer or model.init
        load_tokenizer(name, model.trust_remote_code).save_pretrained(folder)


def _ledger(folder: Path, work: Path) -> str:
    """Write ledger.parquet; says whether its steps come from the `command` or only the `plan`."""
    plan = pq.read_table(work / "plan.parquet", columns=["id", "round", "shard"])
    theirs = _their_ledger(folder)
    with ShardWriter(work / FILE, SCHEMA) as writer:
        if theirs is None:
            for name in ("step", "tokens"):
                plan = plan.append_column(name, pa.nulls(plan.num_rows, pa.int32()))
            writer.write(plan)
            return "plan"
        place = {row["id"]: row for row in reversed(plan.to_pylist())}
        unknown = [id_ for id_, _, _ in theirs if id_ not in place]
        if unknown:
            raise DataError(
                f"its ledger names {len(unknown)} documents that are not in the plan, the first "
                f"is {unknown[0].hex()}",
                where="train.command",
            )
        rows = [{**place[id_], "step": step, "tokens": tokens} for id_, step, tokens in theirs]
        writer.write(pa.Table.from_pylist(rows, schema=SCHEMA))
    return "command"


def _their_ledger(folder: Path) -> list[tuple[bytes, Any, Any]] | None:
    """(id, step, tokens) as the command wrote them; its file is taken out of the checkpoint."""
    for name in ("ledger.parquet", "ledger.jsonl"):
        path = folder / name
        if not path.exists():
            continue
        try:
            if path.suffix == ".parquet":
                rows = pq.read_table(path).to_pylist()
            else:
                lines = path.read_text(encoding="utf-8").splitlines()
                rows = [json.loads(line) for line in lines if line.strip()]
            found = [(_id(row["id"]), int(row["step"]), row.get("tokens")) for row in rows]
        except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise DataError(
                f"its {name} is not a ledger of `id` and `step`: {error!r}", where="train.command"
            ) from error
        path.unlink()
        return found
    return None


def _id(value: Any) -> bytes:
    return value if isinstance(value, bytes) else bytes.fromhex(value)


def _publish(work: Path, path: Path) -> None:
    for name in ("plan.parquet", "data.jsonl.gz"):
        (work / name).unlink(missing_ok=True)
    _checkpoint.publish(work, path)
