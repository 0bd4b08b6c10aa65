"""Preference pairs: lengths, sameness, KnowPO's disjoint split and quotas."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.findings import findings
from foresift.pipeline.tables import content_ids
from foresift.scorers.preference_pairs import PreferencePairs, quotas, similarity, split
from tests.scorers import fitting

LONG = "one two three four five six"


def table(prompts: list[str], responses: list[str], /, **beside: Any) -> pa.Table:
    made = pa.table({"prompt": prompts, "response": responses, **beside})
    return made.append_column("id", content_ids(made))


def reasons(found: dict[str, Any]) -> list[list[str]]:
    return [[f.reason for f in row] for row in findings(pa.array(found["findings"]))]


def test_each_problem_of_a_pair_is_told(tmp_path: Path) -> None:
    pairs = [
        (LONG, "not at all the same six"), (LONG, "one"), (LONG, LONG.upper()), (LONG, ""),
        (LONG, "six five four three two one"),
    ]  # fmt: skip
    some = table(
        [f"q{k}" for k in range(5)], [c for c, _ in pairs],
        rejected=[r for _, r in pairs],
        plus=[1.0, 1.0, 1.0, None, 0.5], minus=[0.0, 0.0, 1.0, 0.0, 0.75],
    )  # fmt: skip
    part = PreferencePairs(rejected="rejected", chosen_reward="plus", rejected_reward="minus")
    found, facts = fitting.score(part, some, tmp_path / "out")
    assert reasons(found) == [
        [], ["length"], ["margin", "near_identical"], ["missing"], ["margin"],
    ]  # fmt: skip
    np.testing.assert_allclose(found["length_ratio"], [1, 6, 1, np.nan, 1])
    np.testing.assert_allclose(found["margin"], [1, 1, 0, np.nan, -0.25])
    assert found["utility"].tolist() == [0, -1, -2, -1, -1]
    assert facts["cells"]["all"]["length_ratio"] == pytest.approx(9 / 4)
    assert found["balanced"].all()


def test_similarity_counts_neighbouring_words() -> None:
    assert similarity("a b c", "A  b c") == 1
    assert similarity("a b c", "c b a") == 0
    assert similarity("a b c", "a b d") == pytest.approx(2 * 2 / 8)
    assert np.isnan(similarity("", "a"))


def test_ten_items_and_two_error_types_split_five_to_five() -> None:
    questions = [q * 7919 % 104729 for q in range(10)] * 2
    cells = [("relevant", "ignored")] * 10 + [("relevant", "overused")] * 10
    own, shared = split(cells, questions)
    first, second = ({q for q, mine in zip(questions[s], own[s], strict=True) if mine}
                     for s in (slice(10), slice(10, 20)))  # fmt: skip
    assert len(first) == len(second) == 5
    assert not first & second
    assert shared.all()
    kept, wanted = quotas(cells, own, 3)  # the cap comes after the split
    assert Counter(c for c, k in zip(cells, kept, strict=True) if k) == Counter(wanted)
    assert set(wanted.values()) == {3}


def test_a_shortage_is_told_and_not_filled_from_another_cell(tmp_path: Path) -> None:
    kinds = ["ignored"] * 6 + ["overused"] * 2
    some = table(
        [f"q{k}" for k in range(8)], [LONG] * 8, rejected=["x y z u v w"] * 8,
        context=["relevant"] * 8, error=kinds,
    )  # fmt: skip
    fields = {"rejected": "rejected", "context_type": "context", "error_type": "error"}
    found, facts = fitting.score(PreferencePairs(**fields, cap=4), some, tmp_path / "capped")
    kept = Counter(k for k, b in zip(kinds, found["balanced"], strict=True) if b)
    assert kept == {"ignored": 4, "overused": 2}
    assert facts["cells"]["relevant/overused"]["shortage"] == 2
    assert facts["warnings"] == ["relevant/overused has 2 pairs fewer than its quota of 4"]
    np.testing.assert_allclose(found["share"], [6 / 8] * 6 + [2 / 8] * 2)
    found, facts = fitting.score(PreferencePairs(**fields), some, tmp_path / "equal")
    assert Counter(k for k, b in zip(kinds, found["balanced"], strict=True) if b) == {
        "ignored": 2, "overused": 2,
    }  # fmt: skip
    assert facts["warnings"] == []


def test_a_question_under_two_error_types_belongs_to_one(tmp_path: Path) -> None:
    some = table(["q", " q", "r"], ["a", "b", "c"], rejected=["d", "e", "f"], error=["i", "o", "i"])
    part = PreferencePairs(rejected="rejected", error_type="error")
    found, _ = fitting.score(part, some, tmp_path / "out")
    assert found["disjoint"].tolist() == [False, True, True]  # `i` has the other question
    assert ["shared_question" in r for r in reasons(found)] == [True, True, False]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 6))))
def test_the_split_is_disjoint_and_quotas_are_kept(rows: list[tuple[str, str, int]]) -> None:
    cells, questions = [(c, e) for c, e, _ in rows], [q for *_, q in rows]
    own, _ = split(cells, questions)
    given_to: dict[tuple[str, int], set[str]] = {}
    for (context, error), question, mine in zip(cells, questions, own, strict=True):
        given_to.setdefault((context, question), set()).update([error] if mine else [])
    assert all(len(types) == 1 for types in given_to.values())
    kept, wanted = quotas(cells, own, 0)
    assert not (kept & ~own).any()
    counts = Counter(c for c, k in zip(cells, kept, strict=True) if k)
    assert all(counts[cell] == quota for cell, quota in wanted.items())


def test_a_column_given_as_chosen_and_columns_of_the_wrong_kind(tmp_path: Path) -> None:
    some = table(["q"], ["x"], rejected=["b"], chosen=["a"], n=[1])
    part = PreferencePairs(rejected="rejected", chosen="chosen")
    assert part.pairs(some) == [("a", "b")]
    with pytest.raises(DataError, match="n: answers are strings"):
        fitting.score(PreferencePairs(rejected="n"), some, tmp_path / "out")
    wrong = PreferencePairs(rejected="rejected", chosen_reward="chosen", rejected_reward="n")
    with pytest.raises(DataError, match="chosen: rewards are numbers"):
        fitting.score(wrong, some, tmp_path / "rewards")
    with pytest.raises(RecipeError, match="margin needs"):
        PreferencePairs.parse({"rejected": "r", "chosen_reward": "c"}, "score")


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 1, 3, 0, 2]])
def test_one_chosen_answer_with_several_rejected_ones_is_several_pairs(
    tmp_path: Path, order: list[int]
) -> None:
    """They share an id, which is of the question and the chosen answer."""
    rejected = ["ignored", "taken", "ignored", "ignored", "ignored"]
    some = table(
        ["q", "q", "r", "s", "q"], ["yes"] * 5, rejected=["a", "b", "c", "d", "a"], wrong=rejected
    )
    part = PreferencePairs(rejected="rejected", error_type="wrong", cap=9)
    found, facts = fitting.score(part, some.take(order), tmp_path / "out")
    back = np.argsort(order)
    assert np.asarray(found["share"])[back].tolist() == pytest.approx([3 / 4, 1 / 4, *[3 / 4] * 3])
    shared = ["shared_question" in row for row in reasons(found)]
    assert np.array(shared)[back].tolist() == [True, True, False, False, True]
    own = np.asarray(found["disjoint"])[back]
    assert own[0] != own[1]
    assert own[0] == own[4]
    assert {n: cell["pairs"] for n, cell in facts["cells"].items()} == {"ignored": 3, "taken": 1}
