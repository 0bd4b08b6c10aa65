"""UDS through hidden states is UDS on the logits, and remembers what was chosen only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.head import Head
from foresift.pipeline.lm.live import LiveModel
from foresift.pipeline.online import Candidates
from foresift.pipeline.rng import Rng
from foresift.stages.samplers._uds import Factors, Masks, nuclear_norms, square_root
from foresift.stages.samplers.uds import UDS, UDSChooser
from tests.stages.samplers.tiny import SHAPES, VOCABULARY, candidates, draw, look, model

SMALL: dict[str, Any] = {"d1": 12, "d2": 4, "max_length": 16, "memory": 32}


def released(z: torch.Tensor, masks: Masks) -> torch.Tensor:
    """The transform as it is defined: unnormalised FFTs of the zero-padded logits."""
    z = torch.nn.functional.pad(z.double(), (0, 0, 0, masks.length - len(z)))
    d1, d2 = len(masks.token_frequencies), len(masks.position_frequencies)
    right = torch.fft.fft(z * masks.token_signs, dim=1).real[:, masks.token_frequencies]
    right = right * (masks.vocabulary / d1) ** 0.5
    left = torch.fft.fft(masks.position_signs[: masks.length, None] * right, dim=0).real
    return left[masks.position_frequencies].flatten() * (masks.length / d2) ** 0.5


def measured(method: UDS, live: LiveModel, some: Candidates) -> dict[str, torch.Tensor]:
    return dict(method.open(live).measure(look(method, live, some)))


def logits(net: Any, row: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return net(input_ids=torch.tensor([row])).logits[0].double()


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_and_choices_are_those_of_the_logits(shape: str) -> None:
    net, rows = model(shape), draw(4000)
    method = UDS(**SMALL, frequencies="released")
    live = LiveModel(net)
    chooser = method.open(live)
    found = dict(chooser.measure(look(method, live, candidates(rows))))
    masks = chooser.kernel.masks
    with torch.no_grad():
        whole = net(input_ids=candidates(rows).input_ids).logits.double()
    pieces = [z[: len(row)] for z, row in zip(whole, rows, strict=True)]
    norms = torch.stack([torch.linalg.svdvals(z).sum() for z in pieces])
    torch.testing.assert_close(found["intra"], norms, rtol=1e-5, atol=0)
    factor = (VOCABULARY * masks.length) ** 0.5 / 2
    sketches = torch.stack([released(z, masks) for z in pieces])
    assert (found["sketch"] * factor - sketches).norm() < 1e-5 * sketches.norm()

    raw = 2 * method.alpha_normalised / (VOCABULARY * masks.length) ** 0.5
    assert chooser.facts["alpha_as_released"] == pytest.approx(raw)
    memory: list[torch.Tensor] = []
    for step in range(1000):  # batches of four, two kept
        part = slice(4 * step, 4 * step + 4)
        few = {name: values[part] for name, values in found.items()}
        ours = np.argsort(-chooser.utility(few, step))[:2]
        theirs = norms[part].clone()
        if memory:
            held = torch.stack(memory[-32:])
            theirs += raw * (sketches[part][:, None] - held).norm(dim=2).mean(1)
        assert ours.tolist() == theirs.argsort(descending=True)[:2].tolist()
        chooser.observe(few, ours)
        memory.extend(sketches[part][ours.tolist()])


@pytest.mark.parametrize(
    ("z", "norm"),
    [
        ([[3.0, 0, 0], [0, 4, 0]], 7.0),
        ([[3.0, 4, 0], [3, 4, 0]], 50**0.5),
        ([[0.0, 0, 0], [0, 0, 0]], 0.0),
    ],
)
def test_nuclear_norms_that_are_known(z: list[list[float]], norm: float) -> None:
    y = torch.tensor(z, dtype=torch.float64)
    assert float(nuclear_norms((y @ y.T)[None])) == pytest.approx(norm, abs=1e-6)
    assert float(nuclear_norms((y.T @ y)[None])) == pytest.approx(norm, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.floats(-6, 6))
def test_the_norm_lies_between_its_bounds(length: int, width: int, seed: int, power: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(length, width, generator=generator, dtype=torch.float64) * 10**power
    norm, frobenius = float(nuclear_norms((z @ z.T)[None])), float(z.norm())
    assert frobenius * (1 - 1e-6) <= norm <= min(length, width) ** 0.5 * frobenius * (1 + 1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("condition", [1.0, 1e7, float("inf")])
def test_factors_stand_for_an_ill_conditioned_matrix_too(bias: bool, condition: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(100, 8, generator=generator)
    weight[:, 0] /= condition
    if condition == float("inf"):
        weight[:, 1] = weight[:, 2]
    shift = torch.randn(100, generator=generator) if bias else None
    head = Head(weight, shift, scale=0.5)
    masks = Masks.draw(Rng(0), 100, 16, (10, 4), False)
    x = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    z = 0.5 * (x @ weight.double().T + (shift.double() if shift is not None else 0))
    if bias:
        x = torch.cat([x, torch.ones(5, 1)], 1)
    made = Factors.of(head, masks)
    y = x @ made.root
    want = torch.linalg.svdvals(z).sum()
    torch.testing.assert_close(nuclear_norms((y @ y.T)[None])[0], want, rtol=1e-6, atol=0)
    right = masks.right(0, 100, x.device).double()
    torch.testing.assert_close(x @ made.right.double(), z @ right, rtol=1e-5, atol=1e-5)


def test_a_square_root_of_a_singular_matrix() -> None:
    y = torch.tensor([[1.0, 2, 3], [2, 4, 6], [0, 0, 1]], dtype=torch.float64)
    root = square_root(y @ y.T)
    torch.testing.assert_close(root @ root.T, y @ y.T)


@pytest.mark.parametrize("rows", ["nonpad", "response"])
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_changes_nothing(rows: Any, shape: str) -> None:
    live, content = LiveModel(model(shape)), draw(6)
    method = UDS(**SMALL, rows=rows)
    alone = measured(method, live, candidates(content))
    for side in ("left", "right"):
        padded = measured(method, live, candidates(content, width=30, side=side))
        torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)
    first = measured(method, live, candidates(content[:1]))
    torch.testing.assert_close(first["intra"], alone["intra"][:1], rtol=1e-6, atol=0)


def test_pads_count_where_they_are_asked_for() -> None:
    net, content = model("llama"), draw(3)
    method = UDS(**SMALL, rows="all")
    assert not method.hidden
    short, wide = (measured(method, LiveModel(net), candidates(content, w)) for w in (9, 14))
    assert (wide["intra"] > short["intra"] + 0.1).all()
    some = candidates(content, 12, "left")
    with torch.no_grad():
        z = net(input_ids=some.input_ids, attention_mask=some.attention_mask).logits.double()
    expected = torch.linalg.svdvals(z).sum(1)
    torch.testing.assert_close(measured(method, LiveModel(net), some)["intra"], expected)


def test_the_response_is_what_predicts_counted_tokens() -> None:
    net, content = model("gpt2"), draw(4, shortest=4)
    found = measured(UDS(**SMALL, rows="response"), LiveModel(net), candidates(content, prompt=3))
    expected = [torch.linalg.svdvals(logits(net, row)[2:-1]).sum() for row in content]
    torch.testing.assert_close(found["intra"], torch.stack(expected), rtol=1e-5, atol=0)


def test_rows_longer_than_the_period_and_the_width_are_taken_whole() -> None:
    net, content = model(), draw(3, longest=40, shortest=30)
    chooser = UDS(**SMALL).open(LiveModel(net))
    found = chooser.measure(look(chooser.part, chooser.kernel.live, candidates(content)))
    masks = chooser.kernel.masks
    for i, row in enumerate(content):
        z = logits(net, row)
        assert float(found["intra"][i]) == pytest.approx(float(torch.linalg.svdvals(z).sum()), 1e-5)
        right = masks.right(0, VOCABULARY, z.device).double()
        sketch = masks.left(len(row), z.device).double() @ z.double() @ right
        torch.testing.assert_close(found["sketch"][i], sketch.flatten().float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("length_norm", "power"), [("sqrt_length", 0.5), ("length", 1.0)])
def test_length_norms_divide_the_logits(length_norm: Any, power: float) -> None:
    live, some = LiveModel(model()), candidates(draw(5))
    plain = measured(UDS(**SMALL), live, some)
    found = measured(UDS(**SMALL, length_norm=length_norm), live, some)
    divisor = some.attention_mask.sum(1).double() ** power
    torch.testing.assert_close(found["intra"], plain["intra"] / divisor)
    torch.testing.assert_close(found["sketch"], (plain["sketch"] / divisor[:, None]).float())


def capped() -> Any:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5,
        initializer_range=0.3,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


class Shifted(LlamaForCausalLM):
    """Its logits are not the output layer's."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + torch.linspace(0, 1, out.logits.shape[-1])
        return out


