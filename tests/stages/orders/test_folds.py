"""ZIG, STR, SAW, SEG and JIT: orders worked out by hand, and the plain versions of their ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Order, Rng
from foresift.stages.orders._folds import folded, ranked, zigzagged, zoned
from foresift.stages.orders.folding import Folding
from foresift.stages.orders.jit import Jit
from foresift.stages.orders.saw import Saw
from foresift.stages.orders.seg import Seg
from foresift.stages.orders.strata import Strata
from foresift.stages.orders.zig import Zig
from tests.stages.selectors.tables import ids


def scored(values: list[float | None]) -> pa.Table:
    column = pa.array(values, pa.float64(), from_pandas=False)
    return pa.table({"id": ids(len(values)), "u": column})


def arranged(part: Order, n: int) -> list[int]:
    """The ranks in the order in which they come, found from scores in another row order."""
    scattered = np.random.default_rng(n).permutation(n)
    rows = part.order(scored(scattered.astype(float).tolist()), Rng(0))
    ranks: list[int] = scattered[rows].tolist()
    return ranks


def plain_folds(items: list[int], folds: int) -> list[int]:
    return [x for fold in range(folds) for x in items[fold::folds]]


def plain_zigzag(items: list[int], folds: int) -> list[int]:
    passes = [items[fold::folds] for fold in range(folds)]
    return [x for k, rows in enumerate(passes) for x in (rows[::-1] if k % 2 else rows)]


def plain_zones(
    n: int, sections: int, radius: float, arrange: Callable[[list[int]], list[int]]
) -> list[int]:
    out: list[int] = []
    for section in range(1, sections):
        boundary, width = round(n * section / sections), round(n * radius)
        out += range(len(out), boundary - width)
        out += arrange(list(range(len(out), min(boundary + width, n))))
    return out + list(range(len(out), n))


def test_zig_by_hand() -> None:
    assert arranged(Zig(by="u", folds=3), 10) == [0, 3, 6, 9, 7, 4, 1, 2, 5, 8]
    assert arranged(Zig(by="u"), 12) == [0, 5, 10, 11, 6, 1, 2, 7, 8, 3, 4, 9]
    assert arranged(Zig(by="u", folds=1), 4) == [0, 1, 2, 3]
    assert arranged(Zig(by="u", folds=9), 4) == [0, 1, 2, 3]


def test_folding_six_rows_in_three() -> None:
    assert arranged(Folding(by="u", folds=3), 6) == [0, 3, 1, 4, 2, 5]


def test_strata_by_hand() -> None:
    # one boundary at 5, zone 3..6 in three folds
    assert arranged(Strata(by="u"), 10) == [0, 1, 2, 3, 6, 4, 5, 7, 8, 9]
    # boundaries 4 and 8, radius 4: the second zone begins where the first ends
    wide = Strata(by="u", sections=3, radius=0.3, folds=2)
    assert arranged(wide, 12) == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 9, 11]


def test_saw_by_hand() -> None:
    # boundaries 7 and 13, radius 2 (1.5 to the even number): zones 5..8 and 11..14
    middle = [5, 7, 8, 6, 9, 10, 11, 13, 14, 12]
    assert arranged(Saw(by="u"), 20) == [0, 1, 2, 3, 4, *middle, 15, 16, 17, 18, 19]
    part = Saw(by="u", radius=0.15)
    assert arranged(part, 12) == [0, 1, 2, 4, 5, 3, 6, 8, 9, 7, 10, 11]


@pytest.mark.parametrize("kind", [Strata, Saw])
def test_without_zones_or_folds_it_is_sorted(kind: type[Strata | Saw]) -> None:
    for fields in ({"radius": 0.0}, {"sections": 1}, {"folds": 1}):
        assert arranged(kind.parse({"by": "u", **fields}, "x"), 30) == list(range(30))


@given(
    n=st.integers(0, 60),
    folds=st.integers(1, 9),
    sections=st.integers(1, 9),
    radius=st.floats(0, 0.5),
)
def test_ranks_agree_with_lists(n: int, folds: int, sections: int, radius: float) -> None:
    items = list(range(n))
    assert folded(n, folds).tolist() == plain_folds(items, folds)
    assert zigzagged(n, folds).tolist() == plain_zigzag(items, folds)
    for fast, plain in ((folded, plain_folds), (zigzagged, plain_zigzag)):
        found = zoned(n, sections, radius, lambda m, fast=fast: fast(m, folds))
        expected = plain_zones(n, sections, radius, lambda x, plain=plain: plain(x, folds))
        assert found.tolist() == expected


def test_ranks_break_ties_by_id_and_put_missing_scores_last() -> None:
    values: list[float | None] = [2.0, None, 1.0, float("nan"), 2.0, float("inf"), 1.0]
    table = scored(values)
    names = np.array(table["id"].to_pylist())
    words = [(int.from_bytes(x[:8], "little"), int.from_bytes(x[8:], "little")) for x in names]
    expected = [
        *sorted([2, 6], key=words.__getitem__),
        *sorted([0, 4], key=words.__getitem__),
        5,
        *sorted([1, 3], key=words.__getitem__),
    ]
    assert ranked(table, "u").tolist() == expected


def test_seg_takes_its_segments_from_the_ends() -> None:
    def segments(**fields: object) -> list[set[int]]:
        ranks = arranged(Seg.parse({"by": "u", **fields}, "x"), 20)
        return [set(ranks[:2]), set(ranks[2:-2]), set(ranks[-2:])]

    middle = set(range(2, 18))
    assert segments() == [{0, 1}, middle, {18, 19}]
    assert segments(front_from="high", back_from="low") == [{18, 19}, middle, {0, 1}]
    assert segments(back_from="low") == [{0, 1}, set(range(4, 20)), {2, 3}]
    assert segments(front_from="high") == [{18, 19}, set(range(16)), {16, 17}]


def test_seg_shuffles_and_keeps_unscored_rows_in_the_middle() -> None:
    ranks = arranged(Seg(by="u", front=0.5, back=0.5), 400)
    for half, low in ((ranks[:200], 0), (ranks[200:], 200)):
        assert sorted(half) == list(range(low, low + 200))
        assert abs(np.corrcoef(half, np.arange(200))[0, 1]) < 0.25
    values: list[float | None] = [None, *map(float, range(10)), float("nan")]
    order = Seg(by="u").order(scored(values), Rng(0)).tolist()
    assert order[0] == 1
    assert order[-1] == 10
    assert Seg(by="u", front=1.0, back=0.0).order(scored([None, 1.0]), Rng(0)).tolist() == [1, 0]


def test_seg_gives_the_back_what_is_left() -> None:
    table = scored([float(x) for x in range(7)])  # round(3.5) is 4, twice
    part = Seg(by="u", front=0.5, back=0.5)
    found = [part.order(table, Rng(seed)).tolist() for seed in range(20)]
    assert all(set(order[:4]) == {0, 1, 2, 3} for order in found)
    assert {order[-1] for order in found} == {4, 5, 6}


@pytest.mark.parametrize("folds", [1, 3])
def test_jit_shuffles_inside_windows(folds: int) -> None:
    before = arranged(Folding(by="u", folds=folds), 103)
    after = arranged(Jit(by="u", window=10, folds=folds), 103)
    assert after != before
    for start in range(0, 103, 10):
        assert set(after[start : start + 10]) == set(before[start : start + 10])
    assert arranged(Jit(by="u", window=1, folds=folds), 103) == before


def test_jit_of_one_window_is_a_shuffle() -> None:
    table = scored([float(x) for x in range(50)])
    expected = np.argsort(Rng(0).uniform(table["id"]))
    np.testing.assert_array_equal(Jit(by="u", window=50).order(table, Rng(0)), expected)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Zig, {"folds": 0}, "folds"),
        (Strata, {"sections": 0}, "sections"),
        (Strata, {"radius": 0.6}, "radius"),
        (Saw, {"radius": float("nan")}, "radius"),
        (Saw, {"folds": 0}, "folds"),
        (Seg, {"front": 0.6, "back": 0.6}, "together at most 1"),
        (Seg, {"front": -0.1}, "shares"),
        (Jit, {"window": 0}, "window"),
        (Jit, {"folds": 0}, "folds"),
    ],
)
def test_bad_fields(kind: type[Order], fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind.parse({"by": "u", **fields}, "x")


@pytest.mark.parametrize("kind", [Zig, Strata, Saw, Seg, Jit])
def test_text_is_no_score(kind: type[Order]) -> None:
    with pytest.raises(DataError, match="u: rows are ranked by numbers"):
        kind.parse({"by": "u"}, "x").order(pa.table({"id": ids(1), "u": ["a"]}), Rng(0))
