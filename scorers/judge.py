"""Ratings that a judge gives to a document: clarity, completeness and factuality, 0 to 10.

    criterion = mean of the ratings of prompt and response        utility = mean over the criteria

A pair or a conversation (its last answer of the assistant, and all before it) gets six questions,
each criterion for the prompt alone and for the response given the prompt; a plain text gets three.
Each answer is read by `pipeline/endpoint.py: rating`: its first number, brought into 0 to 10.

**An answer without a number is missing**, and so is one that never came: a criterion is the mean of
what there is, `missing` counts, and a document without any rating has NaN. `missing_as_zero` does
as Middo's released code: no number is 0, and the sign is not seen ("-3" is 3); what never came
stays missing. Equal questions are asked once.

`judge` is `endpoint` (see the fields), `module:function` of yours (a list of questions -> a list of
numbers, answers or None), or `stub`: numbers from a hash of the question, for tests and dry runs,
which say nothing about quality. Answers are kept in the step's folder as they come, so that a
killed run goes on. DataError where more than `max_failed` of the questions got no answer; the rest
is kept and a rerun asks only what is missing. A judge needs an instruct model: a base model or a
tiny one cannot rate.

Cost: six answers of the judge a document. Source: Middo (Tang et al. 2025), its quality axis (self-
rating at temperature 0.1); the wording of the questions is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.endpoint import Answers, Asks, Unanswered, call, concurrently, rating
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.parts import digest
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column, content_columns, id_words

Floats = npt.NDArray[np.float64]
CRITERIA = {
    "clarity": "how clear it is: easy to follow and without ambiguity",
    "completeness": "how complete it is: nothing that is needed is missing",
    "factuality": "how factual it is: what it states or takes for granted is true",
}
#: documents whose questions are asked together; what is answered is on disk after each
TOGETHER = 64
#: share of missing ratings above which the run warns
MANY = 0.05


@dataclass(frozen=True, kw_only=True)
class Judge(Asks, FittedScorer):
    """Clarity, completeness and factuality of a document, rated 0 to 10 by a judge."""

    judge: str
    """`endpoint`, `module:function`, or `stub` (numbers from a hash; for tests)."""
    temperature: float = 0.1
    """Of sampling at the endpoint."""
    max_tokens: int = 16
    """Most tokens of one answer; the rating is asked for first."""
    max_characters: int = 20_000
    """Characters of a prompt, and of a response, that the judge is shown."""
    missing_as_zero: bool = False
    """As released: an answer without a number is 0, and signs are not seen."""
    max_failed: float = 0.1
    """Share of questions without an answer above which the run stops."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "rating, 0 to 10", "higher"),
        **{name: Column(pa.float64(), "rating, 0 to 10", "higher") for name in CRITERIA},
        "missing": Column(pa.int64(), "ratings that did not come", "lower"),
    }

    def __post_init__(self) -> None:
        self.check_asks(self.judge, "judge")
        if self.max_characters < 1 or not 0 <= self.max_failed <= 1:
            raise ValueError("max_characters is positive, max_failed is a share")

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        asking = _Asking(self, Answers(out.parent / "answers.jsonl"))
        words, found = [np.empty((0, 2), dtype=np.uint64)], [np.empty((0, 6))]
        for table in tables:
            for start in range(0, table.num_rows, TOGETHER):
                some = table.slice(start, TOGETHER)
                words.append(id_words(some["id"]))
                found.append(asking.ratings(some))
        every, ratings = np.concatenate(words), np.concatenate(found)
        order = np.lexsort((every[:, 1], every[:, 0]))
        every, ratings = every[order], ratings[order]
        first = np.ones(len(every), dtype=np.bool_)
        first[1:] = (every[1:] != every[:-1]).any(axis=1)
        write_by_id(out, every[first], {"ratings": ratings[first]})
        asking.close()
        return asking.facts(int(first.sum()))

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        ratings = read_by_id(out, batch["id"])["ratings"].reshape(-1, 2, len(CRITERIA))
        each = _mean(ratings, 1)
        whose = np.asarray([2 if prompt is not None else 1 for prompt, _ in halves(batch)])
        there = np.isfinite(ratings).sum(axis=(1, 2))
        return {
            "utility": _mean(each, 1),
            **{name: each[:, k] for k, name in enumerate(CRITERIA)},
            "missing": whose.astype(np.int64) * len(CRITERIA) - there,
        }


def halves(batch: pa.Table) -> list[tuple[str | None, str]]:
    """(prompt, response) of each row; a plain text has no prompt."""
    names = content_columns(batch.column_names)
    if names == ["prompt", "response"]:
        pairs = zip(batch["prompt"].to_pylist(), batch["response"].to_pylist(), strict=True)
        return [(p or "", r or "") for p, r in pairs]
    if names == ["text"]:
        return [(None, t or "") for t in batch["text"].to_pylist()]
    return [_last_turn(row or []) for row in batch["messages"].to_pylist()]


