"""Losses by step: known jumps, tokens under characters, and NoRa's two kinds of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from foresift.pipeline.errors import RecipeError
from foresift.pipeline.findings import findings
from foresift.pipeline.lm.model import load
from foresift.scorers import step_noise
from foresift.scorers._steps import Trace, steps
from foresift.scorers.step_noise import StepNoise, jumps, overlaps, step_means
from tests.scorers import asking, tiny


def test_a_jump_is_the_distance_to_the_median_in_units_of_spread() -> None:
    found = jumps(np.array([1.0, 2.0, 3.0, 4.0, 9.0]))
    np.testing.assert_allclose(found, np.array([-2, -1, 0, 1, 6]) / 1.4826)
    flat = jumps(np.array([1.0, 1.0, 1.0, 1.5]), floor=0.1)
    np.testing.assert_allclose(flat, [0, 0, 0, 5.0])
    assert np.isnan(jumps(np.array([1.0, 5.0]))).all()
    np.testing.assert_allclose(jumps(np.array([1, np.nan, 1, 2]), floor=0.5), [0, np.nan, 0, 2])


def test_a_jump_against_what_came_before_knows_nothing_of_what_follows() -> None:
    means = np.array([5.0, 1.0, 2.0, 9.0, 1.0])
    found = jumps(means, "before", 0.1)
    assert np.isnan(found[:2]).all()
    np.testing.assert_allclose(found[2], (2 - 3) / (1.4826 * 2))
    np.testing.assert_allclose(found[3], (9 - 2) / (1.4826 * 1))
    np.testing.assert_allclose(jumps(means[:4], "before", 0.1), found[:4])


def test_a_token_belongs_to_the_step_that_its_last_character_is_in() -> None:
    spans = [(0, 4), (5, 9)]
    where = [(0, 0, 4), (1, 4, 7), (2, 7, 9)]  # the second begins with the space between
    np.testing.assert_allclose(step_means(spans, where, np.array([1.0, 2.0, 4.0])), [1.0, 3.0])
    np.testing.assert_allclose(step_means(spans, where[:1], np.array([1.0])), [1.0, np.nan])


def test_words_that_nothing_takes_up() -> None:
    text = "We have 1 + 8 = 9. Norse myths know realms. 9 mod 9 = 0. And."
    found = overlaps(Trace(text, 0, "what is 1 + 8?"), steps(text))
    np.testing.assert_allclose(found, [1, 0, 1 / 3, 1])


def test_losses_by_step_are_the_models_own(tmp_path: Path) -> None:
    spec = tiny.llama(tmp_path)
    text = "Aa é.\nBb b.\nCc"
    found = asking.score(StepNoise(), pa.table({"text": [text, "", "a"]}), spec, tmp_path)
    loaded = load(spec)
    ids = [loaded.tokenizer.eos_token_id, *loaded.tokenizer(text)["input_ids"]]
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([ids]).to(loaded.device)).logits[0].cpu()
    nll = -logits.double().log_softmax(-1)[range(len(ids) - 1), ids[1:]].numpy()
    lines = text.split("\n")
    ends = np.cumsum([len(f"{line}\n".encode()) for line in lines])
    expected = [part.mean() for part in np.split(nll, ends[:-1])]
    np.testing.assert_allclose(found["nll"][0].as_py(), expected, rtol=1e-4)
    np.testing.assert_allclose(found["worst"][0].as_py(), max(expected), rtol=1e-4)
    assert found["nll"][1].as_py() == []
    assert found["step"].to_pylist()[1:] == [-1, -1]


def test_a_jump_is_a_finding_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "3 + 5 is 8. Whales sing at night. 8 + 1 is 9. 3 + 8 is 5. So it is 9."
    given = np.array([1.0, 9.0, 1.1, 8.0, 1.2])
    monkeypatch.setattr(step_noise, "step_means", lambda spans, *_: given[: len(spans)])
    table = pa.table({"prompt": ["3 + 5 + 1?"], "response": [answer]})
    found = asking.score(StepNoise(), table, tiny.llama(tmp_path), tmp_path)
    one, two = next(iter(findings(found["findings"])))
    content = "3 + 5 + 1?\n" + answer
    assert (one.reason, content[one.start : one.stop]) == ("irrelevant", "Whales sing at night.")
    assert (two.reason, content[two.start : two.stop]) == ("inaccurate", "3 + 8 is 5.")
    assert found["step"][0].as_py() == 1
    assert found["noise"][0].as_py() == pytest.approx(2 / 5)
    assert found["unrelated"][0].as_py() == 1


def test_conversations_are_read_to_their_last_answer(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "u"}, {"role": "assistant", "content": "x.\ny.\nz."},
        {"role": "user", "content": "v"}, {"role": "assistant", "content": "a.\nb."},
    ]  # fmt: skip
    table = pa.table({"messages": [turns, turns[:2], turns[:1]]})
    found = asking.score(StepNoise(), table, tiny.llama(tmp_path), tmp_path)
    lengths = found["nll"].value_lengths().to_pylist()
    assert lengths == [2, 3, 0]
    assert np.isfinite(found["nll"][1].as_py()).all()


@pytest.mark.parametrize("fields", [{"floor": 0}, {"threshold": -1}, {"related": 2}])
def test_wrong_fields_are_located_errors(fields: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="positive"):
        StepNoise.parse(fields, "score")
