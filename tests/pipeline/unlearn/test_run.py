"""Every method on a model that knows eight strings by heart: forgets them, keeps the others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.unlearn.documents import documents, read
from foresift.pipeline.unlearn.run import METHODS, build, unlearn
from foresift.pipeline.unlearn.session import Meter

TEMPLATE = [[1, 2, 3, 4, 5, 6, 7, 8]]
#: options under which the tiny model forgets; the others run with their defaults
OPTIONS: dict[str, dict[str, Any]] = {"ssd": {"threshold": 2.0, "sample": 0}}
RATES = {"ga": 1e-3, "iau": 3e-3, "sparse": 3e-3}
#: nats a retain token, above which a regularised method has not kept
KEPT = 0.6
UNREGULARISED = {"ga", "ce_u", "flat", "undial", "ssd"}


def run(memorised: Any, method: str, **fields: Any) -> Any:
    fields = {"templates": TEMPLATE, "prompts": 4, "options": OPTIONS.get(method), **fields}
    fields.setdefault("learning_rate", RATES.get(method))
    return unlearn(memorised.model, memorised.forget, memorised.retain, method, **fields)


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_each_method_forgets_and_the_regularised_ones_keep(memorised: Any, method: str) -> None:
    outcome = run(memorised, method)
    facts = outcome.facts
    assert not outcome.stopped
    assert facts["forget_nll_after"] > facts["forget_nll_before"] + 0.2
    assert facts["forget_nll_after"] > facts["retain_nll_after"]
    if method not in UNREGULARISED:
        assert facts["retain_nll_after"] < KEPT
        assert not facts["collapsed"]
    if method == "ga":
        assert facts["retain_nll_after"] > KEPT
        assert facts["collapsed"]
    assert outcome.flops > 0
    assert outcome.steps == METHODS[method].steps


def test_the_first_loss_of_npo_is_the_known_one(memorised: Any) -> None:
    outcome = run(memorised, "npo", steps=1, options={"alpha": 0.0})
    assert outcome.log[0]["loss"] == pytest.approx(20 * math.log(2), abs=1e-4)


@pytest.mark.parametrize("method", ["npo", "ssd", "iau", "gu", "random_labels"])
def test_nothing_depends_on_the_order_of_documents(memorised: Any, method: str) -> None:
    one = run(memorised, method, steps=min(3, METHODS[method].steps))
    order = np.random.default_rng(1).permutation(8)
    turned = unlearn(
        memorised.model, [memorised.forget[i] for i in order], memorised.retain[::-1], method,
        steps=one.steps, prompts=[4] * 8, options=OPTIONS.get(method),
        learning_rate=RATES.get(method),
    )  # fmt: skip
    assert same(one.model, turned.model)
    assert one.flops == turned.flops


def test_another_seed_gives_other_batches(memorised: Any) -> None:
    runs = [run(memorised, "graddiff", steps=2, seed=seed).model for seed in (0, 0, 1)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_templates_follow_their_documents(memorised: Any) -> None:
    own = [[i, i + 1, i + 2] for i in range(8)]
    one = run(memorised, "dpo", steps=3, templates=own)
    turned = unlearn(
        memorised.model, memorised.forget[::-1], memorised.retain, "dpo", steps=3, prompts=4,
        templates=own[::-1],
    )  # fmt: skip
    assert same(one.model, turned.model)


def test_a_copy_is_changed_unless_told_otherwise(memorised: Any) -> None:
    model = memorised.model.train()
    outcome = unlearn(model, memorised.forget, memorised.retain, "ga", steps=1)
    assert outcome.model is not model
    assert same(model, memorised.trained)
    inside = unlearn(model, memorised.forget, memorised.retain, "ga", steps=1, in_place=True)
    assert inside.model is model
    assert model.training
    assert same(model, outcome.model)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_no_steps_change_nothing(memorised: Any) -> None:
    for method in ("npo", "iau", "ssd"):
        outcome = run(memorised, method, steps=0)
        assert same(outcome.model, memorised.trained)
        assert (outcome.steps, outcome.flops) == (0, 0)


@pytest.mark.parametrize(
    ("method", "forwards", "backwards"),
    [("ga", 0, 128), ("graddiff", 0, 256), ("npo", 128, 256), ("flat", 0, 224), ("iau", 0, 512)],
)
def test_flops_are_counted_by_the_token(
    memorised: Any, method: str, forwards: int, backwards: int
) -> None:
    """Eight documents of 16 tokens a batch; templates have 4 + 8."""
    outcome = run(memorised, method, steps=1)
    size = sum(p.numel() for p in memorised.trained.parameters())
    assert outcome.flops == size * (2 * forwards + 6 * backwards)


def test_the_reference_may_be_another_model(memorised: Any) -> None:
    other = memorised.model
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    kept = [p.clone() for p in other.parameters()]
    outcome = run(memorised, "npo", steps=1, reference=other, options={"alpha": 0.0})
    assert outcome.log[0]["loss"] != pytest.approx(20 * math.log(2), abs=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(kept, other.parameters(), strict=True))
    assert all(p.requires_grad for p in other.parameters())


def test_pdu_pushes_back_while_the_bound_is_broken(memorised: Any) -> None:
    strict = run(memorised, "pdu", steps=10, options={"epsilon": 0.0})
    loose = run(memorised, "pdu", steps=10, options={"epsilon": 9.0})
    late = run(memorised, "pdu", steps=10, options={"epsilon": 0.0, "warmup": 10})
    assert strict.facts["multiplier"] > 1.0
    assert loose.facts["multiplier"] == 0.0
    assert late.facts["multiplier"] == 1.0
    assert strict.facts["retain_nll_after"] < loose.facts["retain_nll_after"]


def test_a_divergence_in_place_of_the_retain_loss(memorised: Any) -> None:
    outcome = run(memorised, "graddiff", steps=1, options={"keep": "kl"})
    assert outcome.log[0]["loss"] == pytest.approx(-outcome.log[0]["forget_nll"], abs=1e-5)


def test_collapse_ends_the_run_with_finite_weights(memorised: Any) -> None:
    wild = run(memorised, "ga", steps=300, learning_rate=2e-2)
    assert "collapse" in wild.stopped
    assert 0 < wild.steps < 300
    assert wild.facts["collapsed"]
    assert all(bool(torch.isfinite(p).all()) for p in wild.model.parameters())


def test_what_is_not_finite_ends_the_run(memorised: Any) -> None:
    model = memorised.model
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    outcome = unlearn(model, memorised.forget, memorised.retain, "ga", steps=3)
    assert outcome.stopped == "stopped before step 0: the loss is not finite"
    assert outcome.steps == 0


def test_padding_changes_no_loss(memorised: Any) -> None:
    given = documents([memorised.forget[0], memorised.forget[1][:5]], [0, 2])[0]
    both = read(memorised.trained, given.batch([0, 1]))
    alone = [read(memorised.trained, given.batch([i])) for i in (0, 1)]
    assert both.sums.tolist() == pytest.approx([float(r.sums.detach()) for r in alone], rel=1e-4)
    assert sorted(both.lengths.tolist()) == [3, 15]
    assert int(both.first.sum()) == 2


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"forget": []}, DataError, "nothing to forget"),
    ({"method": "nop"}, RecipeError, "no method 'nop'; did you mean 'npo'"),
    ({"options": {"betta": 1.0}}, RecipeError, "no option 'betta'; did you mean 'beta'"),
    ({"options": {"beta": 0.0}}, RecipeError, "beta is above 0"),
    ({"options": {"keep": "mse"}}, RecipeError, "'nll' or 'kl'"),
    ({"retain": []}, DataError, "needs documents to retain"),
    ({"retain": [[1, 2, 3], [4, 5, 6]]}, DataError, "1 forget sequences are among the retained"),
    ({"method": "flat"}, DataError, "one template, or one for each"),
    ({"method": "dpo", "templates": [[], []]}, DataError, "template"),
    ({"forget": [[1, 2, 99]]}, DataError, "token 99"),
    ({"forget": [[1]]}, DataError, "none is left"),
    ({"forget": [[1] * 65]}, DataError, "the model reads 64"),
    ({"prompts": 3}, DataError, "a prompt of 3"),
    ({"prompts": [1, 1]}, DataError, "2 prompt lengths for 1 sequences"),
    ({"layers": [2]}, RecipeError, "the blocks are 0 to 1"),
    ({"batch": 0}, RecipeError, "batch >= 1"),
    ({"method": "gu", "options": {"base": "ssd"}}, RecipeError, "no steps to correct"),
    ({"method": "gu", "options": {"base": "npp"}}, RecipeError, "no method 'npp'"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(
    memorised: Any, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    fields: dict[str, Any] = {"forget": [[1, 2, 3]], "retain": [[4, 5, 6]], "method": "npo"}
    fields |= change
    given = [fields.pop(name) for name in ("forget", "retain", "method")]
    with pytest.raises(error, match=message):
        unlearn(memorised.trained, *given, **fields)


def test_a_method_without_need_of_it_runs_without_retain(memorised: Any) -> None:
    outcome = unlearn(memorised.model, memorised.forget, [], "ga", steps=2)
    assert "retain_nll_after" not in outcome.facts
    free = unlearn(memorised.model, memorised.forget, [], "npo", steps=2, options={"alpha": 0.0})
    assert free.steps == 2


def test_every_method_can_be_built_and_says_what_it_is() -> None:
    for name, entry in METHODS.items():
        assert isinstance(build(name), entry.kind)
        assert entry.kind.__doc__


def test_flops_count_real_tokens_and_no_padding() -> None:
    given, _ = documents([[1, 2], [1, 2, 3, 4, 5, 6, 7]])
    meter = Meter(10)
    meter.add(given.batch([0, 1]), per_token=6)
    assert meter.flops == 6 * 10 * 9