@pytest.mark.parametrize("rows", ["nonpad", "all"])
@pytest.mark.parametrize("kind", ["capped", "unknown"])
def test_other_output_layers_go_through_their_logits(kind: str, rows: Any) -> None:
    net = capped() if kind == "capped" else Shifted(model().config).eval()
    live, content = LiveModel(net), draw(5, shortest=6, longest=6)
    assert (live.head is None) == (kind == "unknown")
    method = UDS(**SMALL, rows=rows)
    chooser = method.open(live)
    found = chooser.measure(look(method, live, candidates(content)))
    whole = [logits(net, row) for row in content]
    expected = torch.stack([torch.linalg.svdvals(z).sum() for z in whole])
    torch.testing.assert_close(found["intra"], expected, rtol=1e-5, atol=0)
    factor = (VOCABULARY * 16) ** 0.5 / 2
    sketch = torch.stack([released(z, chooser.kernel.masks) for z in whole]) / factor
    scale = torch.ones(4, 12)  # mirror-free frequencies carry the weight of their energy
    masks = chooser.kernel.masks
    scale[:, (masks.token_frequencies == 0)] /= 2**0.5
    ends = (masks.position_frequencies == 0) | (masks.position_frequencies == 8)
    scale[ends] /= 2**0.5
    torch.testing.assert_close(
        found["sketch"].double(), sketch * scale.flatten(), rtol=1e-4, atol=1e-4
    )