def _last_turn(turns: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """What stands before the last answer of the assistant, and that answer."""
    answers = [k for k, turn in enumerate(turns) if turn["role"] == "assistant"]
    end = answers[-1] if answers else len(turns)
    before = "\n".join(turn["content"] or "" for turn in turns[:end])
    return before, (turns[end]["content"] or "") if answers else ""


def questions(prompt: str | None, response: str, most: int) -> list[str | None]:
    """Three questions about the prompt, three about the response; None where there is nothing."""
    asked: list[str | None] = []
    for kind, shown in (("instruction", prompt), ("answer", response)):
        name = "text" if prompt is None else kind
        body = f"<{name}>\n{(shown or '')[:most]}\n</{name}>"
        if kind == "answer" and prompt is not None:
            body = f"<instruction>\n{prompt[:most]}\n</instruction>\n{body}"
        for criterion in CRITERIA.values():
            ask = (
                f"Rate the {name} below from 0 (worst) to 10 (best) for {criterion}. Begin your "
                f"reply with the number.\n\n{body}\n\nRating (0 to 10):"
            )
            asked.append(ask if (shown or "").strip() else None)
    return asked


class _Asking:
    """Questions and answers of one fit."""

    def __init__(self, part: Judge, answers: Answers) -> None:
        self.part, self.answers = part, answers
        self.endpoint = part.endpoint() if part.judge == "endpoint" else None
        settings = ("judge", "url", "model", "temperature", "max_tokens")
        self._salt = digest([getattr(part, name) for name in settings])
        self.asked: set[str] = set()
        self.failed: Counter[str] = Counter()
        self._lost: set[str] = set()

    def ratings(self, table: pa.Table) -> Floats:
        """[rows, 6] ratings, of prompt then response; NaN where there is none."""
        rows = [questions(p, r, self.part.max_characters) for p, r in halves(table)]
        keys = {q: self._key(q) for row in rows for q in row if q is not None}
        self.asked.update(keys.values())
        if self.part.judge == "stub":
            read: dict[str, float] = {q: float(int(key, 16) % 11) for q, key in keys.items()}
        else:
            self._ask({k: q for q, k in keys.items()
                       if k not in self.answers and k not in self._lost})  # fmt: skip
            read = {q: self._read(key) for q, key in keys.items()}
        found = [[np.nan if q is None else read[q] for q in row] for row in rows]
        return np.asarray(found, dtype=np.float64).reshape(-1, 2 * len(CRITERIA))

    def _key(self, question: str) -> str:
        return str(xxhash.xxh3_128_hexdigest(f"{self._salt}\x00{question}".encode()))

    def _ask(self, missing: Mapping[str, str]) -> None:
        """Put the questions (key -> text) to the judge and keep what it says."""
        if not missing:
            return
        if self.endpoint is None:
            said = call(self.part.judge, list(missing.values()))
            self.answers.put(zip(missing, [_plain(s) for s in said], strict=True))
            return
        ask = self.endpoint.answer

        def done(key: str, answer: Any) -> None:
            if isinstance(answer, Unanswered):
                self._lost.add(key)
                self.failed[answer.reason] += 1
                self._judge_failures(str(answer))
            else:
                self.answers.put([(key, answer)])

        concurrently(lambda key: ask(missing[key]), list(missing), self.part.workers, done)

    def _judge_failures(self, last: str) -> None:
        """DataError where too many of the questions so far were lost."""
        lost, most = sum(self.failed.values()), self.part.max_failed
        if lost > most * len(self.asked):
            raise DataError(
                f"{lost} questions got no answer ({dict(sorted(self.failed.items()))}), more than "
                f"max_failed = {most:.0%}; the last: {last}. What was answered is kept; a rerun "
                "asks only the rest",
                where=self.part.url,
            )

    def _read(self, key: str) -> float:
        if key not in self.answers:
            return np.nan
        return rating(self.answers[key], released=self.part.missing_as_zero)

    def close(self) -> None:
        """Leave the answers in an order that does not tell when they came."""
        if self.part.judge != "stub":
            self.answers.seal()

    def facts(self, documents: int) -> Facts:
        warnings = []
        if self.part.judge == "stub":
            warnings.append("ratings of the stub judge are numbers from a hash: for tests only")
        unread = sum(bool(np.isnan(self._read(k))) for k in self.asked if k in self.answers)
        gone = sum(self.failed.values()) + unread
        if gone > MANY * len(self.asked):
            warnings.append(f"{gone} of {len(self.asked)} ratings are missing")
        return {
            "documents": documents,
            "questions": len(self.asked),
            "without_number": unread,
            "failed": dict(sorted(self.failed.items())),
            "warnings": warnings,
        }


def _plain(said: Any) -> Any:
    """A function's answer as JSON holds it."""
    if said is None or isinstance(said, str):
        return said
    try:
        value = float(said)
    except (TypeError, ValueError):
        return str(said)
    return value if np.isfinite(value) else None


def _mean(values: Floats, axis: int) -> Floats:
    """The mean of what is there; NaN where nothing is."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        found: Floats = np.where(there, values, 0.0).sum(axis=axis) / there.sum(axis=axis)
    return found


__all__ = ["CRITERIA", "Judge", "halves", "questions"]
