"""An endpoint is asked again for what passes, given up for what stays, and its key goes nowhere."""

from __future__ import annotations

import json
import math
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline import endpoint
from foresift.pipeline.endpoint import Answers, Asks, Unanswered, call, concurrently, rating
from foresift.pipeline.errors import DataError
from tests.endpoint_server import Reply, completion, served


@dataclass(frozen=True, kw_only=True)
class Asking(Asks):
    """A part that asks."""


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def asking(url: str, **fields: Any) -> endpoint.Endpoint:
    base = {"url": url, "model": "m", "wait": 0.001, "retries": 3, "timeout": 5}
    return Asking(**{**base, **fields}).endpoint()


def test_an_ordinary_answer_and_what_is_sent() -> None:
    with served(lambda prompt, number: f"said {prompt}") as server:
        assert asking(server.url, temperature=0.1, max_tokens=7).answer("hé") == "said hé"
        assert asking(f"{server.url}/chat/completions").answer("b") == "said b"
    assert server.requests[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "hé"}],
        "temperature": 0.1,
        "max_tokens": 7,
    }
    assert server.keys == [None, None]


def test_what_passes_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(endpoint.time, "sleep", pauses.append)
    replies: list[Reply] = [
        (429, b"slow down", {"Retry-After": "7"}), (500, b"", {}), (200, b"{not json", {}), "ok",
    ]  # fmt: skip
    with served(lambda prompt, number: replies[number]) as server:
        assert asking(server.url, wait=0.5).answer("a") == "ok"
    assert len(server.requests) == 4
    assert pauses == [7.0, 1.0, 2.0]


def test_pauses_have_a_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(endpoint.time, "sleep", pauses.append)
    with (
        served(lambda *_: (429, b"", {"Retry-After": "99999"})) as server,
        pytest.raises(Unanswered),
    ):
        asking(server.url, retries=2).answer("a")
    assert pauses == [endpoint.MOST_WAIT] * 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((500, b"broken", {}), "HTTP 500"),
        ((200, b"<html>", {}), "malformed answer"),
        ((200, b'{"choices": []}', {}), "malformed answer"),
        ((200, b"[]", {}), "malformed answer"),
        ((200, completion("  "), {}), "empty answer"),
    ],
)
def test_what_stays_is_given_up_with_a_reason(reply: Reply, reason: str) -> None:
    with served(lambda *_: reply) as server, pytest.raises(Unanswered) as caught:
        asking(server.url, retries=2).answer("a")
    assert caught.value.reason == reason
    assert len(server.requests) == 3


def test_a_bad_question_is_asked_once() -> None:
    with served(lambda *_: (422, b"too long", {})) as server, pytest.raises(Unanswered) as caught:
        asking(server.url).answer("a")
    assert (caught.value.reason, len(server.requests)) == ("HTTP 422", 1)
    assert "too long" in str(caught.value)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Unanswered) as caught:
        asking(f"http://127.0.0.1:{port}/v1", retries=1).answer("a")
    assert caught.value.reason == "no connection"


