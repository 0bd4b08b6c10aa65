"""Step rewards: the sums of ReasonFlux-PRM, where they are read, and checkpoints of both kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForTokenClassification, LlamaConfig, LlamaForCausalLM

from foresift.pipeline.errors import DataError, ModelError, RecipeError
from foresift.pipeline.findings import findings
from foresift.pipeline.lm.model import load_tokenizer
from foresift.scorers import process_reward
from foresift.scorers._steps import Trace
from foresift.scorers.process_reward import ProcessReward, read, summary
from tests.scorers import tiny

TEXT = "first step here\n\nx\n\nand a last step"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token classifier over bytes, saved as people publish them."""
    path = tmp_path_factory.mktemp("prm")
    config = LlamaConfig(**{k: v for k, v in tiny.LLAMA.items() if k != "model_type"})
    config.vocab_size, config.num_labels = 257, 2
    torch.manual_seed(0)
    AutoModelForTokenClassification.from_config(config).save_pretrained(path)
    load_tokenizer("bytes").save_pretrained(path)
    return path


def part(folder: Path, **fields: Any) -> ProcessReward:
    return ProcessReward(
        **{"checkpoint": str(folder), "separator": "#", "shortest": 5, "device": "cpu", **fields}
    )


def test_the_trajectory_reward_of_reasonflux() -> None:
    found = summary(np.array([0.2, 0.4, 0.6]), outcome=0.5, alpha=1.0)
    np.testing.assert_allclose(found, [0.4, 0.2, 0.048, 0.6, 0.9])
    assert np.isnan(summary(np.empty(0), 0.5)).all()


def test_a_reward_of_nothing_shifts_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = np.array([0.0, 1.0])
    monkeypatch.setattr(process_reward._Model, "rewards", lambda *_: given)
    table = pa.table({"prompt": ["q"], "response": [TEXT], "s.right": [0.5]})
    found = part(folder, outcome="s.right").score(table)
    assert found["rewards"][0].tolist() == [0.0, 1.0]
    assert (found["min"], found["product"], found["trajectory"]) == ([0.0], [0.0], [1.0])
    [finding] = next(iter(findings(found["findings"])))
    assert (finding.reason, finding.value) == ("low_reward", 0.0)
    assert f"q\n{TEXT}"[finding.start : finding.stop] == "first step here"


def test_short_steps_are_joined_and_rewards_read_behind_the_separator(folder: Path) -> None:
    one = part(folder)
    tokenizer = load_tokenizer(str(folder))
    spans, ids, places = read(Trace(TEXT, 2, "q"), tokenizer, one)
    assert [TEXT[a:b] for a, b in spans] == ["first step here", "x\n\nand a last step"]
    assert tokenizer.decode(ids) == "q\nfirst step here#x\n\nand a last step#"
    assert [tokenizer.decode(ids[: p + 1])[-2:] for p in places] == ["e#", "p#"]
    ending = "a long first one\n\nx"
    assert [s for s, *_ in [read(Trace(ending, 0, None), tokenizer, one)]] == [[(0, 19)]]


def test_rewards_of_a_classifier_are_its_probabilities(folder: Path) -> None:
    table = pa.table({"text": [TEXT, "", None]})
    found = part(folder).score(table)
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    _, ids, places = read(Trace(TEXT, 0, None), load_tokenizer(str(folder)), part(folder))
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, places].double()
    expected = logits.softmax(-1)[:, 1].numpy()
    np.testing.assert_allclose(found["rewards"][0], expected, rtol=1e-6)
    np.testing.assert_allclose(found["mean"], [expected.mean(), np.nan, np.nan])
    np.testing.assert_allclose(found["utility"][0], expected.mean() + expected[-1])
    other = part(folder, good=0).score(table)["rewards"][0]
    np.testing.assert_allclose(other, 1 - expected, rtol=1e-6)
    cut = part(folder, max_length=places[1]).score(table)["rewards"][0]
    np.testing.assert_allclose(cut, expected[:1], rtol=1e-5)


def test_one_output_is_a_sigmoid(tmp_path: Path, folder: Path) -> None:
    load = AutoModelForTokenClassification.from_pretrained
    model = load(folder, num_labels=1, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path)
    load_tokenizer("bytes").save_pretrained(tmp_path)
    found = part(tmp_path, shortest=1).score(pa.table({"text": ["a"]}))
    with torch.inference_mode():
        logit = model.eval()(torch.tensor([load_tokenizer("bytes")("a#")["input_ids"]])).logits
    assert found["final"][0] == pytest.approx(float(logit[0, -1, 0].sigmoid()), rel=1e-5)


def test_a_language_model_says_it_by_two_tokens(tmp_path: Path) -> None:
    config = LlamaConfig(**{k: v for k, v in tiny.LLAMA.items() if k != "model_type"})
    config.vocab_size = 257
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = load_tokenizer("bytes")
    tokenizer.save_pretrained(tmp_path)
    found = part(tmp_path, tokens=("+", "-")).score(pa.table({"text": [TEXT]}))
    _, ids, places = read(Trace(TEXT, 0, None), tokenizer, part(tmp_path))
    good, bad = (tokenizer(t)["input_ids"][0] for t in "+-")
    with torch.inference_mode():
        p = model(torch.tensor([ids])).logits[0, places].double().softmax(-1).numpy()
    np.testing.assert_allclose(
        found["rewards"][0], p[:, good] / (p[:, good] + p[:, bad]), rtol=1e-5
    )
    with pytest.raises(DataError, match="not one"):
        part(tmp_path, tokens=("yes", "no")).score(pa.table({"text": [TEXT]}))
    with pytest.raises(ModelError, match="no score"):  # its head was never trained
        part(tmp_path).score(pa.table({"text": [TEXT]}))


def test_what_cannot_be_read_is_told(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="2 classes"):
        part(folder, good=5).score(pa.table({"text": [TEXT]}))
    with pytest.raises(ModelError, match="no such"):
        part(tmp_path / "none").score(pa.table({"text": [TEXT]}))
    with pytest.raises(RecipeError, match="separator is not empty"):
        ProcessReward.parse({"checkpoint": "x", "separator": ""}, "score")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny.LLAMA))
    with pytest.raises(ModelError, match="tokenizer"):
        part(path).score(pa.table({"text": [TEXT]}))
