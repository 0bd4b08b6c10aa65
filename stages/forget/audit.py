"""Is it gone? A model measured on a deletion plan, under attack, against one trained without it.

    none and each attack   measures of the audited model, and of the retrained one under the same
                           attack; the paired differences with intervals and margins
    verdict                pass | fail | inconclusive | no reference: measured, not proved

Written: verdict.json (all of it, with versions) and audit.html (one page that needs no network;
texts masked and escaped). Measures: pipeline/audit; attacks: `_audit_battery.py`; how a verdict is
come to: pipeline/audit/verdict.py. Rows are drawn by their ids, so both models answer the same.

Cost: a forward over some 256 rows of three sets for each attack and model, 97 forwards of short
texts for 32 rows, decoding of 64 rows, and a copy of the model at a time.
Errors: DataError for a plan without a forgotten text, for an attack that does not exist, for models
that do not cut texts into the same tokens; ModelError for models that do not load.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

import foresift
from foresift.pipeline.audit import truth_ratio, verdict
from foresift.pipeline.audit.attacks import telling_words
from foresift.pipeline.audit.auc import rank_auc
from foresift.pipeline.audit.token_stats import start_of
from foresift.pipeline.audit.verdict import Finding
from foresift.pipeline.errors import DataError, ForesiftError
from foresift.pipeline.lm.model import ModelSpec, load, load_tokenizer
from foresift.pipeline.store import Facts, finite, read_json, write_json, write_text
from foresift.stages.forget import _audit_page as page
from foresift.stages.forget._audit_battery import ATTACKS, NONE, Battery, Effort, chosen
from foresift.stages.forget._audit_measures import Limits, Row, Subject, Values, content, sample
from foresift.stages.forget.folder import RELEARN, DeletionPlan

Told = Callable[[int, int, str], None]
READ = ("forget", "retain", "holdout", "probes", *RELEARN)
#: forgotten texts that the page shows, those that tell most first
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is audited, and how."""

    model: str
    """A folder or hub id."""
    plan: Path
    """The folder of a deletion plan."""
    retrained: str = ""
    """The same training without the forgotten rows; empty: nothing is proved."""
    attacks: Sequence[str] = ("all",)
    """Names of attacks or groups of them; `none` for no attack."""
    out: Path | None = None
    """Where verdict.json and audit.html go; None: the plan's folder."""
    tokenizer: str = ""
    """Where the models bring none; `bytes` is one."""
    device: str = "auto"
    dtype: str = "float32"
    limits: Limits = field(default_factory=Limits)
    effort: Effort = field(default_factory=Effort)
    margin: float = 1.0
    """Times the margins of `verdict.MARGINS`."""


def asked(*, attacks: str, items: int, steps: int, lr: float, margin: float, **given: Any) -> Asked:
    """What the command line asks for."""
    if items < 1 or steps < 0 or not lr > 0:
        raise DataError("rows and a learning rate above 0 and steps from 0 on are needed")
    names = tuple(name.strip() for name in attacks.split(",") if name.strip())
    limits, effort = Limits(items=items), Effort(steps=steps, lr=lr)
    return Asked(attacks=names, limits=limits, effort=effort, margin=margin, **given)


def exit_code(facts: Facts) -> int:
    """0 for a pass alone, 1 for a failure, 3 where neither is shown; 2 is for errors."""
    return {verdict.PASS: 0, verdict.FAIL: 1}.get(facts["verdict"], 3)


