"""What an audit measures on one model, plain or under attack: one value an item and measure.

Values are keyed by (set, measure); scores that members and others are told by, by measure. Rows
with a `text` are read whole; those with a question count their answer alone. A prefix stands
before. The end of a text does not count: that it ends there is no knowledge of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from foresift.pipeline.audit import extraction, membership, recall, remind, truth_ratio
from foresift.pipeline.audit.generate import greedy
from foresift.pipeline.audit.token_stats import (
    TEMPLATE,
    TokenStats,
    encode_items,
    limit,
    loss_of,
    start_of,
    token_stats,
)
from foresift.stages.forget.folder import text_of

Floats = npt.NDArray[np.float64]
Row = Mapping[str, Any]
Rows = Sequence[Row]
Told = Callable[[int, int, str], None]
BLANK = "___"
#: attacks that stand behind the blank of a cloze
BEHIND = ("affirmative_suffix", "multiple_choice")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much is measured."""

    items: int = 256
    """Rows of each set at most, drawn by their ids."""
    decoded: int = 64
    """Rows at most where text is generated."""
    walked: int = 32
    """Rows at most for REMIND, which asks for 97 losses each."""
    max_length: int = 512
    """Tokens after which a text is cut; 128 for REMIND."""


@dataclass
class Values:
    """What one model gave."""

    items: dict[tuple[str, str], Floats] = field(default_factory=dict)
    """(set, measure) -> [n], in the order of the rows."""
    scores: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)
    """Membership score -> (forget, holdout)."""
    ratios: Floats = field(default_factory=lambda: np.zeros(0))
    """[n] truth ratios R on forget, what forget quality tests; NaN without wrong answers."""


@dataclass(frozen=True)
class Subject:
    """A model that is measured, and how."""

    model: Any
    tokenizer: Any
    limits: Limits
    told: Told
    name: str

    def stats(self, rows: Rows, prefix: str = "") -> list[TokenStats]:
        """Token statistics of rows, texts and answers alike."""
        found: dict[int, TokenStats] = {}
        texts = [(i, row) for i, row in enumerate(rows) if row.get("text") is not None]
        pairs = [(i, row) for i, row in enumerate(rows) if row.get("text") is None]
        plain: list[Any] = [str(row["text"]) for _, row in texts]
        if prefix:
            plain = [(prefix, text) for text in plain]
        head = f"{prefix} " if prefix else ""
        asked = [(f"{head}{row['question']}", str(row["answer"])) for _, row in pairs]
        for some, items in ((texts, plain), (pairs, asked)):
            if some:
                told = token_stats(
                    self.model, self.tokenizer, items, max_length=self.limits.max_length, end=False
                )
                found |= {i: stats for (i, _), stats in zip(some, told, strict=True)}
        return [found[i] for i in range(len(rows))]


def sample(rows: Rows, count: int, seed: int = 0) -> list[Row]:
    """At most `count` rows, one an id, by a draw of their ids."""
    by_id = {str(row.get("id", text)): row for row in rows if (text := content(row)).strip()}
    return [by_id[i] for i in sorted(by_id, key=lambda i: (draw_of(i, seed), i))[:count]]


