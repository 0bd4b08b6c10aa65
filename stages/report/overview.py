"""What the data is: kinds of content, sizes, lengths, copies, and what is told in words.

    kinds    documents by shape: plain text, conversations, pairs of prompt and response
    lengths  quantiles of tokens and UTF-8 bytes a document, of the pool and of what was kept
    copies   documents whose content another one has too, as a share; on the sample by id (copies
             are drawn together, so the share of a sample is that of the whole)
    labels   each column of words beside the corpus (language, licence, category ...): how many
             documents and tokens have each value; columns of key paths and dates, where hardly two
             documents agree, are left out

The holdout is in the sizes and in nothing else. Counts and sums are exact, lengths and copies are
of the sample; its size is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline.corpus import Shard
from foresift.pipeline.store import StepDir
from foresift.pipeline.tables import content_columns, first_copies, id_words
from foresift.pipeline.token_counts import token_rule
from foresift.stages.report.contents import Contents, Scored
from foresift.stages.report.intervals import quantiles
from foresift.stages.report.mask import excerpt
from foresift.stages.report.sample import Sample

QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
#: values shown of a column of words; the rest is summed up in one line
TOP = 12
#: with more values than this a column holds no classes
MOST = 20_000
LANGUAGES = frozenset(("language", "languages", "lang"))
_KINDS = {
    ("text",): "plain text",
    ("messages",): "conversations",
    ("prompt", "response"): "pairs of prompt and response",
}


@dataclass(frozen=True)
class Kind:
    """Documents of one shape."""

    name: str
    documents: int
    share: float


@dataclass(frozen=True)
class Length:
    """How long documents are: quantiles at 0, 1, 10, 25, 50, 75, 90, 99 and 100 %."""

    unit: str
    group: str
    """`pool` or `kept`."""
    documents: int
    quantiles: list[float | None]


@dataclass(frozen=True)
class Label:
    """One value of a column of words; `name` is empty for what is summed up."""

    name: str
    documents: int
    tokens: int
    kept: int
    share: float
    """Of the documents that have a value."""


@dataclass(frozen=True)
class Labels:
    """One column of words."""

    column: str
    language: bool
    """Whether it tells languages."""
    documents: int
    """Documents that have a value."""
    distinct: int
    """Different values."""
    values: list[Label]
    """The most frequent."""
    others: Label | None
    """All further values together."""


@dataclass(frozen=True)
class Overview:
    """What the data is."""

    documents: int
    holdout: int
    bytes: int
    """UTF-8 bytes of content."""
    tokens: int
    kinds: list[Kind]
    """Documents by shape."""
    sampled: int
    """Documents in the sample."""
    lengths: list[Length]
    """Tokens and bytes a document, of the pool and of what was kept."""
    copies: float | None
    """Share of the documents that are copies of another."""
    labels: list[Labels]
    """Columns of words."""
    counted: str
    """How tokens were counted: a tokenizer, `bytes`, or that they are estimated."""

    @property
    def estimated(self) -> bool:
        """Whether tokens are a quarter of the bytes and not a tokenizer's."""
        return self.counted == token_rule("")

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of content for a token; null where tokens are estimated by it."""
        return self.bytes / self.tokens if self.tokens and not self.estimated else None

    @property
    def languages(self) -> list[Labels]:
        return [each for each in self.labels if each.language]


def overview(contents: Contents) -> Overview:
    """The section: one pass over sizes, one over the columns of words, and the sample."""
    sizes = np.array([_sizes(shard) for shard in contents.shards], dtype=np.int64).reshape(-1, 4)
    documents, holdout, size, tokens = (int(n) for n in sizes.sum(axis=0))
    sample = contents.sample.everything()
    return Overview(
        documents, holdout, size, tokens,
        kinds=_kinds(contents.shards, documents),
        sampled=sample.rows,
        lengths=_lengths(sample),
        copies=_copies(sample),
        labels=_labels(contents),
        counted=StepDir(contents.base).facts()["facts"].get("tokens", ""),
    )  # fmt: skip


def _sizes(shard: Shard) -> tuple[int, int, int, int]:
    table = shard.load(["holdout", "n_bytes", "n_tokens"])
    sums = (pc.sum(table[n].cast(pa.int64())).as_py() or 0 for n in table.column_names)
    held, size, tokens = sums
    return table.num_rows, held, size, tokens


def _kinds(shards: list[Shard], documents: int) -> list[Kind]:
    counts: Counter[str] = Counter()
    for shard in shards:
        ours = dict(shard.rename)
        names = [ours.get(n, n) for n in pq.read_schema(shard.content).names]
        counts[_KINDS.get(tuple(content_columns(names)), "other")] += shard.rows
    return [Kind(name, n, n / max(documents, 1)) for name, n in counts.most_common()]


def _lengths(sample: Sample) -> list[Length]:
    found = []
    for unit, column in (("tokens", "n_tokens"), ("bytes", "n_bytes")):
        values = sample.columns[column]
        for group, part in (("pool", values), ("kept", values[sample.kept])):
            there = int((~np.isnan(part)).sum())
            found.append(Length(unit, group, there, quantiles(part, QUANTILES)))
    return found


def _copies(sample: Sample) -> float | None:
    """Rows of the sample less its distinct ids, for one row; its rows stand by id."""
    if not sample.rows:
        return None
    return 1 - int(first_copies(id_words(sample.ids)).sum()) / sample.rows


def _labels(contents: Contents) -> list[Labels]:
    found = []
    for column in contents.columns:
        if pa.types.is_string(column.dtype) or pa.types.is_large_string(column.dtype):
            counted = _count(contents, column)
            if counted is not None:
                found.append(counted)
    return found


def _count(contents: Contents, column: Scored) -> Labels | None:
    """Count a column of words shard by shard; None where its values are no classes."""
    sums: dict[str, list[int]] = {}
    for shard, plan in contents.plan(["n_tokens", "kept", "reason"]):
        for value, *numbers in _grouped(shard.load([column.name])[column.name], plan):
            into = sums.setdefault(value, [0, 0, 0])
            for k, number in enumerate(numbers):
                into[k] += number
        if len(sums) > MOST:
            return None
    documents = sum(numbers[0] for numbers in sums.values())
    language = column.file_name in LANGUAGES
    if not documents or (not language and 2 * len(sums) > documents):
        return None
    ranked = sorted(sums.items(), key=lambda pair: (-pair[1][0], pair[0]))
    shown = [_label(excerpt(value, 80), numbers, documents) for value, numbers in ranked[:TOP]]
    left = [sum(numbers[k] for _, numbers in ranked[TOP:]) for k in range(3)]
    others = _label("", left, documents) if left[0] else None
    return Labels(column.name, language, documents, len(ranked), shown, others)


def _grouped(values: pa.ChunkedArray, plan: pa.Table) -> Iterator[tuple[Any, ...]]:
    """(value, documents, tokens, kept) in one shard, without the holdout."""
    kept = plan["kept"].cast(pa.int64())
    table = pa.table({"value": values, "n": plan["n_tokens"].fill_null(0), "kept": kept})
    table = table.filter(pc.and_(values.is_valid(), pc.not_equal(plan["reason"], "holdout")))
    sums = [("value", "count"), ("n", "sum"), ("kept", "sum")]
    grouped = table.group_by("value").aggregate(sums)
    names = ("value", "value_count", "n_sum", "kept_sum")
    yield from zip(*(grouped[n].to_pylist() for n in names), strict=True)


def _label(name: str, numbers: list[int], documents: int) -> Label:
    return Label(name, numbers[0], numbers[1], numbers[2], numbers[0] / documents)
