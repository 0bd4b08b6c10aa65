"""Asking a language model from outside: an endpoint of the OpenAI kind, or a function of the user.

    POST <url>/chat/completions   {"model", "messages", "temperature", "max_tokens"}

over plain `urllib`. Answers of 408, 429 and 5xx, broken connections, time-outs and answers that are
not what the protocol says are asked for again, `retries` times, after `wait` seconds doubled each
time (or what `Retry-After` asks for, at most MOST_WAIT). What still fails is an `Unanswered` with a
short reason that can be counted; 400, 401, 403 and 404 would fail for every text and are a
DataError at once. The key is read from the environment variable that the user names, sent to the
endpoint alone (redirects are refused) and written nowhere.

`Answers` keeps what was answered in a file, line by line, so that a killed run does not pay twice.
`rating` reads the first number of an answer.
"""

from __future__ import annotations

import http.client
import importlib
import itertools
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from foresift.pipeline.errors import DataError
from foresift.pipeline.parts import Part, tuning
from foresift.pipeline.store import write_text

T = TypeVar("T")
R = TypeVar("R")
#: seconds waited at most before a request is made again
MOST_WAIT = 60.0
#: bytes of an answer that are read, and characters of an error that are told
MOST_BYTES, TOLD = 16 << 20, 200
_REFUSALS = {400, 401, 403, 404}
_AGAIN = {408, 425, 429}
_NUMBER = re.compile(r"(?:(?<![\w)\]])[-\u2212])?[0-9]+(?:\.[0-9]+)?")
_DIGITS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


class Unanswered(Exception):
    """One question that got no usable answer. `reason` is short and the same for like failures."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Asks(Part):
    """The fields of a part that asks an endpoint."""

    url: str = ""
    """Of an endpoint of the OpenAI kind, such as `http://localhost:8000/v1`."""
    model: str = ""
    """The model's name there."""
    key_env: str = ""
    """Environment variable with the endpoint's key; empty: none is sent. It is never stored."""
    temperature: float = 1.0
    """Of sampling at the endpoint."""
    max_tokens: int = 1024
    """Most tokens of one answer of the endpoint."""
    timeout: float = tuning(120.0)
    """Seconds until a request to the endpoint is given up."""
    retries: int = tuning(5)
    """How often a request is made again that failed for a passing reason."""
    wait: float = tuning(1.0)
    """Seconds before the first repetition; doubled each time."""
    workers: int = tuning(8)
    """Requests under way at the same time."""

    def check_asks(self, who: str, field: str) -> None:
        """ValueError where `who` is nobody to ask or the endpoint is not fully named."""
        if who == "endpoint":
            if not self.url.startswith(("http://", "https://")) or not self.model:
                raise ValueError(f"{field}: an endpoint needs a url (http or https) and a model")
        elif who != "stub" and not re.fullmatch(r"\w+(\.\w+)*:\w+", who):
            raise ValueError(f"{field} is `endpoint`, `module:function` or `stub`, not {who!r}")
        if self.timeout <= 0 or self.retries < 0 or self.wait < 0 or self.workers < 1:
            raise ValueError("timeout is positive, retries and wait are not negative, workers >= 1")
        if self.temperature < 0 or self.max_tokens < 1:
            raise ValueError("temperature is not negative, max_tokens is positive")

    def endpoint(self) -> Endpoint:
        """The endpoint, with its key; DataError where the variable is not set."""
        key = os.environ.get(self.key_env, "") if self.key_env else ""
        if self.key_env and not key:
            raise DataError("the environment variable with the key is not set", where=self.key_env)
        return Endpoint(self, key)


