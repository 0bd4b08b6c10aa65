"""Scorers that read the model pass: known answers on signals made by hand."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import RecipeError
from foresift.pipeline.lm.signals import Signals, Tokens
from foresift.scorers.embedding import Embedding
from foresift.scorers.excess_loss import ExcessLoss
from foresift.scorers.gradient_norm import GradientNorm
from foresift.scorers.ifd import Ifd
from foresift.scorers.loss import Loss
from foresift.scorers.uncertainty import Uncertainty, upd


def given(
    lengths: list[int], prompted: bool = True, **token: list[float]
) -> tuple[Tokens, Signals]:
    """Tokens and signals of documents with so many counted tokens."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = len(lengths)
    values = {k.replace("_at_", "@"): np.array(v, dtype=np.float32) for k, v in token.items()}
    tokens = Tokens(
        table=pa.table({"id": [bytes(16)] * n}),
        offsets=offsets,
        lengths=np.array(lengths) + 1,
        cut=np.zeros(n, dtype=bool),
        prompted=np.full(n, prompted),
    )
    return tokens, Signals(values, {}, offsets, vocab_size=4)


def test_loss_is_the_mean_over_counted_tokens() -> None:
    found = Loss().score(*given([2, 0, 1], nll=[1.0, 3.0, 0.5]))
    np.testing.assert_allclose(found["nll"], [2.0, np.nan, 0.5])
    np.testing.assert_allclose(found["perplexity"], np.exp([2.0, np.nan, 0.5]), rtol=1e-6)
    np.testing.assert_allclose(found["utility"], [-2.0, np.nan, -0.5])
    assert found["tokens"].tolist() == [2, 0, 1]


def softmax_signals(logits: list[float], target: int) -> tuple[np.ndarray, np.ndarray]:
    p = np.exp(np.array(logits)) / np.exp(logits).sum()
    return np.array([-math.log(p[target])]), np.array([-(p * np.log(p)).sum()])


@pytest.mark.parametrize(
    ("logits", "target", "beta", "expected"),
    [
        ([0, 0, 0, 0], 0, 1.0, 0.0),
        ([10, 0, 0, 0], 0, 1.0, 0.49949),
        ([10, 0, 0, 0], 1, 1.0, 0.99887),
        ([0, 0, 0, 0], 0, 2.0, 0.22292),
    ],
)
def test_upd_has_its_known_answers(
    logits: list[float], target: int, beta: float, expected: float
) -> None:
    nll, entropy = softmax_signals(logits, target)
    assert upd(nll, entropy, 4, beta)[0] == pytest.approx(expected, abs=1e-5)


def test_upd_of_tokens_and_of_a_sample_differ() -> None:
    fields = {"nll": [0.0, 10.0], "entropy": [0.0, 1.3], "top_prob": [1.0, 0.3], "margin": [1, 0.1]}
    tokens, signals = given([2], **fields)
    token = Uncertainty().score(tokens, signals)
    sample = Uncertainty(level="sample").score(tokens, signals)
    each = [0.5, (1 - 1.3 / math.log(4)) / (1 + math.exp(-10))]
    assert token["upd"][0] == pytest.approx(np.mean(each), abs=1e-6)
    expected = (1 - 0.65 / math.log(4)) / (1 + math.exp(-5))
    assert sample["upd"][0] == pytest.approx(expected, abs=1e-6)
    assert token["margin"][0] == pytest.approx(0.55)
    with pytest.raises(RecipeError, match="beta must be positive"):
        Uncertainty.parse({"beta": 0}, "score")


def test_ifd_is_one_where_the_prompt_does_not_matter_and_unselectable_above() -> None:
    tokens, signals = given(
        [2, 1, 1, 0], nll=[1.0, 3.0, 1.0, 3.0], nll_at_response=[1.0, 3.0, 2.0, 2.0]
    )
    found = Ifd().score(tokens, signals)
    np.testing.assert_allclose(found["ifd"], [1.0, 0.5, 1.5, np.nan])
    np.testing.assert_allclose(found["utility"], [1.0, 0.5, np.nan, np.nan])
    ratio = Ifd(variant="ppl_ratio").score(tokens, signals)["ifd"]
    np.testing.assert_allclose(ratio, np.exp([0.0, -1.0, 1.0, np.nan]), rtol=1e-6)


def test_ifd_needs_a_prompt_and_a_loss_without_it() -> None:
    plain = given([1], prompted=False, nll=[1.0], nll_at_response=[1.0])
    assert np.isnan(Ifd().score(*plain)["ifd"]).all()
    certain = given([1], nll=[1.0], nll_at_response=[0.0])
    assert np.isnan(Ifd().score(*certain)["utility"]).all()


def test_an_embedding_has_length_one_and_is_null_without_tokens() -> None:
    tokens, _ = given([1, 0])
    vectors = np.array([[3.0, 4.0], [np.nan, np.nan]], dtype=np.float32)
    signals = Signals({}, {"hidden_mean": vectors}, tokens.offsets)
    found = Embedding().score(tokens, signals)["vector"].to_pylist()
    np.testing.assert_allclose(found[0], [0.6, 0.8], rtol=1e-6)
    assert found[1] is None
    raw = Embedding(normalise=False).score(tokens, signals)["vector"]
    assert raw.to_pylist()[0] == [3.0, 4.0]
    assert raw.type == Embedding.columns["vector"].dtype


def test_excess_loss_is_low_for_noise_and_for_what_is_known() -> None:
    tokens, signals = given([1, 1, 1, 1], nll=[8.0, 0.5, 6.0, 1.0])
    table = tokens.table.append_column("ref.nll", pa.array([8.0, 0.6, 1.0, None]))
    tokens = Tokens(table, tokens.offsets, tokens.lengths, tokens.cut, tokens.prompted)
    part = ExcessLoss(against="ref.nll")
    found = part.score(tokens, signals)["utility"]
    np.testing.assert_allclose(found, [0.0, -0.1, 5.0, np.nan], atol=1e-6)
    assert part.needs == ("ref.nll",)


def test_the_gradient_norm_is_handed_on() -> None:
    tokens, _ = given([1, 0])
    norms = np.array([2.0, np.nan], dtype=np.float32)
    found = GradientNorm().score(tokens, Signals({}, {"grad_norm": norms}, tokens.offsets))
    np.testing.assert_array_equal(found["utility"], norms)
