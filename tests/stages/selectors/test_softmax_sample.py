"""Softmax sampling: first draws, what changes nothing, and shares of labels."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import RecipeError
from foresift.pipeline.nouns import Budget, Choice, Rng
from foresift.stages.selectors.gumbel_topk import GumbelTopK
from foresift.stages.selectors.softmax_sample import SoftmaxSample
from foresift.stages.selectors.topk import TopK
from tests.stages.selectors.tables import corpus, ids, kept_ids

RNG = Rng(0).at("select")


def select(part: SoftmaxSample, table: pa.Table, budget: str = "20%", rng: Rng = RNG) -> Choice:
    return part.select(table, Budget.parse(budget), rng)


def test_the_first_draw_of_two() -> None:
    table = pa.table({"id": ids(2), "n_tokens": [1, 1], "u": [0.0, 2.0]})
    part = SoftmaxSample(by="u", temperature=2.0)
    draws = 6000
    first = np.mean([select(part, table, "1 row", Rng(s)).rank[1] == 0 for s in range(draws)])
    p = 0.731059
    assert first == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / draws))


@pytest.mark.parametrize("per", ["", "d"])
def test_adding_to_all_scores_or_scaling_them_changes_nothing(per: str) -> None:
    table = corpus(500, d=np.arange(500) % 3)
    raw = np.asarray(table["s.u"])
    moved = table.append_column("moved", pa.array(raw + 100)).append_column(
        "scaled", pa.array(8 * raw)
    )
    kept = [
        select(SoftmaxSample(by=by, per=per, temperature=2.0), moved).kept
        for by in ("s.u", "moved", "scaled")
    ]
    np.testing.assert_array_equal(kept[0], kept[1])
    np.testing.assert_array_equal(kept[0], kept[2])


def test_without_labels_it_is_gumbel_topk_with_standard_scores() -> None:
    table = corpus(500)
    for temperature in (0.0, 0.5, 2.0):
        one = select(SoftmaxSample(by="s.u", temperature=temperature), table)
        twin = GumbelTopK(by="s.u", temperature=temperature, standardise=True)
        other = twin.select(table, Budget.parse("20%"), RNG)
        np.testing.assert_array_equal(one.rank, other.rank)


def test_a_higher_temperature_gives_up_score_for_breadth() -> None:
    table = corpus(5000)
    score = np.asarray(table["s.u"])
    means = [
        score[select(SoftmaxSample(by="s.u", temperature=t), table, "10% rows").kept].mean()
        for t in (0.0, 1.0, 2.0, 8.0)
    ]
    assert means == sorted(means, reverse=True)
    hard = TopK(by="s.u").select(table, Budget.parse("10% rows"), RNG)
    assert means[0] == score[hard.kept].mean()


def test_labels_keep_their_part_of_the_budget() -> None:
    domain = np.where(np.arange(1000) < 700, "web", "code")
    score = np.where(domain == "code", 3.0, 0.0) + np.asarray(corpus(1000)["s.u"])
    table = corpus(1000, d=domain, u=score)
    choice = select(SoftmaxSample(by="u", per="d"), table, "100 rows")
    assert (domain[choice.kept] == "code").sum() == 30
    assert choice.facts["quotas"]["web"] == {"available": 700, "quota": 70, "taken": 70}
    loose = select(SoftmaxSample(by="u"), table, "100 rows")
    assert (domain[loose.kept] == "code").sum() > 60


@pytest.mark.parametrize("per", ["", "d"])
def test_row_order_does_not_matter_and_budgets_are_crossed_once(per: str) -> None:
    table = corpus(500, d=np.arange(500) % 4)
    shuffled = table.take(pa.array(np.random.default_rng(3).permutation(500)))
    part = SoftmaxSample(by="s.u", per=per)
    one, other = select(part, table), select(part, shuffled)
    assert kept_ids(table, one) == kept_ids(shuffled, other)
    assert one.facts == other.facts
    tokens = np.asarray(table["n_tokens"])
    assert 0 <= tokens[one.kept].sum() - 0.2 * tokens.sum() < tokens.max()


@pytest.mark.parametrize("per", ["", "d"])
def test_missing_and_constant_scores(per: str) -> None:
    score = [float("nan") if i % 4 == 0 else 7.0 for i in range(100)]
    label = pa.array([None if i % 10 == 1 else "x" for i in range(100)])
    table = corpus(100, u=score, d=label)
    choice = select(SoftmaxSample(by="u", per=per), table, "10 rows")
    assert choice.kept.sum() == 10
    assert set(choice.reason[::4]) == {"no score"}
    assert not choice.kept[::4].any()
    assert ("no label" in choice.reason) == bool(per)
    for nothing in (table.slice(0, 0), corpus(100, u=np.full(100, np.nan), d=label)):
        choice = select(SoftmaxSample(by="u", per=per), nothing, "10 rows")
        assert choice.kept.sum() == 0
        json.dumps(choice.facts, allow_nan=False)


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_a_bad_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        SoftmaxSample(by="u", temperature=temperature)


def test_needs_and_budget() -> None:
    assert SoftmaxSample(by="u").needs == ("u",)
    assert SoftmaxSample(by="u", per="d").needs == ("u", "d")
    with pytest.raises(RecipeError, match="needs a budget"):
        SoftmaxSample(by="s.u").select(corpus(5), None, RNG)
