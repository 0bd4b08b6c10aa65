"""Tables of vectors that the tests of the selectors over vectors share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from tests.stages.selectors.tables import corpus, ids

RNG = Rng(0).at("select")
FLOATS = pa.list_(pa.float32())


def rows(u: list[Any], e: Any, **columns: Any) -> pa.Table:
    """A table whose ids ascend with the row number; every row costs 10 tokens."""
    n = len(u)
    keys = sorted(ids(n).to_pylist(), key=lambda k: tuple(np.frombuffer(k, "<u8").tolist()))
    base = {
        "id": pa.array(keys, pa.binary(16)),
        "n_tokens": pa.array([10] * n, pa.int64()),
        "u": pa.array(u, pa.float64(), from_pandas=False),
        "e": pa.array(e, FLOATS),
    }
    return pa.table({**base, **columns})


def pool(n: int = 300, width: int = 6, seed: int = 0) -> pa.Table:
    """Vectors around 12 directions, two columns of scores, labels of different size."""
    rng = np.random.default_rng([seed, 3])
    centres = rng.standard_normal((12, width))
    vectors = centres[rng.integers(0, 12, n)] + 0.4 * rng.standard_normal((n, width))
    table = corpus(n, seed, u=rng.standard_normal(n), v=rng.random(n))
    labels = [f"c{int(x)}" for x in 5 * rng.random(n) ** 2]
    table = table.append_column("e", pa.array(vectors.astype(np.float32).tolist(), FLOATS))
    return table.append_column("c", pa.array(labels))


def select(part: Selector, table: pa.Table, budget: str = "30%", rng: Rng = RNG) -> Choice:
    return part.select(table, Budget.parse(budget), rng)


def in_order(choice: Choice) -> list[int]:
    """Row numbers from the most preferred on."""
    ranked = np.flatnonzero(choice.rank >= 0)
    return [int(i) for i in ranked[np.argsort(choice.rank[ranked])]]


def unit_rows(table: pa.Table) -> Any:
    """The vectors of a table at length 1, in float64."""
    vectors = np.array(table["e"].to_pylist(), dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sorted_by_id(table: pa.Table) -> pa.Table:
    words = [tuple(np.frombuffer(i.as_py(), "<u8").tolist()) for i in table["id"]]
    return table.take(pa.array(sorted(range(len(words)), key=words.__getitem__)))


def check_promises(part: Selector) -> None:
    """What every selector over vectors promises about row order, copies, budgets and bad rows."""
    table = pool()
    one = select(part, table)
    assert 0 < one.kept.sum() < 300
    order = np.random.default_rng(3).permutation(300)
    mixed = table.take(pa.array(order))
    mixed = pa.concat_tables([mixed.slice(0, 100), mixed.slice(100, 7), mixed.slice(107)])
    other = select(part, mixed)
    np.testing.assert_array_equal(one.rank[order], other.rank)
    np.testing.assert_array_equal(one.reason[order], other.reason)
    assert one.facts == other.facts
    # copies: the same documents at the same share, side by side
    doubled = pa.concat_tables([table, table]).take(
        pa.array(np.random.default_rng(4).permutation(600))
    )
    twice = select(part, doubled)
    keys = doubled["id"].to_pylist()
    ranked = [keys[i] for i in in_order(twice)]
    assert ranked[::2] == ranked[1::2]
    assert ranked[::2] == [table["id"][i].as_py() for i in in_order(one)]
    # nothing to choose from
    assert len(select(part, table.slice(0, 0)).kept) == 0
    assert not select(part, table, "0").kept.any()
    gone = table.drop_columns(["e"]).append_column("e", pa.nulls(300, FLOATS))
    assert set(select(part, gone).reason) == {"no embedding"}


def check_recut(part: Selector) -> None:
    """A smaller budget cut from a choice equals selecting anew; a larger one says it is short."""
    table = pool()
    wide = select(part, table, "60%")
    for budget in ("0", "3%", "25%", "60%"):
        other = Budget.parse(budget)
        again = wide.recut(other, other.costs(table))
        np.testing.assert_array_equal(select(part, table, budget).kept, again.kept)
    every = Budget.parse("100%")
    assert select(part, table, "5%").recut(every, every.costs(table)).facts["short"]
