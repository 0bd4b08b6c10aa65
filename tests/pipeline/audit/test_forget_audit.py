"""`foresift forget audit`: a model that saw, one that did not, and what is said of either."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from foresift.pipeline import cli_forget
from foresift.pipeline.audit.attacks import relearn
from foresift.pipeline.audit.verdict import FAIL, OPEN, PASS, UNPROVED
from foresift.pipeline.errors import DataError, ForesiftError
from foresift.pipeline.lm.model import load_tokenizer
from foresift.stages.forget import _audit_measures as measures
from foresift.stages.forget import audit as tested
from foresift.stages.forget import folder
from foresift.stages.forget._audit_battery import ATTACKS, OWN, Battery, Effort, chosen
from foresift.stages.forget._audit_measures import Limits, Values

WORDS = [
    "amber",
    "basil",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "inlet",
    "jetty",
    "kelp",
    "larch",
    "maple",
]


def sentence(draw: random.Random, name: str) -> str:
    return f"{name} " + " ".join(draw.choice(WORDS) for _ in range(5))


def rows(kind: str, count: int) -> list[dict[str, object]]:
    draw = random.Random(kind)
    name = "Zorn went by" if kind == "forget" else "Then we saw"
    return [
        {"id": f"{i + 1000 * len(kind):032x}", "text": sentence(draw, name)} for i in range(count)
    ]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A small plan, by hand: texts, one question, a key path, an address to be masked."""
    path = tmp_path / "plan"
    path.mkdir()
    forget = rows("forget", 24)
    forget[0]["text"] = "<b>Zorn</b> went by zorn@example.org amber"
    forget[1] = {
        "id": forget[1]["id"],
        "question": "Who went by?",
        "answer": "Zorn the grey",
        "perturbed_answer": ["Anna the red", "Otto the old", "Emil the wise"],
    }
    folder.write_rows(path / "forget.jsonl", forget)
    for name in ("retain", "holdout", "relearn_hi"):
        folder.write_rows(path / f"{name}.jsonl", rows(name, 22))
    for name in ("relearn_mid", "relearn_lo"):
        folder.write_rows(path / f"{name}.jsonl", [])
    probes = [{"id": "0", "query": "Then ___ went by", "answer": "Zorn", "level": "1"}]
    folder.write_rows(path / "probes.jsonl", probes)
    lineage = pa.Table.from_pylist(
        [{"doc_id": bytes.fromhex(str(r["id"])), "key_path": ["zoo", "zorn"]} for r in forget],
        schema=pa.schema([("doc_id", pa.binary(16)), ("key_path", pa.list_(pa.string()))]),
    )
    pq.write_table(lineage, path / "lineage.parquet")
    (path / "keywords.json").write_text(json.dumps(["Zorn"]))
    (path / "plan.json").write_text("{}")
    return path


@pytest.fixture
def models(tmp_path: Path, plan: Path, build) -> tuple[str, str]:
    """One trained with the forgotten rows, one without."""
    tokenizer = load_tokenizer("bytes")
    read = folder.DeletionPlan.open(plan).texts
    found = []
    for name, texts in (("saw", read("forget") + read("retain")), ("clean", read("retain"))):
        model = relearn(build("llama", initializer_range=0.02), tokenizer, texts, steps=60, lr=1e-2)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        found.append(str(tmp_path / name))
    return found[0], found[1]


def asked(plan: Path, model: str, retrained: str = "", attacks: str = "none", **more):
    limits = Limits(items=24, decoded=4, walked=2, max_length=96)
    return tested.Asked(
        model=model, plan=plan, retrained=retrained, attacks=attacks.split(","), limits=limits,
        effort=Effort(steps=2, lr=1e-3), device="cpu", **more,
    )  # fmt: skip


def outcomes(facts, attack: str = "none") -> dict[tuple[str, str], str]:
    return {
        (f["set"], f["measure"]): f["outcome"] for f in facts["findings"] if f["attack"] == attack
    }


