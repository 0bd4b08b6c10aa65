"""The drill: what stays after unlearning, as labels that forget_risk fits to."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from foresift.pipeline.cli import app
from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.lm.model import ModelSpec, load
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import read_json
from foresift.pipeline.tables import content_ids
from foresift.scorers import _risk_prior, _risk_residual
from foresift.stages.forget import _drill_measure as measure
from foresift.stages.forget import _drill_pick as picking
from foresift.stages.forget.drill import Asked, drill
from foresift.stages.forget.history import History
from tests.runs import go
from tests.stages.forget.deletions import LLAMA, everything, model

LETTERS = [*string.ascii_letters, *string.digits]
COPIES = (8, 16)


def texts(count: int = 72, seed: int = 0) -> list[str]:
    """Lines of drawn letters, so that a line is known only by heart; every second has copies."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        words = ["".join(rng.choice(LETTERS, 4)) for _ in range(4)]
        copies = COPIES[number // 2 % len(COPIES)] if number % 2 == 0 else 1
        found += [" ".join(words)] * copies
    return found


def wide(folder: Path) -> dict[str, Any]:
    """A model that can learn some lines by heart."""
    spec = model(folder)
    fields = {**LLAMA, "hidden_size": 64, "intermediate_size": 192, "initializer_range": 0.05}
    Path(spec["init"]).write_text(json.dumps(fields))
    return spec


def recipe(folder: Path, **risk: Any) -> dict[str, Any]:
    return {
        "name": "drilled",
        "data": {"read": "jsonl", "paths": [str(folder / "rows.jsonl")], "holdout": 0.15},
        "model": wide(folder),
        "steps": [
            {"score": "copies"},
            {"score": "forget_risk", "features": ["copies"], **risk},
            {"order": "shuffle"},
            {
                "train": "causal_lm", "tokens": 52_000, "repeat": True, "length": 64,
                "batch_tokens": 256, "micro_tokens": 256, "threads": 1, "learning_rate": 5e-3,
                "schedule": "constant", "checkpoint_every": 100,
            },
        ],
        "report": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("drilled")
    write(folder, texts())
    return folder, go(recipe(folder), folder / "out").path


@pytest.fixture(scope="module")
def done(made: tuple[Path, Path]) -> tuple[pa.Table, dict[str, Any]]:
    """A drill by the command, which leaves the store as it was."""
    folder, run = made
    before = everything(folder / "out")
    told = call(
        "--run", str(run), "--out", str(folder / "drill.parquet"), "--per-decile", "6",
        "--steps", "40", "--device", "cpu", "--json",
    )  # fmt: skip
    assert everything(folder / "out") == before
    return pq.read_table(folder / "drill.parquet"), json.loads(told[told.index('{"out"') :])


def write(folder: Path, lines: Sequence[str]) -> None:
    folder.mkdir(exist_ok=True)
    rows = [json.dumps({"text": text}) for text in lines]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")


def call(*words: str, code: int = 0) -> str:
    found = CliRunner().invoke(app, ["forget", "drill", *words], catch_exceptions=False)
    assert found.exit_code == code, found.output
    return found.output


def checkpoint(history: History) -> str:
    return str(history.trainings[0].path / "checkpoint")


def test_forget_risk_fits_to_a_drill_end_to_end(
    made: tuple[Path, Path], done: tuple[pa.Table, dict[str, Any]]
) -> None:
    folder, (table, told) = made[0], done
    fields = recipe(folder, drill=str(folder / "drill.parquet"))
    del fields["steps"][2:]
    history = History.open(go(fields, folder / "out").path)
    fit = next(s for s in history.of("score") if s.name == "forget_risk").facts["drill"]
    assert fit["documents"] == table.num_rows == told["documents"] >= 20
    assert fit["features"] == ["copies"]
    assert {"r2", "mean_absolute_error", "spearman"} <= set(fit)
    # what the model saw more often is harder to forget: as the labels say, so does the fit
    residual, copies = (np.asarray(table[n]) for n in ("residual", "copies"))
    assert residual[copies > 0].mean() > residual[copies == 0].mean() + 0.1
    assert fit["r2"] > 0
    assert fit["spearman"] > 0.2
    place = history.score("forget_risk.residual")
    assert place is not None
    corpus = replace(history.bases[0], columns={"residual": place})
    fitted, _ = corpus.table(["residual"])
    plain = set(_risk_residual.by_copies(np.arange(16.0)).tolist())
    assert not plain & set(fitted["residual"].to_pylist())


def test_a_drill_tells_what_it_did(
    made: tuple[Path, Path], done: tuple[pa.Table, dict[str, Any]]
) -> None:
    table, told = done
    assert told == read_json(made[0] / "drill.json")
    ids = [i.hex() for i in table["id"].to_pylist()]
    assert ids == sorted(ids)
    worst = {one["id"]: one["residual"] for one in told["worst_case"]}
    assert worst == dict(zip(ids, table["residual"].to_pylist(), strict=True))
    assert list(worst.values()) == sorted(worst.values(), reverse=True)
    assert [d["documents"] for d in told["deciles"]] == [3] * 10
    # what was unlearned is forgotten more than what was kept, and the FLOPs are those of the parts
    rise = np.asarray(table["loss_u"]) - np.asarray(table["loss_b"])
    assert rise.mean() > told["utility_loss"]
    nll = told["nll"]["measured"]
    assert told["utility_loss"] == nll["u"] - nll["b"]
    parts = {k: v for k, v in told["flops"].items() if k != "all"}
    assert told["flops"]["all"] == sum(parts.values())
    assert min(parts.values()) > 0
    assert told["settings"]["lr"] == 5e-4
    assert told["warnings"] == ["a decile has fewer than 12 clusters, of which half are drilled"]


def test_residuals_by_hand(done: tuple[pa.Table, dict[str, Any]]) -> None:
    before = np.array([2.0, 2.0, 2.0, 2.0, 0.05, -1.0])
    unlearned = np.array([0.0, 1.0, -3.0, 5.0, 0.05, 1.0])
    relearned = np.array([0.5, 0.0, -1.0, 0.0, 0.05, 1.0])
    expected = [0.25, 0.5, 0.0, 1.0, 0.0, 0.0]
    assert measure.residuals(before, unlearned, relearned).tolist() == expected
    for row in done[0].to_pylist():  # one document at a time
        b, u, a = (row[f"reference_{s}"] - row[f"loss_{s}"] for s in "bua")
        share = 0.0 if b < 0.1 else min(1.0, max(0.0, max(u, a) / b))
        assert row["residual"] == pytest.approx(share, abs=1e-12)


def test_losses_are_those_of_a_plain_forward(made: tuple[Path, Path]) -> None:
    loaded = load(ModelSpec(init=checkpoint(History.open(made[1])), device="cpu"))
    words = [tuple(loaded.tokenizer(t)["input_ids"]) for t in (*texts()[:2], "never seen")]
    rows = [measure.Text(w, start, "") for w, start in zip(words, (1, 9, 3), strict=True)]
    found = measure.level(loaded.model, rows, lambda *_: None, "")
    for k, row in enumerate(rows):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([row.tokens])).logits[0]
        logp = torch.log_softmax(logits.double(), -1)
        told = [float(logp[t - 1, row.tokens[t]]) for t in range(row.start, len(row.tokens))]
        assert found.loss[k] == pytest.approx(-np.mean(told), abs=1e-5)
    assert found.strength[2] < 1


def test_the_nearest_texts_are_alike_in_length_and_form() -> None:
    draw = np.random.default_rng(1)
    holdout = [text_of("".join(draw.choice([*"abcdefgh"], n))) for n in range(5, 105, 5)]
    holdout += [text_of("a" * n) for n in range(5, 105, 5)]
    asked = [text_of("b" * 50), text_of("".join(draw.choice([*"abcdefgh"], 50)))]
    found = measure.nearest(asked, holdout)
    assert found.shape == (2, 16)
    for row, text in zip(found.tolist(), asked, strict=True):
        away = [sum(abs(a - b) for a, b in zip(h.form, text.form, strict=True)) for h in holdout]
        assert sorted(away)[:16] == [away[n] for n in row]
    assert found[0, 0] == 29  # 50 times one letter
    assert found[1, 0] == 9


def text_of(plain: str) -> measure.Text:
    return measure.Text(tuple(plain.encode()), 1, plain)


def test_near_copies_of_what_is_drilled_are_left_out() -> None:
    drilled = " ".join(f"w{n}" for n in range(40))
    near, far = drilled + " and so on", " ".join(f"v{n}" for n in range(40))
    shared = " ".join(f"w{n}" for n in range(14)) + " " + far  # a notice, say
    given = [text_of(t) for t in (drilled, near, far, shared, "short")]
    assert measure.apart([*given, None], [text_of(drilled)]) == [2, 3, 4]


def pool_of(risks: Sequence[float]) -> picking.Pool:
    names = pa.table({"text": [f"document {n}" for n in range(len(risks))]})
    told = {"id": content_ids(names), "risk": pa.array(risks, pa.float64())}
    return picking.Pool(pa.table(told), np.zeros((len(risks), 2), np.int64), "documents", {})


@given(
    st.lists(st.sampled_from([0.0, 1e-3, 0.1, 0.5]), min_size=40, max_size=120),
    st.integers(2, 6),
    st.randoms(use_true_random=False),
)
def test_picks_depend_on_ids_alone(risks: list[float], size: int, chance: Any) -> None:
    found = pool_of(risks)
    picked = picking.pick(found, size, Rng(0), "run")
    deciles, counts = np.unique(picked.decile, return_counts=True)
    assert deciles.tolist() == list(range(1, 11))
    assert counts.max() <= size
    assert counts.min() >= min(size, len(risks) // 10 // 2)
    assert sorted([*picked.drilled, *picked.rest]) == list(range(len(risks)))
    drilled = np.array(risks)[picked.drilled]
    for number in range(1, 10):
        lower, upper = drilled[picked.decile == number], drilled[picked.decile == number + 1]
        assert lower.max() <= upper.min()
    order = chance.sample(range(len(risks)), len(risks))
    other = picking.Pool(found.table.take(pa.array(order)), found.places, "documents", {})
    again = picking.pick(other, size, Rng(0), "run")
    for one, two in ((picked.drilled, again.drilled), (picked.rest, again.rest)):
        assert found.table["id"].take(pa.array(one)) == other.table["id"].take(pa.array(two))
    assert picked.decile.tolist() == again.decile.tolist()


def test_a_checkpoint_saw_what_was_trained_up_to_it(made: tuple[Path, Path]) -> None:
    history = History.open(made[1])
    training = history.trainings[0]
    path = training.path / "checkpoints" / "step-000100"
    begun = picking.start(history, str(path))
    assert (begun.step, begun.trainings) == (100, (training,))
    found = picking.pool(history, begun, "forget_risk.risk")
    ledger = history.ledger(training).table().to_pylist()
    seen = Counter(row["id"] for row in ledger if row["step"] <= 100)
    told = dict(zip(*(found.table[n].to_pylist() for n in ("id", "exposures")), strict=True))
    assert 0 < seen.total() < len(ledger)
    assert told == seen  # copies here are exact: each document is the first of its cluster
    newest = picking.start(history, "")
    assert Path(newest.init) == training.path / "checkpoint"


def test_equal_seeds_give_equal_tables(made: tuple[Path, Path], tmp_path: Path) -> None:
    def table(name: str, **more: Any) -> pa.Table:
        out = tmp_path / name
        drill(
            Asked(run=made[1], out=out, per_decile=3, steps=2, relearn_steps=1, device="cpu",
                  method="simnpo", **more)
        )  # fmt: skip
        return pq.read_table(out)

    one = table("one.parquet")
    assert table("two.parquet") == one
    assert table("three.parquet", seed=1)["id"] != one["id"]


def test_features_are_those_that_forget_risk_reads() -> None:
    first = {f: _risk_prior.COLUMNS[f][0] for f in _risk_residual.SIGNS}
    assert first == picking.FEATURES
    assert _risk_prior.COLUMNS["copies"][1] == picking.FIRST
    assert picking.LEAST == _risk_residual.LEAST


def untrained(folder: Path, lines: Sequence[str], steps: list[Any], **read: Any) -> Path:
    """A run that trains nothing."""
    write(folder, lines)
    fields = recipe(folder)
    data = {**fields["data"], **read}
    return go({**fields, "data": data, "steps": steps}, folder / "out").path


def test_clusters_are_those_of_minhash_where_the_run_has_them(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    long = [f"{a} {b} {a} {b} {a}" for a, b in zip(texts(40)[::2], texts(40)[1::2], strict=False)]
    lines = [text + end for text in long for end in ("", " mi")]
    risk = {"score": "forget_risk", "features": ["copies"], "as": "mine"}
    steps = [{"score": "copies", "as": "c"}, {**risk, "columns_of": {"copies": ["c.near"]}}]
    history = History.open(untrained(tmp_path, lines, [*steps, {"dedup": "minhash"}]))
    begun = picking.start(history, checkpoint(History.open(made[1])))
    assert begun.trainings == ()
    found = picking.pool(history, begun, "mine.risk")
    assert (found.clusters, found.features) == ("minhash.cluster", {"copies": "c.near"})
    plan = pq.read_table(history.run.plan)
    kept = plan.filter(plan["kept"])["id"].to_pylist()
    assert sorted(found.table["id"].to_pylist()) == sorted(kept)
    assert found.table["exposures"].null_count == found.table.num_rows
    assert max(found.table["copies"].to_pylist()) >= 1


def test_bad_drills_have_one_line(made: tuple[Path, Path], tmp_path: Path) -> None:
    run = made[1]
    for words, line in (
        (("--per-decile", "0"), "--per-decile: at least 1"),
        (("--steps", "0"), "--steps: at least 1"),
        (("--method", "npu"), "no method 'npu'"),
        (("--lr", "0"), "learning rates are above 0"),
        (("--out", "drill.csv"), "the table of a drill is a .parquet"),
        (("--by", "loss.utility"), "this run has no column 'loss.utility': score forget_risk"),
        (("--per-decile", "1"), "clusters of documents that the model saw"),
        (("--model", "no/such/model"), "no/such/model"),
    ):
        out = tmp_path / "never.parquet"
        said = call(
            "--run", str(run), *(() if "--out" in words else ("--out", str(out))), *words, code=2
        )
        assert line in " ".join(said.split())
        assert not out.exists()
    both = [{"score": "copies"}, {"score": "forget_risk", "features": ["copies"]}]
    apart = [{"score": "licence"}, {"score": "forget_risk", "features": ["licence"]}]
    lines, model_ = texts(), checkpoint(History.open(made[1]))
    cases: list[tuple[Path, str, str]] = [
        (untrained(tmp_path / "a", lines, both), "", "this run has no checkpoint"),
        (untrained(tmp_path / "b", lines, apart), model_, "this run has none of copies.near"),
        (untrained(tmp_path / "c", lines[:30], both), model_, "at least 20 are needed"),
        (untrained(tmp_path / "d", lines, both, holdout=0), model_, "0 texts of its holdout"),
    ]
    for path, name, line in cases:
        with pytest.raises(DataError, match=line) as told:
            drill(Asked(run=path, out=tmp_path / "x.parquet", model=name, device="cpu"))
        assert str(path) in str(told.value)
    with pytest.raises(DataError, match="no finished run here"):
        drill(Asked(run=tmp_path))
    with pytest.raises(RecipeError, match="no method"):
        Asked(run=run, method="forget")
