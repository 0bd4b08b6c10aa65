"""Held-out loss: both means, their standard errors, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.evaluate import evaluate, means
from foresift.pipeline.lm.model import ModelSpec, load

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(CONFIG))
    return ModelSpec(init=str(path), tokenizer="bytes", device="cpu", max_length=64)


def test_known_means() -> None:
    facts = means(np.array([2.0, 12.0]), np.array([1.0, 3.0]))
    assert facts["token_mean"] == 14 / 4
    assert facts["sample_mean"] == 3.0
    assert facts["sample_mean_se"] == pytest.approx(1.0)  # std of (2, 4) is sqrt(2), over sqrt(2)
    assert facts["token_mean_se"] == pytest.approx((2 * (1.5**2 + 1.5**2)) ** 0.5 / 4)
    assert (facts["documents"], facts["tokens"]) == (2, 4)


def test_the_error_of_the_token_mean_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 50, (4000, 200)).astype(float)
    sums = counts * rng.normal(3.0, 0.5, counts.shape)
    drawn = [means(s, c) for s, c in zip(sums, counts, strict=True)]
    spread = np.std([d["token_mean"] for d in drawn])
    told = np.mean([d["token_mean_se"] for d in drawn])
    assert told == pytest.approx(spread, rel=0.05)


def test_against_a_plain_loop(spec: ModelSpec) -> None:
    texts = ["hello", "", "a longer document about nothing", None, "x" * 300]
    table = pa.table({"text": pa.array(texts, pa.large_string())})
    facts = evaluate([table.slice(0, 2), table.slice(2)], spec)
    loaded = load(spec)
    encoded = encode(table, loaded.tokenizer, spec)
    each = []
    for a, b in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True):
        ids = torch.tensor(encoded.ids[a:b].astype(np.int64))
        with torch.no_grad():
            logits = loaded.model(ids[None]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        each.append(loss.double().numpy())
    assert facts["token_mean"] == pytest.approx(np.concatenate(each).mean(), rel=1e-5)
    assert facts["sample_mean"] == pytest.approx(np.mean([e.mean() for e in each]), rel=1e-5)
    assert facts["tokens"] == sum(len(e) for e in each)
    assert (facts["documents"], facts["cut"], facts["empty"]) == (5, 1, 0)


def test_no_document_has_no_mean(spec: ModelSpec) -> None:
    table = pa.table({"text": pa.array([], pa.string())})
    for tables in ([], [table]):
        facts = evaluate(tables, spec)
        assert facts["token_mean"] is None
        assert facts["documents"] == facts["tokens"] == 0


def test_a_document_without_a_counted_token_is_left_out(spec: ModelSpec) -> None:
    empty = pa.table({"messages": pa.array([[]], pa.list_(pa.struct(
        [("role", pa.string()), ("content", pa.string())])))})  # fmt: skip
    facts = evaluate([empty, pa.table({"text": ["one"]})], spec)
    assert (facts["documents"], facts["empty"]) == (1, 1)
    assert facts["sample_mean"] == pytest.approx(facts["token_mean"])
    assert facts["token_mean_se"] is None
