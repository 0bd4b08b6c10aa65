"""N-grams against a loop, ridge against its definition, predictions that know their row only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse  # type: ignore[import-untyped]

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.dual import GRID, direct, folds, iterative
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.regress import Ridge, agreement, moments, ngram_features
from foresift.pipeline.tables import ID

DIMENSION = 2**12
IDS = pa.array([n.to_bytes(16, "little") for n in range(400)], ID)


def pack(documents: list[list[int]], counts: list[list[bool]] | None = None) -> Encoded:
    """Documents given as lists of token ids."""
    lengths = [len(d) for d in documents]
    flat = [c for row in counts for c in row] if counts else [True] * sum(lengths)
    return Encoded(
        ids=np.array([i for d in documents for i in d], dtype=np.int32),
        counts=np.array(flat, dtype=np.bool_),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        cut=np.zeros(len(documents), dtype=np.bool_),
    )


def corpus(n: int = 300, seed: int = 0, vocabulary: int = 50) -> tuple[Encoded, Any]:
    """Documents of 0 to 39 tokens, and the mean of a secret number over their tokens."""
    rng = np.random.default_rng(seed)
    secret = np.random.default_rng(99).normal(size=vocabulary)
    tilt = rng.normal(size=n)  # each document prefers tokens with a large or a small secret
    documents = []
    for each in range(n):
        p = np.exp(tilt[each] * secret)
        documents.append(rng.choice(vocabulary, size=rng.integers(0, 40), p=p / p.sum()).tolist())
    labels = np.array([secret[d].mean() if d else 0.0 for d in documents])
    return pack(documents), labels


# n-grams


def plain(encoded: Encoded, orders: tuple[int, ...], *, counted: bool) -> list[dict[Any, int]]:
    """How often each n-gram occurs in each document."""
    found = []
    for start, stop in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True):
        bag: dict[Any, int] = {}
        for order in orders:
            for at in range(start, stop - order + 1):
                gram = tuple(encoded.ids[at : at + order].tolist())
                if not counted or encoded.counts[at : at + order].all():
                    bag[gram] = bag.get(gram, 0) + 1
        found.append(bag)
    return found


@pytest.mark.parametrize("orders", [(1,), (1, 2), (2,), (1, 2, 3)])
@pytest.mark.parametrize("span", ["all", "counted"])
def test_ngrams_are_those_of_a_loop(orders: tuple[int, ...], span: Any) -> None:
    encoded, _ = corpus(40)
    rng = np.random.default_rng(1)
    encoded = pack(
        [d.tolist() for d in np.split(encoded.ids, encoded.offsets[1:-1])],
        [rng.random(n).round().astype(bool).tolist() for n in encoded.lengths],
    )
    bags = plain(encoded, orders, counted=span == "counted")
    grams = sorted({gram for bag in bags for gram in bag})
    table = np.array([[bag.get(gram, 0) for gram in grams] for bag in bags], dtype=float)
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-300)
    found = ngram_features(encoded, 2**40 // 3, orders, weight="tf", span=span)
    columns, places = np.unique(found.indices, return_inverse=True)
    assert len(columns) == len(grams)  # no collision in so large a space
    small = sparse.csr_matrix((found.data, places, found.indptr)).toarray()
    np.testing.assert_allclose(small @ small.T, table @ table.T, atol=1e-12)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [("tf", [3, 1]), ("log", [np.log(4), np.log(2)]), ("binary", [1, 1])],
)
def test_weights_of_three_and_one_occurrences(weight: Any, expected: list[float]) -> None:
    row = ngram_features(pack([[7, 9, 7, 7]]), DIMENSION, (1,), weight=weight)
    expected = sorted(np.array(expected) / np.linalg.norm(expected))
    np.testing.assert_allclose(sorted(row.data), expected)


def test_a_bigram_never_spans_two_documents_and_its_order_counts() -> None:
    found = ngram_features(pack([[1], [2], [1, 2], [2, 1], []]), 2**30, (2,))
    assert np.diff(found.indptr).tolist() == [0, 0, 1, 1, 0]
    assert found.indices[0] != found.indices[1]


def test_a_seed_hashes_anew_and_a_small_space_is_filled_evenly() -> None:
    encoded = pack([list(range(20000))])
    one, other = (ngram_features(encoded, 64, (1,), weight="tf", seed=s) for s in (0, 1))
    assert not np.array_equal(one.data, other.data)
    counts = one.data / one.data.sum() * 20000
    assert np.sum((counts - 312.5) ** 2 / 312.5) < 104  # chi-squared, 63 degrees: p = 0.001


# ridge


def test_leave_one_out_is_leaving_one_out() -> None:
    """The alpha that `direct` takes is the one that refits without each document find best."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 60)) + 2.0
    y = (x[:, :3].sum(axis=1) + rng.normal(size=30) + 5.0)[:, None]
    solved = direct(sparse.csr_matrix(x), y, np.arange(30) % 5)
    kernel = (x - x.mean(axis=0)) @ (x - x.mean(axis=0)).T
    grid = GRID * np.trace(kernel) / 30
    errors = [
        sum(
            (y[i, 0] - _ridge(np.delete(x, i, 0), np.delete(y, i, 0), a)(x[i : i + 1])[0, 0]) ** 2
            for i in range(30)
        )
        for a in grid
    ]
    assert 0 < np.argmin(errors) < len(grid) - 1
    assert solved.alpha[0] == pytest.approx(grid[np.argmin(errors)])
    expected = _ridge(x, y, solved.alpha[0])(x)
    np.testing.assert_allclose(x @ solved.weights + solved.offset, expected, atol=1e-9)


