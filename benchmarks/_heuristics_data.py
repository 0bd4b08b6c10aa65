"""Documents of many kinds for the benchmark of heuristics: news, posts, web pages, code, chat."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from minhash import texts as package_texts

#: name -> (files, field, documents at most); a field that is a number is a column of a CSV
SETS: dict[str, tuple[str, str | int, int]] = {
    "20newsgroups": ("pretrain/20newsgroups/*.parquet", "text", 5000),
    "bbc-news": ("pretrain/bbc-news/*.jsonl.gz", "text", 2225),
    "pile-domains": ("pretrain/pile-domains/*.parquet", "original", 5000),
    "ag-news": ("pretrain/ag-news/*.csv.gz", 2, 1000),
    "web-samples": ("pretrain/web-samples/**/*.json*", "text", 600),
    "languages": ("pretrain/nltk/udhr2.jsonl.gz", "text", 387),
    "chat": ("pretrain/nltk/nps_chat.jsonl.gz", "text", 4),
    "judged web pages": ("quality/dclm-human/majority_data.jsonl.gz", "text", 500),
    "pages with menus": (
        "quality/article-extraction/*.parquet", "page_text_beautifulsoup", 181,
    ),
    "extracted pages": ("neardup/extractor-variants/*.parquet", "text", 1766),
    "film reviews": ("labelnoise/imdb-label-errors/*.parquet", "text", 2500),
    "tweets": ("junk/tweeteval/*.jsonl.gz", "text", 1000),
    "instructions": ("instruct/t0-mix/*", "prompt", 1000),
}  # fmt: skip


def documents(data: Path | None, share: float) -> Iterator[tuple[str, str]]:
    """(set, text), a share of each set, spread over it."""
    if data is None:
        for i, text in enumerate(package_texts(None)):
            if i % 8 == 0 and i < 60_000 * share:
                yield "installed packages", text
        return
    for name, (pattern, field, limit) in SETS.items():
        found = [t for path in sorted(data.glob(pattern)) for t in _texts(path, field) if t]
        wanted = max(1, int(min(limit, len(found)) * share))
        step = max(1, len(found) // wanted) if found else 1
        yield from ((name, text) for text in found[::step][:wanted])


def _texts(path: Path, field: str | int) -> Iterator[str]:
    if path.suffix == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(1024, columns=[field]):
            yield from batch[0].to_pylist()
        return
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if isinstance(field, int):
        yield from (row[field] for row in csv.reader(io.StringIO(raw.decode())))
        return
    for line in raw.decode(errors="replace").split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get(field), str):
            yield value[field]