def test_a_server_that_says_nothing_times_out() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(Unanswered) as caught:
            asking(url, retries=0, timeout=0.1).answer("a")
    assert caught.value.reason == "timed out"


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_stops_everything_and_does_not_tell_the_key(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-1234")
    with (
        served(lambda *_: (status, b"bad key secret-1234", {})) as server,
        pytest.raises(DataError, match=rf"chat/completions: .*{status}") as caught,
    ):
        asking(server.url, key_env="SOME_KEY").answer("a")
    assert server.keys == ["Bearer secret-1234"]
    assert "secret" not in str(caught.value)


def test_a_redirect_does_not_carry_the_key_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-1234")
    with served(lambda *_: "caught") as thief:
        away = {"Location": f"{thief.url}/chat/completions"}
        with served(lambda *_: (302, b"", away)) as server, pytest.raises(Unanswered):
            asking(server.url, key_env="SOME_KEY").answer("a")
    assert thief.requests == []


def test_a_key_that_is_not_there_is_said_by_its_name() -> None:
    with pytest.raises(DataError, match=r"NO_SUCH_KEY_HERE: .*not set"):
        asking("http://localhost:1/v1", key_env="NO_SUCH_KEY_HERE")


def test_the_key_is_in_no_field() -> None:
    part = Asking(url="http://a/v1", model="m", key_env="HOME")
    assert "key" not in {n for n in part.settings() if n != "key_env"}
    faster = Asking(url="http://a/v1", model="m", key_env="HOME", workers=99, timeout=1, wait=9)
    assert part.fingerprint == faster.fingerprint


@pytest.mark.parametrize(
    ("who", "fields", "message"),
    [
        ("endpoint", {}, "needs a url"),
        ("endpoint", {"url": "file:///etc/passwd", "model": "m"}, "needs a url"),
        ("endpoint", {"url": "http://a"}, "and a model"),
        ("gpt", {}, "not 'gpt'"),
        ("os.system:", {}, "not 'os.system:'"),
        ("stub", {"workers": 0}, "workers"),
        ("stub", {"max_tokens": 0}, "max_tokens"),
    ],
)
def test_fields_that_cannot_work_are_refused(who: str, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Asking(**fields).check_asks(who, "judge")


def test_threads_give_each_item_its_own_answer_or_failure() -> None:
    def work(item: int) -> int:
        if item % 5 == 0:
            raise Unanswered("five")
        return item * item

    found: dict[int, Any] = {}
    concurrently(work, range(100), 4, found.__setitem__)
    assert sorted(found) == list(range(100))
    assert all(found[i] == i * i for i in range(100) if i % 5)
    assert {found[i].reason for i in range(0, 100, 5)} == {"five"}


def test_threads_let_other_errors_through() -> None:
    def work(item: int) -> int:
        raise DataError("no", where="here")

    with pytest.raises(DataError, match="here: no"):
        concurrently(work, [1, 2, 3], 2, lambda *_: None)


def test_answers_come_back_and_a_torn_line_does_not_hurt(tmp_path: Path) -> None:
    path = tmp_path / "a" / "answers.jsonl"
    first = Answers(path)
    first.put([("b", "x\u2028y"), ("a", ["p", "r"])])
    with open(path, "a") as handle:
        handle.write('{"key": "c", "ans')  # killed here
    again = Answers(path)
    assert again["b"] == "x\u2028y"
    assert "c" not in again
    again.put([("c", None)])
    last = Answers(path)
    assert [last[k] for k in "abc"] == [["p", "r"], "x\u2028y", None]
    last.seal()
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    assert Answers(path)["a"] == ["p", "r"]


@pytest.mark.parametrize(
    ("answer", "ours", "released"),
    [
        ("8/10", 8, 8),
        ("10", 10, 10),
        ("none", math.nan, 0),
        ("-3", 0, 3),
        ("\u22122 points", 0, 2),
        ("Rating: 7.5 of 10", 7.5, 7.5),
        ("clarity-8", 8, 8),
        ("about 6-7", 6, 6),
        ("250", 10, 10),
        ("9" * 400, 10, 10),
        ("", math.nan, 0),
        (None, math.nan, 0),
        (4, 4, 4),
        (-1.5, 0, 0),
        (True, math.nan, 0),
        (math.nan, math.nan, 0),
    ],
)
def test_ratings(answer: Any, ours: float, released: float) -> None:
    assert rating(answer) == pytest.approx(ours, nan_ok=True)
    assert rating(answer, released=True) == released


@given(st.text(), st.booleans())
def test_a_rating_is_in_its_bounds_or_missing(answer: str, released: bool) -> None:
    value = rating(answer, released=released)
    assert 0 <= value <= 10 or (math.isnan(value) and not released)


def short(items: list[Any]) -> list[Any]:
    return items[:-1]


def broken(items: list[Any]) -> list[Any]:
    raise KeyError("oh")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:f", "cannot be loaded"),
        (f"{__name__}:nothing", "cannot be loaded"),
        ("os:sep", "is not a function"),
        ("tests.pipeline.test_endpoint:short", "1 answers to 2 questions"),
        ("tests.pipeline.test_endpoint:broken", "failed: KeyError: 'oh'"),
    ],
)
def test_a_function_that_does_not_do_is_said(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call(name, [1, 2])
