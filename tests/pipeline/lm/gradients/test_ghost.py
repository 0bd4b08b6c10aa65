"""Ghost dot products and norms against vectorised and looped per-sample gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.lm.gradients import ghost_terms
from foresift.pipeline.lm.gradients.ghost import ghost
from foresift.pipeline.lm.gradients.ghost_terms import Outer
from foresift.pipeline.lm.gradients.oracle import per_sample_gradients, vmap_gradients
from foresift.pipeline.lm.gradients.samples import sample_losses
from tests.pipeline.lm.gradients.models import (
    OTHERS,
    SHAPES,
    build,
    direction,
    products,
    ragged,
    square_norms,
)


def check(model: Any, batch: Batch, gradients: Any, slack: float) -> None:
    """One direction, two directions and norms, against given per-sample gradients."""
    along = [direction(model, seed) for seed in (1, 2)]
    one, two = ghost(model, batch, along[:1], norms=True), ghost(model, batch, along)
    expected = torch.stack([products(gradients, d) for d in along], 1)
    squares = square_norms(gradients)
    lengths = torch.tensor([square_norms({n: v[None] for n, v in d.items()}) for d in along])
    scale = (squares[:, None] * lengths).sqrt()  # |g| |d|: a dot product may nearly cancel
    assert (squares[:-1] > 0).all()
    assert ((one.dots - expected[:, :1]).abs() <= slack * scale[:, :1]).all()
    assert ((two.dots - expected).abs() <= slack * scale).all()
    assert one.squared_norms is not None
    assert ((one.squared_norms - squares).abs() <= slack * squares).all()
    assert two.squared_norms is None
    assert torch.equal(one.losses, sample_losses(model, batch).detach())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_vectorised_gradients(shape: str, tied: bool) -> None:
    model, batch = build(shape, tied), ragged()
    check(model, batch, vmap_gradients(model, batch), 1e-10)
    model = model.float()
    check(model, batch, vmap_gradients(model, batch), 1e-5)


@pytest.mark.parametrize("shape", OTHERS)
def test_layers_found_by_probing(shape: str) -> None:
    model, batch = build(shape, tied=True, kernel="sdpa"), ragged()
    check(model, batch, per_sample_gradients(model, batch), 1e-6)  # norms taken in float32


def test_untaught_rows_and_shared_layers() -> None:
    model, batch = build("llama", tied=True, pad_token_id=7), ragged()
    assert model.model.embed_tokens.padding_idx == 7
    model.model.layers[1] = model.model.layers[0]
    check(model, batch, per_sample_gradients(model, batch), 1e-10)


def test_long_documents_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """T^2 > m n, so that matrices are formed, two samples at a time."""
    model, batch = build("llama", tied=True), ragged((40, 33, 9, 5, 1))
    monkeypatch.setattr(ghost_terms, "LIMIT", 2 * 16 * 24)
    check(model, batch, vmap_gradients(model, batch), 1e-10)


def test_both_forms_of_the_norm_are_that_of_the_sum() -> None:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (3, 5), generator=draw)
    floats = [torch.randn(3, 5, n, generator=draw, dtype=torch.float64) for n in (9, 2, 2)]
    terms = [Outer(ids, floats[1]), Outer(floats[0], floats[2])]
    units = torch.nn.functional.one_hot(ids, 9).double()
    matrix = units.mT @ floats[1] + floats[0].mT @ floats[2]
    expected = matrix.square().sum((1, 2))
    formed = ghost_terms.squares(terms, torch.Size((9, 2)))
    torch.testing.assert_close(formed, expected)
    torch.testing.assert_close(ghost_terms._pairs(terms), expected)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_the_cross_term_of_a_tied_matrix(shape: str) -> None:
    """|G_in + G_out|^2 = |G_in|^2 + |G_out|^2 + 2 <G_in, G_out>, with each use seen apart."""
    tied, untied, batch = build(shape, tied=True), build(shape), ragged()
    state = tied.state_dict()
    untied.load_state_dict(state | {"lm_head.weight": tied.get_input_embeddings().weight})
    apart = per_sample_gradients(untied, batch)
    table = next(
        n for n, p in untied.named_parameters() if p is untied.get_input_embeddings().weight
    )
    cross = 2 * (apart[table] * apart["lm_head.weight"]).sum((1, 2))
    squares = [ghost(m, batch, norms=True).squared_norms for m in (tied, untied)]
    assert squares[0] is not None
    assert squares[1] is not None
    assert (cross.abs()[:3] > 1e-3 * squares[0][:3]).all()
    torch.testing.assert_close(squares[0], squares[1] + cross, rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", ["gpt2", "qwen3"])
def test_batch_size_and_padding_change_nothing(shape: str) -> None:
    model = build(shape, tied=True, kernel="sdpa")
    along = [direction(model)]
    together = ghost(model, ragged(), along, norms=True)
    wide = ghost(model, ragged(width=20), along, norms=True)
    full = ragged()
    for i in range(4):
        part = slice(i, i + 1)
        one = Batch(full.documents[part], full.ids[part], full.lengths[part], full.counted[part])
        alone = ghost(model, one, along, norms=True)
        for name, values in vars(together).items():
            torch.testing.assert_close(getattr(alone, name)[0], values[i], rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(getattr(wide, name), values, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # peft's own
def test_lora_counts_its_own_matrices_only() -> None:
    import peft

    targets = ["q_proj", "v_proj", "down_proj"]
    settings = peft.LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(build("llama", tied=True), settings).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:  # B starts at zero, which would hide A
                p.copy_(direction(model, 3)[name])
    batch = ragged()
    gradients = vmap_gradients(model, batch)
    assert len(gradients) == 2 * 3 * 2
    assert all("lora_" in name for name in gradients)
    check(model, batch, gradients, 1e-10)


def test_frozen_parameters_do_not_count() -> None:
    model, batch = build("gpt2", tied=True), ragged()
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith(("c_fc.bias", "ln_1.weight", "wpe.weight")))
    check(model, batch, vmap_gradients(model, batch), 1e-10)


def test_a_direction_may_name_some_parameters() -> None:
    model, batch = build("qwen2"), ragged()
    whole = direction(model)
    some = {n: v for n, v in whole.items() if "mlp" in n}
    rest = {n: v for n, v in whole.items() if "mlp" not in n}
    dots = ghost(model, batch, [whole, some, rest, {}]).dots
    torch.testing.assert_close(dots[:, 1] + dots[:, 2], dots[:, 0])
    assert not dots[:, 3].any()
    assert dots[0, 1] != 0


def untouched(model: Any) -> None:
    """No hooks, no gradients, and everything still to be trained."""
    for module in model.modules():
        assert not module._forward_hooks
    for p in model.parameters():
        assert p.requires_grad
        assert p.grad is None


def test_leaves_the_model_as_it_was() -> None:
    model = build("llama")
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with torch.no_grad():
        ghost(model, ragged(), [direction(model)], norms=True)
    untouched(model)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


class Twisted(torch.nn.Module):
    """A matrix used in a way of its own."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.twist = torch.nn.Parameter(torch.eye(16, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x @ self.twist)
        return found