class Endpoint:
    """Answers one prompt at a time; may be used from several threads."""

    def __init__(self, asks: Asks, key: str = "") -> None:
        self.asks, self._key = asks, key
        base = asks.url.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self._opener = urllib.request.build_opener(_NoRedirect())

    def answer(self, prompt: str) -> str:
        """The answer to one user message; Unanswered after all retries, DataError if refused."""
        for attempt in itertools.count():
            try:
                return _content(self._post(prompt))
            except _Passing as error:
                if attempt >= self.asks.retries:
                    raise Unanswered(error.reason, error.detail) from None
                pause = max(self.asks.wait * 2.0**attempt, error.after)
                time.sleep(min(pause, MOST_WAIT))
        raise AssertionError("unreachable")

    def _post(self, prompt: str) -> bytes:
        asks = self.asks
        body = {
            "model": asks.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": asks.temperature,
            "max_tokens": asks.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=asks.timeout) as reply:
                raw: bytes = reply.read(MOST_BYTES)
                return raw
        except urllib.error.HTTPError as error:
            with error:
                raise self._judged(error) from None
        except TimeoutError as error:
            raise _Passing("timed out", str(error)) from None
        except (OSError, http.client.HTTPException) as error:
            late = isinstance(getattr(error, "reason", None), TimeoutError)
            raise _Passing("timed out" if late else "no connection", str(error)) from None

    def _judged(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP status means: ask again, give this question up, or stop altogether."""
        try:
            said = error.read(MOST_BYTES).decode("utf-8", "replace")[:TOLD]
        except (OSError, http.client.HTTPException):
            said = ""
        said = said.replace(self._key, "***") if self._key else said
        if error.code in _REFUSALS:
            return DataError(f"the endpoint answers {error.code}: {said}", where=self.url)
        if error.code in _AGAIN or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            seconds = float(after) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]*)?", after) else 0.0
            return _Passing(f"HTTP {error.code}", said, seconds)
        return Unanswered(f"HTTP {error.code}", said)


class _Passing(Exception):
    """A failure that may not come again."""

    def __init__(self, reason: str, detail: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.after = reason, detail, after


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key elsewhere."""

    def redirect_request(self, *args: Any, **kw: Any) -> None:
        return None


def _content(raw: bytes) -> str:
    """The text of a completion."""
    try:
        content = json.loads(raw)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _Passing("malformed answer", f"{type(error).__name__}: {error}"[:TOLD]) from None
    if not isinstance(content, str) or not content.strip():
        raise _Passing("empty answer", "")
    return content


def function(name: str) -> Callable[[list[Any]], Any]:
    """A user's `module:function`; DataError where it does not load."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DataError(f"cannot be loaded: {error}", where=name) from error
    if not callable(found):
        raise DataError("is not a function", where=name)
    called: Callable[[list[Any]], Any] = found
    return called


def call(name: str, items: list[Any]) -> list[Any]:
    """What a user's function returns for a list: one result an item, or a DataError."""
    asked = function(name)
    try:
        found = list(asked(items))
    except Exception as error:
        raise DataError(f"failed: {type(error).__name__}: {error}", where=name) from error
    if len(found) != len(items):
        raise DataError(f"gave {len(found)} answers to {len(items)} questions", where=name)
    return found


def concurrently(
    work: Callable[[T], R], items: Sequence[T], workers: int, done: Callable[[T, Any], None]
) -> None:
    """`work` on threads; `done(item, result or Unanswered)` in this thread as items finish."""
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), 16 * workers):
            futures = {pool.submit(work, i): i for i in items[start : start + 16 * workers]}
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    if error is not None and not isinstance(error, Unanswered):
                        raise error
                    done(futures[future], error if error is not None else future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


class Answers:
    """Answers by key (JSON values), in a file to which each is appended as it comes.

    A torn last line is what a killed process leaves; it is asked for again. `seal` sorts the file,
    so that the bytes do not tell in which order answers came.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._known = path, dict[str, Any]()
        for line in _lines(path):
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["answer"]
            except (ValueError, KeyError, TypeError):
                continue

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def put(self, found: Iterable[tuple[str, Any]]) -> None:
        """Keep some answers; they are on disk when this returns."""
        rows = dict(found)
        self._known |= rows
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write("\n" + "".join(_line(k, v) for k, v in rows.items()))

    def seal(self) -> None:
        """Write the file anew, sorted by key."""
        write_text(self.path, "".join(_line(k, self._known[k]) for k in sorted(self._known)))


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").split("\n")


def _line(key: str, answer: Any) -> str:
    return json.dumps({"key": key, "answer": answer}, ensure_ascii=True) + "\n"


def rating(answer: Any, low: float = 0.0, high: float = 10.0, released: bool = False) -> float:
    """The first number of an answer, brought into [low, high]; NaN where there is none.

    "8/10" is 8, "-3" is `low`. `released` reads as Middo's released code: the sign is not seen
    ("-3" is 3) and an answer without a number is 0. A number stands for itself.
    """
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        value = float(answer)
    else:
        text = answer if isinstance(answer, str) else ""
        found = (_DIGITS if released else _NUMBER).search(text)
        value = float(found[0].replace("\u2212", "-")) if found else math.nan
    if math.isnan(value):
        return 0.0 if released else math.nan
    return min(max(value, low), high)


__all__ = [
    "Answers", "Asks", "Endpoint", "Unanswered", "call", "concurrently", "function", "rating",
]  # fmt: skip
