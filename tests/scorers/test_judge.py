"""A judge's ratings: who is asked what, what is missing, and what is not asked again."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import DataError
from foresift.pipeline.store import temporary
from foresift.pipeline.tables import MESSAGES, content_ids
from foresift.scorers.judge import CRITERIA, Judge, halves, questions
from tests.endpoint_server import Reply, served

HERE = "tests.scorers.test_judge"


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def pairs(rows: list[tuple[str, str]]) -> pa.Table:
    table = pa.table({"prompt": [p for p, _ in rows], "response": [r for _, r in rows]})
    return table.append_column("id", content_ids(table))


def fitted(part: Judge, rows: pa.Table, step: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """(facts, scores), in a step's folder as the pipeline has it."""
    out = temporary(step / "fitted")
    out.mkdir(parents=True, exist_ok=True)
    facts = part.fit([rows.slice(0, 2), rows.slice(2)], out)
    return facts, {n: np.asarray(v).tolist() for n, v in part.score(rows, out).items()}


def lengths(asked: list[str]) -> list[Any]:
    """Rates a prompt by its letters and an answer by twice its; nothing for what begins with x."""
    found: list[Any] = []
    for question in asked:
        body = re.findall(r"<(?:answer|instruction|text)>\n(.*)\n</", question)[-1]
        times = 2 if "<answer>" in question else 1
        found.append(None if body.startswith("x") else f"{times * len(body)}/10")
    return found


def by_criterion(asked: list[str]) -> list[Any]:
    words = [next(w for w in ("clear", "complete", "factual") if f"how {w}" in q) for q in asked]
    return [{"clear": 2, "complete": 4.5, "factual": "-1"}[w] for w in words]


def test_prompt_and_response_are_averaged_for_each_criterion(tmp_path: Path) -> None:
    rows = pairs([("ab", "abc"), ("abcd", "a" * 9), ("xy", "abc"), ("xy", "xy"), ("", " ")])
    facts, found = fitted(Judge(judge=f"{HERE}:lengths"), rows, tmp_path)
    expected = [(2 + 6) / 2, (4 + 10) / 2, 6, math.nan, math.nan]
    for name in ("utility", *CRITERIA):
        np.testing.assert_array_equal(found[name], expected)
    assert found["missing"] == [0, 0, 3, 6, 6]
    assert facts["questions"] == 6 + 6 + 6 + 3  # the prompt "xy" is asked about once
    assert facts["without_number"] == 6
    assert facts["warnings"] == ["6 of 21 ratings are missing"]
    zero = fitted(Judge(judge=f"{HERE}:lengths", missing_as_zero=True), rows, tmp_path)[1]
    np.testing.assert_array_equal(zero["utility"], [4, 7, 3, 0, math.nan])


def test_criteria_stand_apart_and_a_sign_is_seen_unless_as_released(tmp_path: Path) -> None:
    rows = pairs([("ab", "abc")])
    found = fitted(Judge(judge=f"{HERE}:by_criterion"), rows, tmp_path / "a")[1]
    assert [found[name] for name in CRITERIA] == [[2.0], [4.5], [0.0]]
    assert found["utility"] == [6.5 / 3]
    part = Judge(judge=f"{HERE}:by_criterion", missing_as_zero=True)
    assert fitted(part, rows, tmp_path / "b")[1]["factuality"] == [1.0]


def test_what_is_asked() -> None:
    six = questions("do it", "done", 100)
    assert len(set(six)) == 6
    assert all("<answer>" not in q for q in six[:3])
    assert all("do it" in q and "done" in q for q in six[3:])
    three = questions(None, "a text", 4)
    assert three[:3] == [None] * 3
    assert all("<text>\na te\n</text>" in q for q in three[3:])