class Shuffled(torch.nn.Module):
    """A linear layer on tokens that no longer know their document."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x.flatten(0, 1)).view_as(x)
        return found


class Bypassed(Shuffled):
    """A linear layer whose weight is used without calling it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.inner.weight.T


class Wasted(Shuffled):
    """A linear layer called twice, once for nothing: that call's gradient never comes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inner(2 * x)
        found: torch.Tensor = self.inner(x)
        return found


class Gated(torch.nn.Module):
    """A vector `weight` that does not simply scale."""

    def __init__(self, _: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.1, 1, 16, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.tanh(self.weight)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (Twisted, r"'model.layers.0.self_attn.o_proj' \(Twisted\) has trainable parameters of a"),
        (Shuffled, r"o_proj.inner' \(Linear\) gives an output of shape \(48, 16\)"),
        (Bypassed, r"o_proj.inner' \(Linear\) was never called"),
        (Gated, r"o_proj' \(Gated\) does more than to scale and shift"),
    ],
)
def test_refuses_what_it_cannot_handle(wrap: Any, message: str) -> None:
    model = build("llama")
    attention = model.model.layers[0].self_attn
    attention.o_proj = wrap(attention.o_proj)
    with pytest.raises(ModelError, match=message) as error:
        ghost(model, ragged(), [], norms=True)
    assert "per_sample_gradients" in str(error.value)
    untouched(model)
    assert len(per_sample_gradients(model, ragged())) == len(list(model.parameters()))


def test_a_call_that_no_loss_depends_on() -> None:
    model, batch = build("llama"), ragged()
    attention = model.model.layers[0].self_attn
    attention.o_proj = Wasted(attention.o_proj)
    check(model, batch, per_sample_gradients(model, batch), 1e-10)


def test_refuses_a_direction_of_another_model() -> None:
    model = build("llama")
    with pytest.raises(ModelError, match="names 'wte', which is no parameter of this model"):
        ghost(model, ragged(), [{"wte": torch.ones(2)}])
    with pytest.raises(ModelError, match=r"shape \(2,\) for 'model.norm.weight'.*has \(16,\)"):
        ghost(model, ragged(), [{"model.norm.weight": torch.ones(2)}])


def test_refuses_gradient_checkpointing() -> None:
    model = build("llama").train()
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    with pytest.raises(ModelError, match=r"call `model\.eval\(\)` first"):
        ghost(model, ragged())
    assert ghost(model.eval(), ragged()).losses.shape == (4,)
