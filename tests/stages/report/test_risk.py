"""Forget risk in the report: sums against the step's own, the riskiest, and what replay repeats."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from foresift.pipeline.run import Run
from foresift.stages.report import page
from foresift.stages.report.contents import Contents
from foresift.stages.report.mask import MASK
from foresift.stages.report.risk import INTERVALS, Risk, replayed, risk
from tests.runs import ROOT, go
from tests.stages.report.conftest import recipe, write_lines

FEATURES = ["licence", "personal", "secrets", "copies"]


def texts() -> list[str]:
    found = [f"plain document {k}, which is about the number {k} and no other" for k in range(30)]
    found += [f"write to bob{k}@example.org about matter {k} of the day" for k in range(4)]
    found += [" ".join(f"a{k}@example.org" for k in range(n, n + 9)) for n in range(2)]
    found += [
        f"a passage that is there again and again, always the same{'!' * k}" for k in range(5)
    ]
    found += [f"by Eva. All rights reserved. number {k} of a series" for k in range(3)]
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("risk")
    rows = [{"text": text, "at": f"s{n % 2}/{n}"} for n, text in enumerate(texts())]
    data = write_lines(out / "data.jsonl", rows)
    steps: list[dict[str, Any]] = [
        {"score": ["copies", "pii", "secrets", "licence"]},
        {
            "score": "forget_risk", "as": "danger", "features": FEATURES,
            "quarantine_at": 0.009, "drop_at": 0.5, "penalty": 1e5,
        },
        {"select": "where", "keep": "danger.decision not in ['drop', 'cap']"},
        {"order": "risk_late", "risk": "danger.risk", "decision": "danger.decision"},
    ]  # fmt: skip
    return go(recipe(data, steps, source="at", holdout=0.05), out / "out")


@pytest.fixture(scope="module")
def told(run: Run) -> Risk:
    found = risk(Contents.open(run.path))
    assert found is not None
    return found


def test_sums_are_those_of_the_step(run: Run, told: Risk) -> None:
    steps = json.loads((run.path / "manifest.json").read_text())["steps"]
    facts = next(s["facts"] for s in steps if s["name"] == "danger")
    listed = {(d.decision, d.reason): d for d in told.decisions}
    ours = {(what, why): g for what, each in facts["decisions"].items() for why, g in each.items()}
    assert set(listed) == set(ours) == {
        ("drop", "spans"), ("cap", "copies"), ("quarantine", "licence"), ("redact", "personal"),
        ("keep", "low"),
    }  # fmt: skip
    for key, group in ours.items():
        mine = listed[key]
        assert (mine.documents, mine.tokens) == (group["documents"], group["tokens"])
        assert mine.removed == pytest.approx(group["removed"])
        assert mine.benefit_lost == pytest.approx(group["benefit_lost"])
        assert mine.kept == (0 if key[0] in ("drop", "cap") else mine.documents)
    assert told.removed == pytest.approx(facts["removed"])
    assert told.benefit == pytest.approx(facts["benefit"])
    assert told.removed_share == pytest.approx(facts["removed"] / facts["risk"])
    assert told.lost_share == pytest.approx(facts["benefit_lost"] / facts["benefit"])
    gone = sum(g["tokens"] for (what, _), g in ours.items() if what in ("drop", "cap"))
    assert told.tokens == sum(g["tokens"] for g in ours.values())
    assert told.gone_share == pytest.approx(gone / told.tokens)
    assert [d.decision for d in told.decisions] == [
        "drop", "redact", "cap", "quarantine", "keep",
    ]  # fmt: skip


def test_the_riskiest_are_shown_masked(told: Risk) -> None:
    risks = [e.risk for e in told.riskiest]
    assert risks == sorted(risks, reverse=True)
    assert len(risks) == 10
    assert told.riskiest[0].decision == "drop"
    assert told.riskiest[0].risk == pytest.approx(
        told.riskiest[0].p_delete * told.riskiest[0].residual
    )
    assert MASK in told.riskiest[0].text
    assert not any("@example" in e.text for e in told.riskiest)
    assert told.trouble == ""


def test_risky_documents_come_late(told: Risk) -> None:
    assert told.replay is not None
    assert told.replay < told.shuffled == 0.55


def test_the_page_and_the_facts_show_it(run: Run, told: Risk) -> None:
    path = page.write(run)
    text = path.read_text(encoding="utf-8")
    assert '<section id="risk">' in text
    assert "quarantine" in text
    assert "bob1@example" not in text
    facts = json.loads(path.with_name("report.json").read_text(encoding="utf-8"))
    schema = json.loads((ROOT / "stages" / "report" / "schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(facts)
    assert facts["risk"]["step"] == "danger"
    assert facts["risk"]["decisions"][0]["decision"] == "drop"
    assert len(facts["risk"]["riskiest"]) == len(told.riskiest)


def test_a_run_without_it_has_no_section(nasty: Run, contents: Contents) -> None:
    assert risk(contents) is None
    assert '<section id="risk">' not in page.render(contents)


def test_replay_by_hand() -> None:
    equal = np.stack([np.arange(100.0), np.full(100, 5.0), np.zeros(100)], axis=1)
    for row, expected in ((0, 1.0), (9, 1.0), (10, 0.9), (99, 0.1)):
        one = equal.copy()
        one[row, 2] = 0.3
        assert replayed(one) == pytest.approx(expected)
        assert replayed(one[::-1]) == pytest.approx(expected)
    equal[:, 2] = 0.01
    assert replayed(equal) == pytest.approx((INTERVALS + 1) / (2 * INTERVALS))
    assert replayed(equal[:0]) is None
    assert replayed(equal * [1, 1, 0]) is None
