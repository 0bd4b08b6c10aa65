"""Tiny models, corpora and plans for the trainers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.nouns import Inputs, Job
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts, StepDir
from foresift.stages.trainers.causal_lm import CausalLM
from tests.corpora import Serial, make_corpus

WORDS = ["a", "plan", "is", "one", "file", "that", "any", "trainer", "can", "follow"]
COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**COMMON, "intermediate_size": 48, "max_position_embeddings": 64}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "gpt_neox": {**WIDE, "rotary_pct": 0.25},
    "llama": {**WIDE, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2": {**WIDE, "num_key_value_heads": 2},
    "mistral": {**WIDE, "num_key_value_heads": 2, "sliding_window": 6},
}


def texts(count: int, seed: int = 0) -> list[str]:
    """Different short documents of about five words."""
    rng = np.random.default_rng(seed)
    return [f"{n} " + " ".join(rng.choice(WORDS, rng.integers(2, 9))) for n in range(count)]


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., ModelSpec]:
    """`model("llama", seed=1)`: a model of random weights over bytes."""

    def make(kind: str = "llama", **fields: Any) -> ModelSpec:
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps({"model_type": kind, **SHAPES[kind]}))
        return ModelSpec(init=str(path), tokenizer="bytes", device="cpu", **fields)

    return make


def plan_of(
    corpus: Corpus, order: Sequence[tuple[int, int]], path: Path, weights: Any = None
) -> StepDir:
    """A plan of (shard, row) pairs."""
    path.mkdir(parents=True, exist_ok=True)
    ids = [s.load(["id"])["id"].to_pylist() for s in corpus.shards()]
    n = len(order)
    table = pa.table(
        {
            "id": pa.array([ids[s][r] for s, r in order], pa.binary(16)),
            "shard": pa.array([s for s, _ in order], pa.int32()),
            "row": pa.array([r for _, r in order], pa.int64()),
            "weight": pa.array(np.ones(n) if weights is None else weights, pa.float32()),
            "position": pa.array(np.arange(n), pa.int64()),
            "round": pa.array(np.full(n, 3), pa.int32()),
        }
    )
    pq.write_table(table, path / "plan.parquet")
    return StepDir(path)


@pytest.fixture
def job() -> Job:
    return Job(engine=Serial(), rng=Rng(0))


@pytest.fixture
def inputs(model: Callable[..., ModelSpec], tmp_path: Path) -> Inputs:
    """Forty documents in two shards, planned from last to first."""
    found = texts(40)
    data = make_corpus(tmp_path, [found[:25], found[25:]])
    order = [(1, r) for r in range(14, -1, -1)] + [(0, r) for r in range(24, -1, -1)]
    return Inputs(corpus=data, plan=plan_of(data, order, tmp_path / "plan"), model=model())


SMALL = {"length": 16, "batch_tokens": 64, "micro_tokens": 32, "threads": 1, "warmup": 0.0}


def train(inputs: Inputs, out: Path, job: Job, **fields: Any) -> tuple[Facts, Path]:
    part = CausalLM(**{**SMALL, **fields})
    StepDir(out).open()
    return part.run(inputs, StepDir(out), job), out
