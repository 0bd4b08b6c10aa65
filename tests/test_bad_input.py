"""What bad input gets: one test for every row of the table, through `foresift run`.

A mistake of the user's costs exit code 2 and one line on stderr that names the place; bad rows are
set aside with file, line and reason; odd documents and odd scores are handled and counted. Beside
this file: models that do not load (`test_bad_models.py`), full disks (`test_full_disk.py`), what a
change recomputes (`test_changes.py`), killed workers and drivers (`pipeline/test_kill.py`).
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from foresift.pipeline.cli import app
from foresift.pipeline.run import Run
from tests.inputs import (
    LENGTH,
    TOPK,
    WORDS,
    nothing_done,
    process,
    recipe,
    refused,
    rejects,
    run,
    texts,
    write,
)
from tests.runs import go

# -- unknown verb, part or field; a column that no earlier step gives --------------------------


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([LENGTH, {"selekt": "topk"}], r"steps[1]: .*did you mean 'select'?"),
        ([{"score": "lenght"}], "steps[0]: no score part 'lenght'; did you mean 'length'?"),
        ([{"score": "length", "tokeniser": "bytes"}], "steps[0] (score length): no field "
         "'tokeniser'; did you mean 'tokenizer'?"),
        ([LENGTH, TOPK | {"by": "length.char"}], "steps[1] (select topk): no earlier step gives "
         "the column 'length.char'; did you mean 'length.chars'?"),
    ],
    ids=["verb", "part", "field", "column"],
)  # fmt: skip
def test_an_unknown_word_is_refused_before_any_work(
    tmp_path: Path, steps: Any, message: str
) -> None:
    said = refused(tmp_path, recipe(write(tmp_path / "a.jsonl", texts()), steps=steps))
    head, _, tail = message.partition(".*")
    assert said.startswith(f"RecipeError {head}")
    assert tail in said
    assert len(said.splitlines()) == 1
    assert nothing_done(tmp_path)


def test_a_user_sees_one_line_and_exit_code_2(tmp_path: Path) -> None:
    wrong = recipe(write(tmp_path / "a.jsonl", texts()), steps=[LENGTH, {"selekt": "topk"}])
    result = process(tmp_path, wrong)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("RecipeError steps[1]: ")


# -- missing file, empty corpus, model that does not load --------------------------------------


def test_a_missing_file_is_refused_before_any_work(tmp_path: Path) -> None:
    said = refused(tmp_path, recipe(tmp_path / "none-*.jsonl"))
    assert said == f"DataError {tmp_path}/none-*.jsonl: matches no file"
    assert nothing_done(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n\n \n"], ids=["empty", "blank"])
def test_an_empty_jsonl_corpus_is_one_located_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert refused(tmp_path, recipe(path)).endswith(f"DataError {path}: holds no document")
    assert not list((tmp_path / "out").rglob("stage.json"))


def test_an_empty_parquet_corpus_is_one_located_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    said = refused(tmp_path, recipe(path, data={"read": "parquet"}))
    assert said.endswith(f"DataError {path}: holds no document")


def test_a_corpus_that_is_all_holdout_is_one_located_error_or_an_empty_choice(
    tmp_path: Path,
) -> None:
    fields = recipe(write(tmp_path / "a.jsonl", texts()), data={"holdout": 0.999999999})
    done = go(fields, tmp_path / "out")
    assert done.manifest["accounts"]["kept"] == 0
    assert done.manifest["accounts"]["dropped_by_reason"] == {"holdout": 30}


# -- bad rows are set aside, and refused when there are too many -------------------------------

BAD_LINES = {
    "malformed": (b'{"text": "cut', "malformed JSON"),
    "not utf-8": (b'{"text": "caf\xe9"}', "not UTF-8"),
    "null": (b'{"text": null}', "text is null"),
    "empty": (b'{"text": ""}', "text is empty"),
    "blank": (b'{"text": " \\n\\t"}', "text is empty"),
    "no field": (b'{"txt": "word"}', "no field 'text'; did you mean 'txt'?"),
    "number": (b'{"text": 7}', "text is a number, not a string"),
    "list": (b'{"text": ["word"]}', "text is a list, not a string"),
    "not an object": (b'["word"]', "not an object but a list"),
    "half a surrogate": (b'{"text": "\\ud800"}', "surrogate"),
}


def test_bad_lines_go_to_rejects_with_file_line_and_reason(tmp_path: Path) -> None:
    rows: list[Any] = [*texts(300)]
    places = {}
    for number, (name, (line, _)) in enumerate(BAD_LINES.items()):
        rows.insert(20 * number, line)
        places[name] = 20 * number + 1
    path = write(tmp_path / "a.jsonl", rows)
    done = go(recipe(path, data={"max_rejects": 0.05}), tmp_path / "out")
    found = {r["line"]: r for r in rejects(done)}
    for name, (_, reason) in BAD_LINES.items():
        assert found[places[name]]["file"] == "a.jsonl"
        assert reason in found[places[name]]["reason"], name
    assert len(found) == len(BAD_LINES)
    accounts = done.manifest["accounts"]
    assert accounts["rows_in"] == 310
    assert accounts["rejected"] == 10
    assert accounts["kept"] + accounts["dropped"] == 300
    assert "10 rejected" in _shown(done)


def _shown(done: Run) -> str:
    result = CliRunner().invoke(app, ["show", str(done.path)])
    assert result.exit_code == 0
    return result.stdout


def test_bad_parquet_rows_go_to_rejects_with_file_row_and_reason(tmp_path: Path) -> None:
    values = [t.encode() for t in texts(300)]
    values[3], values[7], values[11] = b"\xff\xfe", None, b"  "  # type: ignore[call-overload]
    column = pa.array(values, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    fields = recipe(tmp_path / "a.parquet", data={"read": "parquet", "max_rejects": 0.01})
    done = go(fields, tmp_path / "out")
    assert [(r["file"], r["line"], r["reason"]) for r in rejects(done)] == [
        ("a.parquet", 4, "text is not UTF-8"),
        ("a.parquet", 8, "text is null"),
        ("a.parquet", 12, "text is empty"),
    ]
    assert done.manifest["accounts"]["kept"] + done.manifest["accounts"]["dropped"] == 297


def test_a_parquet_column_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2, 3]}), tmp_path / "a.parquet")
    said = refused(tmp_path, recipe(tmp_path / "a.parquet", data={"read": "parquet"}))
    assert said.endswith(f"{tmp_path}/a.parquet: column 'text' holds int64, not strings")


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_damaged_file_is_one_located_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"this is neither parquet nor compressed")
    reader = "parquet" if name.endswith("parquet") else "jsonl"
    said = refused(tmp_path, recipe(path, data={"read": reader}))
    assert str(path) in said
    assert not list((tmp_path / "out").rglob("stage.json"))


def test_a_run_fails_above_max_rejects(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*texts(96), *[b"{"] * 4])
    said = refused(tmp_path, recipe(path, data={"max_rejects": 0.039}))
    last = said.splitlines()[-1]
    assert last.startswith(f"DataError {path}: 4 of 100 rows (4.0%) were rejected")
    assert "the first: a.jsonl:97: malformed JSON" in last
    code, said = run(tmp_path, recipe(path, data={"max_rejects": 0.04}))
    assert code == 0, said
    assert said.count("Error") == 0


# -- odd documents and odd scores --------------------------------------------------------------


def test_a_document_of_50_mb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    huge = " ".join(rng.choice(WORDS, 7_000_000))
    assert len(huge) > 50_000_000
    steps = [
        {"dedup": "exact"},
        {"dedup": "minhash"},
        LENGTH,
        {"select": "topk", "by": "length.bytes", "budget": "10 rows"},
        {"order": "shuffle"},
        {"export": "jsonl"},
    ]
    path = write(tmp_path / "a.jsonl", [*texts(20), huge, *texts(20, seed=1)])
    done = go(recipe(path, steps=steps), tmp_path / "out")
    table = pq.read_table(done.plan)
    largest = table.sort_by([("n_tokens", "descending")]).slice(0, 1).to_pylist()[0]
    assert largest["kept"]
    assert largest["rank"] == 0
    assert largest["n_tokens"] == -(-len(huge) // 4)
    out = Path(done.manifest["steps"][-1]["path"])
    lines = b"".join(gzip.decompress(f.read_bytes()) for f in out.glob("*.jsonl.gz")).splitlines()
    exported = [json.loads(line)["text"] for line in lines]
    assert huge in exported
    assert len(exported) == 10


def test_a_model_scores_a_document_of_50_mb_by_its_head(tmp_path: Path) -> None:
    huge = "word " * 10_000_000
    path = write(tmp_path / "a.jsonl", [*texts(5), huge])
    fields = recipe(
        path,
        steps=[{"score": "loss"}, {"select": "topk", "by": "loss.nll", "budget": "2 rows"}],
        model={"init": "configs/models/tiny", "max_length": 128, "device": "cpu"},
    )
    done = go(fields, tmp_path / "out")
    assert done.manifest["steps"][1]["facts"]["nan"]["nll"] == 0
    assert done.manifest["accounts"]["kept"] == 2


@pytest.fixture
def few_letters(tmp_path: Path) -> Path:
    """A tokenizer that knows the letters of `word` alone: other text has no token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: n for n, letter in enumerate("word")}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(path)
    return path


