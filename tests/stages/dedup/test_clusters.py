"""Buckets, components and the choice of the best, on numbers alone."""

from __future__ import annotations

import numpy as np
import pytest

from foresift.pipeline.components import bucket_pairs, find_clusters


def as_sets(pairs: np.ndarray) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in pairs}


def test_pairs_of_each_bucket() -> None:
    keys = np.array([7, 5, 7, 9, 5, 7, 7], dtype=np.uint64)
    assert as_sets(bucket_pairs(keys)) == {(0, 2), (0, 5), (0, 6), (1, 4)}
    near = {(0, 2), (2, 5), (5, 6), (1, 4)}
    assert as_sets(bucket_pairs(keys, window=1)) == near
    every = {*near, (0, 5), (2, 6), (0, 6)}
    assert as_sets(bucket_pairs(keys, window=9)) == every


def test_keys_of_two_words_must_agree_in_both() -> None:
    keys = np.array([[1, 2], [2, 1], [1, 1], [1, 2]], dtype=np.uint64)
    assert as_sets(bucket_pairs(keys)) == {(0, 3)}


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_for_a_pair(count: int) -> None:
    for window in (0, 3):
        assert bucket_pairs(np.zeros(count, dtype=np.uint64), window).shape == (0, 2)
    none = find_clusters(np.empty((0, 2), dtype=np.int64), np.zeros(count))
    assert len(none.rows) == len(none.kept) == len(none.sizes) == 0


def oracle_components(pairs: list[tuple[int, int]], count: int) -> list[set[int]]:
    """Union-find as in a textbook."""
    parent = list(range(count))

    def find(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    for a, b in pairs:
        parent[find(a)] = find(b)
    groups: dict[int, set[int]] = {}
    for x in range(count):
        groups.setdefault(find(x), set()).add(x)
    return [g for g in groups.values() if len(g) > 1]


@pytest.mark.parametrize("seed", range(5))
def test_components_agree_with_union_find_and_the_best_is_kept(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 300
    pairs = np.sort(rng.integers(0, count, (130, 2)), axis=1)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    worth = rng.integers(0, 4, count).astype(float)
    worth[rng.random(count) < 0.2] = np.nan
    clusters = find_clusters(pairs, worth)
    groups = oracle_components(as_sets(pairs), count)
    assert clusters.rows.tolist() == sorted(set().union(*groups))
    for group in groups:
        best = min(group, key=lambda r: (np.isnan(worth[r]), -np.nan_to_num(worth[r]), r))
        here = np.isin(clusters.rows, list(group))
        assert clusters.kept[here].tolist() == [best] * len(group)
        assert clusters.sizes[here].tolist() == [len(group)] * len(group)


def test_infinite_worth_is_a_number_and_nan_is_not() -> None:
    pairs = np.array([[0, 1], [1, 2]])
    assert find_clusters(pairs, np.array([np.nan, -np.inf, np.nan])).kept.tolist() == [1, 1, 1]
    assert find_clusters(pairs, np.array([np.nan, np.nan, np.nan])).kept.tolist() == [0, 0, 0]
    assert find_clusters(pairs, np.array([1.0, np.inf, 2.0])).kept.tolist() == [1, 1, 1]
