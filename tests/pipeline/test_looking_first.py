"""Scorers that look first: what they are given, what they say, and orders in which rows repeat."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.choice import Budget, Choice
from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.nouns import (
    AimedScorer,
    Column,
    Facts,
    FittedScorer,
    Order,
    Reference,
    Rng,
    Scorer,
    Selector,
)
from foresift.pipeline.store import StepDir
from foresift.pipeline.tables import content_texts
from foresift.pipeline.vectors import Documents, Vectors
from tests.runs import files, go, recipe

VECTOR: Any = {"vector": Column(pa.list_(pa.float32()), "letters")}


@dataclass(frozen=True, kw_only=True)
class Letter(Scorer):
    """How often the letters a and b occur, as a vector."""

    columns: ClassVar = VECTOR

    def score(self, batch: pa.Table) -> dict[str, Any]:
        return {"vector": [[t.count("a"), t.count("b")] for t in content_texts(batch)]}


@dataclass(frozen=True, kw_only=True)
class Spread(FittedScorer):
    """The first component, over the mean of it; reads the vectors alone."""

    columns: ClassVar = {"over": Column(pa.float64(), "letters")}
    reads_content: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("letter.vector",)

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        found = []
        for table in tables:
            assert table.column_names == ["id", "letter.vector"]
            found += [v[0] for v in table["letter.vector"].to_pylist()]
        (out / "mean.json").write_text(json.dumps(float(np.mean(found))))
        return {"rows": len(found), "highest": float("nan"), "warnings": ["vectors of two numbers"]}

    def score(self, batch: pa.Table, out: Path) -> dict[str, Any]:
        assert batch.column_names == ["id", "letter.vector"]
        mean = json.loads((out / "mean.json").read_text())
        return {"over": [v[0] - mean for v in batch["letter.vector"].to_pylist()]}


@dataclass(frozen=True, kw_only=True)
class Like(AimedScorer):
    """Documents of the reference, and the first letters of their vectors."""

    columns: ClassVar = {"n": Column(pa.int64(), "count")}
    reference: str
    """A data set."""
    vectors: str = ""
    """A column of the reference."""

    @property
    def aims(self) -> Any:
        return self.reference

    @property
    def aim_needs(self) -> tuple[str, ...]:
        return (self.vectors,) if self.vectors else ()

    def fit(
        self, tables: Iterable[pa.Table], references: tuple[Reference, ...], out: Path
    ) -> Facts:
        n = 0
        for shard in references[0].corpus.shards():
            for table, _ in shard.stream(self.aim_needs):
                n += table.num_rows
                assert not self.vectors or Vectors.of(table, self.vectors).width == 2
        (out / "n.json").write_text(json.dumps(n))
        return {"pool": sum(t.num_rows for t in tables)}

    def score(self, batch: pa.Table, out: Path) -> dict[str, Any]:
        return {"n": np.full(batch.num_rows, json.loads((out / "n.json").read_text()))}


@dataclass(frozen=True, kw_only=True)
class Mapped(Selector):
    """Keeps everything; says where the vectors lay."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("letter.vector",)

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        assert budget is not None
        assert not pa.total_allocated_bytes() > 1 << 24
        chunk = table["letter.vector"].chunk(0)
        choice = Choice.from_order(np.arange(table.num_rows), table, budget)
        choice.facts["documents"] = len(Documents.of(table, "letter.vector"))
        choice.facts["mapped"] = not chunk.values.buffers()[1].is_mutable
        return choice


@dataclass(frozen=True, kw_only=True)
class Twice(Order):
    """Every row, then the first five again."""

    repeats: ClassVar[bool] = True
    again: int = 5
    """Rows that come again."""

    def order(self, table: pa.Table, rng: Rng) -> np.ndarray:
        ranked = np.argsort(rng.uniform(table["id"]), kind="stable")
        return np.concatenate([ranked, ranked[: self.again]])


@dataclass(frozen=True, kw_only=True)
class Careless(Twice):
    """Says nothing of its repeats."""

    repeats: ClassVar[bool] = False


HERE = "tests.pipeline.test_looking_first"
LETTER = {"score": f"{HERE}:Letter", "as": "letter"}