def test_a_model_that_saw_is_found_out_under_every_attack(plan: Path, models) -> None:
    heard: list[tuple[int, int, str]] = []
    facts = tested.audit(asked(plan, *models, attacks="all"), lambda *told: heard.append(told))
    assert facts["verdict"] == FAIL
    assert set(facts["skipped"]) == {"relearn_mid", "relearn_lo"}
    assert set(facts["attacks"]) == {"none", *ATTACKS} - set(facts["skipped"])
    plain = outcomes(facts)
    assert plain["forget", "loss"] == FAIL
    assert plain["forget against holdout", "auc_loss"] == FAIL
    for name in ("cued_recall", "remind_steepness", "truth_ratio", "exposure", "recognition"):
        assert ("forget", name) in plain
    assert plain["probes", "probe_recall"] == OPEN
    assert outcomes(facts, "int8")["forget", "loss"] == FAIL
    assert outcomes(facts, OWN)["forget", "loss"] == FAIL
    (own,) = (f for f in facts["findings"] if (f["attack"], f["measure"]) == (OWN, "loss"))
    assert outcomes(facts, OWN)["forget", "known_better"] == FAIL
    assert own["n"] == 24  # every row, each after the other half
    assert outcomes(facts, "rna").keys() == {("retain", "loss"), ("retain", "exact_memorisation")}
    assert outcomes(facts, "refusal") == {("forget", "refusal"): OPEN}
    assert facts["summary"]["PrivLeak"] < 0
    assert 0 <= facts["summary"]["F.D."] <= 1
    assert {label for *_, label in heard} >= {"audited: attacks", "retrained: attacks"}
    assert json.loads((plan / "verdict.json").read_text()) == json.loads(json.dumps(facts))


def test_a_model_against_itself_passes_where_there_are_items(plan: Path, models) -> None:
    facts = tested.audit(asked(plan, models[1], models[1]))
    found = outcomes(facts)
    assert found["forget", "loss"] == PASS
    assert FAIL not in found.values()
    assert facts["verdict"] == OPEN  # too few were decoded
    assert facts["summary"]["F.D."] == 1


def test_without_a_retrained_model_nothing_is_proved(plan: Path, models) -> None:
    facts = tested.audit(asked(plan, models[1], attacks="quantise,trigger,hierarchy"))
    assert facts["verdict"] == UNPROVED
    assert {f["outcome"] for f in facts["findings"]} == {UNPROVED}
    assert set(facts["attacks"]) == {"none", "int8", "int4", "trigger", "hierarchy"}


def test_the_page_masks_escapes_and_stands_alone(plan: Path, models, tmp_path: Path) -> None:
    tested.audit(asked(plan, *models, out=tmp_path / "told"))
    html = (tmp_path / "told" / "audit.html").read_text()
    assert "zorn@example.org" not in html
    assert "<b>Zorn" not in html
    assert "&lt;b&gt;Zorn" in html
    assert "<script" not in html
    assert not re.findall(r"(?:src|href)=.http", html)
    assert html.count('<circle class="mark chosen"') == html.count('<rect class="mark base1"')
    assert not (plan / "verdict.json").exists()


def test_the_command_prints_a_table(plan: Path, models) -> None:
    line = ["audit", models[0], "--plan", str(plan), "--retrained", models[1], "--items", "20"]
    line += ["--attacks", "quantise", "--device", "cpu", "--json"]
    done = CliRunner().invoke(cli_forget.app, line)
    assert done.exit_code == 1, done.output
    assert "verdict: fail" in done.output
    assert done.output.index(" fail\n") < done.output.index(" inconclusive\n")
    assert json.loads(done.stdout.strip().splitlines()[-1])["verdict"] == FAIL


class Heard:
    """Stands for models: what is learned is noted, and measured is whether a row was learned."""

    def __init__(self, monkeypatch) -> None:
        self.taught: list[set[str]] = []

        def learn(model, tokenizer, items, **_):
            self.taught.append(set(items))
            return set(items)

        def told(subject, sets, names):
            learned = [
                np.array([float(str(r["text"]) in subject.model) for r in sets[name]])
                for name in names
            ]
            return Values({("forget", "loss"): learned[0]}, {"loss": tuple(learned)})

        monkeypatch.setattr("foresift.pipeline.audit.attacks.relearn", learn)
        monkeypatch.setattr("foresift.stages.forget._audit_battery.basic", told)