def test_a_sketch_is_linear_and_keeps_lengths_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 40, 101, generator=generator, dtype=torch.float64)

    def sketch(masks: Masks, value: torch.Tensor) -> torch.Tensor:
        right = masks.right(0, 101, value.device).double()
        return (masks.left(40, value.device).double() @ value @ right).flatten()

    masks = Masks.draw(Rng(3), 101, 16, (20, 6), False)  # rows longer than T = 16
    torch.testing.assert_close(
        sketch(masks, 2 * z[0] - 3 * z[1]), 2 * sketch(masks, z[0]) - 3 * sketch(masks, z[1])
    )
    drawn = [Masks.draw(Rng(s), 101, 16, (20, 6), False) for s in range(60)]
    ratios = [float(sketch(m, z[0]).square().sum() / z[0].square().sum()) for m in drawn]
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)
    assert len(set(masks.token_frequencies.tolist())) == 20


def chooser_of(memory: int) -> UDSChooser:
    return UDS(**{**SMALL, "memory": memory}, alpha_normalised=2.0).open(LiveModel(model()))


def vectors(chooser: UDSChooser, *lengths: float) -> dict[str, torch.Tensor]:
    """Sketches of these lengths along one axis, of rows with norm 10."""
    sketch = torch.zeros(len(lengths), chooser.kernel.masks.width)
    sketch[:, 0] = torch.tensor(lengths)
    return {"intra": torch.full((len(lengths),), 10.0), "sketch": sketch}


def test_the_memory_holds_what_was_chosen_last() -> None:
    chooser = chooser_of(memory=3)
    five = vectors(chooser, 5.0)
    assert chooser.utility(five, 0).tolist() == [10.0]  # nothing remembered: exactly the norm
    chooser.observe(vectors(chooser, 7.0, 0.0, 9.0), np.array([1]))
    assert chooser.distances(five["sketch"]).tolist() == [5.0]
    assert chooser.utility(five, 1).tolist() == [20.0]
    chooser.observe(five, np.array([0]))
    assert chooser.distances(five["sketch"]).tolist() == [2.5]
    chooser.observe(vectors(chooser, 2.0, 6.0), np.array([0, 1]))  # the zero leaves
    assert chooser.distances(five["sketch"])[0] == pytest.approx((0 + 3 + 1) / 3)
    assert chooser.facts["remembered"] == 3


