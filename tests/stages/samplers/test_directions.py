"""Gradient match and momentum gain: dot products and look-aheads are those of autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.gradients.adamw import AdamW, Moments, preconditioned
from foresift.pipeline.lm.live import LiveModel
from foresift.pipeline.online import BatchMethod
from foresift.stages.samplers._directions import momentum
from foresift.stages.samplers.gradient_match import GradientMatch
from foresift.stages.samplers.momentum_gain import MomentumGain, MomentumGainChooser
from tests.stages.samplers.tiny import SHAPES, candidates, draw, look, model

ROWS = [*draw(6, seed=1, shortest=4), [5]]  # nothing of the last counts
AIM = draw(3, seed=2, shortest=4)


def file(folder: Path, name: str = "aim.parquet", **columns: Any) -> str:
    path = folder / name
    pq.write_table(pa.table(columns or {"input_ids": AIM}), path)
    return str(path)


def gradient(net: Any, row: list[int], total: bool = False) -> dict[str, torch.Tensor]:
    """Of the row's mean (or summed) loss, by autograd."""
    ids = torch.tensor([row])
    loss = net(input_ids=ids, labels=ids).loss * (len(row) - 1 if total else 1)
    names, parameters = zip(*net.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g
            for n, p, g in zip(names, parameters, found, strict=True)}  # fmt: skip


def aim_gradient(net: Any) -> dict[str, torch.Tensor]:
    """Of the mean loss over all tokens of the reference."""
    parts = [gradient(net, row, total=True) for row in AIM]
    tokens = sum(len(row) - 1 for row in AIM)
    return {n: sum(p[n] for p in parts) / tokens for n in parts[0]}  # type: ignore[misc]


def dots(net: Any, direction: dict[str, torch.Tensor]) -> np.ndarray:
    found = [gradient(net, row) for row in ROWS[:-1]]
    return np.array([sum(float((g[n] * d).sum()) for n, d in direction.items()) for g in found])


def values(method: BatchMethod, live: LiveModel) -> np.ndarray:
    chooser = method.open(live)
    with torch.no_grad():  # as a stream measures
        return chooser.utility(chooser.measure(look(method, live, candidates(ROWS))), 0)


def trained(kind: str = "adamw", steps: int = 3, **fields: Any) -> tuple[Any, Any]:
    """A model after some steps, and its optimizer."""
    net = model()
    options = {"lr": 1e-2, **fields}
    optimizer: Any = {
        "adamw": lambda: torch.optim.AdamW(net.parameters(), weight_decay=0.0, **options),
        "sgd": lambda: torch.optim.SGD(net.parameters(), momentum=0.9, **options),
    }[kind]()
    for row in draw(steps, seed=5, shortest=6):
        optimizer.zero_grad()
        ids = torch.tensor([row])
        net(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return net, optimizer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("central", [True, False])
def test_slopes_are_dot_products_of_gradients(shape: str, central: bool, tmp_path: Path) -> None:
    net = model(shape)
    expected = dots(net, aim_gradient(net))
    method = GradientMatch(reference=file(tmp_path), central=central)
    before = {n: p.clone() for n, p in net.named_parameters()}
    found = values(method, LiveModel(net))
    assert np.isnan(found[-1])
    spread = expected.std()
    np.testing.assert_allclose(found[:-1], expected, atol=(0.02 if central else 0.15) * spread)
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())  # bit for bit
    assert all(p.grad is None for p in net.parameters())


def test_the_optimizer_scales_the_gradient(tmp_path: Path) -> None:
    net, optimizer = trained()
    state = {n: optimizer.state[p] for n, p in net.named_parameters()}
    moments = Moments({}, {n: s["exp_avg_sq"] for n, s in state.items()}, 3)
    rule = AdamW(1e-2, (0.9, 0.999), 1e-8)
    expected = dots(net, preconditioned(aim_gradient(net), moments, rule))
    method = GradientMatch(reference=file(tmp_path), precondition=True)
    found = values(method, LiveModel(net, optimizer=optimizer))[:-1]
    np.testing.assert_allclose(found, expected, atol=0.02 * expected.std())
    plain = values(GradientMatch(reference=file(tmp_path)), LiveModel(net))[:-1]
    fresh = LiveModel(net, optimizer=torch.optim.AdamW(net.parameters()))  # no step done yet
    np.testing.assert_array_equal(values(method, fresh)[:-1], plain)


