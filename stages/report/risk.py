"""Forget risk: what would have to be forgotten, what was decided about it, and what that costs.

Read from the columns of a step that has risk, left, benefit, decision and reason beside the corpus
(`scorers/forget_risk.py`; of several the latest).

    removed       sum of risk - left                 what the decisions take away, as they advise
    benefit lost  sum of benefit of what is dropped  in test items of as many as there are documents
    kept          documents that the run kept, whatever was advised
    replay        share of the training that the deletion of one document is expected to repeat,
                  where checkpoints cut it into INTERVALS equal parts of tokens:
                  sum p_i (1 - start of i's interval) / sum p_i over what was kept, in its order

The riskiest are the documents of largest risk, copies once, masked. Cost: one pass over the columns
and the plan; 24 bytes a kept document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.tables import hex_id
from foresift.stages.report.contents import Contents
from foresift.stages.report.examples import texts_of
from foresift.stages.report.mask import origin

NAMES = ("p_delete", "residual", "risk", "left", "benefit", "decision", "reason")
RISKIEST, INTERVALS = 10, 10
ORDER = ("drop", "redact", "cap", "quarantine", "keep")
PLAN = ["id", "shard", "row", "source", "n_tokens", "kept", "position"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Decision:
    """Documents about which the same was decided for the same reason."""

    decision: str
    """`drop`, `redact`, `cap`, `quarantine` or `keep`."""
    reason: str
    """What weighed most; `low` where nothing did, `tail` where the benefit outweighs the risk."""
    documents: int
    tokens: int
    kept: int
    """Of them, documents that the run kept."""
    risk: float
    """Sum of the risks."""
    removed: float
    """What of it the decision takes away."""
    benefit_lost: float
    """Test items, of as many as there are documents."""


@dataclass(frozen=True)
class Risky:
    """A document of large risk."""

    id: str
    source: str
    n_tokens: int
    decision: str
    """What was decided about it."""
    reason: str
    p_delete: float
    """Prior probability that its removal is asked for."""
    residual: float
    """Share that stays after unlearning, 0 to 1."""
    risk: float
    """Product of the two."""
    text: str


@dataclass(frozen=True)
class Risk:
    """The section."""

    step: str
    """Name of the step that gave the columns."""
    documents: int
    risk: float
    """Sum over all documents."""
    removed: float
    """What the decisions take away of it."""
    benefit: float
    """Sum over all documents, in test items of as many as there are documents."""
    benefit_lost: float
    """Of what is dropped."""
    decisions: list[Decision]
    """By decision and reason, drops first."""
    riskiest: list[Risky]
    """Documents of the largest risk, copies once."""
    replay: float | None
    """Share of the training that the deletion of one document repeats, in the order of the plan;
    null without an order."""
    shuffled: float
    """The same in random order."""
    trouble: str = ""

    @property
    def removed_share(self) -> float | None:
        """Of all risk."""
        return self.removed / self.risk if self.risk > 0 else None

    @property
    def tokens(self) -> int:
        """In all documents."""
        return sum(d.tokens for d in self.decisions)

    @property
    def kept(self) -> int:
        """Documents that the run kept."""
        return sum(d.kept for d in self.decisions)

    @property
    def gone_share(self) -> float:
        """Of all tokens: in what is dropped or capped."""
        gone = sum(d.tokens for d in self.decisions if d.decision in ("drop", "cap"))
        return gone / max(1, self.tokens)

    @property
    def lost_share(self) -> float | None:
        """Of all benefit."""
        return self.benefit_lost / self.benefit if self.benefit > 0 else None


@dataclass
class _Seen:
    """What one pass adds up."""

    sums: dict[tuple[str, str], Floats] = field(default_factory=dict)
    riskiest: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    kept: list[Floats] = field(default_factory=list)
    """[rows, 3] position, tokens and p_delete."""
    benefit: float = 0.0


def risk(contents: Contents) -> Risk | None:
    """The section; None where no step gave the columns."""
    found: dict[str, set[str]] = {}
    for column in contents.columns:
        found.setdefault(column.step, set()).add(column.file_name)
    steps = [step for step, names in found.items() if names >= set(NAMES)]
    if not steps:
        return None
    seen = _Seen()
    for table in _tables(contents, steps[-1]):
        _add(seen, table)
    decisions = [_decision(*key, sums) for key, sums in sorted(seen.sums.items(), key=_rank)]
    riskiest, trouble = _riskiest(contents, seen)
    return Risk(
        step=steps[-1],
        documents=sum(d.documents for d in decisions),
        risk=sum(d.risk for d in decisions),
        removed=sum(d.removed for d in decisions),
        benefit=seen.benefit,
        benefit_lost=sum(d.benefit_lost for d in decisions),
        decisions=decisions,
        riskiest=riskiest,
        replay=replayed(np.concatenate([np.empty((0, 3)), *seen.kept])),
        shuffled=(INTERVALS + 1) / (2 * INTERVALS),
        trouble=trouble,
    )


def _tables(contents: Contents, step: str) -> Iterator[pa.Table]:
    """The plan and the columns of each shard, of rows about which something was decided."""
    for shard, plan in contents.plan(PLAN):
        beside = shard.load([f"{step}.{name}" for name in NAMES])
        for name in NAMES:
            plan = plan.append_column(name, beside[f"{step}.{name}"])
        yield plan.filter(plan["decision"].is_valid())


def _add(seen: _Seen, table: pa.Table) -> None:
    """Add one shard."""
    numbers = {n: _floats(table[n]) for n in ("n_tokens", *NAMES[:5])}
    kept, decision = np.asarray(table["kept"]), table["decision"].to_pylist()
    lost = np.where(np.array(decision, dtype=object) == "drop", numbers["benefit"], 0.0)
    columns = np.stack([
        np.ones(len(kept)), numbers["n_tokens"], kept.astype(np.float64), numbers["risk"],
        numbers["risk"] - numbers["left"], lost,
    ], axis=1)  # fmt: skip
    keys = list(zip(decision, table["reason"].to_pylist(), strict=True))
    for key in set(keys):
        here = np.array([k == key for k in keys])
        seen.sums[key] = seen.sums.get(key, np.zeros(6)) + columns[here].sum(axis=0)
    seen.benefit += float(numbers["benefit"].sum())
    placed = kept & np.asarray(table["position"].is_valid())
    beside = (_floats(table["position"]), numbers["n_tokens"], numbers["p_delete"])
    seen.kept.append(np.stack(beside, axis=1)[placed])
    best = np.argsort(-numbers["risk"], kind="stable")[: 8 * RISKIEST]
    for row in table.take(pa.array(best)).to_pylist():
        seen.riskiest.setdefault(row["id"], row)
    ranked = sorted(seen.riskiest.items(), key=lambda pair: (-pair[1]["risk"], pair[0]))
    seen.riskiest = dict(ranked[:RISKIEST])


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.cast(pa.float64()).fill_null(0.0), dtype=np.float64)


def _rank(pair: tuple[tuple[str, str], Floats]) -> tuple[int, float, str]:
    (decision, reason), sums = pair
    place = ORDER.index(decision) if decision in ORDER else len(ORDER)
    return place, -float(sums[4]), reason


def _decision(decision: str, reason: str, sums: Floats) -> Decision:
    documents, tokens, kept = (round(x) for x in sums[:3].tolist())
    return Decision(decision, reason, documents, tokens, kept, *sums[3:].tolist())


def _riskiest(contents: Contents, seen: _Seen) -> tuple[list[Risky], str]:
    rows = list(seen.riskiest.values())
    places = sorted({(r["shard"], r["row"], r["id"]) for r in rows})
    texts, trouble = texts_of(Corpus(contents.base), places)
    found = [
        Risky(
            hex_id(r["id"])[:12], origin(r["source"]), r["n_tokens"] or 0, r["decision"],
            r["reason"], r["p_delete"], r["residual"], r["risk"],
            texts.get((r["shard"], r["row"]), ""),
        )
        for r in rows
    ]  # fmt: skip
    return found, trouble


def replayed(kept: Floats) -> float | None:
    """Expected share of the training that the deletion of one document repeats.

    `kept` is [rows, 3]: position, tokens and probability of removal.
    """
    total, asked = float(kept[:, 1].sum()), float(kept[:, 2].sum())
    if not total or not asked:
        return None
    kept = kept[np.argsort(kept[:, 0], kind="stable")]
    start = np.cumsum(kept[:, 1]) - kept[:, 1]
    interval = np.minimum(np.floor(start * INTERVALS / total), INTERVALS - 1)
    return float((kept[:, 2] * (1 - interval / INTERVALS)).sum() / asked)
