"""What the refiners of Middo's loop do with one row: simplify it, improve it, or make a new one.

    simplify, improve    another prompt for the row, and another answer
    add                  a new prompt after the row and its nearest neighbours, and an answer

An endpoint is asked twice an item, as in the paper: for the prompt, which stands behind MARK in a
longer reply, then for the answer to it. A reply without MARK or with nothing behind it fails. A
`module:function` gets a list of {id, action, prompt, response, hints} (hints: a list of {prompt,
response}) and gives a list of {prompt, response}, or None where it has none. The stub marks the
text by a fixed template: for tests and dry runs. The wording of the requests is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foresift.pipeline.endpoint import Answers, Asks, Endpoint, Unanswered, call, concurrently
from foresift.pipeline.errors import DataError

MARK = "### Final instruction"
#: items that a function is given at once
TOGETHER = 64
DONE = {"simplify": "simplified", "improve": "improved", "add": "added"}
_REQUESTS = {
    "simplify": (
        "The instruction below is too hard for the student who is to learn from it. Plan step by "
        "step how to make it easier while its subject stays, then write the easier instruction."
    ),
    "improve": (
        "The instruction below is unclear, incomplete or wrong. Plan step by step what to mend, "
        "then write a clear, complete and correct instruction on the same subject."
    ),
    "add": (
        "Few instructions are like the first one below; the others are the nearest to it. Plan "
        "step by step, then write one new instruction that belongs to the same field and asks for "
        "something else than any of them."
    ),
}
Pair = tuple[str, str]


@dataclass(frozen=True)
class Item:
    """One thing to refine."""

    id: str
    """Of the row, in hex."""
    action: str
    """`simplify`, `improve` or `add`."""
    prompt: str
    response: str
    hints: tuple[Pair, ...] = ()
    """Its nearest neighbours (`add` only)."""

    @property
    def key(self) -> str:
        return f"{self.action} {self.id}"

    def plain(self) -> dict[str, Any]:
        """As a user's function gets it."""
        hints = [{"prompt": p, "response": r} for p, r in self.hints]
        return {
            "id": self.id, "action": self.action, "prompt": self.prompt,
            "response": self.response, "hints": hints,
        }  # fmt: skip


@dataclass
class Refining:
    """Refines items; what was answered before is not asked again."""

    refiner: str
    asks: Asks
    answers: Answers
    max_failed: float
    tell: Callable[[int, int], None]
    failed: dict[str, str] = field(default_factory=dict)
    """Key of an item -> why it was not refined."""

    def run(self, items: Sequence[Item]) -> None:
        """Refine all items that are not among the answers."""
        open_ = [item for item in items if item.key not in self.answers]
        self._total, self._finished = len(items), len(items) - len(open_)
        self.tell(self._finished, self._total)
        if self.refiner == "stub":
            self._keep([(item, stub(item)) for item in open_])
        elif self.refiner == "endpoint":
            endpoint = self.asks.endpoint()
            concurrently(lambda i: ask(endpoint, i), open_, self.asks.workers, self._done)
        else:
            for start in range(0, len(open_), TOGETHER):
                some = open_[start : start + TOGETHER]
                self._call(some)
        if items:
            self.answers.seal()

    def _call(self, items: Sequence[Item]) -> None:
        found = call(self.refiner, [item.plain() for item in items])
        pairs = [(item, pair(said)) for item, said in zip(items, found, strict=True)]
        self._keep([(item, said) for item, said in pairs if isinstance(said, tuple)])
        for item, said in pairs:
            if isinstance(said, Unanswered):
                self._done(item, said)

    def _done(self, item: Item, said: Pair | Unanswered) -> None:
        if isinstance(said, tuple):
            self._keep([(item, said)])
            return
        self.failed[item.key] = said.reason
        self._tick(1)
        if len(self.failed) > self.max_failed * self._total:
            raise DataError(
                f"{len(self.failed)} of {self._total} rows could not be refined "
                f"({reasons(self.failed.values())}), more than max_failed = {self.max_failed:.0%}; "
                f"the last: {said}. What was answered is kept; a rerun asks only the rest",
                where=self.asks.url if self.refiner == "endpoint" else self.refiner,
            )

    def _keep(self, found: Sequence[tuple[Item, Pair]]) -> None:
        if found:
            self.answers.put((item.key, list(said)) for item, said in found)
            self._tick(len(found))

    def _tick(self, count: int) -> None:
        self._finished += count
        self.tell(self._finished, self._total)


def reasons(found: Any) -> dict[str, int]:
    """How often each reason came."""
    return dict(sorted(Counter(found).items()))


def ask(endpoint: Endpoint, item: Item) -> Pair:
    """Two requests: the new prompt, then its answer."""
    _, mark, tail = endpoint.answer(request(item)).rpartition(MARK)
    prompt = tail.strip().lstrip(":").strip()
    if not mark:
        raise Unanswered("no final instruction", f"the reply lacks {MARK!r}")
    if not prompt:
        raise Unanswered("no final instruction", f"nothing stands behind {MARK!r}")
    return prompt, endpoint.answer(prompt).strip()


def request(item: Item) -> str:
    """The first request for an item."""
    parts = [
        _REQUESTS[item.action],
        f"End with the line `{MARK}` and behind it nothing but the new instruction.",
        f"<instruction>\n{item.prompt}\n</instruction>",
    ]
    if item.action == "add":
        parts += [f"<instruction>\n{prompt}\n</instruction>" for prompt, _ in item.hints]
    else:
        parts.append(f"<answer>\n{item.response}\n</answer>")
    return "\n\n".join(parts)


def pair(said: Any) -> Pair | Unanswered:
    """What a user's function gave for one item."""
    if said is None:
        return Unanswered("nothing given")
    if not isinstance(said, Mapping):
        return Unanswered("not a mapping", type(said).__name__)
    prompt, response = said.get("prompt"), said.get("response")
    if not isinstance(prompt, str) or not isinstance(response, str):
        return Unanswered("no prompt and response")
    if not prompt.strip() or not response.strip():
        return Unanswered("empty prompt or response")
    return prompt, response


def stub(item: Item) -> Pair:
    """A marked, deterministic stand-in: the first line of the row under the name of the action."""
    line = (item.prompt.strip() or "(empty)").splitlines()[0]
    more = f" (after {len(item.hints)} neighbours)" if item.action == "add" else ""
    return f"[stub {item.action}{more}] {line}", f"[stub answer] {item.response}".rstrip()
