"""The conformance suite: every part found on disk goes through the checks of its noun.

A new part needs no test here. If it has a required field, `examples.py` says how to build it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch

from foresift.pipeline import parts
from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import (
    AimedScorer,
    Choice,
    Column,
    FittedModelScorer,
    FittedScorer,
    ModelScorer,
    Part,
    Selector,
)
from foresift.stages.selectors.topk import TopK
from tests.contract import asked, checks, examples, outputs, samples

ROOT = Path(__file__).resolve().parents[2]


def every(*verbs: str) -> pytest.MarkDecorator:
    found = examples.on_disk(*verbs)
    return pytest.mark.parametrize(("verb", "name"), found, ids=[f"{v}-{n}" for v, n in found])


@every()
def test_part_is_documented_and_has_an_example(verb: str, name: str) -> None:
    checks.is_documented(parts.find(verb, name))
    assert examples.build(verb, name)


@every()
def test_use_leaves_no_trace(verb: str, name: str) -> None:
    for part in examples.build(verb, name):
        checks.use_leaves_no_trace(part, lambda part=part: outputs.result(verb, part))


@every("score")
@pytest.mark.parametrize("kind", outputs.CONTENT)
def test_scores(verb: str, name: str, kind: str, tmp_path: Path) -> None:
    for number, part in enumerate(examples.build(verb, name)):
        columns: Any = part.columns  # type: ignore[attr-defined]
        fitted = outputs.fit(part, kind, tmp_path / str(number))

        def score(rows: Any, part: Any = part, fitted: Path = fitted) -> Any:
            return outputs.measure(part, rows, kind, fitted)

        checks.declares_what_it_gives(score(range(samples.ROWS)), columns, samples.ROWS)
        close = asked.rounding(part, fitted) if isinstance(part, FittedModelScorer) else 0.0
        checks.rows_stand_alone(score, columns, samples.ROWS, close)


@every("score")
def test_fits(verb: str, name: str, tmp_path: Path) -> None:
    for number, part in enumerate(examples.build(verb, name)):
        if isinstance(part, (AimedScorer, FittedScorer)):

            def fit(batches: Any, part: Any = part, number: int = number) -> Any:
                folder = tmp_path / f"{number}-{len(batches)}"
                fitted = outputs.fit_batches(part, "text", folder, batches)
                return lambda rows: outputs.measure(part, rows, "text", fitted)

            checks.fit_belongs_to_documents(fit, part.columns, samples.ROWS)


@every("score")
@pytest.mark.parametrize("kind", outputs.CONTENT)
def test_scorers_that_ask_the_model(verb: str, name: str, kind: str) -> None:
    for part in examples.build(verb, name):
        if isinstance(part, FittedModelScorer):
            before = asked.weights()
            out, facts = asked.fitted(part, kind)
            checks.says_what_it_asked(part, out, facts)
            checks.fits_once(lambda part=part, kind=kind: asked.again(part, kind), out, facts)
            asked.score(part, range(9), kind, out)
            assert asked.weights() == before, "the model that others share was changed"


@every("score")
def test_scorers_leave_their_input_alone(verb: str, name: str, tmp_path: Path) -> None:
    for number, part in enumerate(examples.build(verb, name)):
        if isinstance(part, ModelScorer):
            tokens, signals = samples.window(part, range(samples.ROWS))
            arrays = {**signals.token, **signals.document, "offsets": signals.offsets}
            arrays |= {"lengths": tokens.lengths, "cut": tokens.cut, "prompted": tokens.prompted}
            if tokens.encoded is not None:
                arrays |= {"ids": tokens.encoded.ids, "counts": tokens.encoded.counts}
            checks.signals_are_left_alone(
                lambda part=part, given=(tokens, signals): part.score(*given), arrays
            )
        elif isinstance(part, FittedModelScorer):
            fitted = asked.fit(part, "text")
            seen = asked.window(part, range(samples.ROWS), "text", fitted)
            checks.signals_are_left_alone(
                lambda part=part, given=(seen, fitted): part.score(*given), asked.arrays(seen)
            )
        else:
            fitted = outputs.fit(part, "text", tmp_path / str(number))
            extra = [fitted] if isinstance(part, (AimedScorer, FittedScorer)) else []
            use: Any = part
            checks.input_is_left_alone(
                lambda t, use=use, extra=extra: use.score(t, *extra), samples.table()
            )


@every("select")
def test_selectors(verb: str, name: str) -> None:
    for part in examples.build(verb, name):
        assert isinstance(part, Selector)
        assert isinstance(part.needs, tuple)

        def choose(rows: Any, part: Selector = part) -> tuple[list[bytes], Choice]:
            return outputs.choose(part, rows)

        choice = choose(range(samples.ROWS))[1]
        checks.decides_on_every_row(choice, samples.ROWS)
        assert 0 < choice.kept.sum() < samples.ROWS, "the example should keep some rows, not all"
        checks.choice_belongs_to_ids(choose, samples.ROWS)
        checks.input_is_left_alone(
            lambda t, part=part: part.select(t, outputs.Budget(0.33, True), outputs.RNG),
            samples.table(),
        )


@every("order")
def test_orders(verb: str, name: str) -> None:
    for part in examples.build(verb, name):
        use: Any = part
        checks.order_is_a_permutation(
            lambda rows, use=use: outputs.arrange(use, rows), samples.ROWS, use.repeats
        )
        checks.input_is_left_alone(lambda t, use=use: use.order(t, outputs.RNG), samples.table())


def test_two_processes_agree_on_every_part() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.contract.outputs"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "4242", "TZ": "Asia/Tokyo", "LANG": "C"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == outputs.digests()


# -- the checks themselves find what they are there to find ------------------------------------


class Careless:
    """Scores that break one rule each."""

    columns: ClassVar[dict[str, Column]] = {"utility": Column(pa.float64(), "count", "higher")}

    @staticmethod
    def by_batch(rows: Any) -> dict[str, Any]:
        return {"utility": np.full(len(rows), float(len(rows)))}

    @staticmethod
    def by_place(rows: Any) -> dict[str, Any]:
        return {"utility": np.arange(len(rows), dtype=np.float64)}

    @staticmethod
    def short(rows: Any) -> dict[str, Any]:
        return {"utility": np.zeros(max(len(rows) - 1, 0))}

    @staticmethod
    def misnamed(rows: Any) -> dict[str, Any]:
        return {"usefulness": np.zeros(len(rows))}


@dataclass(frozen=True, kw_only=True)
class Unexplained(Part):
    """A part with a field nobody explains."""

    depth: int = 1


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (Careless.by_batch, "depends on the batch"),
        (Careless.by_place, "depends on the order"),
    ],
)
def test_rows_that_do_not_stand_alone_are_found(score: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        checks.rows_stand_alone(score, Careless.columns, 12)


@pytest.mark.parametrize(
    ("score", "message"),
    [(Careless.short, "11 values for 12 rows"), (Careless.misnamed, "gives .'usefulness'.")],
)
def test_undeclared_columns_are_found(score: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        checks.declares_what_it_gives(score(range(12)), Careless.columns, 12)


def test_writing_to_the_input_is_found() -> None:
    table = pa.table({"x": pa.array(np.zeros(4))})

    def spoil(given: pa.Table) -> None:
        values = np.frombuffer(given["x"].chunk(0).buffers()[1], dtype=np.float64)
        values.flags.writeable = True
        values[0] = 1

    with pytest.raises((AssertionError, ValueError)):
        checks.input_is_left_alone(spoil, table)
    signal = np.zeros(3)
    with pytest.raises(AssertionError, match="nll was changed"):
        checks.signals_are_left_alone(lambda: signal.fill(1), {"nll": signal})


def test_rounding_is_forgiven_where_forwards_are_and_nothing_else() -> None:
    columns = {"v": Column(pa.list_(pa.float64()), "count")}

    def score(rows: Any, error: float = 1e-6) -> dict[str, Any]:
        values = [[float(r), 10.0 + error * len(rows)] for r in rows]
        return {"v": [None if r == 3 else v for r, v in zip(rows, values, strict=True)]}

    with pytest.raises(AssertionError, match="depends on the batch"):
        checks.rows_stand_alone(score, columns, 12)
    checks.rows_stand_alone(score, columns, 12, 1e-5)
    with pytest.raises(AssertionError, match="depends on the batch"):
        checks.rows_stand_alone(lambda rows: score(rows, 1e-3), columns, 12, 1e-5)


def test_a_finding_that_moves_is_found_and_one_whose_value_is_rounded_is_not() -> None:
    columns = {"findings": FOUND}

    def score(rows: Any, move: int = 0, error: float = 0.0, reason: str = "a") -> dict[str, Any]:
        whole = len(rows) == 12
        found = Findings(len(rows))
        for k, row in enumerate(rows):
            changed = whole and row == 7
            start = 10**6 + row + move * changed
            said = reason if changed else "a"
            found.add(k, said, start, start + 5, 4.0 + (error if whole else 0.0))
        return {"findings": found.array()}

    checks.rows_stand_alone(lambda rows: score(rows, error=1e-6), columns, 12, 1e-5)
    for broken in ({"move": 1}, {"reason": "b"}, {"error": 1e-3}):
        with pytest.raises(AssertionError, match="depends on the batch"):
            checks.rows_stand_alone(lambda r, b=broken: score(r, **b), columns, 12, 1e-5)


def test_a_fit_that_asks_again_or_says_something_else_is_found(tmp_path: Path) -> None:
    layer, facts = torch.nn.Linear(1, 1), {"n": 1}
    (tmp_path / "learned").write_text("1")
    checks.fits_once(lambda: facts, tmp_path, facts)
    with pytest.raises(AssertionError, match="the model was asked again"):
        checks.fits_once(lambda: layer(torch.ones(1)) is None or facts, tmp_path, facts)
    with pytest.raises(AssertionError, match="says something else"):
        checks.fits_once(lambda: {"n": 2}, tmp_path, facts)
    with pytest.raises(AssertionError, match="wrote something else"):
        checks.fits_once(lambda: (tmp_path / "learned").write_text("2") and facts, tmp_path, facts)


@pytest.mark.parametrize("facts", [{"a": float("nan")}, {"a": (1,)}, {"a": np.float64(1)}, {1: 2}])
def test_facts_that_json_does_not_hold_are_found(facts: Any) -> None:
    with pytest.raises(AssertionError):
        checks.is_json(facts)


def test_use_that_changes_the_part_is_found() -> None:
    part = TopK(by="s.u")
    with pytest.raises(AssertionError, match="fingerprint"):
        checks.use_leaves_no_trace(part, lambda: object.__setattr__(part, "by", "s.v"))


def test_an_unexplained_part_is_found() -> None:
    with pytest.raises(AssertionError, match=r"fields without a text under them: \['depth'\]"):
        checks.is_documented(Unexplained)


def test_a_part_without_an_example_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(examples.FIELDS, ("select", "topk"))
    with pytest.raises(AssertionError, match=r"\('select', 'topk'\) working fields"):
        examples.build("select", "topk")


def test_examples_name_parts_that_exist() -> None:
    assert set(examples.FIELDS) <= set(examples.on_disk())
    assert all(isinstance(p, Part) for v, n in examples.on_disk() for p in examples.build(v, n))