def test_a_document_of_0_tokens_is_counted_and_never_selected(
    tmp_path: Path, few_letters: Path
) -> None:
    rows = ["word " * n for n in range(1, 11)]
    rows[4] = "\u65e5\u672c"
    fields = recipe(
        write(tmp_path / "a.jsonl", rows),
        data={"tokenizer": str(few_letters)},
        steps=[
            {"score": "loss"},
            {"select": "topk", "by": "loss.utility", "budget": "100%"},
            {"order": "shuffle"},
            {"export": "jsonl"},
        ],
        model={
            "init": "configs/models/tiny", "tokenizer": str(few_letters), "device": "cpu"
        },
    )  # fmt: skip
    done = go(fields, tmp_path / "out")
    row = pq.read_table(done.plan).to_pylist()[4]
    assert row["n_tokens"] == 0
    assert not row["kept"]
    assert row["reason"] == "no score"
    assert done.manifest["steps"][1]["facts"]["nan"]["nll"] == 1
    assert done.manifest["accounts"]["kept"] == 9


def test_all_identical_documents_and_scores(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["the same words"] * 40)
    done = go(recipe(path), tmp_path / "out")
    assert done.manifest["accounts"]["kept"] == 20
    steps = [{"dedup": "exact"}, LENGTH, TOPK | {"budget": "100%"}]
    done = go(recipe(path, steps=steps), tmp_path / "out")
    assert done.manifest["accounts"]["kept"] == 1
    steps = [{"dedup": "minhash"}, LENGTH, TOPK | {"budget": "100%"}]
    done = go(recipe(path, steps=steps), tmp_path / "out")
    assert done.manifest["accounts"]["kept"] == 1


