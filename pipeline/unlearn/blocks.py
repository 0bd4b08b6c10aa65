"""The transformer blocks of a model: their activations, their tensors, the model without one.

Blocks are the elements of the `ModuleList` with `config.num_hidden_layers` members, first to last
(GPT-2, Llama and their relatives). ModelError where there is none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.lm.gradients.samples import device_of


class _Reached(Exception):
    """The activations are there; the rest of the forward is not needed."""


def blocks(model: Any) -> list[torch.nn.Module]:
    """The blocks, first to last."""
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError(f"no list of {count} blocks is in {type(model).__name__}", where="unlearn")


def activations(model: Any, batch: Batch, layer: int) -> torch.Tensor:
    """[T, d] what block `layer` gives at the counted tokens; later blocks are not computed."""
    found: list[torch.Tensor] = []

    def keep(module: Any, given: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    handle = blocks(model)[layer].register_forward_hook(keep)
    try:
        with contextlib.suppress(_Reached):
            model(input_ids=torch.as_tensor(batch.ids, device=device_of(model)), use_cache=False)
    finally:
        handle.remove()
    return found[0][torch.as_tensor(batch.counted, device=found[0].device)].float()


@contextlib.contextmanager
def without(block: torch.nn.Module) -> Iterator[None]:
    """Within, the block hands on what it is given."""

    def skip(module: Any, given: Any, named: Any, output: Any) -> Any:
        entered = given[0] if given else named["hidden_states"]
        return (entered, *output[1:]) if isinstance(output, tuple) else entered

    handle = block.register_forward_hook(skip, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def names_in(model: Any, chosen: Iterable[int]) -> set[str]:
    """Names of all parameters inside the chosen blocks."""
    known = blocks(model)
    wanted = {id(p) for i in chosen for p in known[i].parameters()}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def matrices(model: Any) -> set[str]:
    """Parameters that stand for no single token and rescale nothing: no embedding, head or norm."""
    left_out = {id(p) for p in model.get_input_embeddings().parameters()}
    head = model.get_output_embeddings()
    left_out |= {id(p) for p in head.parameters()} if head is not None else set()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) or "norm" in type(module).__name__.lower():
            left_out |= {id(p) for p in module.parameters(recurse=False)}
    return {name for name, p in model.named_parameters() if id(p) not in left_out}
