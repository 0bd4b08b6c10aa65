"""Worst case: projection, drills by hand, and a document that its copies bring back."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.lm.batches import batches
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.gradients.samples import sample_losses
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.pipeline.nouns import Job, Look, Rng
from foresift.pipeline.unlearn.worst_case import project
from foresift.scorers._forget_sample import Asked
from foresift.scorers.worst_case import WorstCase, grouped
from tests.corpora import Serial, make_corpus
from tests.scorers.sampled import fit, texts
from tests.scorers.tiny import llama, losses


def test_the_known_answer() -> None:
    np.testing.assert_allclose(project([0.9, 0.6, 0.1], 1)[0], [0.65, 0.35, 0], atol=1e-9)
    part = WorstCase(share=0.34, weight_rate=1.0)  # m = 1.02 of three groups
    after = np.array([0.1, 0.4, 0.9, math.nan, 0.5])
    groups = np.array([0, 1, 2, 3, 1])  # of the second, the mean 0.45
    weight, rank = part._ranked(after, groups)
    expected, _ = project([-0.1, -0.45, -0.9], 1.02)
    np.testing.assert_allclose(weight, [*expected, math.nan, expected[1]])
    np.testing.assert_array_equal(rank, [1, 0.5, 0, math.nan, 0.5])


def test_groups_are_clusters_or_single_documents() -> None:
    assert grouped(["b", None, "a", "b", None, ""]).tolist() == [0, 1, 2, 0, 3, 4]


def asked_of(part: WorstCase, pool: list[str], spec: ModelSpec, tmp: Path) -> Asked:
    """The sample of a pool, as the part draws it."""
    corpus = make_corpus(tmp / "again", [pool])
    return Asked.of(part, Look(corpus, (), spec, Job(engine=Serial(), rng=Rng(3))), tmp)


def plain_drill(
    part: WorstCase, forget: list[str], keep: list[str], loaded: Loaded, spec: ModelSpec
) -> dict[str, float]:
    """Losses of what was forgotten, by autograd and a loop over documents."""
    model = copy.deepcopy(loaded.model)

    def loss(text: str) -> torch.Tensor:
        ids = encode(pa.table({"text": [text]}), loaded.tokenizer, spec).ids[None]
        tokens = torch.from_numpy(ids).long()
        found: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
        return found

    for _ in range(part.steps):
        model.zero_grad()
        kept, gone = (torch.stack([loss(t) for t in side]).mean() for side in (keep, forget))
        (kept - part.ascent * gone).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= part.rate * p.grad.sign()
    with torch.no_grad():
        return {text: float(loss(text)) for text in forget}


@pytest.mark.parametrize("ascent", [0.0, 0.5])
def test_a_drill_is_the_definition(tmp_path: Path, ascent: float) -> None:
    spec, pool = llama(tmp_path), texts(7)
    part = WorstCase(sample=7, folds=2, steps=2, batch=8, rate=1e-3, ascent=ascent)
    found, facts = fit(part, [pool], spec, tmp_path)
    asked, loaded = asked_of(part, pool, spec, tmp_path), load(spec)
    fold = part._dealt(grouped(asked.clusters), asked)
    drawn = asked.table["text"].to_pylist()
    assert sorted(np.bincount(fold).tolist()) == [3, 4]
    expected: dict[str, float] = {}
    for number in (0, 1):
        sides = [
            [t for t, f in zip(drawn, fold, strict=True) if (f == number) == s] for s in (1, 0)
        ]
        expected |= plain_drill(part, *sides, loaded, spec)
    np.testing.assert_allclose(found["after"], [expected[t] for t in pool], atol=2e-3)
    before = losses(encode(pa.table({"text": pool}), loaded.tokenizer, spec), loaded)
    np.testing.assert_allclose(found["after"] - found["rise"], before, atol=1e-5)
    assert (facts["groups"], facts["sample"]) == (7, 7)
    assert facts["forgotten"]["before"] == pytest.approx(before.mean(), abs=1e-5)
    assert found["rank"][found["after"].argmin()] == 1
    assert found["weight"].sum() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_array_equal(found["utility"], found["after"])


def test_what_copies_bring_back_is_hardest_until_they_are_one_cluster(tmp_path: Path) -> None:
    spec = llama(tmp_path)
    copies = [f"the red cow sat on hill {k}" for k in range(6)]
    pool = [*copies, *texts(10)]
    own = load(spec)
    loaded = Loaded(own.model, own.tokenizer, own.device)
    state = copy.deepcopy(loaded.model.state_dict())
    trained(loaded, pool, spec)
    fields = {"sample": 16, "folds": 4, "steps": 6, "rate": 2e-3, "seed": 1}
    alone, _ = fit(WorstCase(**fields), [pool], spec, tmp_path / "a")
    kinds = {"s.kind": [["copy"] * 6 + [None] * 10]}
    joined, facts = fit(WorstCase(**fields, cluster="s.kind"), [pool], spec, tmp_path / "b", kinds)
    loaded.model.load_state_dict(state)
    assert alone["rise"][:6].mean() < alone["rise"][6:].mean()
    assert joined["rise"][:6].mean() > 2 * alone["rise"][:6].mean()
    assert facts["groups"] == 11
    assert len(set(joined["rank"][:6])) == 1


def trained(loaded: Loaded, pool: list[str], spec: ModelSpec) -> None:
    optimizer = torch.optim.AdamW(loaded.model.parameters(), 0.01)
    encoded = encode(pa.table({"text": pool}), loaded.tokenizer, spec)
    batch = next(batches(encoded, np.arange(len(pool)), 10_000))
    for _ in range(60):
        optimizer.zero_grad()
        sample_losses(loaded.model, batch).mean().backward()
        optimizer.step()
    loaded.model.zero_grad()


def test_the_model_is_left_alone_and_rows_stand_alone(tmp_path: Path) -> None:
    spec, pool = llama(tmp_path), texts(12)
    before = copy.deepcopy(load(spec).model.state_dict())
    part = WorstCase(sample=9, folds=3, steps=2, batch=2)
    found, _ = fit(part, [pool], spec, tmp_path / "a")
    assert all(torch.equal(p, before[n]) for n, p in load(spec).model.state_dict().items())
    order = np.random.default_rng(0).permutation(12)
    turned = [pool[k] for k in order]
    again, _ = fit(part, [turned[:5], turned[5:]], spec, tmp_path / "b")
    for name in part.columns:
        np.testing.assert_array_equal(again[name], found[name][order], err_msg=name)
    assert np.isfinite(found["after"]).sum() == 9


def test_bad_input_is_told(tmp_path: Path) -> None:
    spec = llama(tmp_path)
    with pytest.raises(DataError, match="worst_case: 3 groups in the sample for 4 folds"):
        fit(WorstCase(), [texts(3)], spec, tmp_path / "a")
    with pytest.raises(DataError, match="leaves the finite numbers; lower `rate`"):
        fit(WorstCase(folds=2, rate=1e39), [texts(4)], spec, tmp_path / "b")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"folds": 1}, "folds are at least 2"),
        ({"rate": 0}, "rates are positive"),
        ({"share": 1}, "share lies in"),
        ({"sample": "x"}, "sample"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        WorstCase.parse(fields, "score worst_case")
