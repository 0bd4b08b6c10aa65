"""Copies by hand, passages against all pairs of runs, and nothing that depends on row order."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.tables import content_ids
from foresift.scorers import _copies_passages as passages
from foresift.scorers.copies import Copies
from tests.scorers.fitting import score


def table(texts: list[str | None]) -> pa.Table:
    rows = pa.table({"text": pa.array(texts, pa.string())})
    return rows.append_column("id", content_ids(rows))


def prose(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=6)) for _ in range(words))


def counted(texts: list[str | None], out: Path, **fields: Any) -> dict[str, list[Any]]:
    found, _ = score(Copies(**fields), table(texts), out)
    return {name: values.tolist() for name, values in found.items()}


def test_copies_by_hand(tmp_path: Path) -> None:
    base = prose(1, 90)
    near = base.rsplit(" ", 2)[0] + " quite new"
    other = prose(2, 40) + " " + " ".join(base.split()[10:70]) + " " + prose(3, 40)
    texts = [base, base.upper() + "!", base, near, other, prose(4, 80), "short", "Short.", "", None]
    found, facts = score(Copies(), table(texts), tmp_path / "o")
    assert found["exact"].tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1, 1]
    assert found["near"].tolist() == [3, 3, 3, 3, 0, 0, 1, 1, 1, 1]
    assert found["substr50"].tolist()[:6] == [4, 4, 4, 4, 4, 0]
    assert found["utility"].tolist() == [-4, -4, -4, -4, -4, 0, -1, -1, -1, -1]
    assert facts["rows"] == 10
    assert facts["documents"] == 8  # the first and the third have one id; so do empty and missing
    assert facts["clusters"] == 5
    assert facts["largest_cluster"] == 4
    assert facts["copied"] == {"exact": 7, "near": 8, "substr50": 5}


def test_one_document_of_a_cluster_is_the_first_and_copies_of_it_too(tmp_path: Path) -> None:
    texts: list[str | None] = [prose(1, 60), prose(1, 60) + ".", prose(2, 60), prose(1, 60)]
    rows = table(texts)
    found, _ = score(Copies(), rows, tmp_path / "o")
    assert found["first"][0] == found["first"][3] != found["first"][1]
    assert found["first"][2]
    assert found["cluster"][0] == found["cluster"][1] != found["cluster"][2]
    own = found["cluster"] == np.array(rows["id"].to_pylist(), dtype=object)
    assert (own == found["first"]).all()


def test_fifty_words_are_a_passage_and_forty_nine_are_not(tmp_path: Path) -> None:
    run = prose(1, 50).split()
    long = [prose(2, 30) + " " + " ".join(run) + " " + prose(3, 30), " ".join([*run, "end"])]
    short = [f"{prose(4, 30)} {' '.join(run[1:])} {prose(5, 30)}"]
    found = counted([*long, *short], tmp_path / "o", stride=1)
    assert found["substr50"] == [1, 1, 0]
    assert found["near"] == [0, 0, 0]


def plain(texts: list[str], run: int) -> list[int]:
    """Other rows that share a run of words, the slow way."""
    sets = [{tuple(w[i : i + run]) for i in range(len(w) - run + 1)} for w in map(str.split, texts)]
    return [sum(bool(a & b) for k, b in enumerate(sets) if k != i) for i, a in enumerate(sets)]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), stride=st.sampled_from([1, 1, 5, 16]))
def test_passages_against_all_pairs_of_runs(
    tmp_path_factory: pytest.TempPathFactory, seed: int, stride: int
) -> None:
    draw = random.Random(seed)
    pool = [prose(100 * seed + k, 130).split() for k in range(3)]
    texts = []
    for _ in range(12):
        cuts = [(k, draw.randrange(70), draw.randrange(1, 80)) for k in draw.choices(range(3), k=3)]
        texts.append(" ".join(w for k, at, n in cuts for w in pool[k][at : at + n]))
    texts += texts[:2]
    found = counted(list(texts), tmp_path_factory.mktemp("o") / "o", stride=stride)["substr50"]
    most, least = plain(texts, 50), plain(texts, 50 + stride - 1)
    assert all(low <= n <= high for low, n, high in zip(least, found, most, strict=True))


def test_a_crowd_counts_its_most_frequent_passage(monkeypatch: pytest.MonkeyPatch) -> None:
    seven = [(5, row) for row in range(7)] + [(9, 0), (9, 7), (9, 8)]
    pairs = np.array(seven, dtype=np.uint64)
    of_row, weight = np.arange(10), np.ones(10, dtype=np.int64)
    exact = passages.sharing([pairs], of_row, weight).tolist()
    assert exact == [8, *[6] * 6, 2, 2, 0]
    monkeypatch.setattr(passages, "CROWD", 6)
    assert passages.sharing([pairs], of_row, weight).tolist() == [6, *[6] * 6, 2, 2, 0]


def test_nothing_depends_on_row_order_or_on_how_tables_are_cut(tmp_path: Path) -> None:
    texts: list[str | None] = [prose(k % 5, 55) + " " + prose(50 + k % 7, 20) for k in range(40)]
    rows = table([*texts, None, "", "a", "A"])
    turned = rows.take(pa.array(np.random.default_rng(0).permutation(rows.num_rows)))
    one, facts = score(Copies(), rows, tmp_path / "one")
    other, again = score(Copies(), turned, tmp_path / "other", pieces=7)
    assert facts == again
    for name in one:
        told = dict(zip(turned["id"].to_pylist(), other[name].tolist(), strict=True))
        assert [told[i] for i in rows["id"].to_pylist()] == one[name].tolist(), name


def test_problems_of_one_form_are_no_copies_of_each_other(tmp_path: Path) -> None:
    form = "Tom has {} apples and buys {} more at {} dollars each . How much does he spend ?"
    texts: list[str | None] = [form.format(k, 31 + k, 71 + k) for k in range(12)]
    assert sum(counted(texts, tmp_path / "o")["first"]) == 12
    assert sum(counted(texts, tmp_path / "loose", numbers=False)["first"]) == 1
    long = prose(1, 300)
    page: list[str | None] = [long + " seen 17 times", long + " seen 1234 times"]
    assert counted(page, tmp_path / "p")["near"] == [1, 1]


def test_near_copies_are_those_that_deduplication_joins(tmp_path: Path) -> None:
    """The same clusters as `dedup: minhash` finds: its shingles, signatures and bands."""
    from tests.runs import go

    texts: list[str] = []
    for k in range(30):
        words = prose(k % 12, 120).split()
        words[k % 100], words[-1] = "changed", str(k)
        texts.append(" ".join(words))
    import json

    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    read = {"read": "jsonl", "paths": [str(data)], "holdout": 0}
    steps = [{"score": "copies", "numbers": False}, {"dedup": "minhash"}]
    made = go({"name": "d", "data": read, "steps": steps, "report": False}, tmp_path / "out")
    facts = {s["name"]: s["facts"] for s in json.loads(
        (made.path / "manifest.json").read_text())["steps"]}  # fmt: skip
    assert facts["copies"]["clusters"] == facts["minhash"]["kept"] == 12
    assert facts["copies"]["largest_cluster"] == facts["minhash"]["largest_cluster"]


def test_an_empty_corpus_and_unknown_documents(tmp_path: Path) -> None:
    part, out = Copies(), tmp_path / "o"
    out.mkdir()
    assert part.fit(iter([table([])]), out)["documents"] == 0
    found = part.score(table(["new"]), out)
    assert np.isnan(found["utility"][0])
    assert found["near"].null_count == 1


@pytest.mark.parametrize("fields", [{"bands": 0}, {"stride": 0}, {"seed": -1}])
def test_fields_out_of_range(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|seed must"):
        Copies(**fields)
