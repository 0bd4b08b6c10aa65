"""What training refuses, and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foresift.pipeline.errors import DataError, ModelError, RecipeError
from foresift.pipeline.nouns import Inputs, Job
from foresift.stages.trainers.causal_lm import CausalLM
from tests.corpora import make_corpus
from tests.stages.trainers.conftest import train


def test_nothing_to_train_on_is_an_error(model: Any, tmp_path: Path, job: Job) -> None:
    data = make_corpus(tmp_path, [[]])
    with pytest.raises(DataError, match="nothing to train on: 0 documents"):
        train(Inputs(corpus=data, model=model()), tmp_path / "out", job, tokens=64, repeat=True)
    with pytest.raises(ModelError, match="needs a model"):
        train(Inputs(corpus=data), tmp_path / "out", job)
    with pytest.raises(DataError, match="needs a corpus"):
        train(Inputs(model=model()), tmp_path / "out", job)


def test_rows_longer_than_the_model_are_refused(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    with pytest.raises(ModelError, match="rows of 128 tokens, but the model has 64 positions"):
        train(inputs, tmp_path / "out", job, length=128, batch_tokens=128, micro_tokens=128)


def test_a_loss_that_explodes_is_an_error(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    with pytest.raises(ModelError, match=r"the training loss became .* at step"):
        train(inputs, tmp_path / "out", job, learning_rate=1e30, clip=0.0)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": "20%"}, "absolute number"),
        ({"tokens": "many"}, "a budget is an amount"),
        ({"length": 1}, "length must be at least 2"),
        ({"batch_tokens": 8}, "batch_tokens must be at least 512"),
        ({"micro_tokens": 8}, "micro_tokens must hold one row"),
        ({"warmup": 2}, "warmup is a share"),
        ({"schedule": "steps"}, "schedule"),
        ({"lr": 1.0}, "no field 'lr'"),
    ],
)
def test_bad_fields_are_located(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"(?s)^steps\.3: .*{message}"):
        CausalLM.parse(fields, "steps.3")


def test_speed_is_not_in_the_fingerprint() -> None:
    assert CausalLM(threads=1).fingerprint == CausalLM(threads=2).fingerprint
    assert CausalLM(seed=1).fingerprint != CausalLM(seed=2).fingerprint
