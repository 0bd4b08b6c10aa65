"""Random projections: the generator's bits, dot products kept, the kernel's two inverses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foresift.scorers._projection import Projection, kernel_solve

MASK = (1 << 64) - 1


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def sign(seed: int, dimension: int, coordinate: int, output: int) -> int:
    """One sign, from the generator's definition in plain integers."""
    words = -(-dimension // 64)
    number = coordinate * words + output // 64
    word = mix((mix(seed) + (number + 1) * 0x9E3779B97F4A7C15) & MASK)
    return 1 if word >> (output % 64) & 1 else -1


def normal(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape))


@pytest.mark.parametrize("seed", [0, 7, (1 << 63) + 5])
def test_signs_are_the_bits_of_splitmix64(seed: int) -> None:
    found = Projection(70, seed).signs(1000, 1004, normal(1))
    expected = [[sign(seed, 70, c, k) for k in range(70)] for c in range(1000, 1004)]
    assert found.tolist() == expected


def test_the_known_first_output_of_splitmix64() -> None:
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # seed 0 of the published generator
    assert mix(0) == 0  # so that with seed 0 ours is that generator itself
    first = Projection(64).signs(0, 1, normal(1))[0]
    assert sum(1 << k for k in range(64) if first[k] > 0) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("dimension", [3, 64, 100])
def test_blocks_and_batches_change_nothing(dimension: int) -> None:
    rows, project = normal(5, 37), Projection(dimension, seed=1)
    plain = rows @ project.signs(0, 37, rows) / dimension**0.5
    for block in (0, 1, 8, 37, 1000):
        np.testing.assert_allclose(project(rows, block), plain, rtol=0, atol=1e-12)
    alone = torch.cat([project(rows[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, plain, rtol=0, atol=1e-12)


def test_signs_are_balanced_and_seeds_differ() -> None:
    a, b = (Projection(256, seed).signs(0, 1000, normal(1)) for seed in (0, 1))
    assert abs(float(a.mean())) < 4 / 506
    assert abs(float((a * b).mean())) < 4 / 506
    assert float((a[:-1] * a[1:]).mean().abs()) < 4 / 506


@pytest.mark.parametrize("dimension", [64, 512, 4096])
def test_the_error_of_a_dot_product_falls_with_the_root_of_the_dimension(dimension: int) -> None:
    rows = normal(24, 1500)
    projected = Projection(dimension)(rows)
    above = np.triu_indices(24, 1)
    exact, found = ((r @ r.T).numpy()[above] for r in (rows, projected))
    norms, fourth = rows.square().sum(1), rows.square() @ rows.square().T
    variance = (norms[:, None] * norms + (rows @ rows.T) ** 2 - 2 * fourth).numpy()[above]
    scaled = (found - exact) / np.sqrt(variance / dimension)
    assert 0.8 < np.sqrt(np.mean(scaled**2)) < 1.2


@pytest.mark.parametrize("documents", [5, 12, 40])
def test_the_kernel_is_inverted_either_way(documents: int) -> None:
    features, targets = normal(documents, 12), normal(3, 12)
    gram = features.T @ features / documents
    shifted = gram + 0.1 * gram.trace() / 12 * torch.eye(12).double()
    expected = targets @ torch.linalg.inv(shifted)
    np.testing.assert_allclose(kernel_solve(features, targets, 0.1), expected, rtol=1e-9)
