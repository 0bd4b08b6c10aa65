"""Rows of the sets of a deletion plan: content, source and what was read beside it, from places.

A plain document has `text`; a pair and a conversation have `question` and `answer` (the last turn
of the assistant, and all before it). A conversation without one is a text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.corpus import Corpus, Shard
from foresift.pipeline.plan_rows import content_at
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import ID, content_columns, content_texts
from foresift.stages.forget.folder import text_of

#: (number of the data set, shard, row)
Place = tuple[int, int, int]
LICENCES = ("licence", "license", "spdx")
DATES = ("created_at", "created", "date", "published", "timestamp")
#: columns of TOFU's kind that go with a row where they were read along
BESIDE = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")


@dataclass(frozen=True)
class Row:
    """One document."""

    id: bytes
    place: Place
    source: str
    content: Mapping[str, str]
    """`text`, or `question` and `answer`."""
    sha256: str
    tokens: int
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Further columns that the reader carried along, where they are known here."""

    @property
    def text(self) -> str:
        """As `folder.text_of` reads it."""
        return text_of(self.content)

    def json(self, **more: Any) -> dict[str, Any]:
        """The row of a set."""
        return {"id": self.id.hex(), **self.content, "source": self.source, **more}


def draws_of(rng: Rng, ids: Iterable[bytes]) -> dict[bytes, float]:
    """The draw of each document."""
    every = sorted(set(ids))
    return dict(zip(every, rng.uniform(pa.array(every, ID)).tolist(), strict=True))


def gather(bases: Sequence[Corpus], places: Iterable[Place]) -> dict[Place, Row]:
    """The rows at these places; reads the shards that hold one."""
    by_shard: dict[tuple[int, int], list[int]] = {}
    for base, shard, row in places:
        by_shard.setdefault((base, shard), []).append(row)
    found: dict[Place, Row] = {}
    for (base, number), rows in sorted(by_shard.items()):
        lies = bases[base].shards()[number]
        for one in _rows(lies, base, number, np.unique(rows)):
            found[one.place] = one
    return found


def _rows(shard: Shard, base: int, number: int, rows: Any) -> Iterable[Row]:
    at = pa.array(rows)
    beside = shard.load(["id", "source", "n_tokens"]).take(at)
    names = set(pq.read_schema(shard.base).names) & {*LICENCES, *DATES, *BESIDE}
    more = pq.read_table(shard.base, columns=sorted(names)).take(at) if names else None
    extra = more.to_pylist() if more is not None else [{}] * len(rows)
    told = list(zip(*(beside[n].to_pylist() for n in beside.column_names), strict=True))
    for first, batch in content_at(shard, rows):
        low, high = np.searchsorted(rows, [first, first + batch.num_rows])
        here = batch.take(pa.array(rows[low:high] - first))
        contents, texts = contents_of(here), content_texts(here)
        for k, i in enumerate(range(int(low), int(high))):
            id_, source, tokens = told[i]
            yield Row(
                id_, (base, number, int(rows[i])), source or "", contents[k],
                hashlib.sha256(texts[k].encode()).hexdigest(), tokens or 0,
                {n: v for n, v in extra[i].items() if v is not None},
            )  # fmt: skip


def contents_of(table: pa.Table) -> list[dict[str, str]]:
    """The content of each row, as `text` or as `question` and `answer`."""
    names = content_columns(table.column_names)
    if names == ["prompt", "response"]:
        pairs = zip(table["prompt"].to_pylist(), table["response"].to_pylist(), strict=True)
        return [{"question": p or "", "answer": r or ""} for p, r in pairs]
    if names == ["messages"]:
        return [_chat(turns or []) for turns in table["messages"].to_pylist()]
    return [{"text": text or ""} for text in table["text"].to_pylist()]


def _chat(turns: Sequence[Mapping[str, str]]) -> dict[str, str]:
    contents = [turn["content"] or "" for turn in turns]
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1)
    if last < 1:
        return {"text": "\n".join(contents)}
    return {"question": "\n".join(contents[:last]), "answer": contents[last]}


def beside_json(row: Row) -> dict[str, Any]:
    """Paraphrases and wrong answers that were read along; lists may have come as JSON text."""
    found: dict[str, Any] = {}
    for name in BESIDE:
        value = row.beside.get(name)
        if name == "perturbed_answer" and isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = [value]
        if value is not None:
            found[name] = value
    return found


def first_of(row: Row, names: Sequence[str]) -> str | None:
    """The first of these columns that the row has, as a string."""
    return next((str(row.beside[n]) for n in names if n in row.beside), None)
