"""Rows of a map-style data set as candidates: read, named by their ids, collated.

An id must name the same row in every run: a column of the data, or, where it is said that the order
of the data never changes, the row number (`ids="row"`). The column of ids is taken out of a row
before it is collated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
import xxhash

from foresift.pipeline.errors import DataError
from foresift.pipeline.online import Candidates, Rows
from foresift.pipeline.parts import digest

Example = Mapping[str, Any]
Collate = Callable[[list[dict[str, Any]]], Any]
#: rows whose ids stand for the data set, where the column of ids cannot be read by itself
SAMPLED = 256
#: ids that are read together, where they are a column
AT_ONCE = 8192


class RowSource:
    """A data set, its ids and its collator."""

    def __init__(self, data: Any, ids: str, collate: Collate) -> None:
        streamed = isinstance(data, torch.utils.data.IterableDataset)
        if streamed or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise DataError(
                f"{type(data).__name__} is not a map-style data set: candidates are read by row"
                " number, so it needs len() and []",
                where="data",
            )
        self.data, self.column, self.collate = data, ids, collate

    def __len__(self) -> int:
        return len(self.data)

    def read(self, rows: Rows) -> list[tuple[str, dict[str, Any]]]:
        """(id, the row without its id) of each."""
        places = [int(row) for row in rows]
        if hasattr(self.data, "__getitems__"):
            found = self.data.__getitems__(places)
        else:
            found = [self.data[place] for place in places]
        return [self._named(row, place) for place, row in zip(places, found, strict=True)]

    def _named(self, row: Any, place: int) -> tuple[str, dict[str, Any]]:
        if not isinstance(row, Mapping):
            raise DataError(
                f"row {place} is a {type(row).__name__}, not a mapping from column to value",
                where="data",
            )
        if self.column == "row":
            return str(place), dict(row)
        if self.column not in row:
            raise DataError(
                f"the rows have no column {self.column!r} (they have: {', '.join(map(str, row))});"
                ' name a column of ids with ids="...", or say ids="row" if the rows stand in the'
                " same order in every run",
                where="ids",
            )
        name = _text(row[self.column], place)
        return name, {k: v for k, v in row.items() if k != self.column}

    def digest(self) -> str:
        """What stands for the data set: its length and its ids (of every row, or of 256)."""
        n = len(self)
        if self.column == "row":
            return digest(["row", n])
        column = self._column()
        if column is not None:
            found = column
        else:
            places = np.unique(np.linspace(0, n - 1, min(n, SAMPLED)).astype(np.int64))
            found = (name for name, _ in self.read(places))
        hasher = xxhash.xxh3_128()
        for name in found:
            hasher.update(f"{len(name)}:{name}".encode())
        return digest([n, hasher.hexdigest()])

    def names(self) -> Iterator[str]:
        """The ids of all rows, in their order; reads whole rows where there is no such column."""
        column = self._column()
        if column is not None:
            yield from column
        else:
            for row in range(len(self)):
                yield self.read(np.array([row]))[0][0]

    def _column(self) -> Iterator[str] | None:
        """The column of ids by itself, where the data set has columns."""
        names = getattr(self.data, "column_names", None)
        if not isinstance(names, (list, tuple)) or self.column not in names:
            return None
        plain = self.data.with_format(None) if hasattr(self.data, "with_format") else self.data
        column = plain[self.column]  # not one by one: slow where a data set is on disk
        parts = (column[at : at + AT_ONCE] for at in range(0, len(self), AT_ONCE))
        return (_text(value, row) for row, value in enumerate(chain.from_iterable(parts)))

    def collated(self, examples: Sequence[tuple[str, dict[str, Any]]]) -> Any:
        """The batch that the collator makes of rows."""
        return self.collate([dict(row) for _, row in examples])

    def candidates(
        self, batch: Any, rows: Rows, examples: Sequence[tuple[str, dict[str, Any]]]
    ) -> Candidates:
        """A collated batch as candidates; without an attention mask every token is real."""
        for name in ("input_ids", "labels"):
            if not isinstance(batch, Mapping) or name not in batch:
                has = ", ".join(batch) if isinstance(batch, Mapping) else type(batch).__name__
                raise DataError(f"the collator gives no {name!r} (it gives: {has})", where=name)
        ids = torch.as_tensor(batch["input_ids"])
        labels = torch.as_tensor(batch["labels"])
        mask = batch.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else torch.as_tensor(mask)
        if ids.ndim != 2 or len(ids) != len(rows) or labels.shape != ids.shape:
            raise DataError(
                f"{len(rows)} rows were collated to input_ids {list(ids.shape)} and labels"
                f" {list(labels.shape)}; one line a row is needed (packing is not possible here)",
                where="collate",
            )
        if mask.shape != ids.shape:
            raise DataError(
                f"attention_mask is {list(mask.shape)}, not {list(ids.shape)}", where="collate"
            )
        return Candidates(rows, tuple(name for name, _ in examples), ids, mask, labels)

    def folded(self, measured: Mapping[str, torch.Tensor], lines: int) -> dict[str, torch.Tensor]:
        """One value a row of what was measured of so many candidates: here a row is a candidate."""
        return dict(measured)


def id_words(names: Iterable[str]) -> torch.Tensor:
    """[B, 2] int64: the 128-bit hash of each id."""
    raw = b"".join(xxhash.xxh3_128_digest(name.encode()) for name in names)
    return torch.from_numpy(np.frombuffer(raw, dtype=">i8").astype(np.int64).reshape(-1, 2))


def _text(value: Any, place: int) -> str:
    if value is None:
        raise DataError(f"row {place} has no id", where="ids")
    if isinstance(value, bytes):
        return value.hex()
    return str(value.item() if hasattr(value, "item") else value)
