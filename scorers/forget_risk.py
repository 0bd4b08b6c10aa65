"""Forget risk: how likely a document must be removed, times what would stay of it in a model.

    risk      = p_delete x residual                                  utility = -risk
    p_delete    prior that its removal is asked for, by what was found in it    (`_risk_prior.py`)
    residual    what stays after unlearning: by copies, or of a drill        (`_risk_residual.py`)
    benefit     v n tau_l for the first of its cluster, 0 for its copies: of n test items, how many
                a cluster of l documents is worth (`pipeline/long_tail.py`; Zipf's law over the
                clusters). v = 1, or with `value` twice the percentile rank in that column
    decision    drop, redact, cap, quarantine or keep; reason: what weighed most
                                                                         (`_risk_decision.py`)
    left        risk that is left after the decision
    tail        v n tau_1 > p x (plan + unlearn (1 + entangled e) + penalty x residual): what is
                rare and worth more than its deletion is expected to cost is kept

Text-tier features are enough (F1 to F6: no model); score them in steps before, and list in
`features` those that are there. Of surprise, memorisation, worst_case and sharpness only a drill
makes use, of entanglement also the rule of the tail. A row without a value has nothing found. All
numbers of the priors, the line of the pilot and the costs are ours: they order, and are no
probabilities that somebody measured. Costs are in test items too.

The first of a cluster may be gone when this step comes (`dedup: minhash` kept another, `where` took
it out): then the smallest id that is left of the cluster is the first.

Findings: <decision>_<reason> for the whole document (value: risk), but for what is kept as low. A
scorer sees no difference between rows of one id: put `dedup: exact` before this step or behind it,
or all of them stay.

Facts: documents, tokens, risk removed (risk - left) and benefit lost (of what is dropped) by
decision and reason; the fit of the drill. Errors: a column that holds no numbers; a drill without
residuals from 0 to 1. Memory: the columns while fitting. Cost: some 1 M rows/s. Sources: Feldman
2020 (tail); priors and their combination are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.choice import scores
from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.labels import labels
from foresift.pipeline.long_tail import tau, zipf
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.parts import digest
from foresift.pipeline.store import Facts, read_json, write_json
from foresift.pipeline.tables import Column, id_words
from foresift.scorers import _risk_residual as residuals
from foresift.scorers._label_log import contents
from foresift.scorers._risk_decision import DECISIONS, Decided, Limits, decide
from foresift.scorers._risk_prior import (
    COLUMNS,
    PRIORS,
    Bools,
    Floats,
    amounts,
    asked,
    silent,
    spans,
    together,
)  # fmt: skip

TEXT = ["licence", "personal", "secrets", "names", "junk", "copies"]


@dataclass(frozen=True, kw_only=True)
class ForgetRisk(FittedScorer):
    """Risk that a document must be forgotten and cannot be, and what to do about it, with why."""

    version: ClassVar[int] = 2

    features: list[str] = field(default_factory=lambda: [*TEXT])
    """What is read: licence, personal, secrets, names, temporal, contamination, junk, copies,
    surprise, memorisation, entanglement, worst_case, sharpness."""
    columns_of: dict[str, list[str]] = field(default_factory=dict)
    """Feature -> its columns, where they are not those of the table in `_risk_prior.py`."""
    priors: dict[str, float] = field(default_factory=dict)
    """Priors other than those of the table, below 1."""
    drill: str = ""
    """File (.parquet or JSON lines) of documents that were unlearned: features, in the units of
    their columns, and `residual`; empty: none."""
    value: str = ""
    """Column of scores, larger = worth more, that weighs the benefit; empty: all are worth 1."""
    max_spans: int = 5
    """Spans of personal data and secrets above which a document may be dropped, not redacted."""
    dense: float = 0.05
    """Spans a token from which it then is: a list of addresses, no long text with some in it."""
    quarantine_at: float = 0.015
    """Prior of removal, spans apart, from which a document comes late and once."""
    drop_at: float = 0.05
    """Prior of removal, spans apart, from which a document is dropped."""
    cost_plan: float = 1.0
    """Cost of planning a deletion, in test items."""
    cost_unlearn: float = 20.0
    """Cost of unlearning one document, in test items."""
    entangled: float = 1.0
    """How much dearer unlearning is at entanglement 1."""
    penalty: float = 1000.0
    """Cost of a document that was to go and is still there, in test items."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "minus the risk", "higher"),
        "p_delete": Column(pa.float64(), "prior probability of removal", "lower"),
        "residual": Column(pa.float64(), "share that stays, 0 to 1", "lower"),
        "risk": Column(pa.float64(), "p_delete x residual", "lower"),
        "left": Column(pa.float64(), "risk after the decision", "lower"),
        "benefit": Column(pa.float64(), "test items in as many as documents", "higher"),
        "decision": Column(pa.string(), "drop, redact, cap, quarantine or keep"),
        "reason": Column(pa.string(), "what weighed most"),
        "findings": FOUND,
    }
    reads_content: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in (*self.features, *self.columns_of):
            if name not in COLUMNS:
                raise ValueError(f"no feature {name!r}; there are {', '.join(COLUMNS)}")
        for name, p in self.priors.items():
            if name not in PRIORS or not 0 <= p < 1:
                raise ValueError(f"priors are from 0 to below 1, of {', '.join(PRIORS)}")
        if any(not named for named in self.columns_of.values()):
            raise ValueError("columns_of names at least one column of a feature")
        if not 0 <= self.quarantine_at <= self.drop_at <= 1 or self.max_spans < 0:
            raise ValueError("0 <= quarantine_at <= drop_at <= 1, and max_spans is not negative")
        if not self.dense >= 0:
            raise ValueError("dense is not negative")
        costs = (self.cost_plan, self.cost_unlearn, self.entangled, self.penalty)
        if not all(math.isfinite(c) and c >= 0 for c in costs):
            raise ValueError("costs are not negative")

    @property
    def named(self) -> dict[str, list[str]]:
        """The features that are read, with their columns."""
        return {f: self.columns_of.get(f) or [*COLUMNS[f]] for f in self.features}

    @property
    def needs(self) -> tuple[str, ...]:
        columns = [name for each in self.named.values() for name in each]
        return tuple(dict.fromkeys([*columns, *([self.value] if self.value else []), "n_tokens"]))

    @property
    def fingerprint(self) -> str:
        """What every part has, and the contents of the drill."""
        return digest([super().fingerprint, contents(self.drill) if self.drill else ""])

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        names = ["id", *self.needs]
        table = pa.concat_tables([t.select(names) for t in tables])
        facts: Facts = {}
        if self.drill:
            features, rows = residuals.labelled(self.drill, self.named)
            residuals.keep(out / "drill.parquet", features, rows)
            facts["drill"] = self._fitted(out).facts  # type: ignore[union-attr]
        stands = self._stand_ins(table)
        write_by_id(out, stands, {"first": np.ones(len(stands), dtype=np.bool_)})
        write_json(out / "tail.json", self._tail(table, out))
        if self.value:
            known = scores(table, self.value)
            np.save(out / "value.npy", np.sort(known[~np.isnan(known)]), allow_pickle=False)
        return {**facts, **self._told(table, out)}

    def _tail(self, table: pa.Table, out: Path) -> dict[str, Any]:
        """Documents, clusters, and what one cluster of each size is worth."""
        words, size = id_words(table["id"]), self._others(table) + 1
        _, one = np.unique(words, axis=0, return_index=True)
        one = one[self._first(table, out)[one]]
        sizes, clusters = size[one].astype(np.int64), max(len(one), 1)
        n = int(sizes.sum())
        counts = np.unique(np.append(sizes, 1))
        worth = n * tau(np.minimum(counts, n), n, *zipf(clusters)) if n else np.zeros(len(counts))
        told = {"counts": counts.tolist(), "worth": worth.tolist()}
        return {"documents": n, "clusters": len(one), "rows": len(words), **told}

    def _others(self, table: pa.Table) -> Floats:
        """[rows] other copies of each."""
        columns = self.named.get("copies")
        return np.maximum(amounts(table, columns[0]), 0) if columns else np.zeros(table.num_rows)

    def _first(self, table: pa.Table, out: Path) -> Bools:
        """[rows] whether it is the copy of its cluster that stays."""
        told = self._told_first(table)
        return told if told.all() else told | read_by_id(out, table["id"])["first"]

    def _told_first(self, table: pa.Table) -> Bools:
        columns = self.named.get("copies", [])
        every = np.ones(table.num_rows, dtype=np.bool_)
        return scores(table, columns[1]) != 0 if len(columns) > 1 else every

    def _stand_ins(self, table: pa.Table) -> npt.NDArray[np.uint64]:
        """Ids, ascending, of the smallest of each cluster whose first is not among the rows."""
        columns, words = self.named.get("copies", []), id_words(table["id"])
        if len(columns) < 3:
            return words[:0]
        names, cluster = labels(table, columns[2])
        led = np.zeros(len(names) + 1, dtype=np.bool_)
        led[cluster[self._told_first(table)]] = True
        left = np.flatnonzero((cluster >= 0) & ~led[cluster])
        left = left[np.lexsort((words[left, 1], words[left, 0], cluster[left]))]
        return np.unique(words[left[np.unique(cluster[left], return_index=True)[1]]], axis=0)

    def _fitted(self, out: Path) -> residuals.Fitted | None:
        path = out / "drill.parquet"
        return residuals.fitted(path, path.stat().st_mtime_ns) if self.drill else None

    def _residual(self, table: pa.Table, others: Floats, out: Path) -> Floats:
        model = self._fitted(out)
        if model is None:
            return residuals.by_copies(others)
        named = {f: scores(table, n[0]) for f, n in self.named.items() if f in model.features}
        return model.predict(named | {"copies": others})

    def _benefit(
        self, table: pa.Table, others: Floats, tail: Mapping[str, Any], out: Path
    ) -> Floats:
        worth = np.interp(others + 1, tail["counts"], tail["worth"])
        weight = np.ones(table.num_rows)
        if self.value:
            known, given = np.load(out / "value.npy", allow_pickle=False), scores(table, self.value)
            sides = [np.searchsorted(known, given, side) for side in ("left", "right")]
            rank = (sides[0] + sides[1]) / max(len(known), 1)
            weight = np.where(np.isnan(given), 1.0, rank)
        return np.where(self._first(table, out), weight * worth, 0.0)

    def _judged(self, table: pa.Table, out: Path) -> tuple[dict[str, Floats], Decided]:
        """The numbers of each row, and what is decided about it."""
        tail, rows = read_json(out / "tail.json"), table.num_rows
        p = asked(table, self.named, {**PRIORS, **self.priors}, tail["documents"])
        others = self._others(table)
        residual = self._residual(table, others, out)
        benefit = self._benefit(table, others, tail, out)
        none = np.zeros(rows)
        single, worth = self._residual(table, none, out), self._benefit(table, none, tail, out)
        tangled = self.named.get("entanglement")
        entanglement = amounts(table, tangled[0]) if tangled else none
        limits = Limits(
            self.max_spans, self.dense, self.quarantine_at, self.drop_at, self.cost_plan,
            self.cost_unlearn, self.entangled, self.penalty,
        )  # fmt: skip
        found, tokens = spans(table, self.named), amounts(table, "n_tokens")
        first = self._first(table, out)
        decided = decide(p, found, tokens, first, worth, single, entanglement, limits)
        p_delete = together(rows, list(p.values()))
        numbers = {"p_delete": p_delete, "residual": residual, "risk": p_delete * residual}
        return {**numbers, "benefit": benefit}, decided

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        numbers, decided = self._judged(batch, out)
        found = Findings(batch.num_rows)
        told = zip(decided.decision, decided.reason, numbers["risk"].tolist(), strict=True)
        for row, (what, why, risk) in enumerate(told):
            if why != "low":
                found.add(row, f"{what}_{why}", value=risk)
        return {
            **numbers, "utility": -numbers["risk"], "left": decided.left,
            "decision": pa.array(decided.decision, pa.string()),
            "reason": pa.array(decided.reason, pa.string()), "findings": found.array(),
        }  # fmt: skip

    def _told(self, table: pa.Table, out: Path) -> Facts:
        """By decision and reason: documents, tokens, risk removed, benefit lost."""
        numbers, decided = self._judged(table, out)
        tokens, removed = amounts(table, "n_tokens"), numbers["risk"] - decided.left
        lost = np.where(decided.decision == "drop", numbers["benefit"], 0.0)
        told: dict[str, dict[str, Any]] = {}
        for what in DECISIONS:
            for why in sorted(set(decided.reason[decided.decision == what])):
                here = (decided.decision == what) & (decided.reason == why)
                told.setdefault(what, {})[why] = {
                    "documents": int(here.sum()), "tokens": int(tokens[here].sum()),
                    "risk": float(numbers["risk"][here].sum()),
                    "removed": float(removed[here].sum()), "benefit_lost": float(lost[here].sum()),
                }  # fmt: skip
        tail = read_json(out / "tail.json")
        same = table.num_rows - len(np.unique(id_words(table["id"]), axis=0))
        facts = {"risk": float(numbers["risk"].sum()), "removed": float(removed.sum())}
        facts |= {"benefit": float(numbers["benefit"].sum()), "benefit_lost": float(lost.sum())}
        unread = [f for f in residuals.SIGNS if f in self.features and f != "copies"]
        warnings = silent(table, self.named)
        if same:
            warnings.append(
                f"{same} rows repeat the id of another, and a decision holds for all rows of an "
                "id: put `dedup: exact` before this step or behind it, or they all stay"
            )
        if unread and not self.drill:
            warnings.append(f"without a drill the residual does not read {', '.join(unread)}")
        return {
            "decisions": told, **facts, "documents": tail["documents"],
            "clusters": tail["clusters"], "warnings": warnings,
        }  # fmt: skip