def draw_of(key: str, seed: int = 0) -> int:
    """A draw that depends on the seed and a name alone."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{key}".encode())


def pooled(parts: Sequence[Values], places: Sequence[Sequence[int]]) -> Values:
    """Values of parts of forget as one, each item at its place; scores of holdout one by one."""
    found, size = Values(), sum(map(len, places))

    def whole_of(each: Sequence[Floats | None]) -> Floats:
        line = np.full(size, np.nan)
        for own, values in zip(places, each, strict=True):
            if values is not None:
                line[list(own)] = values
        return line

    for key in dict.fromkeys(key for part in parts for key in part.items):
        found.items[key] = whole_of([part.items.get(key) for part in parts])
    for name in dict.fromkeys(name for part in parts for name in part.scores):
        sides = [part.scores.get(name) for part in parts]
        beside = np.concatenate([side[1] for side in sides if side is not None])
        found.scores[name] = whole_of([side and side[0] for side in sides]), beside
    return found


def content(row: Row) -> str:
    """The text of a row, or its question and answer; empty where it has neither."""
    told = row.get("text") is not None or ("question" in row and "answer" in row)
    return text_of(row) if told else ""


def basic(subject: Subject, sets: Mapping[str, Rows], names: Sequence[str]) -> Values:
    """Token measures of the named sets but holdout, and scores of forget against holdout."""
    found = Values()
    stats = {name: subject.stats(sets[name]) for name in names if sets[name]}
    for name, each in stats.items():
        if name != "holdout":  # it is there to be compared with, not to be judged
            found.items |= {(name, m): v for m, v in token_measures(each).items()}
    if "forget" in stats and "holdout" in stats:
        sides = [
            membership.scores(stats[name], [content(row) for row in sets[name]])
            for name in ("forget", "holdout")
        ]
        found.scores = {m: (sides[0][m], sides[1][m]) for m in sides[0]}
    return found


def token_measures(stats: Sequence[TokenStats]) -> dict[str, Floats]:
    """Measures that need nothing but token statistics."""
    told = [extraction.extractable(s.hit) for s in stats]
    found = {
        "loss": [s.loss for s in stats],
        "min_k_pp_20": [membership.min_k_plus_plus(s) for s in stats],
        "extraction_strength": [extraction.extraction_strength(s.hit) for s in stats],
        "exact_memorisation": [extraction.exact_memorisation(s.hit) for s in stats],
        "extractable": [np.nan if t is None else float(t) for t in told],
    }
    values = {name: np.array(v, dtype=np.float64) for name, v in found.items()}
    return {name: v for name, v in values.items() if np.isfinite(v).any()}


def whole(subject: Subject, sets: Mapping[str, Rows]) -> Values:
    """Everything that is measured without an attack."""
    found = basic(subject, sets, ("forget", "retain", "holdout"))
    forget = sets["forget"]
    if found.scores:
        mine, foils = found.scores["loss"]  # negated losses
        n = min(len(mine), len(foils))
        right = recall.recognised(-mine[:n], -foils[:n]).astype(np.float64)
        right[~(np.isfinite(mine[:n]) & np.isfinite(foils[:n]))] = np.nan
        found.items |= _maybe("forget", "recognition", right)
    for name in ("forget", "retain"):
        found.items |= _maybe(name, "cued_recall", _recalled(subject, sets[name]))
    found.items |= _maybe("forget", "remind_steepness", _walked(subject, forget))
    found.ratios, bits = _answers(subject, forget)
    told = np.array([truth_ratio.forget_score([ratio]) for ratio in found.ratios])
    found.items |= _maybe("forget", "truth_ratio", told)
    found.items |= _maybe("forget", "exposure", bits)
    found.items |= _maybe("probes", "probe_recall", _probed(subject, sets["probes"]))
    return found


def _maybe(name: str, measure: str, values: Floats) -> dict[tuple[str, str], Floats]:
    return {(name, measure): values} if np.isfinite(values).any() else {}


def _recalled(subject: Subject, rows: Rows) -> Floats:
    texts = [content(row) for row in rows[: subject.limits.decoded]]
    if not texts:
        return np.zeros(0)
    return recall.cued_recall(
        subject.model, subject.tokenizer, texts, max_length=subject.limits.max_length
    )


def _walked(subject: Subject, rows: Rows) -> Floats:
    """The steepness around each text at radius 1."""
    texts = [content(row) for row in rows[: subject.limits.walked]]
    length = min(128, subject.limits.max_length)
    encoded = encode_items(texts, subject.tokenizer, length) if texts else None
    if encoded is None:
        return np.zeros(0)
    ids = [encoded.ids[a:b] for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)]
    table = subject.model.get_input_embeddings().weight.detach().float().cpu().numpy()
    barred = [t for t in set(subject.tokenizer.all_special_ids) if t < len(table)]
    nearest = remind.nearest_tokens(table, np.unique(encoded.ids).tolist(), barred=barred)
    losses = loss_of(subject.model)
    label = f"{subject.name}: surroundings of texts"
    found = remind.measure(losses, ids, nearest, told=lambda d, t: subject.told(d, t, label))
    steepness: Floats = found[:, remind.FEATURES.index("steepness_1")]
    return steepness


def wrong_answers(row: Row) -> list[str]:
    """The wrong answers of a row in TOFU's form: a list, or one in JSON."""
    given = row.get("perturbed_answer") or []
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            given = [given]
    return [str(answer) for answer in given] if isinstance(given, list) else [str(given)]


def _answers(subject: Subject, rows: Rows) -> tuple[Floats, Floats]:
    """Truth ratio and exposure of each row with wrong answers; NaN elsewhere."""
    ratios, bits = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    asked: list[tuple[str, str]] = []
    for row in rows:
        if wrong_answers(row) and row.get("question"):
            right = str(row.get("paraphrased_answer") or row["answer"])
            asked += [(str(row["question"]), a) for a in (right, *wrong_answers(row))]
    if not asked:
        return ratios, bits
    stats = iter(
        token_stats(subject.model, subject.tokenizer, asked, max_length=subject.limits.max_length)
    )
    for i, row in enumerate(rows):
        if wrong_answers(row) and row.get("question"):
            each = [next(stats) for _ in range(1 + len(wrong_answers(row)))]
            p = [truth_ratio.probability(s) for s in each]
            if p[0] > 0 and np.isfinite(p).all():
                ratios[i] = truth_ratio.truth_ratio(p[0], p[1:], "geometric")
                bits[i] = extraction.exposure_of([s.loss for s in each])
    return ratios, bits


def _probed(subject: Subject, rows: Rows) -> Floats:
    """[documents] mean ROUGE-L recall of the answers to a draw of their probes.

    A cloze is asked up to its blank, but for an attack that stands behind it.
    """
    some = [(line, r) for r in rows if r.get("answer") and (line := _asked(r)).strip()]
    some.sort(key=lambda each: xxhash.xxh3_64_intdigest(f"{each[1].get('id')}/{each[0]}".encode()))
    some = some[: subject.limits.decoded]
    if not some:
        return np.zeros(0)
    encode, answers = subject.tokenizer, [str(row["answer"]) for _, row in some]
    ids = encode([line for line, _ in some], add_special_tokens=False)["input_ids"]
    wanted = [len(t) + 8 for t in encode(answers, add_special_tokens=False)["input_ids"]]
    room = limit(subject.model, subject.limits.max_length) - len(start_of(encode))
    prompts = [
        [*start_of(encode), *each[-max(1, room - n) :]] for each, n in zip(ids, wanted, strict=True)
    ]
    found: dict[str, list[float]] = {}
    told = greedy(subject.model, prompts, wanted)
    for (_, row), tokens, truth in zip(some, told, answers, strict=True):
        said = encode.decode(tokens, skip_special_tokens=True)
        own = found.setdefault(str(row.get("id")), [])
        own.append(extraction.rouge_l_words(truth, said).recall)
    return np.array([np.mean(own) for own in found.values()])


def _asked(row: Row) -> str:
    """What is put to the model for a probe."""
    query = str(row.get("query") or "")
    if BLANK in query and row.get("type") not in BEHIND:
        return query.split(BLANK)[0].strip()
    return TEMPLATE.replace("{prompt}", query) if query.strip() else ""
