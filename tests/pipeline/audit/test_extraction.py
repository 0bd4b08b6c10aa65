"""Extraction: known answers, and greedy decoding as the oracle of teacher forcing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.audit import extraction as tested
from foresift.pipeline.audit.generate import greedy
from foresift.pipeline.audit.token_stats import loss_of, token_stats
from foresift.pipeline.errors import DataError


@pytest.mark.parametrize(
    ("hits", "strength", "share"),
    [
        ([0, 0, 1, 1], 0.5, 0.5),
        ([0, 0, 0, 0], 0.0, 0.0),
        ([1, 1, 1, 0], 0.0, 0.75),
        ([1, 0, 0, 1], 0.25, 0.5),
        ([1, 1], 1.0, 1.0),
    ],
)
def test_strength_and_exactness(hits: list[int], strength: float, share: float) -> None:
    assert tested.extraction_strength(hits) == strength
    assert tested.exact_memorisation(hits) == share


def test_of_no_token_nothing_is_known() -> None:
    assert math.isnan(tested.extraction_strength([]))
    assert math.isnan(tested.exact_memorisation([]))


def test_bits_of_exposure() -> None:
    assert tested.exposure(1, 1024) == 10
    assert tested.exposure(1024, 1024) == 0
    losses = np.arange(1024.0)
    assert tested.exposure_of(losses, 0) == 10
    assert tested.exposure_of(losses, 1023) == 0
    assert tested.exposure_of(np.ones(1024)) == pytest.approx(1.0, abs=0.01)
    with pytest.raises(DataError, match="rank"):
        tested.exposure(0, 10)
    with pytest.raises(DataError, match="no loss"):
        tested.exposure_of([1.0, math.nan])


def test_a_random_secret_under_an_untrained_model_has_1_44_bits(build) -> None:
    """Mean of log2 e, within four standard errors of as much over 200 secrets."""
    draw = np.random.default_rng(0)
    candidates = draw.integers(97, 123, (64, 7))
    losses = loss_of(build())(list(candidates))
    found = [tested.exposure_of(losses, i) for i in draw.integers(0, 64, 200)]
    wanted = float(np.mean(6 - np.log2(np.arange(1, 65))))  # of the 64 ranks alike
    assert wanted == pytest.approx(math.log2(math.e), abs=0.1)
    assert np.mean(found) == pytest.approx(wanted, abs=4 * 1.44 / math.sqrt(200))


@pytest.mark.parametrize(("prompt", "length"), [(3, 4), (1, 6), (5, 1)])
def test_what_is_extractable_is_what_greedy_decoding_gives(build, prompt: int, length: int) -> None:
    model = build("llama")
    said = greedy(model, [[7, 8]], 20)[0]
    texts = [[7, 8, *said], [7, 8, *said[:6], (said[6] + 1) % 256, *said[7:]], list(range(20))]
    verdicts = []
    for ids in texts:
        (stats,) = token_stats(model, None, [ids])
        (told,) = greedy(model, [ids[: prompt + 1]], length)
        verdicts.append(tested.extractable(stats.hit, prompt, length))
        assert verdicts[-1] == (told == ids[prompt + 1 : prompt + 1 + length])
    assert verdicts[0]
    assert not verdicts[-1]


def test_a_short_text_says_nothing_of_fifty_after_fifty() -> None:
    assert tested.extractable([True] * 99) is None
    assert tested.extractable([False] * 50 + [True] * 50) is True
    assert tested.extractable([True] * 99 + [False]) is False


def lcs(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + lcs(a[1:], b[1:])
    return max(lcs(a[1:], b), lcs(a, b[1:]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=7), st.lists(st.integers(0, 3), max_size=7))
def test_rouge_is_the_longest_common_subsequence(a: list[int], b: list[int]) -> None:
    found = tested.rouge_l(a, b)
    assert found.recall * max(1, len(a)) == pytest.approx(lcs(a, b))
    assert found.precision * max(1, len(b)) == pytest.approx(lcs(a, b))


def test_rouge_of_words() -> None:
    assert tested.rouge_l_words("The cat, sat.", "the cat sat").f1 == 1
    assert tested.rouge_l_words("a b c d", "a c").recall == 0.5
    assert tested.rouge_l_words("a b", "").f1 == 0
