"""`where`: which rows stay, and the reason of those that do not."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import RecipeError
from foresift.pipeline.nouns import Budget, Rng
from foresift.stages.selectors.where import Where
from tests.stages.selectors.tables import corpus, ids, kept_ids

TABLE = pa.table(
    {
        "id": ids(5),
        "heuristics.ok": [True, False, None, True, False],
        "forget_risk.pii": [0, 0, 0, 3, 1],
        "loss.nll": [1.0, 2.0, 3.0, float("nan"), None],
    }
)


def test_the_reason_is_the_first_clause_that_fails() -> None:
    part = Where(keep="heuristics.ok and forget_risk.pii = 0 and (loss.nll < 9 or true)")
    choice = part.select(TABLE, None, Rng(0))
    assert choice.kept.tolist() == [True, False, False, False, False]
    assert choice.reason.tolist() == [
        "where",
        "not (heuristics.ok)",
        "not (heuristics.ok)",
        "not (forget_risk.pii = 0)",
        "not (heuristics.ok)",
    ]
    assert choice.facts["dropped_by"] == {
        "not (heuristics.ok)": 3,
        "not (forget_risk.pii = 0)": 1,
        "not ((loss.nll < 9 or true))": 0,
    }
    assert json.loads(json.dumps(choice.facts)) == choice.facts


@pytest.mark.parametrize("keep", ["loss.nll < 100", "not (loss.nll > 100)", "loss.nll != 7"])
def test_rows_without_the_number_are_dropped(keep: str) -> None:
    assert Where(keep=keep).select(TABLE, None, Rng(0)).kept.tolist() == [True] * 3 + [False] * 2


def test_a_budget_is_not_looked_at() -> None:
    part = Where(keep="heuristics.ok is not null")
    assert not part.budgeted
    with_budget = part.select(TABLE, Budget(0), Rng(0))
    np.testing.assert_array_equal(with_budget.kept, part.select(TABLE, None, Rng(0)).kept)
    assert set(with_budget.rank) == {-1}


def test_needs_are_the_columns_of_the_condition() -> None:
    assert Where(keep="b.x > 1 and not a or b.x < c.d").needs == ("b.x", "a", "c.d")


def test_row_order_seed_and_emptiness() -> None:
    table = corpus(200)
    part = Where(keep="s.u > 0 and n_tokens < 60")
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(200)))
    one, other = part.select(table, None, Rng(0)), part.select(shuffled, None, Rng(1))
    assert kept_ids(table, one) == kept_ids(shuffled, other)
    assert 0 < one.kept.sum() < 200
    assert len(part.select(table.slice(0, 0), None, Rng(0)).kept) == 0


def test_a_bad_condition_is_located_when_the_recipe_is_read() -> None:
    with pytest.raises(RecipeError) as caught:
        Where.parse({"keep": "heuristics.ok and open('x')"}, "steps.2 select where")
    assert str(caught.value).startswith("steps.2 select where: ")
    assert "there are no functions: 'open' at position 19" in str(caught.value)
