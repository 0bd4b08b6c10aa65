"""Memorisation: known answers, the plain formulas, and a model that learned one text by heart."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.forward import score_table
from foresift.pipeline.lm.model import ModelSpec, load, load_tokenizer
from foresift.pipeline.lm.signals import Signals, Tokens
from foresift.pipeline.tables import content_ids
from foresift.scorers.memorisation import Memorisation, counted_texts
from tests.scorers.tiny import llama

BYTES = load_tokenizer("bytes")
P = np.array([0.7, 0.2, 0.1])
MEAN = float((P * np.log(P)).sum())
VARIANCE = float((P * np.log(P) ** 2).sum() - MEAN**2)


def given(table: pa.Table, picks: list[list[int]], reference: list[Any]) -> tuple[Any, Signals]:
    """Documents whose tokens were each predicted from P; `picks` are the tokens that came."""
    encoded = encode(table, BYTES, ModelSpec(init="none", max_length=64))
    counts = [len(each) for each in picks]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    flat = np.array([x for each in picks for x in each], dtype=np.int64)
    signal = {
        "nll": -np.log(P[flat]), "entropy": np.full(len(flat), -MEAN),
        "log_variance": np.full(len(flat), VARIANCE),
    }  # fmt: skip
    table = table.append_column("r.nll", pa.array(reference, pa.float64()))
    n = len(picks)
    tokens = Tokens(table, offsets, encoded.lengths, encoded.cut, np.zeros(n, bool), encoded, BYTES)
    return tokens, Signals({k: v.astype(np.float32) for k, v in signal.items()}, {}, offsets)


def test_the_known_answers() -> None:
    assert pytest.approx(-0.8018, abs=1e-4) == MEAN
    assert pytest.approx(0.4944, abs=1e-4) == VARIANCE
    texts = pa.table({"text": ["ab", "a", "b", ""]})
    found = Memorisation(against="r.nll", k=0.5).score(
        *given(texts, [[0, 1, 0], [1], [0], []], [2.0, None, math.inf, 1.0])
    )
    np.testing.assert_allclose(found["min_k"], [-1.1486, -1.1486, 0.6331, np.nan], atol=1e-4)
    nll = -np.log([0.7 * 0.2 * 0.7]) / 3
    np.testing.assert_allclose(found["gap"], [2 - nll[0], np.nan, np.nan, np.nan], atol=1e-6)
    np.testing.assert_allclose(found["utility"], -found["gap"])
    packed = len(zlib.compress(b"ab"))
    assert found["zlib"][0] == pytest.approx(-nll[0] / packed, abs=1e-6)


def test_a_position_that_the_model_is_sure_of_is_no_nan() -> None:
    tokens, signals = given(pa.table({"text": ["a"]}), [[0, 0]], [1.0])
    for name in signals.token:
        signals.token[name][:] = 0
    found = Memorisation(against="r.nll", k=1).score(tokens, signals)
    assert found["min_k"] == [0.0]


def test_the_text_of_the_ratio_is_what_counts() -> None:
    pairs = pa.table({"prompt": ["why?", "x"], "response": ["Grüße", "abcdefgh"]})
    encoded = encode(pairs, BYTES, ModelSpec(init="none", max_length=7))
    tokens = Tokens(
        pairs, np.zeros(3, np.int64), encoded.lengths, encoded.cut, np.ones(2, bool), encoded, BYTES
    )
    assert counted_texts(tokens) == ["G", "abcd"]


def trained(spec: ModelSpec, text: str, folder: Path, steps: int = 60) -> ModelSpec:
    """A copy of a model that has learned one text by heart."""
    loaded = load.__wrapped__(spec)
    ids = torch.tensor(encode(pa.table({"text": [text]}), loaded.tokenizer, spec).ids[None]).long()
    optimizer = torch.optim.AdamW(loaded.model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loaded.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return spec.at(folder)


def test_what_was_learned_by_heart_stands_out(tmp_path: Path) -> None:
    spec, secret = llama(tmp_path), "the access code is 493817"
    texts = [secret, "the access code is 105592", "some other text of that length"]
    table = pa.table({"text": texts})
    table = table.append_column("id", content_ids(table))
    before = table.append_column("r.nll", pa.array([0.0] * 3))
    part = Memorisation(against="r.nll")
    (raw,) = score_table(before, spec, [part])
    told = table.append_column("r.nll", pa.array(raw["nll"]))
    (found,) = score_table(told, trained(spec, secret, tmp_path / "trained"), [part])
    for name in ("gap", "min_k", "zlib"):
        assert np.argmax(found[name]) == 0, name
        assert found[name][0] > raw[name][0], name
    assert np.argmin(found["utility"]) == 0
    turned = told.take(pa.array([2, 0, 1]))
    (again,) = score_table(turned, spec.at(tmp_path / "trained"), [part])
    for name in part.columns:
        np.testing.assert_allclose(
            np.asarray(again[name]), np.asarray(found[name])[[2, 0, 1]], atol=1e-4
        )


def test_bad_input_is_refused() -> None:
    for k in (0, 1.5):
        with pytest.raises(RecipeError, match="k is a share"):
            Memorisation.parse({"against": "x", "k": k}, "score")
    with pytest.raises(RecipeError, match="against: Field required"):
        Memorisation.parse({}, "score")
    tokens, signals = given(pa.table({"text": ["a"]}), [[0]], [1.0])
    table = tokens.table.set_column(1, "r.nll", pa.array(["low"]))
    tokens = Tokens(
        table, tokens.offsets, tokens.lengths, tokens.cut, tokens.prompted, tokens.encoded, BYTES
    )
    with pytest.raises(DataError, match=r"r\.nll: reference losses are numbers"):
        Memorisation(against="r.nll").score(tokens, signals)