def test_the_reference_itself_is_the_best_to_train_on(tmp_path: Path) -> None:
    net = model()
    method = GradientMatch(reference=file(tmp_path))
    live = LiveModel(net)
    some = candidates([*ROWS[:3], AIM[0]])
    chooser = method.open(live)
    found = chooser.utility(chooser.measure(look(method, live, some)), 0)
    assert found.argmax() == 3
    assert found[3] > 0


def test_a_step_along_the_best_row_lowers_the_reference_most(tmp_path: Path) -> None:
    net = model()
    found = values(GradientMatch(reference=file(tmp_path)), LiveModel(net))[:-1]

    def loss(of: Any) -> float:
        with torch.no_grad():
            sums = [of(input_ids=torch.tensor([r]), labels=torch.tensor([r])).loss * (len(r) - 1)
                    for r in AIM]  # fmt: skip
        return float(sum(sums)) / sum(len(r) - 1 for r in AIM)

    drops = []
    for row in ROWS[:-1]:
        other, moves = model(), gradient(net, row)
        with torch.no_grad():
            for name, p in other.named_parameters():
                p -= 1e-3 * moves[name]
        drops.append(loss(net) - loss(other))
    np.testing.assert_allclose(np.array(drops) / 1e-3, found, atol=0.1 * found.std())


def test_a_gradient_serves_several_steps_and_outlives_an_interruption(tmp_path: Path) -> None:
    net = model()
    live, method = LiveModel(net), GradientMatch(reference=file(tmp_path), every=3)
    some = candidates(ROWS)

    def run(chooser: Any, step: int) -> np.ndarray:
        return chooser.utility(chooser.measure(look(method, live, some)), step)

    whole, cut = method.open(live), method.open(live)
    for step in range(5):
        if step in (1, 2, 3):
            state = cut.state_dict()
            assert any(n.startswith("direction.") for n in state) == (step < 3)
            cut = method.open(live)
            cut.load_state_dict(state)
        np.testing.assert_array_equal(run(whole, step), run(cut, step))
        with torch.no_grad():  # the weights go on
            for p in net.parameters():
                p.mul_(1.01)
    assert whole.facts == cut.facts  # type: ignore[attr-defined]
    assert whole.facts["reference_gradients"] == 2  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="no trained parameter"):
        cut.load_state_dict({"gradients": 1, "direction.lm_head.weight": torch.zeros(2)})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ids": AIM}, "no column 'input_ids'"),
        ({"input_ids": [[1, 2], [3, 99]]}, "token ids from 1 to 99, the model has 61"),
        ({"input_ids": [[1, 2], [3, 4]], "labels": [[1, 2], [3]]}, "differ in length"),
        ({"input_ids": [[1], [2], [3, 4]]}, "1 of its 3 documents have a token to predict"),
        ({"input_ids": ["a", "b"]}, "cannot be read"),
        ({"input_ids": [[1, 2], None]}, "a row without token ids"),
    ],
)
def test_bad_references_are_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        GradientMatch(reference=file(tmp_path, **columns)).open(LiveModel(model()))


