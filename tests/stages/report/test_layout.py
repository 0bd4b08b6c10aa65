"""Places on the map: alike documents together, copies in one place, nothing from the row order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from foresift.stages.report import layout
from foresift.stages.report.layout import cells, plane, ranked, terms, word_vectors

SUBJECTS = ("oven sugar butter flour", "goal match striker league", "court judge ruling appeal")


def about(subject: int, n: int, length: int = 20) -> list[str]:
    """Texts of one subject."""
    rng = np.random.default_rng(subject)
    words = [*SUBJECTS[subject].split(), "the", "and"]
    return [" ".join(rng.choice(words, length)) for _ in range(n)]


@pytest.fixture(scope="module")
def three() -> tuple[list[str], np.ndarray]:
    """Texts of three subjects, and which."""
    texts = [text for subject in range(3) for text in about(subject, 40)]
    return texts, np.repeat(np.arange(3), 40)


def test_texts_of_a_subject_lie_together(three: tuple[list[str], np.ndarray]) -> None:
    texts, subject = three
    vectors = word_vectors(texts)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    places = plane(vectors)
    assert places.min(axis=0).tolist() == [0, 0]
    assert places.max(axis=0).tolist() == [1, 1]
    far = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(far, np.inf)
    assert (subject[far.argmin(axis=1)] == subject).mean() > 0.95


def test_groups_are_subjects_and_are_named_by_their_words(
    three: tuple[list[str], np.ndarray],
) -> None:
    texts, subject = three
    found = cells(word_vectors(texts))
    pure = sum(np.bincount(subject[found == g]).max() for g in set(found.tolist()))
    assert pure >= 115
    assert np.bincount(found).tolist() == sorted(np.bincount(found), reverse=True)
    for group, name in enumerate(terms(texts, subject, 3)):
        assert set(name.split(", ")) <= set(SUBJECTS[group].split())
        assert len(name.split(", ")) == 3


def test_before_the_svd_words_are_weighted_as_in_scikit_learn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With as many directions as there can be, cosines are nearly those of plain tf-idf."""
    texts = [t for s in range(3) for t in about(s, 5, length=6)]
    found = word_vectors(texts)
    plain = TfidfVectorizer(sublinear_tf=True, min_df=2, token_pattern=r"\w+")
    expected = plain.fit_transform(texts).toarray()
    assert found @ found.T == pytest.approx(expected @ expected.T, abs=0.05)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(24)), st.lists(st.integers(0, 23), max_size=6))
def test_neither_the_order_nor_copies_move_a_document(order: list[int], copies: list[int]) -> None:
    vectors = np.random.default_rng(0).normal(size=(24, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [*order, *copies]
    assert plane(vectors[rows]) == pytest.approx(plane(vectors)[rows], abs=1e-5)


def test_t_sne_is_the_same_each_time_and_in_any_order() -> None:
    vectors = np.random.default_rng(1).normal(size=(80, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    once = plane(vectors)
    back = np.arange(80)[::-1]
    assert plane(vectors).tolist() == once.tolist()
    assert plane(vectors[back])[back].tolist() == once.tolist()
    assert plane(vectors, seed=1).tolist() == once.tolist()  # the start is given by the vectors
    assert cells(vectors[back])[back].tolist() == cells(vectors).tolist()


def test_what_has_no_direction_has_no_place() -> None:
    vectors = word_vectors(["", "one two", "two three", "!?", "one three"])
    assert np.isnan(vectors).all(axis=1).tolist() == [True, False, False, True, False]
    assert np.isnan(plane(vectors)).all(axis=1).tolist() == [True, False, False, True, False]
    assert (cells(vectors) == -1).tolist() == [True, False, False, True, False]
    assert np.isnan(plane(word_vectors(["", ""]))).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 29, 30, 31, 40])
@pytest.mark.parametrize("text", ["all the same", "number {}", "{}"])
def test_any_number_of_documents_has_places(n: int, text: str) -> None:
    vectors = word_vectors([text.format(f"x{k}") for k in range(n)])
    places = plane(vectors)
    assert places.shape == (n, 2)
    assert not np.isnan(places).any()
    assert ((places >= 0) & (places <= 1)).all()
    assert (cells(vectors) >= 0).all()


def test_scripts_without_spaces_are_alike_by_letters() -> None:
    vectors = word_vectors(["今天天气很好", "今天天气不好", "หมวดหมู่", "หมวดหมา"])
    near = vectors @ vectors.T
    assert near[0, 1] > 0.3 > near[0, 2]
    assert near[2, 3] > 0.3 > near[1, 3]


def test_groups_are_numbered_by_size() -> None:
    assert ranked(np.array([7, 3, 3, -1, 9, 9, 3])).tolist() == [2, 0, 0, -1, 1, 1, 0]
    assert ranked(np.array([], dtype=np.int64)).tolist() == []


def test_groups_without_a_word_of_their_own_have_no_name() -> None:
    assert terms(["12 34", "12 34"], np.array([0, 0]), 1) == [""]
    assert terms([], np.array([], dtype=np.int64), 0) == []
    assert layout.terms(["lonely words", "other words"], np.array([0, 1]), 2) == [
        "lonely",
        "other",
    ]
