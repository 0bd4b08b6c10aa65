"""The baseline that has the lengths of a selection and nothing else of it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.nouns import Budget, Rng
from foresift.stages.selectors.length_matched_random import LengthMatchedRandom
from tests.stages.selectors.tables import corpus, ids

PART = LengthMatchedRandom(like="kept")


def pool(n: int = 50_000) -> pa.Table:
    """A pool whose target prefers long documents with a high score."""
    table = corpus(n)
    tokens, score = np.asarray(table["n_tokens"]), np.asarray(table["s.u"])
    chosen = (score > 0.5) & (np.random.default_rng(5).random(n) < np.minimum(tokens / 200, 1))
    return table.append_column("kept", pa.array(chosen))


def quantiles(lengths: np.ndarray) -> np.ndarray:
    return np.quantile(lengths, [0.05, 0.25, 0.5, 0.75, 0.95])


def test_lengths_match_and_scores_do_not() -> None:
    table = pool()
    tokens, score = np.asarray(table["n_tokens"]), np.asarray(table["s.u"])
    target = np.asarray(table["kept"])
    choice = PART.select(table, None, Rng(0))
    assert choice.facts["spent"] == pytest.approx(tokens[target].sum(), abs=int(tokens.max()))
    assert choice.facts["ks_distance"] < 0.02
    np.testing.assert_allclose(quantiles(tokens[choice.kept]), quantiles(tokens[target]), rtol=0.05)
    assert quantiles(tokens)[2] < 0.7 * quantiles(tokens[target])[2]
    assert abs(score[choice.kept].mean()) < 0.05 < score[target].mean()
    assert 0 < (choice.kept & target).sum() < target.sum()


def test_each_bin_gives_what_the_target_has_within_a_document() -> None:
    table = pool()
    facts = PART.select(table, None, Rng(0)).facts
    difference = np.abs(np.subtract(facts["target_cost"], facts["achieved_cost"]))
    longest = np.append(facts["edges"], np.asarray(table["n_tokens"]).max())
    assert (difference[:-1] <= longest[: len(difference) - 1]).all()
    assert sum(facts["achieved_cost"]) == facts["spent"]


@pytest.mark.parametrize("share", ["1%", "5%", "15%"])
def test_lengths_match_at_other_budgets_too(share: str) -> None:
    table = pool()
    choice = PART.select(table, Budget.parse(share), Rng(0))
    assert choice.facts["ks_distance"] < 1.5 / np.sqrt(choice.kept.sum()) + 0.005


def test_the_distance_is_that_of_the_distribution_functions() -> None:
    table = pool(400)
    tokens, target = np.asarray(table["n_tokens"]), np.asarray(table["kept"])
    choice = PART.select(table, None, Rng(0))
    ours, theirs = tokens[choice.kept], tokens[target]
    expected = max(abs((ours <= x).mean() - (theirs <= x).mean()) for x in tokens)
    assert choice.facts["ks_distance"] == pytest.approx(expected, abs=1e-12)


def test_what_a_bin_lacks_comes_from_the_nearest_bins() -> None:
    lengths = [10] * 20 + [20] * 2 + [30] * 20 + [1000] * 20
    table = pa.table(
        {"id": ids(62), "n_tokens": lengths, "kept": [length == 20 for length in lengths]}
    )
    kept = PART.select(table, Budget(100), Rng(0)).kept
    got = {x: int(kept[np.array(lengths) == x].sum()) for x in (10, 20, 30, 1000)}
    assert got == {10: 6, 20: 2, 30: 0, 1000: 0}
    later = PART.select(table, Budget(40 + 200 + 300), Rng(0)).kept
    assert later[np.array(lengths) == 10].all()
    assert later[np.array(lengths) == 30].sum() == 10
    assert not later[np.array(lengths) == 1000].any()


def test_a_target_of_nothing() -> None:
    table = pool(300).drop_columns(["kept"]).append_column("kept", pa.array([False] * 300))
    nothing = PART.select(table, None, Rng(0))
    assert nothing.kept.sum() == 0
    assert nothing.facts["target_rows"] == 0
    plain = PART.select(table, Budget.parse("30 rows"), Rng(0))
    assert plain.kept.sum() == 30
    assert plain.facts["ks_distance"] is None
    everyone = np.asarray(table["n_tokens"])
    assert 0.3 < np.median(everyone[plain.kept]) / np.median(everyone) < 3
    assert len(set(everyone[plain.kept].tolist())) > 10


def test_missing_marks_and_lengths() -> None:
    table = pa.table(
        {
            "id": ids(6),
            "n_tokens": [5] * 6,
            "len": [1.0, 2.0, None, float("nan"), 1.0, 2.0],
            "kept": [True, True, True, None, None, False],
        }
    )
    choice = LengthMatchedRandom(like="kept", by="len").select(table, Budget(100), Rng(0))
    assert choice.kept.tolist() == [True, True, False, False, True, True]
    assert choice.reason[2:4].tolist() == ["no length"] * 2
    assert choice.facts["target_rows"] == 2


def test_one_length_and_zero_lengths() -> None:
    for length in (0, 7):
        table = pa.table(
            {"id": ids(10), "n_tokens": [length] * 10, "kept": [i < 4 for i in range(10)]}
        )
        assert PART.select(table, Budget.parse("5 rows"), Rng(0)).kept.sum() == 5
        assert PART.select(table, None, Rng(0)).kept.sum() == (4 if length else 0)


def test_bins_must_be_positive() -> None:
    with pytest.raises(ValueError, match="bins"):
        LengthMatchedRandom(like="kept", bins=0)