def test_labels_say_what_of_the_reference_counts(tmp_path: Path) -> None:
    labels = [[-100, *row[1:-1], -100] for row in AIM]
    name = file(tmp_path, input_ids=AIM, labels=labels)
    cut = file(tmp_path, "cut.parquet", input_ids=[row[:-1] for row in AIM])
    net = model()
    found, expected = (values(GradientMatch(reference=f), LiveModel(net)) for f in (name, cut))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_direction_is_the_update_made_last(kind: str) -> None:
    net, optimizer = trained(kind)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    ids = torch.tensor([ROWS[0]])
    net(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    direction = momentum(LiveModel(net, optimizer=optimizer), "here")
    assert set(direction) == set(before)
    for name, p in net.named_parameters():
        torch.testing.assert_close(direction[name], p.detach() - before[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_gain_is_the_loss_that_the_update_takes_away(kind: str) -> None:
    net, optimizer = trained(kind)
    live = LiveModel(net, optimizer=optimizer)
    direction = momentum(live, "here")
    before = {n: p.clone() for n, p in net.named_parameters()}
    held = {n: {k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items()}
            for n, p in net.named_parameters()}  # fmt: skip
    found = values(MomentumGain(updates=2.0), live)
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    for n, p in net.named_parameters():
        assert all(
            torch.equal(torch.as_tensor(v), held[n][k]) for k, v in optimizer.state[p].items()
        )
    other = model()
    with torch.no_grad():
        for n, p in other.named_parameters():
            p.copy_(before[n] + 2 * direction[n])
        for row, gain in zip(ROWS[:-1], found, strict=False):
            ids = torch.tensor([row])
            losses = [float(m(input_ids=ids, labels=ids).loss) for m in (net, other)]
            assert gain == pytest.approx(losses[0] - losses[1], abs=1e-5)
    assert np.isnan(found[-1])
    assert np.abs(found[:-1]).max() > 1e-3
    opposing = values(MomentumGain(updates=2.0, keep="opposing"), live)
    np.testing.assert_array_equal(opposing, -found)


def test_a_small_look_ahead_is_the_dot_product_with_the_update() -> None:
    net, optimizer = trained()
    live = LiveModel(net, optimizer=optimizer)
    slopes = dots(net, momentum(live, "here"))
    found = values(MomentumGain(updates=0.01), live)[:-1] / 0.01
    np.testing.assert_allclose(found, -slopes, atol=0.05 * slopes.std())


def test_what_the_update_makes_the_model_forget_is_counted() -> None:
    net, optimizer = trained()
    live, method = LiveModel(net, optimizer=optimizer), MomentumGain(updates=3.0)
    chooser = method.open(live)
    assert isinstance(chooser, MomentumGainChooser)
    measured = chooser.measure(look(method, live, candidates(ROWS)))
    gain = chooser.utility(measured, 0)
    chosen = np.argsort(gain)[:2]  # NaN sorts last: the two that lose most
    chooser.observe(measured, chosen)
    rising = int((gain < 0).sum())
    expected = {"judged": 6, "rising": rising, "chosen": 2, "chosen_rising": min(rising, 2)}
    assert chooser.facts == expected
    other = method.open(live)
    other.load_state_dict(chooser.state_dict())
    assert other.facts == expected  # type: ignore[attr-defined]


def test_before_the_first_step_nothing_is_gained() -> None:
    net = model()
    for optimizer in (torch.optim.AdamW(net.parameters()), torch.optim.SGD(net.parameters(), 0.1)):
        found = values(MomentumGain(), LiveModel(net, optimizer=optimizer))
        np.testing.assert_array_equal(found, [0.0] * 6 + [np.nan])
    net, optimizer = trained()
    optimizer.param_groups[0]["lr"] = 0.0
    found = values(MomentumGain(), LiveModel(net, optimizer=optimizer))
    np.testing.assert_array_equal(found, [0.0] * 6 + [np.nan])


def test_optimizers_that_cannot_be_read_are_refused() -> None:
    net, method = model(), MomentumGain()
    with pytest.raises(ModelError, match="needs the optimizer of the training"):
        values(method, LiveModel(net))
    strange = torch.optim.AdamW(model().parameters())
    with pytest.raises(ModelError, match="holds none of the model's parameters"):
        values(method, LiveModel(net, optimizer=strange))
    net = model()
    factored = torch.optim.Adagrad(net.parameters())
    ids = torch.tensor([ROWS[0]])
    net(input_ids=ids, labels=ids).loss.backward()
    factored.step()
    with pytest.raises(ModelError, match=r"Adagrad keeps .*; use Adam, AdamW or SGD"):
        values(method, LiveModel(net, optimizer=factored))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MomentumGain(updates=0.0), "updates"),
        (lambda: GradientMatch(reference="a", every=0), "every"),
        (lambda: GradientMatch(reference="a", step=-1.0), "step"),
    ],
)
def test_fields_are_checked(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
