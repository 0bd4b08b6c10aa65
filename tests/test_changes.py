"""A change of data, recipe, model or part recomputes exactly what depends on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.inputs import (
    LENGTH,
    recipe,
    texts,
    write,
)
from tests.runs import files, go, stages

SCORES = [
    LENGTH,
    {"score": "loss"},
    {"select": "topk", "by": "loss.utility", "budget": "50%", "as": "best"},
    {"select": "random", "budget": "3 rows"},
    {"order": "shuffle"},
]
ALL = {"jsonl", "length", "loss", "topk", "random", "shuffle"}


def _first(tmp_path: Path) -> dict[str, Any]:
    fields = recipe(
        write(tmp_path / "a.jsonl", texts(12)), write(tmp_path / "b.jsonl", texts(12, seed=1)),
        steps=SCORES, model={"init": "configs/models/tiny", "device": "cpu", "max_length": 64},
    )  # fmt: skip
    go(fields, tmp_path / "out")
    return fields


def _redone(tmp_path: Path, fields: dict[str, Any]) -> set[str]:
    """The parts whose steps a run with these fields computes anew; nothing old is touched."""
    before = files(tmp_path / "out")
    old = stages(tmp_path / "out")
    done = go(fields, tmp_path / "out")
    now = files(tmp_path / "out")
    assert {name: now[name] for name in before} == before
    new = {name.rpartition("-")[0] for name in stages(tmp_path / "out") - old}
    assert sum(not s["cached"] for s in done.manifest["steps"]) == len(new)
    return new


def test_nothing_is_recomputed_for_a_touched_file(tmp_path: Path) -> None:
    fields = _first(tmp_path)
    os.utime(tmp_path / "a.jsonl", (1, 1))
    assert _redone(tmp_path, fields) == set()


def test_changed_data_recomputes_every_step_that_read_it(tmp_path: Path) -> None:
    fields = _first(tmp_path)
    write(tmp_path / "a.jsonl", [*texts(11), "other words"])
    assert _redone(tmp_path, fields) == ALL
    write(tmp_path / "a.jsonl", texts(12))
    assert _redone(tmp_path, fields) == set(), "the old data is the old run"


def test_a_changed_second_data_set_leaves_the_first_alone(tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", texts(5, seed=9))
    fields = _first(tmp_path)
    fields["datasets"] = {"other": {"read": "jsonl", "paths": [str(other)], "holdout": 0.0}}
    fields["steps"] = [*SCORES, LENGTH | {"data": "other", "as": "size"}]
    assert _redone(tmp_path, fields) == {"jsonl", "length"}
    write(other, texts(6, seed=9))
    assert _redone(tmp_path, fields) == {"jsonl", "length"}


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"seed": 1}, {"loss", "topk", "random", "shuffle"}),
        ({"max_length": 32}, {"loss", "topk", "random", "shuffle"}),
        ({"batch_tokens": 512}, set()),
    ],
    ids=["seed", "max_length", "batch size"],
)
def test_a_changed_model_recomputes_what_read_it(
    tmp_path: Path, change: dict[str, Any], redone: set[str]
) -> None:
    fields = _first(tmp_path)
    fields["model"] = fields["model"] | change
    assert _redone(tmp_path, fields) == redone


def test_changed_weights_recompute_what_read_them(tmp_path: Path, checkpoint: Path) -> None:
    from safetensors.numpy import load_file, save_file

    fields = _first(tmp_path)
    fields["model"] = {"init": str(checkpoint), "device": "cpu", "max_length": 64}
    assert _redone(tmp_path, fields) == {"loss", "topk", "random", "shuffle"}
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * np.float32(1.5)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert _redone(tmp_path, fields) == {"loss", "topk", "random", "shuffle"}


def test_a_changed_recipe_recomputes_what_follows(tmp_path: Path) -> None:
    fields = _first(tmp_path)
    fields["steps"] = [*SCORES[:3], {"select": "random", "budget": "4 rows"}, SCORES[4]]
    assert _redone(tmp_path, fields) == {"random", "shuffle"}


def test_a_raised_part_version_recomputes_what_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foresift.scorers.length import Length
    from foresift.scorers.loss import Loss

    fields = _first(tmp_path)
    monkeypatch.setattr(Length, "version", Length.version + 1)
    assert _redone(tmp_path, fields) == {"length"}
    monkeypatch.setattr(Loss, "version", Loss.version + 1)
    assert _redone(tmp_path, fields) == {"loss", "topk", "random", "shuffle"}
