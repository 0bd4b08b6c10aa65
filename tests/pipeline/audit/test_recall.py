"""Recognition, recall, retention, decay: known answers and a model that knows its text."""

from __future__ import annotations

import math

import numpy as np
import pytest

from foresift.pipeline.audit import recall as tested
from foresift.pipeline.audit.generate import greedy
from foresift.pipeline.errors import DataError


def test_recognition() -> None:
    assert tested.recognition([1, 2, 3], [2, 2.5, 2.5]) == pytest.approx(2 / 3)
    assert tested.recognition([1, 1], [1, 2]) == 0.5  # a tie is wrong
    with pytest.raises(DataError, match="pair"):
        tested.recognition([1, 2], [1])


def test_recall_counts_the_completion_alone(fixed) -> None:
    """Token 0 is always said: the second half counts, not the half that was given."""
    model = fixed([[0.8, 0.1, 0.1]] * 3)
    found = tested.cued_recall(model, None, [[1, 2, 0, 0], [0, 0, 1, 2], [1, 2, 0, 1, 0], [1]])
    np.testing.assert_allclose(found, [1.0, 0.0, 2 / 3, np.nan])


def test_recall_of_what_the_model_says_itself(build, tokenizer) -> None:
    model = build("llama")
    start = [tokenizer.eos_token_id, 65, 66, 67]
    said = greedy(model, [start], 3)[0]
    text = tokenizer.decode([65, 66, 67, *said])
    if tokenizer(text)["input_ids"] == [65, 66, 67, *said]:
        assert tested.cued_recall(model, tokenizer, [text])[0] == 1
    assert (
        tested.cued_recall(model, None, [[65, 66, 67, *greedy(model, [[65, 66, 67]], 3)[0]]]) == 1
    )


def test_prompts_of_any_length_are_decoded_alike(build) -> None:
    model = build("gpt2")
    prompts = [[1], [2, 3, 4], [5, 6], [7, 8]]
    alone = [greedy(model, [p], 5)[0] for p in prompts]
    assert greedy(model, prompts, 5) == alone
    assert greedy(model, prompts, [1, 2, 3, 0]) == [
        line[:n] for line, n in zip(alone, (1, 2, 3, 0), strict=True)
    ]
    assert (
        greedy(model, [prompts[0]], 5, end=alone[0][2])[0]
        == alone[0][: alone[0].index(alone[0][2])]
    )
    with pytest.raises(DataError):
        greedy(model, [[]], 1)


def test_decoding_ends_at_the_last_position(build) -> None:
    assert len(greedy(build(), [[1] * 250], 50)[0]) == 6


@pytest.mark.parametrize(("a", "end"), [(0.25, 10_000), (0.20, 100_000), (0.26, 7_017)])
def test_the_law_of_decay(a: float, end: float) -> None:
    steps = np.array([1, 3, 10, 30, 100])
    found = tested.decay(steps, 1 - a * np.log10(steps))
    assert found.a == pytest.approx(a)
    assert found.start == pytest.approx(1)
    assert found.r2 == pytest.approx(1)
    assert found.interval == pytest.approx(end, rel=1e-3)


def test_points_on_the_curve() -> None:
    law = tested.Decay(0.25, 1.0, 1.0)
    assert law.start - law.a * np.log10([10, 100]) == pytest.approx([0.75, 0.5])


def test_what_does_not_decay_is_kept_for_ever() -> None:
    assert tested.decay([1, 10, 100], [1, 1, 1]).interval == math.inf
    assert tested.learnability_interval(1e-9) == math.inf
    with pytest.raises(DataError):
        tested.decay([0, 1], [1, 1])


def test_effectivity_and_retainability() -> None:
    curve = [-5.0, -5.0, -3.0, -1.0, -2.0, -4.0]
    assert tested.maximum(curve, 2) == 3
    assert tested.maximum(curve, 2, window=0) == 2
    assert tested.effectivity(curve, 2) == 4
    np.testing.assert_allclose(tested.retainability([-1, -2, -5], -5, -1), [1, 0.75, 0])
    assert np.isnan(tested.retainability([-1.0], -1, -1)).all()


def test_outliers_by_quartiles() -> None:
    values = [1.0, 2, 3, 4, 5, 9]
    assert tested.outliers(values).tolist() == [False] * 5 + [True]
    assert not tested.outliers(values, 2.0).any()
