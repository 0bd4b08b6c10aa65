"""Real texts with known numbers of copies (the data set's README states them)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq


def bbc(data: Path) -> list[str]:
    return [json.loads(line)["text"] for line in _lines(data / "pretrain/bbc-news/bbc.jsonl.gz")]


def bodies(data: Path) -> list[str]:
    file = data / "pretrain/20newsgroups/20news-19997.parquet"
    posts = pq.read_table(file, columns=["text"])["text"].to_pylist()
    return [post.partition("\n\n")[2] for post in posts]


def sms(data: Path) -> list[str]:
    return [line.split("\t", 1)[1] for line in _lines(data / "junk/sms-spam/sms.tsv.gz")]


def _lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().removesuffix("\n").split("\n")


#: name -> (how to read it, extra copies that are exact, extra copies once normalised)
SETS: dict[str, tuple[Callable[[Path], list[str]], int, int]] = {
    "bbc-news": (bbc, 98, 103),
    "20newsgroups bodies": (bodies, 663, 698),
    "sms-spam": (sms, 403, 444),
}
