"""`foresift bench-online`: rows, a model, the measurement of `online_cost.py`, and its table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from foresift.pipeline.errors import DataError, ForesiftError
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.model import ModelSpec, load
from foresift.pipeline.online import IGNORED
from foresift.pipeline.online_cost import Cost, Row, Sizes, Trainee, build, measure, wanted
from foresift.pipeline.parts import find

#: rows that are read
ROWS = 256
#: fields that are looked for, in this order, where none are named
GUESSES = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"prompt": "prompt", "response": "response"},
    {"prompt": "instruction", "response": "output"},
    {"prompt": "instruction", "response": "response"},
    {"prompt": "question", "response": "answer"},
    {"text": "text"},
)
_SUFFIXES = {"parquet": (".parquet", ".pq"), "jsonl": (".jsonl", ".ndjson", ".json")}
_MB = 1 << 20


@dataclass(frozen=True)
class Found:
    """What was measured."""

    parameters: int
    trained: int
    device: str
    sizes: Sizes
    rows: int
    tokens: float
    """Mean length of a row."""
    baselines: dict[str, Cost]
    methods: dict[str, Cost]

    def summary(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        sides = self.baselines | self.methods
        return {
            "parameters": self.parameters,
            "device": self.device,
            "keep": self.sizes.keep,
            "of": self.sizes.of,
            "rows": self.rows,
            "mean_tokens": self.tokens,
            "sides": {name: self._side(cost) for name, cost in sides.items()},
        }

    def _side(self, cost: Cost) -> dict[str, Any]:
        if cost.refused:
            return {"refused": cost.refused}
        return {
            "seconds": cost.seconds,
            "over_plain_keep": cost.over(self.baselines["plain K"]),
            "over_plain_of": cost.over(self.baselines["plain B"]),
            "peak_bytes": cost.peak,
            "held_bytes": cost.held,
            "needs": cost.needs,
        }


def bench(
    spec: ModelSpec, data: str, sizes: Sizes, methods: str = "", steps: int = 5, fields: str = ""
) -> Found:
    """Measure the named methods (all, where none is named) with a model and rows of a data set."""
    if steps < 1 or not 1 <= sizes.keep <= sizes.of:
        raise DataError(
            f"steps must be 1 at least, and keep 1 .. of: got {steps}, {sizes.keep} of {sizes.of}",
            where="bench-online",
        )
    chosen = wanted(methods)
    loaded = load(spec)
    load.cache_clear()  # this one is trained: nobody else shall get it
    rows = encoded(read(data, max(ROWS, 4 * sizes.of), fields), loaded.tokenizer, spec)
    model = loaded.model
    trained = [p for p in model.parameters() if p.requires_grad]
    trainee = Trainee(model, torch.optim.AdamW(trained, lr=1e-6), rows, sizes)
    with tempfile.TemporaryDirectory() as folder:
        parts = build(chosen, Path(folder), rows, spec.init, sizes.keep)
        baselines, costs = measure(trainee, parts, steps)
    tokens = float(np.mean([len(row["input_ids"]) for row in rows]))
    count = sum(p.numel() for p in model.parameters())
    grown = sum(p.numel() for p in trained)
    return Found(count, grown, loaded.device, sizes, len(rows), tokens, baselines, costs)


def encoded(table: pa.Table, tokenizer: Any, spec: ModelSpec) -> list[Row]:
    """Token ids and labels of the rows in which some token counts."""
    found = encode(table, tokenizer, spec)
    rows = []
    for number, (a, b) in enumerate(zip(found.offsets[:-1], found.offsets[1:], strict=True)):
        ids, counts = found.ids[a:b].astype(np.int64), found.counts[a:b]
        if counts.any():
            labels = np.where(counts, ids, IGNORED)
            rows.append({"id": f"row{number}", "input_ids": ids, "labels": labels})
    return rows


def read(data: str, limit: int, fields: str = "") -> pa.Table:
    """The first rows of JSON lines, parquet or a Hugging Face data set (folder or hub id)."""
    kind = find("read", _kind(data))
    reasons = []
    for guess in [_named(fields)] if fields else GUESSES:
        rejects = _Rejects()
        try:
            reader: Any = kind.parse({"paths": [data], **guess}, "DATA")
            batches = _some((b for u in reader.units() for b in reader.batches(u, rejects)), limit)
        except ForesiftError as error:
            reasons.append(str(error))
            continue
        if batches:
            return pa.concat_tables(batches).select(list(guess)).slice(0, limit)
        reasons += rejects.reasons[:1]
    tried = "; ".join(dict.fromkeys(reasons))
    raise DataError(
        f"no row has {fields or 'messages, prompt and response, or text'} ({tried}); name the "
        "fields with --fields text or --fields prompt,response",
        where=data,
    )


@dataclass
class _Rejects:
    """Rows that cannot be read."""

    reasons: list[str] = field(default_factory=list)

    def add(self, file: str, line: int, reason: str, excerpt: str = "") -> None:
        self.reasons.append(reason)


def _some(batches: Iterator[Any], limit: int) -> list[pa.Table]:
    tables: list[pa.Table] = []
    for batch in batches:
        if batch.table.num_rows:
            tables.append(batch.table)
        if sum(t.num_rows for t in tables) >= limit:
            break
    return tables


def _kind(data: str) -> str:
    """Which reader: by the suffix, or by what lies in the folder."""
    path = Path(data)
    files = sorted(f.name for f in path.iterdir()) if path.is_dir() else [path.name]
    if any(name in ("dataset_info.json", "dataset_dict.json") for name in files):
        return "hf"
    plain = [n.removesuffix(".gz").removesuffix(".zst") for n in files]
    for kind, suffixes in _SUFFIXES.items():
        if any(name.endswith(suffixes) for name in plain):
            return kind
    if path.exists() or path.suffix:
        raise DataError("is no JSON lines, parquet or saved Hugging Face data set", where=data)
    return "hf"


def _named(fields: str) -> dict[str, str]:
    names = [n.strip() for n in fields.split(",") if n.strip()]
    if len(names) == 2:
        return {"prompt": names[0], "response": names[1]}
    if len(names) != 1:
        raise DataError(f"takes one field or two, got {fields!r}", where="--fields")
    chat = names[0] in ("messages", "conversations", "conversation")
    return {"messages" if chat else "text": names[0]}


def show(found: Found, console: Console) -> None:
    """The table, and what it does not say by itself."""
    keep, of = found.sizes.keep, found.sizes.of
    console.print(
        f"{found.parameters / 1e6:,.1f}M parameters ({found.trained / 1e6:,.1f}M trained) on "
        f"{found.device}; {found.rows} rows of {found.tokens:.0f} tokens on average; "
        f"{keep} of {of} candidates",
        highlight=False,
    )
    table = Table("", box=None, pad_edge=False)
    for title in ("ms a step", f"x plain {keep}", f"x plain {of}", "peak MB", "held MB"):
        table.add_column(title, justify="right")
    table.add_column("needs", overflow="fold")
    names = {
        "plain K": f"train on {keep}",
        "plain B": f"train on {of}",
        "forward": f"forward of {of}",
        "logits": "  with logits",
    }
    for name, cost in (found.baselines | found.methods).items():
        if not cost.refused:
            table.add_row(*_cells(names.get(name, name), cost, found.baselines))
    console.print(table)
    for name, cost in found.methods.items():
        if cost.refused:
            console.print(f"{name}: {cost.refused}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        "peak and held: memory beyond weights and optimizer while choosing (of a plain step: while "
        "training), and what stays from step to step. Rows of DATA stood in for reference files, "
        "a second copy of MODEL for reference models.",
        style="dim",
        highlight=False,
    )


def _cells(title: str, cost: Cost, baselines: dict[str, Cost]) -> Sequence[str]:
    return (
        title,
        f"{1e3 * cost.seconds:,.1f}",
        f"{cost.over(baselines['plain K']):.2f}",
        f"{cost.over(baselines['plain B']):.2f}",
        f"{cost.peak / _MB:,.1f}",
        f"{cost.held / _MB:,.1f}",
        cost.needs,
    )