def write(path: Path, n: int, start: int = 0) -> dict[str, Any]:
    path.mkdir(parents=True)
    lines = [json.dumps({"text": f"{i} " + "a" * (i % 7) + "b"}) for i in range(start, start + n)]
    (path / "text.jsonl").write_text("\n".join(lines))
    return {"read": "jsonl", "paths": [str(path / "*.jsonl")]}


def facts(out: Path, part: str) -> dict[str, Any]:
    """What the step of a part of this file said."""
    found = [StepDir(p.parent).facts() for p in (out / "steps").glob("*/stage.json")]
    told: dict[str, Any] = next(f["facts"] for f in found if f["part"] == f"{HERE}:{part}")
    return told


def test_a_fitted_scorer_reads_its_columns_and_says_what_it_saw(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = [LETTER, {"score": f"{HERE}:Spread", "as": "spread"}]
    with caplog.at_level(logging.WARNING, "foresift"):
        go(recipe(data=write(tmp_path / "data", 40), steps=steps), tmp_path / "out")
    assert "vectors of two numbers" in caplog.text
    told = facts(tmp_path / "out", "Spread")
    assert told["rows"] == told["alive"]
    assert told["highest"] is None
    assert told["warnings"] == ["vectors of two numbers"]


def test_an_aimed_scorer_sees_the_reference_and_the_columns_beside_it(tmp_path: Path) -> None:
    data, aim = write(tmp_path / "data", 40), write(tmp_path / "aim", 12, start=100)
    sets = {"datasets": {"aim": {**aim, "holdout": 0}}, "data": {**data, "holdout": 0}}
    like = {"score": f"{HERE}:Like", "as": "like", "reference": "aim", "vectors": "letter.vector"}
    theirs = {**LETTER, "data": "aim"}
    with pytest.raises(RecipeError, match=r"reference aim.*no earlier step gives .*letter.vector"):
        go(recipe(steps=[LETTER, like], **sets), tmp_path / "out")
    go(recipe(steps=[LETTER, theirs, like], **sets), tmp_path / "out")
    assert facts(tmp_path / "out", "Like")["pool"] == 40
    shards = (tmp_path / "out").glob("steps/*/part-*.parquet")
    scored = [t for t in map(pq.read_table, shards) if "n" in t.column_names]
    assert [set(t["n"].to_pylist()) for t in scored] == [{12}]


def test_a_pool_that_holds_the_reference_is_refused(tmp_path: Path) -> None:
    data, aim = write(tmp_path / "data", 40), write(tmp_path / "aim", 12, start=30)
    like = {"score": f"{HERE}:Like", "as": "like", "reference": "aim"}
    with pytest.raises(DataError, match="10 of its documents lie in the pool as well"):
        go(
            recipe(
                steps=[like], data={**data, "holdout": 0},
                datasets={"aim": {**aim, "holdout": 0}},
            ),
            tmp_path / "out",
        )  # fmt: skip


def test_a_selector_gets_vectors_from_a_file(tmp_path: Path) -> None:
    steps = [LETTER, {"select": f"{HERE}:Mapped", "as": "mapped", "budget": "50%"}]
    go(recipe(data=write(tmp_path / "data", 40), steps=steps), tmp_path / "out")
    told = facts(tmp_path / "out", "Mapped")
    assert told["mapped"]
    assert told["documents"] == told["rows"]
    assert not [n for n in files(tmp_path / "out") if "columns" in n]


def test_an_order_may_declare_repeats_and_only_then(tmp_path: Path) -> None:
    order: dict[str, Any] = {"order": f"{HERE}:Twice"}
    export = {"export": "jsonl"}
    data = {**write(tmp_path / "data", 20), "holdout": 0}
    go(recipe(data=data, steps=[order, export]), tmp_path / "out")
    told = facts(tmp_path / "out", "Twice")
    assert (told["documents"], told["rows"]) == (20, 25)
    lines = [
        json.loads(line)
        for file in sorted((tmp_path / "out").rglob("jsonl-*/*.jsonl*"))
        for line in gzip.decompress(file.read_bytes()).splitlines()
    ]
    texts = [line["text"] for line in lines]
    assert len(texts) == 25
    assert texts[20:] == texts[:5]
    with pytest.raises(AssertionError, match="a row has two places"):
        go(recipe(data=data, steps=[{"order": f"{HERE}:Careless"}]), tmp_path / "again")