def test_a_copy_of_what_was_chosen_scores_lower() -> None:
    live = LiveModel(model())
    method = UDS(**SMALL)
    chooser = method.open(live)
    rows = draw(3, shortest=9)
    found = chooser.measure(look(method, live, candidates(rows)))
    chooser.observe(found, np.array([0]))
    gained = chooser.distances(found["sketch"])
    assert gained[0] == 0
    assert (gained[1:] > 1).all()


def test_the_nearest_feels_a_copy_that_the_mean_hardly_does() -> None:
    mean = chooser_of(memory=100)
    nearest = UDS(**{**SMALL, "memory": 100}, distance="nearest").open(LiveModel(model()))
    some = torch.randn(60, mean.kernel.masks.width, generator=torch.Generator().manual_seed(0))
    for chooser in (mean, nearest):
        chooser.observe({"intra": torch.ones(60), "sketch": some}, np.arange(60))
    asked = torch.cat([some[:1], some[:1] + 1])
    apart = (asked[:, None].double() - some[None].double()).norm(dim=2)
    np.testing.assert_allclose(nearest.distances(asked), apart.amin(1), atol=1e-6)
    np.testing.assert_allclose(mean.distances(asked), apart.mean(1), rtol=1e-6)
    assert nearest.distances(asked)[0] == 0
    assert mean.distances(asked)[0] > 0.5 * mean.distances(asked)[1]


def test_a_trained_output_matrix_is_read_anew_and_a_frozen_one_is_not() -> None:
    net = model("qwen")
    live, some = LiveModel(net), candidates(draw(4))
    method = UDS(**SMALL)
    chooser = method.open(live)
    before = chooser.measure(look(method, live, some))
    factors = chooser.kernel.factors()
    assert chooser.kernel.factors() is factors
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    net(input_ids=some.input_ids, labels=some.input_ids).loss.backward()
    optimizer.step()
    after = chooser.measure(look(method, live, some))
    assert chooser.kernel.factors() is not factors
    fresh = method.open(live).measure(look(method, live, some))
    torch.testing.assert_close(after, fresh)
    assert (after["intra"] != before["intra"]).all()


def test_a_row_without_a_counted_token_has_no_score_and_is_never_remembered() -> None:
    method = UDS(**SMALL)
    live = LiveModel(model())
    chooser = method.open(live)
    found = chooser.measure(look(method, live, candidates([[5, 6, 7], [4], [3, 2]])))
    assert np.isnan(chooser.utility(found, 0)).tolist() == [False, True, False]
    chooser.observe(found, np.array([1]))
    assert chooser.held == 0


def test_a_run_goes_on_from_its_state() -> None:
    live, method = LiveModel(model()), UDS(**SMALL)
    some = candidates(draw(40))
    whole, cut = method.open(live), method.open(live)
    found = whole.measure(look(method, live, some))
    for step in range(6):
        chosen = np.arange(6 * step, 6 * step + 6)
        whole.observe(found, chosen)
        cut.observe(found, chosen)
        if step == 3:
            state = cut.state_dict()
            cut = UDS(**SMALL, seed=9).open(live)  # the state's masks count
            cut.load_state_dict(state)
    again = cut.measure(look(method, live, some))
    torch.testing.assert_close(again, found, rtol=0, atol=0)
    np.testing.assert_array_equal(whole.utility(found, 6), cut.utility(found, 6))
    assert (whole.held, whole.cursor) == (cut.held, cut.cursor)


def test_a_state_of_another_configuration_is_refused() -> None:
    live = LiveModel(model())
    state = UDS(**SMALL).open(live).state_dict()
    with pytest.raises(DataError, match="position_frequencies"):
        UDS(**{**SMALL, "d2": 3}).open(live).load_state_dict(state)
    long = UDS(**{**SMALL, "memory": 64}).open(live)
    long.observe(vectors(long, *range(40)), np.arange(40))
    with pytest.raises(DataError, match="remembers"):
        UDS(**SMALL).open(live).load_state_dict(long.state_dict())
    with pytest.raises(DataError, match="cursor 3"):
        UDS(**SMALL).open(live).load_state_dict({**state, "cursor": 3})


@pytest.mark.parametrize(
    "fields", [{"alpha_normalised": -1}, {"alpha_normalised": float("nan")}, {"memory": 0}]
)
def test_fields_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        UDS(**fields)