def test_conversations_are_judged_by_their_last_answer() -> None:
    turns = [("system", "s"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"),
             ("assistant", "a2"), ("user", "u3")]  # fmt: skip
    chat = [{"role": r, "content": c} for r, c in turns]
    table = pa.table({"messages": pa.array([chat, chat[:2], None], MESSAGES)})
    assert halves(table) == [("s\nu1\na1\nu2", "a2"), ("s\nu1", ""), ("", "")]
    assert halves(pa.table({"text": ["t", None]})) == [(None, "t"), (None, "")]


def test_the_stub_is_the_same_everywhere_and_says_what_it_is(tmp_path: Path) -> None:
    rows = pairs([(f"p{i}", f"r{i}") for i in range(30)])
    facts, found = fitted(Judge(judge="stub"), rows, tmp_path / "a")
    assert fitted(Judge(judge="stub"), rows, tmp_path / "b")[1] == found
    assert 0 <= min(found["utility"]) < max(found["utility"]) <= 10
    assert "for tests only" in facts["warnings"][0]
    assert not (tmp_path / "a" / "answers.jsonl").exists()


def judged(url: str, **fields: Any) -> Judge:
    base = {"judge": "endpoint", "url": url, "model": "m", "wait": 0.001, "retries": 1}
    return Judge(**{**base, **fields})


def counting(reply: Callable[[str, int], Reply], part: dict[str, Any], rows: pa.Table, step: Path):
    with served(reply) as server:
        return *fitted(judged(server.url, **part), rows, step), server


def test_an_endpoint_is_asked_each_question_once(tmp_path: Path) -> None:
    rows = pairs([("a", "b"), ("c", "d"), ("a", "b"), ("a", "e")])
    facts, found, server = counting(lambda *_: "7/10, because 3", {}, rows, tmp_path)
    assert found["utility"] == [7.0] * 4
    assert len(server.requests) == len(set(server.prompts)) == 3 + 3 + 9  # two prompts, 3 answers
    assert {r["temperature"] for r in server.requests} == {0.1}
    assert facts["documents"] == 3
    assert facts["failed"] == {}


def test_a_killed_run_asks_only_the_rest(tmp_path: Path) -> None:
    rows = pairs([(f"p{i}", f"r{i}") for i in range(4)])
    state = {"left": 9}

    def reply(prompt: str, number: int) -> Reply:
        state["left"] -= 1
        return "5" if state["left"] >= 0 else (401, b"key expired", {})

    with served(reply) as server:
        part = judged(server.url, workers=1)
        with pytest.raises(DataError, match="401: key expired"):
            fitted(part, rows, tmp_path)
        first = len(server.requests)
        state["left"] = 1000
        found = fitted(part, rows, tmp_path)[1]
    assert found["utility"] == [5.0] * 4
    assert len(server.requests) - first == 24 - 9
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 24
    assert lines == sorted(lines)


def test_failures_are_counted_by_reason_and_leave_the_rest(tmp_path: Path) -> None:
    rows = pairs([("fine", f"r{i}") for i in range(8)] + [("fine", "bad")])

    def reply(prompt: str, number: int) -> Reply:
        return (500, b"", {}) if "bad" in prompt else "8"

    facts, found, _ = counting(reply, {"max_failed": 0.5}, rows, tmp_path)
    assert found["utility"] == [8.0] * 9
    assert found["missing"] == [0] * 8 + [3]
    assert facts["failed"] == {"HTTP 500": 3}
    assert facts["warnings"] == ["3 of 30 ratings are missing"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [((500, b"", {}), "HTTP 500"), ((200, b"{", {}), "malformed answer"), ((200, b"", {}), "malf")],
)
def test_a_judge_that_is_not_there_stops_the_run(reply: Reply, reason: str, tmp_path: Path) -> None:
    rows = pairs([(f"p{i}", f"r{i}") for i in range(20)])
    with pytest.raises(DataError, match=rf"v1: .* got no answer .*{reason}"):
        counting(lambda *_: reply, {"retries": 0}, rows, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "judge"),
        ({"judge": "endpoint"}, "needs a url"),
        ({"judge": "gpt-4"}, "not 'gpt-4'"),
        ({"judge": "stub", "max_failed": 2}, "max_failed"),
        ({"judge": "stub", "max_characters": 0}, "max_characters"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Judge.parse(fields, "score judge")
