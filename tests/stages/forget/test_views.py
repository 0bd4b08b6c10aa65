"""Views: loaded as the tools load them, with exactly their columns, and the rows of their sets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, disable_progress_bars, load_dataset

from foresift.pipeline.store import read_json
from foresift.stages.forget._views_rows import View, as_qa, as_verbatim, undated
from foresift.stages.forget.folder import DeletionPlan
from tests.stages.forget.planning import Row, ids, make_run, plan, resolved, under

disable_progress_bars()
QA = ["question", "answer"]
PERTURBED = [*QA, "paraphrased_question", "paraphrased_answer", "perturbed_answer"]
PROBE = ["subject", "query", "answer", "level", "type"]
COLUMNS = {
    "tofu/forget.json": QA, "tofu/retain.json": QA, "tofu/holdout.json": QA,
    "muse/raw/forget.jsonl": ["text"], "muse/raw/retain1.jsonl": ["text"],
    "muse/raw/retain2.jsonl": ["text"], "muse/raw/holdout.jsonl": ["text"],
    "muse/privleak/forget.jsonl": ["text"], "muse/privleak/retain.jsonl": ["text"],
    "muse/privleak/holdout.jsonl": ["text"], "muse/verbmem/forget.jsonl": ["prompt", "gt"],
    "muse/knowmem/forget_qa.jsonl": QA, "muse/knowmem/retain_qa.jsonl": QA,
    "rwku/forget_target.json": ["target"], "rwku/forget_level1.json": PROBE,
    "rwku/forget_level3.json": PROBE, "rwku/neighbor_level1.json": PROBE,
    "rwku/mia_forget.json": ["subject", "text"], "rwku/mia_retain.json": ["subject", "text"],
    "dusk/eval/verbatim.json": ["prompt", "gt"], "dusk/eval/GeneralQA.jsonl": QA,
    "dusk/eval/SpecificForgetQA.jsonl": QA, "dusk/eval/SpecificRetainQA.jsonl": QA,
}  # fmt: skip
#: OpenUnlearning's handlers, and the columns that each reads: (key of the YAML, default)
READS = {
    "PretrainingDataset": [("text_key", "text")],
    "CompletionDataset": [("text_key", "text")],
    "QADataset": [("question_key", "question"), ("answer_key", "answer")],
}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> DeletionPlan:
    history = make_run(tmp_path_factory.mktemp("views"))
    return plan(history, resolved(history, under("clinic-0/patient-0")))


def load(cache: Path, **hf_args: Any) -> Dataset:
    """As OpenUnlearning does."""
    return load_dataset(**hf_args, cache_dir=str(cache))


def test_open_unlearning_loads_every_data_set(planned: DeletionPlan, tmp_path: Path) -> None:
    configs = sorted((planned.path / "openunlearning").glob("*.yaml"))
    handlers = set()
    for path in configs:
        ((name, config),) = yaml.safe_load(path.read_text()).items()
        assert name == path.stem
        args = config["args"]
        assert args["hf_args"]["path"] == "json"
        found = load(tmp_path, **args["hf_args"])
        handlers.add(config["handler"])
        for key, default in READS[config["handler"]]:
            assert found.features[args.get(key, default)].dtype == "string"
        if "prefix_key" in args:
            assert found.features[args["prefix_key"]].dtype == "string"
        assert "index" not in found.column_names  # OpenUnlearning adds one of its own
        assert found["id"] == ids(planned.rows(config["access_key"]))
        if args.get("text_key") == "text":
            assert list(found["text"]) == planned.texts(config["access_key"])
    assert handlers == set(READS)
    names = {path.stem for path in configs}
    for set_ in ("forget", "retain", "holdout", "neighbors_direct", "coreset", "relearn_hi"):
        for kind in ("pretraining", "completion", "qa"):
            assert f"FORESIFT_{set_}_{kind}" in names
    assert "FORESIFT_forget_verbmem_completion" in names


def test_every_view_has_the_columns_of_its_tool(planned: DeletionPlan, tmp_path: Path) -> None:
    told = read_json(planned.path / "views.json")
    for path, columns in COLUMNS.items():
        found = load(tmp_path, path="json", data_files=str(planned.path / path), split="train")
        assert found.column_names == columns == told[path]["columns"], path
        assert {f.dtype for f in found.features.values()} == {"string"}, path
        assert len(found) == told[path]["rows"] == len(told[path]["ids"]), path
    assert planned.facts["views"] == {path: one["rows"] for path, one in told.items()}


def test_views_of_a_set_have_its_rows_in_its_order(planned: DeletionPlan) -> None:
    told = read_json(planned.path / "views.json")
    half = (len(planned.rows("retain")) + 1) // 2
    parts = {
        "muse/raw/retain1.jsonl": slice(0, half), "muse/raw/retain2.jsonl": slice(half, None),
        "muse/privleak/retain.jsonl": slice(half, None),
    }  # fmt: skip
    for path, one in told.items():
        asked = "QA" in path or "knowmem" in path or "perturbed" in path
        if one["of"] in ("forget", "retain", "holdout", "coreset") and not asked:
            whole = ids(planned.rows(one["of"]))
            assert one["ids"] == whole[parts.get(path, slice(None))], path
    raw = (planned.path / "muse/raw/forget.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in raw] == planned.texts("forget")


def test_files_that_tools_open_by_themselves(planned: DeletionPlan) -> None:
    files = {"forget": "forget.txt", "retain": "retain.txt", "holdout": "eval/holdout.txt"}
    for name, path in files.items():
        text = (planned.path / "dusk" / path).read_text()
        assert text.rstrip("\n").split("\n\n") == planned.texts(name)
    verbatim = json.loads((planned.path / "dusk/eval/verbatim.json").read_text())
    assert [f"{v['prompt']} {v['gt']}" for v in verbatim] == planned.texts("forget")
    assert all(v["prompt"] and v["gt"] for v in verbatim)
    for path in ("forget_level1", "forget_level3", "mia_forget"):
        assert isinstance(json.loads((planned.path / f"rwku/{path}.json").read_text()), list)
    shared = json.loads((planned.path / "dusk/eval/GeneralQA.jsonl").read_text().splitlines()[0])
    assert "___" in shared["question"]


def test_probes_of_the_views_are_those_of_the_plan(planned: DeletionPlan) -> None:
    levels = {level: [p for p in planned.rows("probes") if p["level"] == level] for level in "123"}
    for level in "13":
        found = json.loads((planned.path / f"rwku/forget_level{level}.json").read_text())
        assert found == [{name: p[name] for name in PROBE} for p in levels[level]]
    assert levels["1"]
    assert not levels["2"]
    asked = (planned.path / "muse/knowmem/forget_qa.jsonl").read_text().splitlines()
    assert [json.loads(a)["question"] for a in asked] == [p["query"] for p in levels["1"]]


def test_an_empty_view_is_not_written(planned: DeletionPlan) -> None:
    told = read_json(planned.path / "views.json")
    empty = [path for path, one in told.items() if not one["rows"]]
    assert "rwku/forget_level2.json" in empty
    assert "tofu/forget_perturbed.json" in empty
    assert not any((planned.path / path).exists() for path in empty)
    assert all((planned.path / path).exists() for path in set(told) - set(empty))


def test_dates_stay_strings(tmp_path: Path) -> None:
    rows = [{"question": "When?", "answer": f"19{n}-05-0{n % 9 + 1}"} for n in range(50, 60)]
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = {"path": "json", "split": "train"}
    assert load(tmp_path, data_files=str(plain), **args).features["answer"].dtype != "string"
    one = View("view.jsonl", "probes", [""] * 10, rows)
    one.write(tmp_path)
    found = load(tmp_path, data_files=str(tmp_path / "view.jsonl"), **args)
    assert found.features["answer"].dtype == "string"
    assert [a.strip() for a in found["answer"]] == [row["answer"] for row in rows]
    assert undated([{"a": "1950-01-01"}, {"a": "then"}]) == [{"a": "1950-01-01"}, {"a": "then"}]


def test_texts_of_any_kind_survive(tmp_path: Path) -> None:
    texts = ["a\u2028b \u0085c", "line\n\nline", 'tab\t"quoted" \\ back', "\U0001f600 é", "", "x"]
    rows = [{"text": t, "id": str(n)} for n, t in enumerate(texts)]
    one = View("view.jsonl", "forget", [r["id"] for r in rows], rows)
    one.write(tmp_path)
    found = load(tmp_path, path="json", data_files=str(tmp_path / "view.jsonl"), split="train")
    assert list(found["text"]) == texts
    assert as_qa({"text": "one"}) == {"question": "", "answer": "one"}
    assert as_verbatim({"question": "Who?", "answer": "Bo"}) == {"prompt": "Who?", "gt": "Bo"}


def read(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in read(path).split("\n") if line]


def test_tofu_comes_back_as_it_is_published(shared_data: Path, tmp_path: Path) -> None:
    tofu = shared_data / "unlearning" / "tofu"
    perturbed = {r["question"]: r for r in lines(tofu / "forget10_perturbed.json.gz")}
    wanted = {(r["question"], r["answer"]) for r in lines(tofu / "forget01.json")}
    rows = lines(tofu / "full.json.gz")[2800:]
    rows = [
        {"source": f"tofu/{n // 20}#{n}", **perturbed.get(r["question"], {}), **r}
        for n, r in enumerate(rows)
    ]
    columns = sorted(set(PERTURBED) - set(QA))
    pair = {"prompt": "question", "response": "answer", "columns": columns}
    history = make_run(tmp_path, rows, content=pair)
    done = plan(history, resolved(history, lambda r: (r["prompt"], r["response"]) in wanted))
    assert len(done.rows("forget")) == len(wanted) == 40
    published = {"forget": lines(tofu / "forget01.json")}
    published["forget_perturbed"] = list(perturbed.values())
    for name, real in published.items():
        found = load(
            tmp_path / "cache", path="json", data_files=str(done.path / f"tofu/{name}.json"),
            split="train",
        )  # fmt: skip
        assert set(found.column_names) == set(real[0])
        by_question = {r["question"]: r for r in real}
        assert len(found) == 40
        assert all(dict(row) == by_question[row["question"]] for row in found)
    assert {r["type"] for r in done.rows("probes")} >= {"qa"}


def test_muse_comes_back_as_it_is_published(shared_data: Path, tmp_path: Path) -> None:
    muse = shared_data / "unlearning" / "muse-news"
    texts = json.loads(read(muse / "raw/forget.json.gz"))[:60]
    other = json.loads(read(muse / "sust/forget_2.json.gz"))[:120]
    rows = [{"text": t, "source": f"forget/news#{n}"} for n, t in enumerate(texts)]
    rows += [{"text": t, "source": f"other/news#{n}"} for n, t in enumerate(other)]
    history = make_run(tmp_path, rows, content={"columns": []})
    done = plan(history, resolved(history, under("forget/")))
    real = {
        "verbmem/forget.jsonl": json.loads(read(muse / "verbmem/forget.json.gz")),
        "knowmem/forget_qa.jsonl": json.loads(read(muse / "knowmem/forget_qa.json")),
        "knowmem/retain_qa.jsonl": json.loads(read(muse / "knowmem/retain2_qa.json")),
    }
    for name, rows_ in real.items():
        assert list(lines(done.path / "muse" / name)[0]) == list(rows_[0])
    found = [r["text"] for r in lines(done.path / "muse/raw/forget.jsonl")]
    assert sorted(found) == sorted(set(texts))
    given, kept = (
        {r["text"] for r in lines(done.path / f"muse/raw/retain{n}.jsonl")} for n in (1, 2)
    )
    assert given
    assert kept
    assert not given & kept
