"""Sets of labels of which it is known which are wrong, read from a folder of public data.

    imdb           reviews; wrong where no majority of five people gave the label. Only reviews that
                   a model had suspected were shown to people; all others count as right
    imdb-checked   those that were shown to people alone
    davidson       tweets; contested, where not all of three or more judges gave the majority label
    davidson-10    tweets on which judges agree; 10 % of the labels were replaced by another one
    hausa          news titles with labels by rules, against those of people
    crowdtruth     sentences that distant supervision takes for a cause, against experts
    20news-20      posts of 8 groups, without headers; 20 % of the labels replaced by another one
    20news-other   4 groups and `other` (4 more); 15 % of the 4 groups' labels became `other`. Only
                   `other` is measured

What is planted is drawn by hash of the document.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import content_ids

RNG = Rng(0).at("detectors_labels")
GROUPS = (
    "rec.autos", "sci.med", "rec.sport.hockey", "sci.space", "comp.graphics", "sci.crypt",
    "talk.politics.guns", "soc.religion.christian",
)  # fmt: skip


@dataclass
class Set:
    """Documents with given labels; which of these are wrong, and which are measured."""

    name: str
    texts: list[str]
    given: list[str]
    right: list[str]
    """The true label where it is known, else the given one."""
    wrong: np.ndarray
    measured: dict[str, np.ndarray]
    """What is reported, by name."""
    negative: str | None = None


def sets(data: Path) -> Iterator[Set]:
    """All of them, as they were published or planted."""
    noise = data / "labelnoise"
    yield _imdb(noise)
    yield from _davidson(noise)
    yield _hausa(noise)
    yield _crowdtruth(noise)
    yield from _newsgroups(data / "pretrain" / "20newsgroups" / "20news-19997.parquet")


def _imdb(noise: Path) -> Set:
    rows = pq.read_table(noise / "imdb-label-errors" / "imdb_test_label_errors.parquet")
    texts, given = rows["text"].to_pylist(), [str(x) for x in rows["given_label"].to_pylist()]
    votes = np.array(rows["mturk_given"].to_pylist(), dtype=np.float64)
    checked = ~np.isnan(votes)
    wrong = checked & (np.nan_to_num(votes) < 3)
    right = [("1" if g == "0" else "0") if w else g for g, w in zip(given, wrong, strict=True)]
    measured = {"imdb": np.ones(len(texts), dtype=bool), "imdb-checked": checked}
    return Set("imdb", texts, given, right, wrong, measured)


def _davidson(noise: Path) -> Iterator[Set]:
    path = noise / "davidson-hate" / "labeled_data.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = ("hate_speech", "offensive_language", "neither")
    contested = np.array([max(int(r[k]) for k in kinds) < int(r["count"]) for r in rows])
    texts, given = [r["tweet"] for r in rows], [kinds[int(r["class"])] for r in rows]
    yield _whole("davidson", texts, given, given, contested)
    agreed = np.flatnonzero(~contested)
    yield _planted("davidson-10", [texts[i] for i in agreed], [given[i] for i in agreed], 0.1)


def _hausa(noise: Path) -> Set:
    clean, noisy = (
        _tsv(noise / "hausa" / "newsclass" / f"train_clean{end}.tsv.gz")
        for end in ("", "_noisy_labels")
    )
    texts, right = [r["news_title"] for r in clean], [r["label"] for r in clean]
    given = [r["label"] for r in noisy]
    wrong = np.array([a != b for a, b in zip(given, right, strict=True)])
    return _whole("hausa", texts, given, right, wrong)


def _tsv(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def _crowdtruth(noise: Path) -> Set:
    path = noise / "crowdtruth-medical" / "ground_truth_cause.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    texts = [f"{r['term1']} ; {r['term2']} : {r['sentence']}" for r in rows]
    given, expert = [r["baseline"] for r in rows], [r["expert"] for r in rows]
    right = [g if e == "NA" else e for g, e in zip(given, expert, strict=True)]
    wrong = np.array([g != r for g, r in zip(given, right, strict=True)])
    judged = np.array([e != "NA" and g == "1" for g, e in zip(given, expert, strict=True)])
    return Set("crowdtruth", texts, given, right, wrong, {"crowdtruth": judged})


def _newsgroups(path: Path) -> Iterator[Set]:
    rows = pq.read_table(path, columns=["group", "text"]).to_pylist()
    rows = [r for r in rows if r["group"] in GROUPS]
    texts = [r["text"].partition("\n\n")[2][:4000] for r in rows]
    right = [r["group"] for r in rows]
    yield _planted("20news-20", texts, right, 0.2)
    right = [g if g in GROUPS[:4] else "other" for g in right]
    ids = content_ids(pa.table({"text": texts}))
    flip = (RNG.at("other").uniform(ids) < 0.15) & (np.array(right) != "other")
    given = ["other" if f else r for f, r in zip(flip, right, strict=True)]
    measured = {"20news-other": np.array(given) == "other"}
    yield Set("20news-other", texts, given, right, flip, measured, "other")


def _whole(
    name: str, texts: list[str], given: list[str], right: list[str], wrong: np.ndarray
) -> Set:
    """A set of which all documents are measured."""
    return Set(name, texts, given, right, wrong, {name: np.ones(len(texts), dtype=bool)})


def _planted(name: str, texts: list[str], right: list[str], rate: float) -> Set:
    """Labels replaced by another one, by hash of the document."""
    kinds, ids = sorted(set(right)), content_ids(pa.table({"text": texts}))
    flip = RNG.at(name).uniform(ids) < rate
    jump = 1 + (RNG.at(name, "to").uniform(ids) * (len(kinds) - 1)).astype(int)
    given = [
        kinds[(kinds.index(r) + j) % len(kinds)] if f else r
        for r, f, j in zip(right, flip, jump, strict=True)
    ]
    return _whole(name, texts, given, right, flip)