def _ridge(x: Any, y: Any, alpha: float) -> Any:
    """The definition, by the normal equations with a free intercept."""
    centred = x - x.mean(axis=0)
    gram = centred.T @ centred + alpha * np.eye(x.shape[1])
    w = np.linalg.solve(gram, centred.T @ (y - y.mean(axis=0)))
    return lambda new: (new - x.mean(axis=0)) @ w + y.mean(axis=0)


def test_out_of_fold_predictions_do_not_see_the_fold() -> None:
    """Other labels in one fold leave that fold's predictions as they were."""
    rng = np.random.default_rng(2)
    x, parts = sparse.csr_matrix(rng.normal(size=(60, 20))), np.arange(60) % 5
    y = rng.normal(size=(60, 2))
    changed = np.where((parts == 3)[:, None], rng.normal(size=(60, 2)) * 100, y)
    before, after = direct(x, y, parts), direct(x, changed, parts)
    np.testing.assert_array_equal(before.unseen[parts == 3], after.unseen[parts == 3])
    assert not np.allclose(before.unseen[parts == 2], after.unseen[parts == 2])


def test_conjugate_gradients_solve_the_same_equations() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(80, 30)) + 1.0
    y = np.stack([x[:, :4].sum(axis=1) + rng.normal(size=80), rng.normal(size=80)], axis=1)
    solved = iterative(sparse.csr_matrix(x), y, np.arange(80) % 5)
    for target in (0, 1):
        expected = _ridge(x, y[:, target : target + 1], solved.alpha[target])(x)
        found = x @ solved.weights[:, target] + solved.offset[target]
        np.testing.assert_allclose(found, expected[:, 0], atol=1e-6)
    assert solved.alpha[1] > 10 * solved.alpha[0]  # noise is shrunk away
    assert agreement(y[:, 0], solved.unseen[:, 0])["spearman"] > 0.7


def test_conjugate_gradients_predict_a_fold_with_the_alpha_of_the_others() -> None:
    rng, parts = np.random.default_rng(4), np.arange(40) % 5
    x = rng.normal(size=(40, 20))
    y = x[:, :2].sum(axis=1, keepdims=True) + 2 * rng.normal(size=(40, 1))
    grid = GRID[::2] * np.trace((x - x.mean(axis=0)) @ (x - x.mean(axis=0)).T) / 40
    guesses = np.empty((len(grid), 40))
    for fold in range(5):
        new = parts == fold
        guesses[:, new] = [_ridge(x[~new], y[~new], a)(x[new])[:, 0] for a in grid]
    errors = (guesses - y[:, 0]) ** 2
    others = [np.argmin(errors[:, parts != fold].sum(axis=1)) for fold in range(5)]
    assert len(set(others)) > 1
    expected = guesses[np.array(others)[parts], np.arange(40)]
    solved = iterative(sparse.csr_matrix(x), y, parts)
    np.testing.assert_allclose(solved.unseen[:, 0], expected, atol=1e-6)
    assert solved.alpha[0] == pytest.approx(grid[np.argmin(errors.sum(axis=1))])