def halved(forget: list, clusters: dict, holdout: list | None = None) -> Battery:
    sets = {name: [] for name in ("retain", "probes", *folder.RELEARN)}
    return Battery({**sets, "forget": forget, "holdout": holdout or []}, [], {}, Effort(), clusters)


def test_half_of_forget_is_relearned_and_the_other_half_measured(monkeypatch) -> None:
    forget, beside = rows("forget", 20), rows("holdout", 7)
    clusters = {str(row["id"]): number // 4 for number, row in enumerate(forget[:12])}
    heard, battery = Heard(monkeypatch), halved(forget, clusters, beside)
    subject = measures.Subject(None, None, Limits(), lambda *_: None, "audited")
    found = battery.run(OWN, subject)
    assert found.items["forget", "loss"].tolist() == [0.0] * 20  # nobody on what he learned
    assert len(found.scores["loss"][1]) == 7
    texts = [str(row["text"]) for row in forget]
    assert heard.taught[0] | heard.taught[1] == set(texts)
    assert not heard.taught[0] & heard.taught[1]
    assert {len(side) for side in battery.halves} == {10}
    for start in (0, 4, 8):  # near copies of a text stay together
        assert any(set(texts[start : start + 4]) <= side for side in heard.taught)
    turned = halved(forget[::-1], clusters)
    assert {forget[::-1][i]["id"] for i in turned.halves[0]} == {
        forget[i]["id"] for i in battery.halves[0]
    }


def test_one_text_and_its_copies_cannot_be_halved() -> None:
    forget = rows("forget", 5)
    alike = halved(forget, {str(row["id"]): 3 for row in forget})
    assert "no two texts" in alike.missing(OWN)
    assert not halved(forget, {}).missing(OWN)


def test_pooled_values_stand_at_their_places() -> None:
    parts = [Values({("forget", "loss"): np.array([1.0, 3.0])}), Values({})]
    found = measures.pooled(parts, [[0, 2], [1]]).items["forget", "loss"]
    np.testing.assert_equal(found, [1.0, np.nan, 3.0])


def test_only_a_pass_exits_with_0() -> None:
    codes = [tested.exit_code({"verdict": each}) for each in (PASS, FAIL, OPEN, UNPROVED)]
    assert codes == [0, 1, 3, 3]


def test_attacks_by_name_and_group() -> None:
    assert chosen(["quantise", "rna"]) == ("int8", "int4", "rna")
    assert chosen(["none"]) == ()
    assert chosen(["all"]) == ATTACKS
    with pytest.raises(DataError, match="did you mean 'quantise'"):
        chosen(["quantize"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "plan.json").unlink(), "no deletion plan"),
        (lambda p: (p / "forget.jsonl").write_text(""), "no row with a text"),
        (lambda p: (p / "forget.jsonl").write_text("{"), "cannot be read"),
    ],
)
def test_a_plan_that_cannot_be_audited(plan: Path, change, message: str) -> None:
    change(plan)
    done = CliRunner().invoke(
        cli_forget.app, ["audit", "configs/models/tiny", "--plan", str(plan), "--device", "cpu"]
    )
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "abacus"])
def test_a_device_that_is_not_there_is_one_line(plan: Path, monkeypatch, device: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = ["audit", "configs/models/tiny", "--plan", str(plan), "--device", device]
    done = CliRunner().invoke(cli_forget.app, line)
    assert done.exit_code == 2
    assert "ModelError" in done.output
    assert f"{device}: no such device" in " ".join(done.output.split())


def test_models_that_cut_texts_otherwise_are_refused(plan: Path, models) -> None:
    with pytest.raises(DataError, match="same tokens"):
        tested.audit(asked(plan, models[0], "configs/models/tiny"))


def test_what_stops_it_is_told_before_anything_is_measured(plan: Path, models) -> None:
    def never(*told: object) -> None:
        raise AssertionError("something was measured")

    for retrained in ("configs/models/tiny", "./nowhere"):
        with pytest.raises(ForesiftError):
            tested.audit(asked(plan, models[0], retrained), never)
    for margin in (float("inf"), float("nan"), 0.0):
        with pytest.raises(DataError, match="finite"):
            tested.audit(asked(plan, models[0], models[1], margin=margin), never)


def test_rows_that_no_training_read_do_not_dilute(plan: Path, models) -> None:
    table = pq.read_table(plan / "lineage.parquet")
    read = pa.array([[1] if i < 6 else [] for i in range(len(table))], pa.list_(pa.int32()))
    pq.write_table(table.append_column("exposures", read), plan / "lineage.parquet")
    facts = tested.audit(asked(plan, *models))
    assert (facts["sets"]["forget"], facts["unseen"]) == (6, 18)
    assert "left out: 18 forgotten rows that no training read" in tested.lines(facts)
    assert "left out: 18 forgotten rows" in (plan / "audit.html").read_text()


def test_sets_that_lack_rows_are_told(plan: Path, models) -> None:
    (plan / "holdout.jsonl").write_text("")
    (plan / "probes.jsonl").unlink()
    facts = tested.audit(asked(plan, models[0]))
    assert facts["skipped"]["membership"] == "holdout.jsonl is empty"
    assert "recall of probes" in facts["skipped"]
    assert not any(f["measure"].startswith("auc") for f in facts["findings"])


def test_a_text_without_a_token_to_predict_is_left_out(plan: Path, models) -> None:
    """Without a start token a text of one token predicts nothing: no score, and no crash."""
    line = json.loads((plan / "forget.jsonl").read_text().splitlines()[2])
    extra = {"id": "f" * 32, "question": "Who?", "answer": ""}
    folder.write_rows(plan / "forget.jsonl", [*rows("forget", 22), extra, line])
    facts = tested.audit(asked(plan, *models))
    (found,) = (f for f in facts["findings"] if f["measure"] == "recognition")
    assert found["n"] == 21
    assert facts["summary"]["PrivLeak"] < 0


def test_forget_quality_tests_ratios_as_they_are(plan: Path, models, monkeypatch) -> None:
    """R = 1/2 and R = 2 are not alike, though min(R, 1/R) is."""
    questions = [
        {"id": f"{i:032x}", "question": f"Who {i}?", "answer": "Zorn", "perturbed_answer": ["Otto"]}
        for i in range(24)
    ]
    folder.write_rows(plan / "forget.jsonl", questions)
    ratio = iter([0.5] * 24 + [2.0] * 24)
    monkeypatch.setattr(
        "foresift.stages.forget._audit_measures.truth_ratio.truth_ratio", lambda *_: next(ratio)
    )
    facts = tested.audit(asked(plan, *models))
    assert facts["summary"]["forget_quality"]["statistic"] == 1
    assert outcomes(facts)["forget", "truth_ratio"] != FAIL


def test_attacks_behind_a_blank_are_asked_whole_and_documents_count_once() -> None:
    plain = {"id": "1", "query": "Then ___ went", "answer": "Zorn", "type": "cloze"}
    choice = {**plain, "query": "Then ___ went Choose one: (A) Zorn", "type": "multiple_choice"}
    assert measures._asked(plain) == "Then"
    assert measures._asked(choice) == choice["query"] + "\n"
    assert measures._asked({**plain, "query": "___ went"}) == ""


def test_the_page_says_no_more_than_was_shown(plan: Path, models) -> None:
    tested.audit(asked(plan, *models))
    html = (plan / "audit.html").read_text()
    assert "Not like the retrained model" in html
    assert "against the retrained model" in html
    told = re.findall(r'<td class="[a-z]*">([a-z ]+)</td>', html)
    assert told == sorted(told, key=[FAIL, OPEN, PASS].index)
    assert f"Findings: {told.count(FAIL)} fail, " in html
    heads = re.findall(r"<th[^>]*>([^<]+)</th>", html)
    assert heads.index("outcome") == 3  # in sight before what scrolls
    tested.audit(asked(plan, models[0]))
    assert "by its loss alone" in (plan / "audit.html").read_text()
