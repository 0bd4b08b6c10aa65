"""Croissant metadata: mlcroissant finds no error in it and reads the documents through it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.run import Run
from foresift.stages.report import croissant, page
from foresift.stages.report.data_files import DataFile, DataFiles
from tests.runs import go

# those of rdflib, by which mlcroissant reads JSON-LD, and of pandas, by which it reads files
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:rdflib.*"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
]

TEXTS = [f"The document number {n}, which says so." for n in range(5)]


def report(data: Path, out: Path, *steps: dict[str, Any], **reader: Any) -> Run:
    read = {"paths": [str(data)], "holdout": 0.0, **reader}
    fields = {"name": "report-some data", "data": read, "report": False}
    done = go(fields | {"steps": list(steps) or [{"score": ["length", "pii"]}]}, out)
    page.write(done)
    return done


def lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def validated(path: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """What mlcroissant makes of the metadata beside the files."""
    mlcroissant = pytest.importorskip("mlcroissant", reason="needs mlcroissant (extra dev)")
    shutil.copy(path, folder / "croissant.json")
    with caplog.at_level(logging.ERROR):
        found = mlcroissant.Dataset(jsonld=folder / "croissant.json")
    assert not found.metadata.ctx.issues.errors
    return found


def field(records: list[dict[str, Any]], name: str) -> list[str]:
    values = (record[f"documents/{name}"] for record in records)
    return sorted(v.decode() if isinstance(v, bytes) else str(v) for v in values)


def test_files_with_sizes_and_digests(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "data"
    lines(folder / "a.jsonl", [{"body": t, "at": "x"} for t in TEXTS[:3]])
    lines(folder / "more" / "b [1].jsonl", [{"body": t, "at": "y"} for t in TEXTS[3:]])
    done = report(folder, tmp_path / "out", read="jsonl", text="body", source="at")
    path = croissant.write(done, "https://creativecommons.org/publicdomain/zero/1.0/")
    found = validated(path, folder, caplog)
    assert found.metadata.name == "some-data"
    assert found.metadata.license == ["https://creativecommons.org/publicdomain/zero/1.0/"]
    files = {f.name: f for f in found.metadata.file_objects}
    assert set(files) == {"a.jsonl", "more/b [1].jsonl"}
    assert all(len(f.sha256) == 64 for f in files.values())
    assert files["a.jsonl"].content_size == f"{(folder / 'a.jsonl').stat().st_size} B"
    records = list(found.records("documents"))
    assert field(records, "body") == TEXTS
    assert field(records, "at") == list("xxxyy")


@pytest.mark.parametrize("kind", ["array", "parquet", "text", "pairs"])
def test_documents_can_be_read_by_it(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    reader, name, wanted = "jsonl", "text", TEXTS
    more: dict[str, Any] = {}
    if kind == "array":
        (folder / "a.json").write_text(json.dumps([{"text": t} for t in TEXTS]))
    elif kind == "parquet":
        reader, name, more = "parquet", "a-text", {"text": "a text"}
        pq.write_table(pa.table({"a text": TEXTS, "n": range(5)}), folder / "a.parquet")
    elif kind == "text":
        reader, name = "text", "content"
        for number, text in enumerate(TEXTS):
            (folder / f"{number}.txt").write_text(text)
    else:
        name, more = "answer", {"prompt": "question", "response": "answer"}
        lines(folder / "a.jsonl", [{"question": "Which?", "answer": t} for t in TEXTS])
    path = croissant.write(report(folder, tmp_path / "out", read=reader, **more))
    assert field(list(validated(path, folder, caplog).records("documents")), name) == wanted


def test_a_conversation_has_turns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"}]
    data = lines(tmp_path / "data" / "a.jsonl", [{"messages": turns}])
    path = croissant.write(report(data, tmp_path / "out", read="jsonl", messages="messages"))
    found = validated(path, data.parent, caplog)
    turn = found.metadata.record_sets[0].fields[0]
    assert turn.repeated
    assert [f.name for f in turn.sub_fields] == ["role", "content"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_export_is_what_is_described(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = lines(tmp_path / "a.jsonl", [{"text": t} for t in TEXTS])
    steps = [{"score": "length"}, {"select": "random", "budget": "3 rows"},
             {"export": form, "columns": ["length.words"]}]  # fmt: skip
    done = report(data, tmp_path / "out", *steps, read="jsonl")
    step = done.manifest["steps"][-1]
    found = validated(croissant.write(done), Path(step["path"]), caplog)
    records = list(found.records("documents"))
    assert len(records) == done.manifest["accounts"]["kept"]
    assert set(field(records, "text")) <= set(TEXTS)
    types = {f.name: f.data_types for f in found.metadata.record_sets[0].fields}
    assert {"id", "text", "source", "length.words"} <= set(types)
    assert found.metadata.data_preprocessing_protocol


def test_personal_data_is_told_by_type_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = lines(tmp_path / "data" / "a.jsonl", [{"text": "Ask carol.jones@company.org, please."}])
    path = croissant.write(report(data, tmp_path / "out", read="jsonl"))
    assert "company.org" not in path.read_text()
    said = validated(path, data.parent, caplog).metadata.personal_sensitive_information
    assert said[0] == "email: 1 documents"


def test_without_files_there_is_no_distribution(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = lines(tmp_path / "data" / "a.jsonl", [{"text": t} for t in TEXTS])
    done = report(data, tmp_path / "out", read="jsonl")
    data.unlink()
    path = croissant.write(done)
    told = json.loads(path.read_text())
    assert not {"distribution", "recordSet"} & set(told)
    assert "cannot be had" in told["description"]
    validated(path, data.parent, caplog)


def test_beyond_some_files_patterns_stand_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(croissant, "MOST", 2)
    names = ("a.jsonl.gz", "b/c.jsonl.gz", "b/d.jsonl")
    files = [DataFile(n, n, 1, "0" * 64, "application/jsonlines") for n in names]
    found = croissant._distribution(DataFiles("read", files, [], "row"))
    assert [f["name"] for f in found] == ["a.jsonl.gz", "b/c.jsonl.gz", "files"]
    assert found[-1]["includes"] == ["*.jsonl", "*.jsonl.gz"]


def test_ids_are_distinct_and_without_white_space() -> None:
    assert croissant._ids(["a b", "a-b", "c", "files"], {"files"}) == [
        "a-b", "a-b-2", "c", "files-2",
    ]  # fmt: skip