def test_labels_are_extrapolated_and_the_facts_say_how_well() -> None:
    encoded, labels = corpus()
    noise = np.random.default_rng(5).normal(size=len(labels)) * 0.02
    new, truth = corpus(seed=7)
    for limit in (4000, 0):
        ridge = Ridge.fit(ngram_features(encoded, DIMENSION), labels + noise, limit=limit)
        facts = ridge.facts()
        found = agreement(truth, ridge.predict(ngram_features(new, DIMENSION)))["spearman"]
        assert facts["spearman"] > 0.85
        assert found == pytest.approx(facts["spearman"], abs=0.05)
        assert facts["solver"] == ("direct" if limit else "iterative")


def test_labels_that_are_noise_are_told_as_noise() -> None:
    encoded, _ = corpus()
    labels = np.random.default_rng(6).normal(size=len(encoded))
    facts = Ridge.fit(ngram_features(encoded, DIMENSION), labels).facts()
    assert abs(facts["spearman"]) < 0.2
    assert facts["r2"] < 0.05


def test_a_prediction_has_the_same_bits_in_any_batch() -> None:
    encoded, labels = corpus()
    features = ngram_features(encoded, DIMENSION)
    dense = np.random.default_rng(8).normal(size=(len(labels), 33)).astype(np.float32)
    targets = np.stack([labels, labels**2, -labels], axis=1)
    for y, block in ((labels, None), (labels, dense), (targets, dense)):
        ridge = Ridge.fit(features, y, block)
        whole = ridge.predict(features, block)
        assert whole.dtype == np.float32
        for size in (1, 7):
            parts = [
                ridge.predict(
                    ngram_features(_rows(encoded, a, a + size), DIMENSION),
                    None if block is None else np.asfortranarray(block[a : a + size]),
                )
                for a in range(0, len(labels), size)
            ]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def _rows(encoded: Encoded, start: int, stop: int) -> Encoded:
    bounds = encoded.offsets[start : stop + 1]
    inside = slice(bounds[0], bounds[-1])
    cut = encoded.cut[start:stop]
    return Encoded(encoded.ids[inside], encoded.counts[inside], bounds - bounds[0], cut)


def test_units_of_labels_and_dense_features_do_not_matter() -> None:
    encoded, labels = corpus(120)
    features = ngram_features(encoded, DIMENSION)
    dense = np.random.default_rng(9).normal(size=(120, 4))
    plain = Ridge.fit(features, labels, dense)
    shifted = 3.0 * dense + 100.0
    other = Ridge.fit(features, -1e-6 * labels + 4.0, shifted)
    expected = -1e-6 * plain.predict(features, dense).astype(float) + 4.0
    np.testing.assert_allclose(other.predict(features, shifted), expected, atol=1e-6)
    for name in ("alpha", "spearman", "pearson", "r2"):
        assert other.facts()[name] == pytest.approx(plain.facts()[name], rel=1e-6)


def test_a_dense_feature_helps_when_the_label_is_in_it() -> None:
    encoded, _ = corpus(200)
    features = ngram_features(encoded, DIMENSION)
    dense = np.random.default_rng(10).normal(size=(200, 3))
    dense[:, 1] = 7.0  # tells nothing
    labels = dense[:, 0] - dense[:, 2]
    assert Ridge.fit(features, labels, dense).facts()["spearman"] > 0.95
    assert abs(Ridge.fit(features, labels).facts()["spearman"]) < 0.3


def test_several_targets_are_each_as_if_alone() -> None:
    encoded, labels = corpus(100)
    features = ngram_features(encoded, DIMENSION)
    noise = np.random.default_rng(11).normal(size=100)
    both = Ridge.fit(features, np.stack([labels, noise], axis=1))
    for number, target in enumerate((labels, noise)):
        alone = Ridge.fit(features, target)
        np.testing.assert_allclose(
            both.predict(features)[:, number], alone.predict(features), rtol=1e-5, atol=1e-7
        )
        assert both.facts()["alpha"][number] == pytest.approx(alone.facts()["alpha"])
        assert both.facts()["spearman"][number] == pytest.approx(alone.facts()["spearman"])


def test_unusable_rows_are_left_out_and_counted() -> None:
    encoded, labels = corpus(60)
    features, dense = ngram_features(encoded, DIMENSION), np.ones((60, 2))
    labels[[3, 5]], dense[[8, 9], 1] = [np.nan, np.inf], [np.nan, np.inf]
    ridge = Ridge.fit(features, labels, dense)
    assert (ridge.facts()["labels"], ridge.facts()["left_out"]) == (56, 4)
    assert np.flatnonzero(np.isnan(ridge.predict(features, dense))).tolist() == [8, 9]
    good = np.delete(np.arange(60), [3, 5, 8, 9])
    again = Ridge.fit(features[good], labels[good], dense[good])
    first, second = (r.predict(features[good], dense[good]) for r in (ridge, again))
    np.testing.assert_array_equal(first, second)


