"""The data set card: front matter for the Hub, and sentences with a figure each."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard

from foresift.pipeline.run import Run
from foresift.stages.report import card, page
from foresift.stages.report.contents import Contents
from foresift.stages.report.data_files import DataFiles, data_files
from tests.runs import go

LONG = "It was a bright cold day in April, and the clocks were striking thirteen. " * 3
EVIL = "a|b`c</td><script>alert(1)</script> [x](javascript:alert(2)) *bold* bob@company.org"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(data: Path, *steps: dict[str, Any], **reader: Any) -> dict[str, Any]:
    read = {"read": "jsonl", "paths": [str(data)], "holdout": 0.0, **reader}
    return {"name": "report-small set", "data": read, "steps": list(steps), "report": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Documents of which one comes twice, and one has a mail address and a nasty source."""
    out = tmp_path_factory.mktemp("card")
    rows = [{"text": f"{LONG} {n} {'x' * n}", "at": f"book/{n}"} for n in range(29)]
    rows += [{"text": rows[0]["text"], "at": "copy/0"}]
    rows += [{"text": "Write to carol.jones@company.org. " + LONG, "at": EVIL}]
    data = write(out / "data.jsonl", rows)
    steps = [{"score": ["language", "pii", "junk"]}, {"dedup": "minhash", "ngram": 500}]
    done = go(recipe(data, *steps, source="at"), out / "out")
    page.write(done)
    return done


def parts(path: Path) -> tuple[dict[str, Any], str]:
    _, front, body = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_front_matter_is_what_the_hub_reads(run: Run) -> None:
    path = card.write(run)
    front, _ = parts(path)
    loaded = DatasetCard.load(path)
    assert loaded.data.to_dict() == front
    assert front == {
        "pretty_name": "small set",
        "license": "unknown",
        "language": ["en"],
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "tags": ["foresift", "plain-text"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": ["data.jsonl"]}],
            }
        ],
    }
    given, _ = parts(card.write(run, "Apache-2.0"))
    assert given == front | {"license": "apache-2.0"}


def test_figures_are_those_of_the_run(run: Run) -> None:
    _, body = parts(card.write(run))
    accounts = run.manifest["accounts"]
    guess = f"about {accounts['n_tokens']:,} tokens, estimated as a quarter of the bytes"
    assert f"31 documents ({guess}): 31 plain text." in body
    assert "quantiles are of all documents" in body
    assert "| book | 29 |" in body
    assert "`dedup minhash` found 1 clusters of copies; all but one" in body
    assert re.search(r"\| email \| 1 \|", body)
    assert "names and postal addresses were not looked for" in body.lower()
    file = Path(run.path.parents[2] / "data.jsonl")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in body
    assert f"| data.jsonl | {file.stat().st_size:,} |" in body
    assert run.manifest["fingerprint"] in body


def test_the_tables_add_up_to_the_documents(tmp_path: Path) -> None:
    rows = [{"text": f"a document {n}", "source": f"s{n % 25}/x"} for n in range(70)]
    fields = recipe(write(tmp_path / "a.jsonl", rows), {"score": "length"})
    fields["data"]["source"] = "source"
    done = go(fields, tmp_path / "out")
    page.write(done)
    _, body = parts(card.write(done))
    table = body.split("| source (25 in all) | documents |\n|---|---:|\n")[1].split("\n\n")[0]
    counts = [int(line.split("|")[2]) for line in table.splitlines()]
    assert len(counts) == 11
    assert sum(counts) == 70
    assert table.splitlines()[-1] == "| (all others) | 40 |"


def test_nothing_of_the_data_is_markup_or_personal(run: Run) -> None:
    text = card.write(run).read_text(encoding="utf-8")
    assert "company.org" not in text
    assert "<script>" not in text.replace(r"\<script\>", "")
    assert "](" not in text.replace(r"\](", "")


def test_what_was_not_measured_is_said_to_be_unknown(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [{"text": f"a document {n}"} for n in range(3)])
    done = go(recipe(data, {"score": "length"}), tmp_path / "out")
    page.write(done)
    front, body = parts(card.write(done))
    assert "language" not in front
    for said in ("Languages were not measured", "No detector of faults", "Copies were not looked",
                 "Personal data was not looked for"):  # fmt: skip
        assert said in body


def test_an_export_is_described_by_what_it_holds(tmp_path: Path) -> None:
    rows = [{"text": f"{LONG} {n}"} for n in range(20)]
    data = write(tmp_path / "a.jsonl", rows)
    select = {"select": "random", "budget": "5 rows"}
    fields = recipe(data, {"score": ["length", "junk"]}, select, {"export": "jsonl"})
    done = go(fields, tmp_path / "out")
    page.write(done)
    kept = done.manifest["accounts"]["kept"]
    front, body = parts(card.write(done))
    assert f"{kept} documents (" in body
    assert "chosen out of 20" in body
    paths = front["configs"][0]["data_files"][0]["path"]
    assert paths == [f.name for f in data_files(Contents.open(done.path)).files]
    assert all(name.endswith(".jsonl.gz") for name in paths)


def test_files_that_changed_are_not_listed(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [{"text": f"a document {n}"} for n in range(3)])
    done = go(recipe(data, {"score": "length"}), tmp_path / "out")
    write(data, [{"text": "another"}])
    found = data_files(Contents.open(done.path))
    assert found.files == []
    assert "changed" in found.trouble
    page.write(done)
    front, body = parts(card.write(done))
    assert "configs" not in front
    assert "have changed since they were read" in body
    data.unlink()
    assert "cannot be had" in data_files(Contents.open(done.path)).trouble


def test_digests_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "a.jsonl", [{"text": f"a document {n}"} for n in range(3)])
    done = go(recipe(data, {"score": "length"}), tmp_path / "out")
    first = data_files(Contents.open(done.path))
    monkeypatch.setattr("foresift.stages.report.data_files._sha256", lambda path: "wrong")
    assert data_files(Contents.open(done.path)) == first


@pytest.mark.parametrize(
    ("documents", "size"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**13, "n>1T")],
)
def test_sizes_are_the_hub_s(documents: int, size: str) -> None:
    told = {
        "run": {"name": "x", "accounts": {"rows": documents, "n_tokens": 0}},
        "overview": {"kinds": [], "labels": []},
    }
    front = card.front_matter(told, DataFiles("read", [], [], "row"))
    assert front["size_categories"] == [size]


def test_plain_text_is_no_markup() -> None:
    assert card.plain("a|b\n<i>*c*`") == r"a\|b \<i\>\*c\*" + r"\`"