def lines(facts: Facts) -> list[str]:
    """The findings as a table for a terminal, failures first, and the verdict."""
    heads = ("attack", "items", "measure", "n", "audited", "retrained", "outcome")
    rows = [heads]
    for f in page.failures_first(facts["findings"]):
        figures = (page.interval(f["audited"]), page.interval(f["retrained"]))
        rows.append((f["attack"], f["set"], f["measure"], str(f["n"]), *figures, f["outcome"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    table = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    skipped = [f"not tried: {name} ({why})" for name, why in facts["skipped"].items()]
    if facts["unseen"]:
        skipped.append(f"left out: {facts['unseen']} forgotten rows that no training read")
    counts = page.counted(facts["findings"])
    return [*table, *skipped, f"findings: {counts}", f"verdict: {facts['verdict']}"]


def audit(asked: Asked, told: Told = lambda done, total, label: None) -> Facts:
    """Measure, attack, compare, write; returns what verdict.json holds."""
    plan = DeletionPlan.open(asked.plan)
    names = chosen(asked.attacks)
    if not 0 < asked.margin < math.inf:
        raise DataError(f"must be positive and finite, not {asked.margin}", where="--margin")
    battery, unseen = _battery(plan, asked)
    skipped = {name: why for name in names if (why := battery.missing(name))}
    wanted = (NONE, *(name for name in names if name not in skipped))
    if asked.retrained:
        _same_tokens(battery, asked)
    audited = _measured(asked, asked.model, "audited", battery, wanted, told)
    theirs: dict[str, Values] = {}
    if asked.retrained:
        theirs = _measured(asked, asked.retrained, "retrained", battery, wanted, told)
    skipped |= _lacking(battery)
    findings = _findings(audited, theirs if asked.retrained else None, asked.margin)
    facts = _facts(asked, plan, battery, findings, skipped)
    facts["unseen"] = unseen
    facts["summary"] = _summary(audited[NONE], theirs.get(NONE))
    out = asked.out or plan.path
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "verdict.json", finite(facts))
    write_text(out / "audit.html", page.render(facts, _telling(audited, theirs, battery)))
    return facts


def _battery(plan: DeletionPlan, asked: Asked) -> tuple[Battery, int]:
    """What is measured, and how many forgotten rows are left out as no training saw them.

    They would dilute every mean: a model cannot remember what it never read.
    """
    lineage: list[Facts] = []
    if (plan.path / "lineage.parquet").exists():
        lineage = plan.lineage.to_pylist()
    paths = {row["doc_id"].hex(): list(row.get("key_path") or []) for row in lineage}
    clusters = {row["doc_id"].hex(): row.get("cluster") for row in lineage}
    read = {row["doc_id"].hex() for row in lineage if row.get("exposures")}
    sets: dict[str, Sequence[Row]] = {n: _rows(plan, n, asked.limits.items) for n in READ}
    forget = plan.rows("forget")
    seen = [row for row in forget if row.get("id") in read] if read else forget
    sets["forget"] = sample(seen, asked.limits.items)
    if not sets["forget"]:
        raise DataError("no row with a text to audit", where=str(plan.path / "forget.jsonl"))
    sets["probes"] = plan.rows("probes") if _there(plan, "probes") else []
    if read:
        sets["probes"] = [row for row in sets["probes"] if row.get("id") in read]
    battery = Battery(sets, _words(plan, sets), paths, asked.effort, clusters)
    return battery, len(forget) - len(seen)


def _lacking(battery: Battery) -> dict[str, str]:
    """What could not be measured as the plan has no rows for it."""
    why = {"membership": "holdout", "what is kept": "retain", "recall of probes": "probes"}
    return {name: f"{rows}.jsonl is empty" for name, rows in why.items() if not battery.sets[rows]}


def _there(plan: DeletionPlan, name: str) -> bool:
    return (plan.path / f"{name}.jsonl").exists()


def _rows(plan: DeletionPlan, name: str, count: int) -> list[Row]:
    return sample(plan.rows(name), count) if _there(plan, name) and name != "probes" else []


def _words(plan: DeletionPlan, sets: Mapping[str, Sequence[Row]]) -> list[str]:
    """The plan's keywords, else words that stand in forget far more often than in retain."""
    path = plan.path / "keywords.json"
    found: Any = read_json(path) if path.exists() else {}
    if isinstance(found, dict):
        found = next((found[n] for n in ("keywords", "words", "terms") if n in found), [])
    words = [w.get("word") or w.get("keyword") if isinstance(w, dict) else w for w in found]
    known = [str(word) for word in words if word]
    forget, retain = ([content(row) for row in sets[name]] for name in ("forget", "retain"))
    return known or telling_words(forget, retain)


def _measured(
    asked: Asked,
    name: str,
    role: str,
    battery: Battery,
    attacks: Sequence[str],
    told: Told,
) -> dict[str, Values]:
    spec = ModelSpec(
        init=name,
        tokenizer=asked.tokenizer,
        device=asked.device,
        dtype=asked.dtype,  # type: ignore[arg-type]
        max_length=asked.limits.max_length,
    )
    loaded = load(spec)
    subject = Subject(loaded.model, loaded.tokenizer, asked.limits, told, role)
    found = {}
    for number, attack in enumerate(attacks):
        told(number, len(attacks), f"{role}: attacks")
        try:
            found[attack] = battery.run(attack, subject)
        except ForesiftError as error:
            raise type(error)(error.message, where=f"{name}, {attack}: {error.where}") from error
    told(len(attacks), len(attacks), f"{role}: attacks")
    return found


def _same_tokens(battery: Battery, asked: Asked) -> None:
    """DataError where the two models would not be asked for the same tokens."""
    texts = [content(row) for row in battery.sets["forget"][:16]]
    tokenizers = [
        load_tokenizer(asked.tokenizer or name) for name in (asked.model, asked.retrained)
    ]
    ids = [
        (start_of(t), t.eos_token_id, t(texts, add_special_tokens=False)["input_ids"])
        for t in tokenizers
    ]
    if ids[0] != ids[1]:
        raise DataError(
            "does not cut texts into the same tokens as the audited model: losses a token cannot be"
            " compared",
            where=asked.retrained,
        )


def _findings(
    audited: Mapping[str, Values], retrained: Mapping[str, Values] | None, scale: float
) -> list[Finding]:
    found = []
    for attack, ours in audited.items():
        theirs = None if retrained is None else retrained[attack]
        for (items, measure), values in ours.items.items():
            other = None if theirs is None else theirs.items.get((items, measure))
            if theirs is not None and (other is None or not np.isfinite(values + other).any()):
                continue
            found.append(
                verdict.compare(
                    values, other, measure=measure, attack=attack, items=items, scale=scale
                )
            )
        loss = ("forget", "loss")
        if theirs is not None and loss in ours.items and loss in theirs.items:
            losses = ours.items[loss], theirs.items[loss]
            if np.isfinite(sum(losses)).any():
                found.append(verdict.known_better(*losses, attack=attack, scale=scale))
        for measure, sides in ours.scores.items():
            pair = None if theirs is None else theirs.scores[measure]
            found.append(
                verdict.compare_auc(sides, pair, measure=measure, attack=attack, scale=scale)
            )
    return found


def _summary(ours: Values, theirs: Values | None) -> Facts:
    """Figures that others publish: PrivLeak, forget quality, P, F.D. and R.U."""
    found: Facts = {}
    for items in ("forget", "retain"):
        found[f"P_{items}"] = _overall(ours, items)
    if theirs is None:
        return found
    for items, name in (("forget", "F.D."), ("retain", "R.U.")):
        p, reference = found[f"P_{items}"], _overall(theirs, items)
        found[f"P_{items}_retrained"] = reference
        if p is not None and reference is not None:
            found[name] = truth_ratio.likeness(p, reference)
    if "min_k_40" in ours.scores:
        kept = [np.isfinite(both).all(axis=0) for both in zip(ours.scores["min_k_40"],
                theirs.scores["min_k_40"], strict=True)]  # fmt: skip
        aucs = [
            rank_auc(*(side[there] for side, there in zip(m.scores["min_k_40"], kept, strict=True)))
            for m in (ours, theirs)
        ]
        found["PrivLeak"] = truth_ratio.privleak(*aucs) if aucs[1] < 1 else None
    samples = [model.ratios[np.isfinite(model.ratios)] for model in (ours, theirs)]
    if all(map(len, samples)):
        found["forget_quality"] = truth_ratio.forget_quality(*samples)._asdict()
    return found


def _overall(values: Values, items: str) -> float | None:
    names = ("loss", "cued_recall", "exact_memorisation")
    if any((items, name) not in values.items for name in names):
        return None
    loss, recalled, hits = (values.items[items, name] for name in names)
    p = float(np.nanmean(np.exp(-loss)))
    return truth_ratio.overall(p, float(np.nanmean(recalled)), float(np.nanmean(hits)))


def _telling(
    audited: Mapping[str, Values], retrained: Mapping[str, Values], battery: Battery
) -> list[tuple[str, str, float, float | None]]:
    """Forgotten texts that the model knows best: (id, text, loss, the retrained model's loss)."""
    ours = audited[NONE].items["forget", "loss"]
    theirs = retrained[NONE].items["forget", "loss"] if retrained else None
    gaps = ours - theirs if theirs is not None else ours
    order = np.argsort(np.where(np.isfinite(gaps), gaps, np.inf), kind="stable")[:SHOWN]
    rows = battery.sets["forget"]
    return [
        (
            str(rows[i].get("id", "")),
            content(rows[i]),
            float(ours[i]),
            None if theirs is None else float(theirs[i]),
        )
        for i in order.tolist()
        if np.isfinite(gaps[i])
    ]


def _facts(
    asked: Asked,
    plan: DeletionPlan,
    battery: Battery,
    findings: Sequence[Finding],
    skipped: Mapping[str, str],
) -> Facts:
    versions = ("torch", "transformers", "numpy", "scikit-learn", "scipy")
    return {
        "verdict": verdict.overall(findings),
        "model": _about(asked.model),
        "retrained": _about(asked.retrained) if asked.retrained else None,
        "plan": str(plan.path),
        "request": xxhash.xxh3_128_hexdigest((plan.path / "plan.json").read_bytes()),
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "sets": {name: len(rows) for name, rows in battery.sets.items()},
        "attacks": [a for a in (NONE, *ATTACKS) if any(f.attack == a for f in findings)],
        "skipped": dict(skipped),
        "settings": {
            "limits": asdict(asked.limits),
            "effort": asdict(asked.effort),
            "margin": asked.margin,
        },
        "findings": [asdict(finding) for finding in findings],
        "versions": {
            "foresift": foresift.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in versions},
        },
    }


def _about(name: str) -> Facts:
    return {"init": name, "digest": ModelSpec(init=name).digest()}