def test_constant_labels_are_predicted_and_said_so() -> None:
    encoded, _ = corpus(50)
    features = ngram_features(encoded, DIMENSION)
    ridge = Ridge.fit(features, np.full(50, 0.1))
    np.testing.assert_array_equal(ridge.predict(features), np.full(50, np.float32(0.1)))
    facts = ridge.facts()
    assert facts["constant"]
    assert facts["spearman"] is facts["pearson"] is facts["r2"] is None


def test_documents_without_tokens_get_the_intercept() -> None:
    ridge = Ridge.fit(ngram_features(pack([[]] * 25), DIMENSION), np.arange(25.0))
    found = ridge.predict(ngram_features(pack([[], [1, 2]]), DIMENSION))
    np.testing.assert_allclose(found, [12.0, 12.0])


def test_copies_stay_in_one_fold_and_folds_are_even() -> None:
    copies = IDS.take(pa.array(np.repeat(np.arange(100), 3)))
    parts = folds(np.arange(300), copies).reshape(100, 3)
    assert (parts == parts[:, :1]).all()
    assert np.bincount(parts[:, 0]).tolist() == [20] * 5
    swapped = folds(np.arange(300)[::-1], copies).reshape(100, 3)
    np.testing.assert_array_equal(swapped, parts[::-1])  # a fold depends on the id alone


def test_a_saved_fit_is_the_same_and_its_bytes_too(tmp_path: Path) -> None:
    encoded, labels = corpus(80)
    features = ngram_features(encoded, DIMENSION)
    for name in ("a", "b"):
        Ridge.fit(features, labels, ids=IDS[:80]).save(tmp_path / name)
    files = [next((tmp_path / name).iterdir()) for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    ridge, loaded = Ridge.fit(features, labels, ids=IDS[:80]), Ridge.load(tmp_path / "a")
    np.testing.assert_array_equal(loaded.predict(features), ridge.predict(features))
    assert loaded.facts() == ridge.facts()


def test_what_cannot_be_read_is_a_located_error(tmp_path: Path) -> None:
    for content in (None, b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "):
        if content is not None:
            (tmp_path / "ridge.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=r"ridge\.safetensors: no fitted ridge can be read"):
            Ridge.load(tmp_path)


def test_bad_input_is_refused_with_a_place() -> None:
    encoded, labels = corpus(30)
    features = ngram_features(encoded, DIMENSION)
    few = np.where(np.arange(30) < 19, labels, np.nan)
    with pytest.raises(DataError, match=r"step 4: only 19 distinct documents have a usable label"):
        Ridge.fit(features, few, where="step 4")
    with pytest.raises(DataError, match="only 1 distinct"):
        Ridge.fit(features, labels, ids=IDS.take(pa.array([0] * 30)))
    with pytest.raises(DataError, match="29 labels for 30 documents"):
        Ridge.fit(features, labels[:29])
    with pytest.raises(DataError, match=r"dense features are \(30,\), not \[30, d\]"):
        Ridge.fit(features, labels, np.ones(30))
    ridge = Ridge.fit(features, labels, np.ones((30, 2)))
    with pytest.raises(DataError, match=r"dense features are \(30, 0\), not \[30, 2\]"):
        ridge.predict(features)
    with pytest.raises(DataError, match="the features have 64 columns, the fit 4096"):
        ridge.predict(ngram_features(encoded, 64), np.ones((30, 2)))


def test_agreement_with_ties_and_by_hand() -> None:
    found = agreement([1.0, 2.0, 2.0, 3.0], [0.0, 1.0, 5.0, 5.0])
    assert found["spearman"] == pytest.approx(5 / 6)
    assert found["pearson"] == pytest.approx(5 / np.sqrt(2 * 20.75), abs=1e-12)
    assert agreement([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])["r2"] == 1.0
    assert agreement([1.0, 2.0], [3.0, 3.0])["spearman"] is None
    mean, spread = moments(np.array([[1.0, 0.1], [3.0, 0.1]]))
    assert (mean.tolist(), spread.tolist()) == ([2.0, 0.1], [1.0, 0.0])


def test_torch_and_ray_are_not_needed() -> None:
    code = (
        "import sys, foresift.pipeline.lm.regress; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
