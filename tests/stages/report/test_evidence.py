"""What the losses of the arms amount to, in numbers and in words."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import stats

from foresift.stages.report.evidence import evidence, sentence

Losses = dict[str, list[float]]


def manifest(losses: Losses, stderr: float | None = 0.01, tokens: int = 1000) -> dict[str, Any]:
    """One round; a list holds one loss for each repeat."""
    steps, evaluations = [], []
    for repeat in range(max(len(v) for v in losses.values())):
        for arm, values in losses.items():
            train = {"verb": "train", "line": arm, "round": 1, "name": "causal_lm"}
            steps.append({**train, "repeat": repeat, "facts": {"tokens": tokens}})
            evaluations.append(
                {
                    "line": arm, "repeat": repeat, "round": 1, "token_mean": values[repeat],
                    "token_mean_se": stderr, "tokens": 5, "documents": 7, "trained_tokens": tokens,
                }
            )  # fmt: skip
    steps.append({"verb": "evaluate", "line": "selected", "round": 1, "name": "web", "facts": {}})
    return {"steps": steps, "evaluations": evaluations}


def found(losses: Losses, **kw: Any) -> Any:
    result = evidence(manifest(losses, **kw))
    assert result is not None
    return result


def test_a_win_in_one_run_is_called_ahead_and_no_more() -> None:
    losses = {"selected": [3.21], "random": [3.45], "length_matched_random": [3.44]}
    assert sentence(found(losses, tokens=400_000)) == (
        "After 1 round the model trained on the selection has a held-out loss of 3.210 "
        "nats/token; random text 3.450, length-matched random text 3.440, at 400,000 training "
        "tokens each. The selection is ahead of random (−0.240) and length-matched random "
        "(−0.230); one training run each, so whether another would agree is not known."
    )


def test_a_loss_is_called_a_loss() -> None:
    text = sentence(found({"selected": [3.5], "random": [3.4]}))
    assert "The selection lost: its loss is higher than that of random (+0.100)" in text


def test_some_won_some_lost() -> None:
    text = sentence(found({"selected": [3.5], "random": [3.6], "length_matched_random": [3.4]}))
    assert "is ahead of random (−0.100), lost to length-matched random (+0.100)" in text


def test_a_tie_is_no_win() -> None:
    assert "cannot be told apart from random" in sentence(
        found({"selected": [3.5], "random": [3.5001]})
    )


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    ours, theirs = [3.0, 3.2, 2.9, 3.1], [3.1, 3.25, 3.05, 3.12]
    result = found({"selected": ours, "random": theirs})
    [difference] = result.differences
    test = stats.ttest_rel(theirs, ours).confidence_interval(0.95)
    assert difference.mean - difference.half == pytest.approx(test.low)
    assert difference.mean + difference.half == pytest.approx(test.high)
    assert result.repeats == 4
    assert result.last[0].loss == pytest.approx(3.05)
    assert result.last[0].stderr == pytest.approx(stats.sem(ours))
    assert result.last[0].tokens == 1000


def test_an_interval_that_holds_zero_is_no_win() -> None:
    result = found({"selected": [3.0, 3.2], "random": [3.1, 3.21]})
    assert result.differences[0].sign == 0
    assert "cannot be told apart from random" in sentence(result)
    sure = found({"selected": [3.0, 3.2, 3.1], "random": [3.1, 3.3, 3.201]})
    assert sure.differences[0].sign == 1
    assert "wins against random" in sentence(sure)
    assert "95 % interval" in sentence(sure)


def test_unequal_tokens_are_said() -> None:
    both = manifest({"selected": [3.0], "random": [3.1]})
    both["evaluations"][0]["trained_tokens"] = 900
    result = evidence(both)
    assert result is not None
    assert "at 900 (selected), 1,000 (random) training tokens (not equal)" in sentence(result)


def test_no_baselines() -> None:
    text = sentence(found({"selected": [3.0]}))
    assert text == (
        "After 1 round the model trained on the selection has a held-out loss of 3.000 "
        "nats/token, at 1,000 training tokens."
    )


def test_losses_that_are_not_there() -> None:
    assert evidence({"steps": [], "evaluations": []}) is None
    broken = manifest({"selected": [math.nan], "random": [3.0]}, stderr=None)
    result = evidence(broken)
    assert result is not None
    assert sentence(result) == "After 1 round only baselines were measured."
    assert result.differences == []


def test_the_chart_names_every_arm_once() -> None:
    chart = found({"selected": [3.0], "random": [3.1], "a<b": [3.2]}).chart
    assert chart.count(">random</text>") == 1
    assert "a&lt;b" in chart
    assert result_data(chart) == 3


def result_data(chart: str) -> int:
    """Lines in a chart."""
    return chart.count("<polyline")


def test_the_data_set_and_its_size_are_told() -> None:
    result = found({"selected": [3.0]})
    assert (result.data, result.documents) == ("web", 7)
