"""A model that does not load is one located error before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.inputs import (
    nothing_done,
    recipe,
    refused,
    texts,
    write,
)


def _nothing(path: Path) -> str:
    shutil.rmtree(path)
    return "no such file or folder"


def _no_tokenizer(path: Path) -> str:
    for file in path.glob("tokenizer*"):
        file.unlink()
    return "tokenizer"


def _no_config(path: Path) -> str:
    (path / "config.json").unlink()
    return "no usable model configuration"


def _config_of_nothing(path: Path) -> str:
    (path / "config.json").write_text("{")
    return "no usable model configuration"


def _only_a_pickle(path: Path) -> str:
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    return "pickle"


def _cut_off(path: Path) -> str:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return "damaged"


def _no_safetensors(path: Path) -> str:
    (path / "model.safetensors").write_bytes(b"not what it says it is")
    return "damaged"


def _other_shape(path: Path) -> str:
    config = json.loads((path / "config.json").read_text())
    config["intermediate_size"] += 8
    (path / "config.json").write_text(json.dumps(config))
    return "do not fit"


def _layer_missing(path: Path) -> str:
    config = json.loads((path / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config.pop("layer_types", None)
    (path / "config.json").write_text(json.dumps(config))
    return "do not fit"


def _part_missing(path: Path) -> str:
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors",
                                            "b": "model-00002-of-00002.safetensors"}}  # fmt: skip
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    "damage",
    [
        _nothing, _no_tokenizer, _no_config, _config_of_nothing, _only_a_pickle, _cut_off,
        _no_safetensors, _part_missing, _other_shape, _layer_missing,
    ],
)  # fmt: skip
def test_a_model_that_does_not_load_is_refused_before_any_work(
    tmp_path: Path, checkpoint: Path, damage: Callable[[Path], str]
) -> None:
    message = damage(checkpoint)
    fields = recipe(
        write(tmp_path / "a.jsonl", texts()),
        steps=[{"score": "loss"}],
        model={"init": str(checkpoint), "device": "cpu"},
    )
    said = refused(tmp_path, fields)
    assert said.startswith(f"ModelError {checkpoint}")
    assert message in said
    assert len(said.splitlines()) == 1
    assert nothing_done(tmp_path)
