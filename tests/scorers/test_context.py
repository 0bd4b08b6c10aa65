"""Scores that take context away: losses against the definition, evidence, known answers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from foresift.pipeline.errors import RecipeError
from foresift.pipeline.findings import findings
from foresift.pipeline.lm.attention import Found
from foresift.pipeline.lm.model import ModelSpec, load
from foresift.scorers._steps import Trace
from foresift.scorers._steps_attention import Attention, averaged
from foresift.scorers._steps_context import CONTEXT, Context, context
from foresift.scorers.context_gain import ContextGain
from foresift.scorers.distractor import Distractor, relative_drop
from foresift.scorers.evidence_attention import EvidenceAttention, inside, ratio
from tests.scorers import asking, tiny

ONE, TWO, QUESTION, ANSWER = "cats eat\nfish", "dogs run", "who runs?", "Dogs run"
PROMPT = f"{ONE}\n\n{TWO}\n\n{QUESTION}"
#: a prompt without context, and one that is longer than the model reads
ROWS = {"prompt": [PROMPT, QUESTION, PROMPT * 9, PROMPT], "response": [ANSWER] * 3 + [""]}


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return replace(tiny.llama(tmp_path), max_length=64)


def of(prompt: str, pattern: str = CONTEXT) -> Context | None:
    return context(Trace(ANSWER, len(prompt) + 1, prompt), re.compile(pattern))


def test_the_context_is_all_paragraphs_but_the_last() -> None:
    found = of(PROMPT)
    assert found is not None
    assert [found.text(p) for p in found.passages] == [ONE, TWO]
    assert found.without(found.span) == QUESTION
    assert found.without(found.passages[0]) == f"{TWO}\n\n{QUESTION}"
    assert found.evidence("DOGS  run.") == [1]
    assert found.evidence("cat") == found.evidence("") == []
    assert of(QUESTION) is None
    assert of("\n\n" + QUESTION) is None
    marked = of("Q: q\nContext: a b\nA:", r"Context: (.*)\n")
    assert marked is not None
    assert marked.without(marked.span) == "Q: q\nContext: A:"


def test_the_context_of_a_conversation_is_in_its_last_turn() -> None:
    turns = [{"role": "system", "content": "s\n\nt"}, {"role": "user", "content": PROMPT}]
    before = "".join(f"{t['content']}\n" for t in turns)
    found = context(Trace(ANSWER, len(before), before, turns), re.compile(CONTEXT))
    assert found is not None
    assert before[found.start :] == PROMPT + "\n"
    assert found.without(found.span) == [turns[0], {"role": "user", "content": QUESTION}]


def test_gain_is_the_difference_of_two_plain_losses(tmp_path: Path, spec: ModelSpec) -> None:
    found = asking.score(ContextGain(threshold=0), pa.table(ROWS), spec, tmp_path)
    full, bare = (asking.plain(spec, p, ANSWER) for p in (PROMPT, QUESTION))
    np.testing.assert_allclose(found["nll"], [full, bare, np.nan, found["nll"][3].as_py()], 1e-4)
    np.testing.assert_allclose(found["nll_without"][:2], [bare, np.nan], rtol=1e-4)
    np.testing.assert_allclose(found["gain"][:3], [bare - full, np.nan, np.nan], rtol=1e-3)
    told = list(findings(found["findings"]))
    assert [len(t) for t in told] == [int(bare < full), 0, 0, 0]


def test_turns_before_the_question_can_be_the_context(tmp_path: Path, spec: ModelSpec) -> None:
    ask = {"role": "user", "content": QUESTION}
    answer = {"role": "assistant", "content": ANSWER}
    system = {"role": "system", "content": "be"}
    table = pa.table({"messages": [[system, ask, answer], [ask, answer]]})
    found = asking.score(ContextGain(of="turns"), table, spec, tmp_path)
    assert found["nll_without"][0].as_py() == pytest.approx(found["nll"][1].as_py(), rel=1e-5)
    assert np.isnan(found["gain"][1].as_py())
    assert np.isfinite(found["gain"][0].as_py())


def test_a_passage_harms_by_what_its_removal_saves(tmp_path: Path, spec: ModelSpec) -> None:
    part = Distractor(threshold=0)
    found = asking.score(part, pa.table(ROWS), spec, tmp_path)
    losses = {p: asking.plain(spec, p, ANSWER) for p in (PROMPT, f"{ONE}\n\n{QUESTION}")}
    alone = asking.plain(spec, f"{TWO}\n\n{QUESTION}", ANSWER)
    full = losses[PROMPT]
    harm = [full - alone, full - losses[f"{ONE}\n\n{QUESTION}"]]
    assert found["worst"][0].as_py() == pytest.approx(max(harm), rel=1e-3)
    assert found["passage"].to_pylist() == [int(np.argmax(harm)), -1, -1, -1]
    assert found["rise"][0].as_py() == pytest.approx(full - alone, rel=1e-3)
    assert found["evidence"].to_pylist()[:2] == [1, 0]
    spans = [f for f in next(iter(findings(found["findings"]))) if f.reason == "distractor"]
    assert [PROMPT[f.start : f.stop] for f in spans] == [
        p for p, h in zip([ONE, TWO], harm, strict=True) if h > 0
    ]


def test_a_distractor_that_has_the_answer_is_rejected(tmp_path: Path, spec: ModelSpec) -> None:
    prompt = "it is 7\n\nsay 7.\n\nor 77\n\nwhat?"
    table = pa.table({"prompt": [prompt, prompt + " "], "response": ["It is seven", "7"]})
    part = Distractor(answer="s.gold", threshold=9)
    found = asking.score(part, table, spec, tmp_path, gold=pa.array(["7", None]))
    assert found["evidence"].to_pylist() == [2, 2]
    assert found["leaked"].to_pylist() == [1, 1]
    [finding] = next(iter(findings(found["findings"])))
    assert finding.reason == "answer_in_distractor"
    assert prompt[finding.start : finding.stop] == "say 7."


def test_the_relative_drop_of_noisybench() -> None:
    assert relative_drop(32.4, 6.3) == pytest.approx(0.806, abs=5e-4)


def test_the_ratio_of_mia_dpo() -> None:
    regions = [np.array([1, 2, 3]), np.array([4, 5, 6])]
    attention = np.array([5.0, 0.1, 0.1, 0.1, 0.2, 0.2, 0.3])  # the first is a sink outside of all
    part = EvidenceAttention(thresholds={2: 0.8, 3: 0.7, 4: 0.6})
    for free in (True, False):
        first, second = (ratio(attention, regions, [k], free) for k in (0, 1))
        assert first == pytest.approx(0.3)
        assert second == pytest.approx(0.7)
        assert max(first, second) < part.threshold(2) == 0.8
        attention[0] = 0.0
        assert ratio(attention, regions, [0], free) == pytest.approx(first)
    assert [part.threshold(k) for k in (3, 4, 6)] == [0.7, 0.6, 0.6]
    assert EvidenceAttention().threshold(6) == pytest.approx(1 / 6)
    longer = [np.array([1]), np.array([2, 3, 4])]
    even = np.full(5, 0.2)
    assert ratio(even, longer, [0]) == pytest.approx(1 / 2)
    assert ratio(even, longer, [0], free=False) == pytest.approx(1 / 4)
    assert np.isnan(ratio(np.zeros(5), longer, [0]))


@pytest.mark.parametrize("config", [tiny.LLAMA, tiny.GPT2], ids=["llama", "gpt2"])
def test_attention_is_that_of_the_maps(tmp_path: Path, config: dict[str, object]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    spec = ModelSpec(init=str(path), tokenizer="bytes", device="cpu", max_length=48)
    loaded = load(spec)
    ids, rows = np.arange(12) * 7 % 250, np.array([8, 9, 11])
    for depth, layer in ((0.0, 0), (0.5, 1), (1.0, 1)):
        found = Attention(loaded.model, depth).mean(ids, rows)
        loaded.model.set_attn_implementation("eager")
        with torch.inference_mode():
            told = loaded.model(torch.from_numpy(ids)[None], output_attentions=True)
        loaded.model.set_attn_implementation("sdpa")
        maps = told.attentions[layer][0].double().mean(0)[rows].mean(0).numpy()
        np.testing.assert_allclose(found, maps, rtol=1e-4, atol=1e-7)
        assert found.sum() == pytest.approx(1)


def test_windows_and_caps_are_applied_again() -> None:
    found = Found()
    found.query = found.key = torch.ones(1, 2, 6, 4)
    found.window, found.cap = 2, 1.0
    told = averaged(found, torch.tensor([5]))
    np.testing.assert_allclose(told, [0, 0, 0, 0, 0.5, 0.5])


def test_attention_to_the_passages_of_a_prompt(tmp_path: Path, spec: ModelSpec) -> None:
    found = asking.score(EvidenceAttention(depth=0), pa.table(ROWS), spec, tmp_path)
    loaded = load(spec)
    start = loaded.tokenizer.eos_token_id
    text = f"{PROMPT}\n{ANSWER}"
    ids = np.array([start, *loaded.tokenizer(text)["input_ids"], start])
    rows = np.arange(len(PROMPT) + 1, len(ids) - 1)
    attention = Attention(loaded.model, 0).mean(ids, rows)
    first, second = (
        attention[1 + PROMPT.index(p) : 1 + PROMPT.index(p) + len(p)].mean() for p in (ONE, TWO)
    )
    expected = second / (first + second)
    np.testing.assert_allclose(found["ratio"], [expected, np.nan, np.nan, np.nan], rtol=1e-4)
    assert found["passages"].to_pylist()[0] == 2
    told = next(iter(findings(found["findings"])))
    assert [PROMPT[f.start : f.stop] for f in told] == ([TWO] if expected < 0.5 else [])
    chats = pa.table({"messages": [[{"role": "user", "content": PROMPT},
                                    {"role": "assistant", "content": ANSWER}]]})  # fmt: skip
    (tmp_path / "chat").mkdir()
    chat = asking.score(EvidenceAttention(), chats, replace(spec, max_length=99), tmp_path / "chat")
    assert 0 < chat["ratio"][0].as_py() < 1


def test_the_tokens_of_a_passage_end_within_it() -> None:
    ends = np.array([[0, 1], [1, 4], [2, 5], [3, 9]])
    assert inside(ends, (2, 6)).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        (ContextGain, {"context": "("}, "regular expression"),
        (ContextGain, {"threshold": -1}, "negative"),
        (Distractor, {"most": 1}, "at least 2"),
        (EvidenceAttention, {"depth": 2}, "share of the layers"),
        (EvidenceAttention, {"thresholds": {1: 0.5}}, "two passages"),
    ],
)
def test_wrong_fields_are_located_errors(part: type, fields: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        part.parse(fields, "score")
