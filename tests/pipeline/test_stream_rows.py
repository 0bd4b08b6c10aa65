"""The ids of a data set, read by column in parts."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from foresift.pipeline import stream_rows
from foresift.pipeline.stream_rows import RowSource


@pytest.mark.parametrize("part", [1, 4, 5, 100])
def test_ids_read_in_parts_are_those_of_the_rows(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_rows, "AT_ONCE", part)
    rows: list[dict[str, Any]] = [{"id": f"d{i * 7 % 10}", "x": i} for i in range(10)]
    hub = datasets.Dataset.from_list(rows)
    plain, columns = RowSource(rows, "id", list), RowSource(hub.shuffle(seed=1), "id", list)
    assert list(RowSource(hub, "id", list).names()) == [row["id"] for row in rows]
    assert RowSource(hub, "id", list).digest() == plain.digest() != columns.digest()
    numbers = RowSource(hub.with_format("torch"), "x", list)
    assert list(numbers.names()) == [str(i) for i in range(10)]
