"""Relational selection against hand-worked picks and a plain greedy over the definition."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.nouns import Budget, Choice, Rng
from foresift.pipeline.vectors import unit
from foresift.stages.selectors import relational
from foresift.stages.selectors.relational import Relational, ranking
from foresift.stages.selectors.topk import TopK
from tests.stages.selectors.tables import corpus, ids, kept_ids

RNG = Rng(0).at("select")
FLOATS = pa.list_(pa.float32())
ONE = Relational(by="u", embedding="e", clusters="c")


def rows(u: list[Any], e: Any, c: Any = None, cost: Any = None) -> pa.Table:
    """A table whose ids ascend with the row number."""
    n = len(u)
    keys = sorted(ids(n).to_pylist(), key=lambda k: tuple(np.frombuffer(k, "<u8").tolist()))
    return pa.table(
        {
            "id": pa.array(keys, pa.binary(16)),
            "n_tokens": pa.array([10] * n if cost is None else cost, pa.int64()),
            "u": pa.array(u, pa.float64(), from_pandas=False),
            "e": pa.array(e, FLOATS),
            "c": [0] * n if c is None else c,
        }
    )


def pool(n: int = 300, clusters: int = 7, shift: float = 0.3, seed: int = 0) -> pa.Table:
    """Unit vectors of any direction, utilities of both signs, clusters of different size."""
    rng = np.random.default_rng([seed, 2])
    table = corpus(n, seed, u=rng.standard_normal(n) + shift)
    vectors = unit(rng.standard_normal((n, 6))).tolist()
    labels = [f"c{int(x)}" for x in clusters * rng.random(n) ** 2]
    return table.append_column("e", pa.array(vectors, FLOATS)).append_column("c", pa.array(labels))


def select(part: Relational, table: pa.Table, budget: str = "30%", rng: Rng = RNG) -> Choice:
    return part.select(table, Budget.parse(budget), rng)


def in_order(choice: Choice) -> list[int]:
    """Row numbers from the most preferred on."""
    ranked = np.flatnonzero(choice.rank >= 0)
    return [int(i) for i in ranked[np.argsort(choice.rank[ranked])]]


# -- the greedy of one cluster -----------------------------------------------------------------


def test_four_documents_worked_by_hand() -> None:
    # picks: 1.0; then .2*.9, 1*.5, 1.6*.31; then .3*.9, .9*.31; then (1 - 1.4/3)*.9
    table = rows([1.0, 0.9, 0.5, 0.31], [[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]])
    assert in_order(select(ONE, table)) == [0, 2, 3, 1]
    vectors = np.array(table["e"].to_pylist())
    picks, values = ranking(np.asarray(table["u"]), vectors, 1.0, 1.0)
    assert picks.tolist() == [0, 2, 3, 1]
    np.testing.assert_allclose(values, [1.0, 0.5, 0.279, 0.48], atol=1e-7)
    warm = Relational(by="u", embedding="e", clusters="c", tau=2.0)
    assert in_order(select(warm, table))[:2] == [0, 1]  # .6*.9 against .5 and 1.3*.31


@pytest.mark.parametrize("alpha", [0.25, 1.0, 3.0])
def test_equal_vectors_have_no_value_and_orthogonal_ones_alpha_u(alpha: float) -> None:
    utility = np.array([0.9, 0.5, 0.4])
    same = np.tile([[0.6, 0.8, 0.0]], (3, 1))
    assert ranking(utility, same, alpha, 1.0)[1].tolist() == [0.9, 0.0, 0.0]
    picks, values = ranking(utility, np.eye(3), alpha, 1.0)
    assert picks.tolist() == [0, 1, 2]
    np.testing.assert_allclose(values, [0.9, alpha * 0.5, alpha * 0.4], rtol=1e-12)


def test_a_relation_below_zero_counts_as_zero() -> None:
    picks, values = ranking(np.array([3.0, 2.0, 1.0]), np.ones((3, 2)), 1.0, 0.5)
    assert values.tolist() == [3.0, 0.0, 0.0]
    assert picks.tolist() == [0, 1, 2]


def test_rounding_errors_do_not_order_copies() -> None:
    for seed in range(30):
        vectors = np.tile(np.random.default_rng(seed).standard_normal(7), (6, 1))
        picks, values = ranking(np.arange(6.0, 0.0, -1.0), vectors, 1.0, 1.0)
        assert picks.tolist() == list(range(6))
        assert values.tolist() == [6.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_equal_values_go_to_the_smaller_id() -> None:
    table = rows([1.0] * 6, np.eye(6).tolist())
    assert in_order(select(ONE, table)) == list(range(6))
    assert in_order(select(ONE, table.take(pa.array([5, 3, 0, 1, 4, 2])))) == [2, 3, 5, 1, 4, 0]


def test_many_and_few_rows_at_a_time_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pool(400, clusters=3)
    gram = select(ONE, table)
    monkeypatch.setattr(relational, "GRAM_ROWS", 0)
    np.testing.assert_array_equal(select(ONE, table).rank, gram.rank)


# -- the definition, plainly -------------------------------------------------------------------


def plain_picks(rows: list[int], u: Any, e: Any, alpha: float, tau: float) -> list[Any]:
    """(row, value) of one cluster, comparing every candidate with every pick each time."""
    found: list[Any] = []
    left = sorted(rows)
    while left:
        values = {}
        for i in left:
            relation = 1.0
            if found:
                terms = [1 - float(np.dot(e[i], e[j])) / tau for j, _ in found]
                relation = max(0.0, alpha * round(sum(terms) / len(terms), 9))
            values[i] = relation * u[i]
        pick = max(left, key=lambda i: (values[i], u[i], -i))
        found.append((pick, values[pick]))
        left.remove(pick)
    return found


def plain_order(table: pa.Table, alpha: float, tau: float) -> list[int]:
    """Everything but the unhelpful tail; rows are numbered in the order of their ids."""
    u, cost, c = (table[name].to_pylist() for name in ("u", "n_tokens", "c"))
    e = [np.array(v) / np.linalg.norm(v) for v in table["e"].to_pylist()]
    names = sorted(set(c))
    total = {k: sum(w for w, x in zip(cost, c, strict=True) if x == k) for k in names}
    queue = {
        k: plain_picks([i for i in range(len(u)) if c[i] == k and u[i] > 0], u, e, alpha, tau)
        for k in names
    }
    spent, left, order = dict.fromkeys(names, 0), 0, []
    while any(queue.values()):
        due = []
        for k in names:
            if queue[k]:
                row = queue[k][0][0]
                due.append((Fraction(2 * spent[k] + cost[row], 2 * total[k]), row, k))
        best = min((-queue[k][0][1], queue[k][0][0], k) for k in names if queue[k])
        idle = [k for k in names if not queue[k]]
        time, row, k = min(due)
        if idle:
            paid = left + sum(spent[j] for j in idle)
            share = sum(total[j] for j in idle)
            if Fraction(2 * paid + cost[best[1]], 2 * share) < time:
                _, row, k = best
                left += cost[row]
                spent[k] -= cost[row]
        spent[k] += cost[row]
        queue[k].pop(0)
        order.append(row)
    return order


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("alpha", "tau"), [(1.0, 1.0), (0.4, 0.3), (2.0, 5.0)])
def test_it_agrees_with_the_plain_definition(seed: int, alpha: float, tau: float) -> None:
    table = pool(90, clusters=5, shift=[0.0, 0.5, -0.5, 3.0][seed], seed=seed)
    by_id = sorted(range(90), key=lambda i: tuple(np.frombuffer(table["id"][i].as_py(), "<u8")))
    table = table.take(pa.array(by_id))
    part = Relational(by="u", embedding="e", clusters="c", alpha=alpha, tau=tau)
    got = in_order(select(part, table))
    expected = plain_order(table, alpha, tau)
    assert got[: len(expected)] == expected
    u = np.asarray(table["u"])
    assert u[got[: len(expected)]].min() > 0
    tail = u[got[len(expected) :]]
    assert len(got) == 90
    assert (tail <= 0).all()
    assert (np.diff(tail) <= 0).all()


# -- clusters share the budget -----------------------------------------------------------------


def test_each_cluster_has_its_share_at_every_budget() -> None:
    table = pool(400, shift=9.0)
    cost, label = np.asarray(table["n_tokens"]), np.array(table["c"].to_pylist())
    half = cost.max() / 2
    for budget in ("2%", "10%", "35%", "80%"):
        kept = select(ONE, table, budget).kept
        for name in np.unique(label):
            share = cost[label == name].sum() / cost.sum()
            off = cost[kept & (label == name)].sum() - share * cost[kept].sum()
            assert abs(off) <= half + share * len(np.unique(label)) * half


def test_what_a_cluster_cannot_use_goes_to_the_best_pick_elsewhere() -> None:
    # `a`, half the corpus, has nothing helpful. Its share is due a row at t = 1/16, 3/16, 5/16 and
    # takes the best of `c`; `b` and `c` are due at 1/8 and 3/8 by their own shares
    u = [-1.0] * 8 + [0.4, 0.3, 0.2, 0.1] + [0.9, 0.8, 0.7, 0.6]
    table = rows(u, np.eye(16).tolist(), list("aaaaaaaabbbbcccc"))
    assert in_order(select(ONE, table)) == [12, 8, 13, 14, 15, 9, 10, 11, *range(8)]
    # without `a`, `b` and `c` take turns
    assert in_order(select(ONE, table.slice(8))) == [0, 4, 1, 5, 2, 6, 3, 7]


def test_unhelpful_rows_come_last_by_utility_alone() -> None:
    table = pool(200)
    u = np.asarray(table["u"])
    order = in_order(select(ONE, table))
    assert set(np.flatnonzero(u > 0)) == set(order[: (u > 0).sum()])
    assert order[(u > 0).sum() :] == [i for i in np.argsort(-u) if u[i] <= 0]
    worse = table.drop_columns(["u"]).append_column("u", pa.array(u - 100))
    top = TopK(by="u").select(worse, Budget.parse("30%"), RNG)
    np.testing.assert_array_equal(select(ONE, worse).rank, top.rank)
    assert select(ONE, worse).facts["positive"] == 0


def test_near_duplicates_are_spread_out() -> None:
    rng = np.random.default_rng(0)
    topic = np.repeat(np.arange(10), 20)
    vectors = np.eye(10)[topic] + 0.02 * rng.standard_normal((200, 10))
    table = rows((2 - 0.05 * topic + 0.01 * rng.random(200)).tolist(), vectors.tolist())
    ours = select(ONE, table, "20 rows").kept
    top = TopK(by="u").select(table, Budget.parse("20 rows"), RNG).kept
    assert len(set(topic[top].tolist())) == 1
    assert len(set(topic[ours].tolist())) >= 8
    assert np.bincount(topic[ours]).max() <= 4


# -- what every selector promises --------------------------------------------------------------

PARTS = {
    "column": ONE,
    "k-means": Relational(by="u", embedding="e", clusters=5),
    "default": Relational(by="u", embedding="e", tau=0.5),
}
EVERY = pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))


@EVERY
def test_neither_row_order_nor_chunks_nor_copies_of_shards_matter(part: Relational) -> None:
    table = pool()
    one = select(part, table)
    order = np.random.default_rng(3).permutation(300)
    mixed = table.take(pa.array(order))
    mixed = pa.concat_tables([mixed.slice(0, 100), mixed.slice(100, 7), mixed.slice(107)])
    other = select(part, mixed)
    np.testing.assert_array_equal(one.rank[order], other.rank)
    assert one.facts == other.facts
    doubled = pa.concat_tables([table, table])
    shuffled = doubled.take(pa.array(np.random.default_rng(4).permutation(600)))
    first, second = select(part, doubled), select(part, shuffled)
    assert kept_ids(doubled, first) == kept_ids(shuffled, second)
    assert first.facts["clusters"] == one.facts["clusters"]
    assert first.facts["largest_cluster"] == 2 * one.facts["largest_cluster"]


@EVERY
def test_recutting_equals_selecting_anew(part: Relational) -> None:
    table = pool()
    for budget in ("0", "3%", "40%", "100%", "1B"):
        other = Budget.parse(budget)
        fresh, again = select(part, table, budget), select(part, table)
        again = again.recut(other, other.costs(table))
        np.testing.assert_array_equal(fresh.kept, again.kept)
        np.testing.assert_array_equal(fresh.rank, again.rank)
    assert json.loads(json.dumps(fresh.facts, allow_nan=False)) == fresh.facts


def test_the_length_of_the_vectors_does_not_matter() -> None:
    table = pool()
    scale = np.random.default_rng(5).uniform(0.1, 30, 300)
    longer = (scale[:, None] * np.array(table["e"].to_pylist())).tolist()
    scaled = table.drop_columns(["e"]).append_column("e", pa.array(longer, FLOATS))
    for part in (ONE, PARTS["k-means"]):
        np.testing.assert_array_equal(select(part, scaled).kept, select(part, table).kept)


@pytest.mark.parametrize(
    "dtype", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 6)]
)
def test_every_kind_of_list_will_do(dtype: pa.DataType) -> None:
    table = pool(60)
    values = [None if i % 8 == 0 else v for i, v in enumerate(table["e"].to_pylist())]
    table = table.drop_columns(["e"])
    plain = table.append_column("e", pa.array(values, FLOATS))
    other = table.append_column("e", pa.array(values, dtype))
    np.testing.assert_array_equal(select(ONE, plain).rank, select(ONE, other).rank)


def test_rows_without_score_vector_or_cluster_are_never_kept() -> None:
    nan, inf = float("nan"), float("inf")
    u = [1.0, None, nan, 1.0, 1.0, 1.0, 1.0, inf, -inf]
    e = [[1, 0], [1, 0], None, None, [nan, 0], [0, 0], [inf, 1], [0, 1], [1, 1]]
    choice = select(ONE, rows(u, e), "1B")
    lost = ["no score"] * 2 + ["no embedding"] * 4
    assert choice.reason.tolist() == ["within budget", *lost, "within budget", "within budget"]
    assert in_order(choice) == [7, 0, 8]
    assert choice.facts["unranked"] == 6
    for labels in (["x", None, "y"], [0.0, nan, 1.0], [2, None, 3]):
        table = rows([1.0, 1.0, 1.0], np.eye(3).tolist(), pa.array(labels, from_pandas=False))
        choice = select(ONE, table, "1B")
        assert choice.reason.tolist() == ["within budget", "no cluster", "within budget"]
        assert choice.facts["clusters"] == 2


@EVERY
def test_nothing_to_choose_from(part: Relational) -> None:
    table = pool(20)
    assert len(select(part, table.slice(0, 0)).kept) == 0
    gone = table.drop_columns(["e"]).append_column("e", pa.nulls(20, FLOATS))
    choice = select(part, gone)
    assert set(choice.reason) == {"no embedding"}
    assert choice.facts["clusters"] == choice.facts["largest_cluster"] == 0


# -- k-means -----------------------------------------------------------------------------------


def test_computed_clusters_equal_given_ones() -> None:
    table = pool(200)
    side = np.sign(np.asarray(table["s.u"]))
    vectors = np.array(table["e"].to_pylist()) + 5 * side[:, None]
    table = table.drop_columns(["e", "c"]).append_column("e", pa.array(vectors.tolist(), FLOATS))
    table = table.append_column("c", pa.array(side > 0))
    computed = select(Relational(by="u", embedding="e", clusters=2), table)
    np.testing.assert_array_equal(computed.rank, select(ONE, table).rank)


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["alpha", "tau"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_constants_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Relational(by="u", embedding="e", **{field: value})


def test_a_bad_number_of_clusters_is_refused() -> None:
    with pytest.raises(RecipeError, match="clusters must be a column"):
        Relational.parse({"by": "u", "embedding": "e", "clusters": -1}, "select")
    assert Relational.parse({"by": "u", "embedding": "e", "clusters": "c"}, "").clusters == "c"
    part = Relational(by="u", embedding="e", clusters=21)
    with pytest.raises(DataError, match=r"clusters: 20 documents .* cannot make 21 clusters"):
        select(part, pa.concat_tables([pool(20)] * 2))  # copies are one document
    assert select(Relational(by="u", embedding="e", clusters=20), pool(20)).kept.any()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.0, 2.0]), "e: vectors are lists of floats, .* not double"),
        (pa.array(["a", "b"]), "e: vectors are lists of floats, .* not string"),
        (pa.array([["a"], ["b"]]), "e: vectors are lists of floats"),
        (pa.array([[1.0], [1.0, 2.0]]), "e: vectors of 2 different widths, such as 1 and 2"),
    ],
)
def test_a_column_that_holds_no_vectors_of_one_width(column: pa.Array, message: str) -> None:
    table = rows([1.0, 1.0], [[1.0], [1.0]]).drop_columns(["e"]).append_column("e", column)
    with pytest.raises(DataError, match=message):
        select(ONE, table)


def test_labels_are_plain_values_and_a_budget_is_asked_for() -> None:
    table = pool(10)
    with pytest.raises(DataError, match="e: labels are numbers or strings"):
        select(Relational(by="u", embedding="e", clusters="e"), table)
    with pytest.raises(RecipeError, match="needs a budget"):
        ONE.select(table, None, RNG)
    assert ONE.needs == ("u", "e", "c")
    assert PARTS["default"].needs == ("u", "e")
