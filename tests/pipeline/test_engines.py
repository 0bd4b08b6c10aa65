"""Both engines write the same bytes, whatever the number of workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foresift.pipeline.engines.local import ATTEMPTS, LocalEngine
from foresift.pipeline.errors import DataError, StoreError
from foresift.pipeline.nouns import Resources
from tests.runs import ROOT, files, go, recipe

STEPS = [
    {"score": ["tests.parts:Letters", "tests.parts:Centred"]},
    {"dedup": "exact", "normalise": True},
    {"dedup": "minhash"},
    {"select": "gumbel_topk", "by": "centred.chars", "budget": "30%"},
    {"order": "folding", "by": "letters.count"},
    {"export": "parquet"},
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone")
    go(recipe(steps=STEPS), out)
    return files(out)


@pytest.fixture(scope="module")
def ray_engine() -> Iterator[Any]:
    from foresift.pipeline.engines.ray import RayEngine

    os.environ["PYTHONPATH"] = str(ROOT)
    engine = RayEngine(2)
    yield engine
    engine.close()


def test_a_pool_writes_the_same_bytes(tmp_path: Path, alone: dict[str, bytes]) -> None:
    engine = LocalEngine(3)
    go(recipe(steps=STEPS), tmp_path, engine)
    engine.close()
    assert files(tmp_path) == alone


@pytest.mark.ray
def test_ray_writes_the_same_bytes(
    tmp_path: Path, alone: dict[str, bytes], ray_engine: Any
) -> None:
    go(recipe(steps=STEPS), tmp_path, ray_engine)
    assert files(tmp_path) == alone


@pytest.mark.ray
def test_ray_survives_a_killed_actor(
    tmp_path: Path, alone: dict[str, bytes], ray_engine: Any
) -> None:
    lethal = tmp_path / "lethal"
    lethal.mkdir()
    (lethal / "0").touch()
    steps = [{"score": "tests.parts:Letters", "lethal": str(lethal)}]
    go(recipe(steps=steps), tmp_path / "out", ray_engine)
    assert not list(lethal.iterdir())
    scored = {k: v for k, v in files(tmp_path / "out").items() if k in alone}
    assert len(scored) > 8
    assert all(alone[k] == v for k, v in scored.items())


def _fail(item: int) -> dict[str, Any]:
    if item == 3:
        raise DataError("told to fail", where="item 3")
    return {"item": item}


def _die(item: int) -> dict[str, Any]:
    os._exit(9)


def test_errors_come_back_as_themselves() -> None:
    engine = LocalEngine(2)
    with pytest.raises(DataError, match="item 3: told to fail"):
        list(engine.map(_fail, list(range(6)), Resources()))
    engine.close()


@pytest.mark.ray
def test_errors_come_back_from_ray_as_themselves(ray_engine: Any) -> None:
    with pytest.raises(DataError, match="item 3: told to fail"):
        list(ray_engine.map(_fail, list(range(6)), Resources()))


def test_workers_that_always_die_end_the_run() -> None:
    engine = LocalEngine(2)
    with pytest.raises(StoreError, match=f"died {ATTEMPTS} times"):
        list(engine.map(_die, [0, 1], Resources()))
    engine.close()


def test_every_item_arrives_once() -> None:
    engine = LocalEngine(2)
    found = sorted(engine.map(_fail, [10, 20, 30, 40], Resources()))
    engine.close()
    assert found == [(n, {"item": 10 * (n + 1)}) for n in range(4)]
