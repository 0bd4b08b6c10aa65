"""What every selector that ranks rows must do: topk, gumbel_topk, random, length_matched_random."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import RecipeError
from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.stages.selectors.gumbel_topk import GumbelTopK
from foresift.stages.selectors.length_matched_random import LengthMatchedRandom
from foresift.stages.selectors.random import Random
from foresift.stages.selectors.topk import TopK
from tests.stages.selectors.tables import corpus, ids, kept_ids

SELECTORS: dict[str, Selector] = {
    "topk": TopK(by="s.u"),
    "topk lowest": TopK(by="s.u", lowest=True),
    "textbook": GumbelTopK(by="s.u"),
    "discard_pl": GumbelTopK(by="s.u", variant="discard_pl", standardise=True),
    "random": Random(),
    "length_matched_random": LengthMatchedRandom(like="d.kept", bins=8),
}
EVERY = pytest.mark.parametrize("selector", SELECTORS.values(), ids=list(SELECTORS))
RNG = Rng(0).at("select")


def pool(n: int = 500, **columns: Any) -> pa.Table:
    table = corpus(n, **columns)
    longer = np.asarray(table["n_tokens"]) > 60
    return table.append_column("d.kept", pa.array(longer & (np.arange(n) % 3 == 0)))


def choose(selector: Selector, table: pa.Table, budget: str | None, rng: Rng = RNG) -> Choice:
    return selector.select(table, Budget.parse(budget) if budget else None, rng)


@EVERY
def test_row_order_does_not_matter(selector: Selector) -> None:
    table = pool()
    shuffled = table.take(pa.array(np.random.default_rng(3).permutation(table.num_rows)))
    one, other = choose(selector, table, "20%"), choose(selector, shuffled, "20%")
    assert kept_ids(table, one) == kept_ids(shuffled, other)
    assert one.facts == other.facts


@EVERY
def test_row_order_does_not_matter_among_equal_scores(selector: Selector) -> None:
    table = pool(**{"s.u": np.repeat([1.0, 2.0], 250)})
    shuffled = table.take(pa.array(np.arange(table.num_rows)[::-1]))
    one, other = choose(selector, table, "30%"), choose(selector, shuffled, "30%")
    assert kept_ids(table, one) == kept_ids(shuffled, other)


@EVERY
def test_the_same_seed_keeps_the_same_rows(selector: Selector) -> None:
    table = pool()
    first = kept_ids(table, choose(selector, table, "20%"))
    assert first == kept_ids(table, choose(selector, table, "20%"))
    other = kept_ids(table, choose(selector, table, "20%", Rng(1).at("select")))
    assert (first == other) == isinstance(selector, TopK)


@EVERY
def test_the_budget_is_filled_and_overshot_by_less_than_a_document(selector: Selector) -> None:
    table = pool()
    tokens = np.asarray(table["n_tokens"])
    for amount in (1, 50, 1234, 20_000):
        choice = choose(selector, table, f"{amount} tokens")
        spent = tokens[choice.kept].sum()
        assert amount <= spent < amount + tokens.max()
        assert choice.facts["spent"] == spent
        assert choice.facts["short"] is False


@EVERY
def test_rows_can_be_counted_instead_of_tokens(selector: Selector) -> None:
    assert choose(selector, pool(), "7% rows").kept.sum() == 35
    assert choose(selector, pool(), "123 rows").kept.sum() == 123


@EVERY
def test_a_budget_of_nothing_and_a_budget_of_too_much(selector: Selector) -> None:
    table = pool()
    nothing, everything = choose(selector, table, "0"), choose(selector, table, "1B tokens")
    assert nothing.kept.sum() == 0
    assert nothing.facts["short"] is False
    assert everything.kept.all()
    assert everything.facts["short"] is True
    assert choose(selector, table, "100%").kept.all()


@EVERY
def test_an_empty_table(selector: Selector) -> None:
    for budget in ("20%", "1000 tokens", "0"):
        choice = choose(selector, pool().slice(0, 0), budget)
        assert len(choice.kept) == len(choice.rank) == len(choice.reason) == 0
        json.dumps(choice.facts, allow_nan=False)


@EVERY
def test_recutting_equals_selecting_anew(selector: Selector) -> None:
    table = pool()
    for budget in ("0", "3%", "40%", "95%", "100%", "1B"):
        other = Budget.parse(budget)
        fresh = choose(selector, table, budget)
        again = choose(selector, table, "20%").recut(other, other.costs(table))
        np.testing.assert_array_equal(fresh.kept, again.kept)
        np.testing.assert_array_equal(fresh.rank, again.rank)
        np.testing.assert_array_equal(fresh.reason, again.reason)


@EVERY
def test_every_row_has_a_reason_and_facts_are_json(selector: Selector) -> None:
    choice = choose(selector, pool(), "20%")
    assert set(choice.reason[choice.kept]) == {"within budget"}
    assert set(choice.reason[~choice.kept]) == {"over budget"}
    assert (choice.weight == 1).all()
    assert json.loads(json.dumps(choice.facts, allow_nan=False)) == choice.facts


@EVERY
def test_the_table_is_not_changed(selector: Selector) -> None:
    table, same = pool(), pool()
    choose(selector, table, "20%")
    assert table.equals(same)


@EVERY
def test_exact_copies_are_chosen_alike_in_any_order(selector: Selector) -> None:
    table = pool(60)
    doubled = pa.concat_tables([table, table])
    mixed = doubled.take(pa.array(np.random.default_rng(0).permutation(120)))
    one, other = choose(selector, doubled, "30%"), choose(selector, mixed, "30%")
    assert kept_ids(doubled, one) == kept_ids(mixed, other)


@pytest.mark.parametrize("name", ["topk", "topk lowest", "textbook", "discard_pl"])
def test_a_missing_score_is_never_kept(name: str) -> None:
    scores = np.random.default_rng(0).standard_normal(300)
    scores[::3] = np.nan
    column = pa.array([None if i % 5 == 0 else s for i, s in enumerate(scores)], pa.float64())
    missing = np.array([s is None or s != s for s in column.to_pylist()])
    choice = choose(SELECTORS[name], pool(300, **{"s.u": column}), "1B")
    np.testing.assert_array_equal(choice.kept, ~missing)
    assert set(choice.reason[missing]) == {"no score"}
    assert set(choice.rank[missing]) == {-1}
    assert choice.facts["unranked"] == missing.sum()
    assert choice.facts["short"] is True


@pytest.mark.parametrize("name", ["topk", "textbook", "discard_pl"])
@pytest.mark.parametrize("value", [float("nan"), None, 0.0, 7, True])
def test_all_scores_alike(name: str, value: Any) -> None:
    dtype = pa.float64() if value is None else None
    table = pool(100, **{"s.u": pa.array([value] * 100, dtype)})
    choice = choose(SELECTORS[name], table, "10 rows")
    expected = 0 if value is None or value != value else 10
    assert choice.kept.sum() == expected


@pytest.mark.parametrize("selector", [TopK(by="s.u"), GumbelTopK(by="s.u"), Random()])
def test_a_budget_is_asked_for(selector: Selector) -> None:
    assert selector.budgeted
    with pytest.raises(RecipeError, match="needs a budget"):
        choose(selector, pool(), None)


def test_needs_name_the_columns_that_are_read() -> None:
    assert TopK(by="a.b").needs == ("a.b",)
    assert GumbelTopK(by="a.b").needs == ("a.b",)
    assert Random().needs == ()
    assert LengthMatchedRandom(like="d.kept", by="n_bytes").needs == (
        "d.kept",
        "n_bytes",
        "n_tokens",
    )


SCORES = st.one_of(st.none(), st.sampled_from([0.0, 1.0, -1.0, 2.5, float("nan"), float("inf")]))


@given(
    rows=st.lists(st.tuples(SCORES, st.integers(0, 9)), min_size=1, max_size=12),
    amount=st.integers(0, 60),
    lowest=st.booleans(),
)
def test_topk_agrees_with_the_definition(
    rows: list[tuple[float | None, int]], amount: int, lowest: bool
) -> None:
    keys = ids(len(rows)).to_pylist()
    words = [tuple(np.frombuffer(k, "<u8").tolist()) for k in keys]
    table = pa.table(
        {
            "id": pa.array(keys, pa.binary(16)),
            "n_tokens": [t for _, t in rows],
            "s.u": pa.array([s for s, _ in rows], pa.float64(), from_pandas=False),
        }
    )
    sign = 1 if lowest else -1
    ranked = [i for i, (s, _) in enumerate(rows) if s is not None and s == s]
    ranked.sort(key=lambda i: (sign * (rows[i][0] or 0.0), words[i]))
    expected, spent = set(), 0
    for i in ranked:
        if spent >= amount:
            break
        expected.add(i)
        spent += rows[i][1]
    choice = TopK(by="s.u", lowest=lowest).select(table, Budget(amount), RNG)
    assert set(np.flatnonzero(choice.kept)) == expected
