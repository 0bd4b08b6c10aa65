"""Where documents come from: the pool and the chosen by the first component of the key path."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from foresift.stages.report.contents import Contents
from foresift.stages.report.mask import origin

#: sources shown; the rest is summed up in one line
TOP = 20
#: distinct sources kept while counting; what comes later is summed up
MOST = 50_000
OTHER = "(all others)"
_TOP = r"^(?P<top>(?:[A-Za-z][A-Za-z0-9+.-]*://)?[^/#]*)"


@dataclass
class Source:
    """Documents and tokens of one source, in the pool (holdout left out) and chosen."""

    name: str
    documents: int = 0
    tokens: int = 0
    chosen_documents: int = 0
    chosen_tokens: int = 0

    def add(self, other: Source) -> None:
        """Sum up."""
        self.documents += other.documents
        self.tokens += other.tokens
        self.chosen_documents += other.chosen_documents
        self.chosen_tokens += other.chosen_tokens


@dataclass(frozen=True)
class Sources:
    """The largest sources, what is left of them, and all together."""

    rows: tuple[Source, ...]
    total: Source
    count: int


def top(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The first component of each key path: up to the first `/` or `#`; of an address its host."""
    first = pc.struct_field(pc.extract_regex(column.fill_null(""), _TOP), "top")
    return pc.if_else(pc.equal(first, ""), "(no source)", first)


def sources(contents: Contents) -> Sources:
    """Count the plan file by source, shard by shard."""
    found: dict[str, Source] = {}
    for _, plan in contents.plan(["source", "n_tokens", "kept", "reason"]):
        for each in _counts(plan.filter(pc.not_equal(plan["reason"], "holdout"))):
            name = each.name if each.name in found or len(found) < MOST else OTHER
            found.setdefault(name, Source(name)).add(each)
    rest = found.pop(OTHER, Source(OTHER))
    ranked = sorted(found.values(), key=lambda s: (-s.tokens, -s.documents, s.name))
    total, others = Source("all"), Source(f"({len(ranked) - TOP:,} others)")
    for each in [*ranked[TOP:], rest]:
        others.add(each)
    for each in [*ranked[:TOP], others]:
        total.add(each)
    rows = (*ranked[:TOP], *([others] if others.documents else []))
    named = tuple(replace(each, name=origin(each.name)) for each in rows)
    return Sources(named, total, len(ranked))


def _counts(plan: pa.Table) -> list[Source]:
    """Documents and tokens of each source in one shard."""
    tokens = plan["n_tokens"].fill_null(0)
    kept = plan["kept"].cast(pa.int64())
    table = pa.table(
        {"top": top(plan["source"]), "n": tokens, "kept": kept, "cn": pc.multiply(tokens, kept)}
    )
    sums = [("top", "count"), ("n", "sum"), ("kept", "sum"), ("cn", "sum")]
    grouped = table.group_by("top").aggregate(sums).to_pydict()
    names = ("top", "top_count", "n_sum", "kept_sum", "cn_sum")
    return [Source(*row) for row in zip(*(grouped[n] for n in names), strict=True)]