@pytest.mark.parametrize(
    "chooser",
    [
        {"select": "topk", "by": "wrong.some"},
        {"select": "topk", "by": "wrong.some", "lowest": True},
        {"select": "gumbel_topk", "by": "wrong.some", "temperature": 1.0},
    ],
    ids=["highest", "lowest", "gumbel"],
)
def test_a_nan_score_is_counted_and_never_selected(tmp_path: Path, chooser: Any) -> None:
    path = write(tmp_path / "a.jsonl", texts(60))
    steps = [{"score": "tests.parts:Wrong", "as": "wrong"}, chooser | {"budget": "100%"}]
    done = go(recipe(path, steps=steps), tmp_path / "out")
    even = [len(t) % 2 == 0 for t in texts(60)]
    kept = pq.read_table(done.plan)["kept"].to_pylist()
    assert kept == [not e for e in even]
    score, choice = (s["facts"] for s in done.manifest["steps"][1:])
    assert score["nan"] == {"nan": 60, "same": 0, "some": sum(even)}
    assert choice["reasons"]["no score"] == sum(even)


def test_no_score_at_all_selects_nothing_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(20))
    steps = [
        {"score": "tests.parts:Wrong", "as": "wrong"},
        {"select": "topk", "by": "wrong.nan", "budget": "50%"},
        {"order": "shuffle"},
    ]
    done = go(recipe(path, steps=steps), tmp_path / "out")
    assert done.manifest["accounts"]["kept"] == 0
    assert done.manifest["steps"][2]["facts"]["short"] is True
    assert "cannot be filled" in (done.path / "log.txt").read_text()
    said = refused(tmp_path, recipe(path, steps=[*steps, {"export": "jsonl"}]))
    assert said.splitlines()[-1] == (
        "DataError steps[3]: nothing was chosen, so there is nothing to export"
    )


# -- a budget larger than what is left ---------------------------------------------------------


def test_a_budget_larger_than_what_is_left_takes_all_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(30))
    fields = recipe(path, steps=[LENGTH, TOPK | {"budget": "1B tokens"}])
    code, said = run(tmp_path, fields)
    assert code == 0
    assert "cannot be filled" in said
    done = Run.open(tmp_path / "out")
    assert done.manifest["accounts"]["kept"] == 30
    assert done.manifest["steps"][2]["facts"]["short"] is True
