"""Relations are learned back from what they made, and rollouts are steps of torch's own AdamW."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.gradients import reference as references
from foresift.pipeline.lm.gradients.adamw import AdamW, Moments
from foresift.pipeline.lm.gradients.reference import reference_set
from foresift.pipeline.lm.gradients.rollouts import increments
from foresift.pipeline.lm.gradients.samples import trainable
from foresift.pipeline.lm.model import Loaded
from foresift.pipeline.store import write_json
from foresift.scorers.relation import LOOSE, Relation, learn

RULE = AdamW(learning_rate=1e-2, clip=0.0)


def made(alpha: float, tau: float, noise: float = 0.0) -> tuple[list, list]:
    """Rollouts whose increments follow the formula."""
    rng = np.random.default_rng(0)
    added, known = [], []
    for _ in range(30):
        f, s = rng.normal(1, 0.5, 10), np.append(0.0, rng.uniform(0, 0.8, 9))
        u = np.append(3.0 * f[0], 3.0 * alpha * f[1:] * (1 - s[1:] / tau))
        added.append(u + noise * rng.normal(size=10))
        known.append((f, s))
    return added, known


@pytest.mark.parametrize(("alpha", "tau"), [(1.0, 1.0), (0.7, 0.4), (1.3, 2.5)])
def test_alpha_and_tau_are_learned_back(alpha: float, tau: float) -> None:
    found = learn(*made(alpha, tau))
    assert found["alpha"] == pytest.approx(alpha, rel=1e-9)
    assert found["tau"] == pytest.approx(tau, rel=1e-9)
    assert found["r2"]["related"] == pytest.approx(1.0)
    assert found["r2"]["alone"] < 0.99


def test_without_redundancy_tau_is_loose() -> None:
    added, known = made(1.0, math.inf)
    assert learn(added, known)["tau"] > 1e3
    turned = [np.append(u[:1], u[1:] * (1 + s[1:])) for u, (_, s) in zip(added, known, strict=True)]
    assert learn(turned, known)["tau"] == LOOSE


def test_rows_that_are_not_numbers_are_left_out_and_too_few_are_an_error() -> None:
    added, known = made(0.7, 0.4)
    added[0][5] = np.nan
    found = learn(added, known)
    assert found["picks"] == 30 * 9 - 1
    assert found["tau"] == pytest.approx(0.4)
    with pytest.raises(DataError, match="usable picks"):
        learn(added[:2], known[:2])


@pytest.fixture(scope="module")
def small() -> tuple[Loaded, Encoded, Moments]:
    config = LlamaConfig(
        vocab_size=23, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).double().eval()
    rng = np.random.default_rng(0)
    lengths = np.array([5, 7, 4, 6, 8, 5])
    counts = np.ones(lengths.sum(), dtype=np.bool_)
    counts[np.cumsum(lengths) - lengths] = False
    encoded = Encoded(
        ids=rng.integers(0, 23, lengths.sum()).astype(np.int32),
        counts=counts,
        offsets=np.append(0, np.cumsum(lengths)).astype(np.int64),
        cut=np.zeros(6, dtype=np.bool_),
    )
    made = {n: torch.rand_like(p) for n, p in trainable(model).items()}
    return Loaded(model, [], "cpu"), encoded, Moments(made, {n: t / 9 for n, t in made.items()}, 7)


def test_a_rollout_is_what_torch_would_train(small: tuple[Loaded, Encoded, Moments]) -> None:
    loaded, encoded, moments = small
    before = {n: p.detach().clone() for n, p in trainable(loaded.model).items()}
    aim = reference_set(encoded)
    found = increments([[0, 3, 1], [2, 4]], encoded, [(aim, 2.0)], loaded, RULE, moments)
    for name, parameter in trainable(loaded.model).items():
        assert torch.equal(parameter, before[name])
    twin = copy.deepcopy(loaded.model)
    matrices = [p for p in twin.parameters() if p.dim() >= 2]
    vectors = [p for p in twin.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    for name, parameter in twin.named_parameters():
        state = {"exp_avg": moments.first[name], "exp_avg_sq": moments.second[name]}
        state = {k: v.clone() for k, v in state.items()} | {"step": torch.tensor(7.0)}
        optimizer.state[parameter] = state
    other = Loaded(twin, [], "cpu")
    losses = [references.loss(aim, other)]
    for row in (0, 3, 1):
        ids = torch.tensor(encoded.ids[encoded.offsets[row] : encoded.offsets[row + 1]].astype(int))
        optimizer.zero_grad()
        twin(input_ids=ids[None], labels=ids[None]).loss.backward()
        optimizer.step()
        losses.append(references.loss(aim, other))
    np.testing.assert_allclose(found[0], -2 * np.diff(losses), rtol=1e-4, atol=1e-7)
    assert len(found[1]) == 2


def test_every_row_gets_the_two_numbers(tmp_path: Path) -> None:
    write_json(tmp_path / "relation.json", {"alpha": 0.5, "tau": 0.25})
    window = SimpleNamespace(tokens=pa.table({"id": [1, 2, 3]}).column("id"))
    part = Relation(reference="aim")
    found = part.score(window, tmp_path)  # type: ignore[arg-type]
    assert found["alpha"].tolist() == [0.5] * 3
    assert found["tau"].tolist() == [0.25] * 3
    assert part.signals(tmp_path) == ()
