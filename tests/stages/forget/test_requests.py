"""Files of requests, and the runs they are asked of: what is read, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from foresift.pipeline.errors import DataError, StoreError
from foresift.stages.forget.history import History
from foresift.stages.forget.request import Key, read_requests
from tests.stages.forget.finding import STORY, store

KEY = {"level": "key", "value": "clinic-3/patient-12"}


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "r.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_a_request_is_read_as_it_is_written(tmp_path: Path) -> None:
    told = {"id": "r-17", "keys": [KEY], "scope": "source", "legal_basis": "GDPR 17"}
    found = read_requests(lines(tmp_path, "", told, {"keys": [KEY]}))
    assert found[0].id == "r-17"
    assert found[0].keys == (Key("key", "clinic-3/patient-12"),)
    assert found[0].json() == told
    assert found[1].scope == "verbatim"


def test_a_name_that_is_not_given_follows_from_the_keys_alone(tmp_path: Path) -> None:
    one = read_requests(lines(tmp_path, {"keys": [KEY]}))[0].id
    again = read_requests(lines(tmp_path, {"keys": [KEY], "approver": "x"}))[0].id
    other = read_requests(lines(tmp_path, {"keys": [{**KEY, "value": "b"}]}))[0].id
    assert one == again != other


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"keys": [', "not JSON"),
        ("[1, 2]", "an object with `keys`"),
        ({"key": [KEY]}, "no 'key'; did you mean 'keys'"),
        ({"keys": []}, "at least one"),
        ({"keys": [{"level": "text"}]}, 'key 1: a key is {"level"'),
        ({"keys": [KEY, {"level": "licens", "value": "x"}]}, "key 2: no level 'licens'; did you"),
        ({"keys": [{"level": "text", "value": "  "}]}, "not empty"),
        ({"keys": [{"level": "document", "value": "12"}]}, "32 hex digits"),
        ({"keys": [KEY], "scope": "all"}, "no scope 'all'"),
        ({"keys": [KEY], "id": "../../etc"}, "up to 100 letters"),
        ('{"keys": [{"level": "text", "value": "\\ud800"}]}', "half a character"),
        ("[" * 100_000, "not JSON"),
        ({"keys": [KEY], "id": "originals"}, "a name that the store itself uses"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path: Path, row: Any, says: str) -> None:
    path = lines(tmp_path, {"keys": [KEY]}, row)
    with pytest.raises(DataError) as caught:
        read_requests(path)
    assert f"{path}:2" in str(caught.value)
    assert says in str(caught.value)


def test_a_byte_order_mark_line_ends_and_separators_in_a_value_are_read(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three"
    row = {"keys": [{"level": "text", "value": text}]}
    path = tmp_path / "r.jsonl"
    rows = (json.dumps(r, ensure_ascii=False) for r in (row, {"keys": [KEY]}))
    path.write_bytes(("\ufeff" + "\r\n\r\n".join(rows) + "\r\n").encode())
    assert [r.keys[0].value for r in read_requests(path)] == [text, KEY["value"]]


def test_a_file_without_requests_and_one_name_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no request in this file"):
        read_requests(lines(tmp_path, "", ""))
    with pytest.raises(DataError, match="no requests can be read"):
        read_requests(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match=r":2: request 'a' stands on line 1 already"):
        read_requests(lines(tmp_path, {"id": "a", "keys": [KEY]}, {"id": "a", "keys": [KEY]}))


def test_no_finished_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run here"):
        History.open(tmp_path)


def test_a_run_of_an_older_version_says_which_and_what_to_do(tmp_path: Path) -> None:
    history = store(tmp_path, [("a", STORY), ("b", "more")])
    path = history.run.path / "manifest.json"
    manifest = json.loads(path.read_text())
    for step in manifest["steps"]:
        del step["fingerprint"]
    manifest["versions"]["foresift"] = "0.1.0"
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"foresift 0\.1\.0.*'fingerprint'.*run the recipe again"):
        History.open(history.out)


def test_a_copied_store_is_asked_itself_while_the_first_one_is_there(tmp_path: Path) -> None:
    history = store(tmp_path, [("a", STORY), ("b", "more")])
    shutil.copytree(history.out, tmp_path / "copy")
    copied = History.open(tmp_path / "copy")
    assert {step.path.parent for step in copied.steps} == {tmp_path / "copy" / "steps"}


def test_a_run_whose_steps_are_gone_says_so(tmp_path: Path) -> None:
    history = store(tmp_path, [("a", STORY), ("b", "more")])
    (history.of("read")[0].path / "stage.json").unlink()
    with pytest.raises(StoreError, match=r"1 of its steps are no longer there.*read jsonl"):
        History.open(history.out)
