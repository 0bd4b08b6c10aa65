"""Stores to delete from, and deletion plans written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.nouns import Column, Inputs, Job, Scorer, Stage
from foresift.pipeline.run import Run
from foresift.pipeline.store import Facts, StepDir, read_json, write_json
from foresift.pipeline.tables import content_ids
from foresift.stages.forget.folder import LINEAGE

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.1, "tie_word_embeddings": True,
}  # fmt: skip


def plan_folder(out: Path, name: str, ids: Iterable[bytes]) -> Path:
    """A deletion plan with nothing in it but what `apply` reads."""
    folder = out / "deletions" / name
    folder.mkdir(parents=True)
    rows = [{"doc_id": id_} for id_ in ids]
    pq.write_table(pa.Table.from_pylist(rows, LINEAGE), folder / "lineage.parquet")
    write_json(folder / "request.json", {"id": name, "keys": [], "status": "planned"})
    (folder / "forget.jsonl").write_text(json.dumps({"id": "x", "text": "y"}) + "\n")
    write_json(folder / "plan.json", {"forget": len(rows)})
    return folder


def status(out: Path, name: str) -> str:
    return str(read_json(out / "deletions" / name / "request.json")["status"])


def everything(out: Path) -> dict[str, bytes]:
    """Every file of a store but for what lies in `deletions/`."""
    found = (p for p in sorted(out.rglob("*")) if p.is_file())
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in found
        if p.relative_to(out).parts[0] != "deletions"
    }


def chosen(run: Run) -> list[bytes]:
    """The documents that a run kept."""
    table = pq.read_table(run.plan)
    ids: list[bytes] = table.filter(table["kept"])["id"].to_pylist()
    return ids


def step(run: Run, verb: str, round: int | None = None) -> Path:
    """The directory of a step."""
    for told in run.manifest["steps"]:
        if told["verb"] == verb and round in (None, told["round"]):
            return Path(told["path"])
    raise AssertionError(verb)


def alive(out: Path, base: Path) -> set[bytes]:
    ids = Corpus(base).table([])[0]["id"]
    return set(ids.to_pylist())


def model(folder: Path) -> dict[str, Any]:
    """A model of 20,000 parameters that reads bytes."""
    path = folder / "llama.json"
    path.write_text(json.dumps(LLAMA))
    return {"init": str(path), "tokenizer": "bytes", "device": "cpu", "max_length": 64}


@dataclass(frozen=True, kw_only=True)
class Flags(Scorer):
    """Flags by the text of a pair: a third hard, a fifth sparse with two neighbours."""

    columns: ClassVar[Mapping[str, Column]] = {
        "hard": Column(pa.bool_(), "flag"),
        "sparse": Column(pa.bool_(), "flag"),
        "near": Column(pa.list_(pa.string()), "ids"),
    }

    def score(self, batch: pa.Table) -> dict[str, Any]:
        numbers = [int(text.split()[-1]) for text in batch["prompt"].to_pylist()]
        near = {n: ids_of(n + 1) + ids_of(n + 2) if n % 5 == 0 else [] for n in numbers}
        return {
            "hard": np.array([n % 3 == 0 for n in numbers]),
            "sparse": np.array([n % 5 == 0 for n in numbers]),
            "near": pa.array([near[n] for n in numbers], pa.list_(pa.string())),
        }


def ids_of(number: int) -> list[str]:
    """The id of a pair as `Flags` expects it."""
    if number >= 40:
        return []
    response = f"it is {number} " * (number % 7 + 1)
    pair = pa.table({"prompt": [f"what is {number}"], "response": [response]})
    return [content_ids(pair)[0].as_py().hex()]


@dataclass(frozen=True, kw_only=True)
class Lines(Stage):
    """An export in a format of its own: one id a line."""

    def run(self, inputs: Inputs, out: StepDir, job: Job) -> Facts:
        assert inputs.plan is not None
        ids = pq.read_table(inputs.plan.path / "plan.parquet")["id"].to_pylist()
        (out.path / "out.txt").write_text("\n".join(i.hex() for i in ids))
        return {"rows": len(ids)}
