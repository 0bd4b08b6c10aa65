"""Dot products and norms of per-sample gradients without per-sample gradients.

    dots_ij         = <d_j, g_i>        g_i = grad of the mean NLL of document i (nats per token)
    squared_norms_i = |g_i|^2           over all parameters that require a gradient

One forward and one backward of the whole batch. The backward stops at each layer's output, where
its gradient holds a sample in each row; with the layer's input that gives a sample's gradient as a
sum of outer products over positions, which the identities in `ghost_terms` contract without
forming it. No parameter gets a gradient, so that third of a backward is saved.

Layers: linear, Conv1D, embedding (tied to the output or not, learned positions too), LayerNorm and
every RMSNorm, and LoRA, which is linear layers. Any attention kernel. What the model does with a
parameter outside its module's call is not seen, so a module that is never called is refused; a
model in training mode must not recompute activations (gradient checkpointing).

Cost: a forward, two thirds of a backward, D T m n operations a matrix for D directions (with two
and more T m n + D m n), T^2 (m + n) for the norms. Measured on one CPU core, a 1M-parameter Llama,
16 documents of 128 tokens, in units of a plain forward and backward: 1.0 for one direction, 1.1 for
eight, 1.3 for a direction and the norms; one backward a document took 1.2 and sixteen gradients of
memory. The output gradients of a tied output layer are held to the end, for the cross term.

Source: Goodfellow 2015, "Efficient per-example gradient computations" (norm); Li et al. 2022,
"Large language models can be strong differentially private learners" (norm over a sequence); Wang
et al. 2024, "Data Shapley in one training run" (dot products).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.lm.gradients import ghost_terms
from foresift.pipeline.lm.gradients.ghost_layers import Layer, find_layers, refusal
from foresift.pipeline.lm.gradients.ghost_terms import Term
from foresift.pipeline.lm.gradients.samples import (
    Direction,
    device_of,
    known,
    sample_losses,
    trainable,
    wide,
)


@dataclass(frozen=True)
class Ghost:
    """What one pass found about each document of a batch."""

    losses: torch.Tensor
    """[B] mean NLL, nats per token; 0 without counted tokens."""
    dots: torch.Tensor
    """[B, D] float64 dot products with the directions."""
    squared_norms: torch.Tensor | None
    """[B] float64 squared norms; None unless asked for."""


def ghost(
    model: Any, batch: Batch, directions: Sequence[Direction] = (), norms: bool = False
) -> Ghost:
    """Losses, dot products with the directions and (if `norms`) squared norms of the gradients."""
    if any(getattr(m, "gradient_checkpointing", False) and m.training for m in model.modules()):
        raise ModelError(
            "ghost gradients and gradient checkpointing exclude one another; "
            "call `model.eval()` first"
        )
    parameters, layers = trainable(model), find_layers(model)
    shapes = {name: p.shape for name, p in parameters.items()}
    checked = [known(model, d) for d in directions]
    size = (len(batch.ids), len(checked))
    dots = torch.zeros(size, dtype=torch.float64, device=device_of(model))
    squares = dots.new_zeros(size[0]) if norms else None
    recorder = _Recorder(shapes, batch.ids.shape, checked, dots, squares)
    with ExitStack() as stack, torch.enable_grad():
        for layer in layers:
            hook = layer.module.register_forward_hook(
                partial(recorder.called, layer), with_kwargs=True
            )
            stack.callback(hook.remove)
        stack.enter_context(_frozen(list(parameters.values())))
        losses = sample_losses(model, batch)
        recorder.complete(layers)
        losses.sum().backward()
    return recorder.result(losses.detach())


@contextmanager
def _frozen(parameters: Sequence[torch.Tensor]) -> Iterator[None]:
    """Without gradients of these parameters, so that the backward pass computes none."""
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@dataclass
class _Recorder:
    """Sees every layer's call and the gradient at its output, and adds up what they give."""

    shapes: dict[str, torch.Size]
    size: tuple[int, ...]
    """Documents and positions of the batch."""
    directions: Sequence[Direction]
    dots: torch.Tensor
    squares: torch.Tensor | None
    calls: Counter[str] = field(default_factory=Counter)
    """Calls of each layer."""
    waiting: Counter[str] = field(default_factory=Counter)
    """Uses of each parameter whose gradient has not come yet."""
    terms: dict[str, list[Term]] = field(default_factory=lambda: defaultdict(list))
    """What has come of each parameter, kept for its norm."""

    def called(
        self, layer: Layer, module: Any, args: Any, kwargs: Any, output: torch.Tensor
    ) -> torch.Tensor:
        """Forward hook: one row a document in the output, and a hook where its gradient comes."""
        given = args[0] if args else next(iter(kwargs.values()))
        documents = self.size[0]
        if isinstance(module, torch.nn.Embedding) and output.shape[:2] == (1, self.size[1]):
            given, output = given.expand(documents, -1), output.expand(documents, -1, -1)
        if output.shape[0] != documents or self.size[1] not in output.shape[1:-1]:
            raise refusal(
                layer.name,
                module,
                f"gives an output of shape {tuple(output.shape)}, which is not one row for each of "
                f"the batch's {documents} documents with their {self.size[1]} positions in it",
            )
        if not output.requires_grad:
            output = output.requires_grad_().clone()  # not a leaf: the model may write into it
        self.calls[layer.name] += 1
        self.waiting.update(layer.names.values())
        output.register_hook(partial(self.arrived, layer, given.detach()))
        return output

    def complete(self, layers: Sequence[Layer]) -> None:
        """Refuse layers that were never called: their parameters may be used some other way."""
        for layer in layers:
            if not self.calls[layer.name]:
                raise refusal(layer.name, layer.module, "was never called in the forward pass")

    @torch.no_grad()
    def arrived(self, layer: Layer, given: torch.Tensor, gradient: torch.Tensor) -> None:
        """Gradient hook: add this use of the layer's parameters to the sums."""
        found = layer.rule(layer.module, given, wide(gradient))
        for local, name in layer.names.items():
            self._add(name, ghost_terms.exact(found[local]))
            self.waiting[name] -= 1
            if not self.waiting[name]:
                self._settle(name)

    def _add(self, name: str, term: Term) -> None:
        which = [j for j, d in enumerate(self.directions) if name in d]
        if which:
            products = ghost_terms.dots(term, [self.directions[j][name].detach() for j in which])
            self.dots[:, which] += products.to(self.dots)
        if self.squares is not None:
            self.terms[name].append(term)

    def _settle(self, name: str) -> None:
        terms = self.terms.pop(name, [])
        if terms and self.squares is not None:
            self.squares += ghost_terms.squares(terms, self.shapes[name]).to(self.squares)

    def result(self, losses: torch.Tensor) -> Ghost:
        """What was found."""
        for name in list(self.terms):  # a use that no loss depends on sends no gradient
            self._settle(name)
        return Ghost(losses, self.dots, self.squares)
