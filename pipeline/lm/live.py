"""The model that is being trained, asked about candidates between two optimizer steps.

`look` makes one forward without gradients over padded rows and gives the same signals as the
offline pass (`forward.py`), and the final hidden states where they are asked for. Pads are taken
out first, whatever side they stand on. In `eval` mode dropout is off and is put back afterwards.
Under `autocast` the layers compute in that precision; the output layer does in that of its weights.

Where the output layer does more to its logits than a matrix, a bias, a scale and a soft cap, or
is itself adapted, the identity `logits = head(hidden)` does not hold. That is found out at the
start: `head` is None, `reason` says why, and signals are then computed from full logits.

Sharded weights (`fully_shard`, FSDP2) come together only inside the model's own forward, in which
all processes take part. So full logits are read there too; they look equally often, since each has
as many candidates. What must read or move weights itself asks for `whole` ones and is refused.
FSDP1 and ZeRO-3 replace the parameters of modules by flat or empty ones: refused altogether.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm import head as heads
from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.lm.forward import reduce
from foresift.pipeline.lm.signals import DOCUMENT, TOKEN, Floats, Signals, validate
from foresift.pipeline.online import IGNORED, Candidates

Mode = Literal["eval", "train"]


@dataclass(frozen=True, eq=False)
class Seen:
    """Candidates and what one forward told of them."""

    candidates: Candidates
    signals: Signals
    """Token signals are flat over the counted tokens, row after row."""
    lengths: torch.Tensor
    """[B] tokens of each row, pads left out."""
    ids: torch.Tensor
    """[B, T] token ids moved to the left, 0 behind the end."""
    counted: torch.Tensor
    """[B, T] whether the token counts in the loss; never a row's first."""
    hidden: torch.Tensor | None
    """[B, T, d] final hidden states as the output layer sees them, where asked for."""
    graph: torch.Tensor | None = None
    """The same with the graph of their forward, where that is kept for the training."""

    def __len__(self) -> int:
        return len(self.candidates)


def unwrap(model: Any) -> Any:
    """The causal language model inside data-parallel, compiled and adapter wrappers."""
    while True:
        if hasattr(model, "get_base_model"):  # PEFT
            if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
                raise ModelError(
                    "PEFT puts learned prompts before the rows (prompt or prefix tuning), and rows"
                    " would be scored without them; train adapters in the layers (LoRA) instead",
                    where="online",
                )
            model = model.get_base_model()
        elif hasattr(model, "module"):  # DistributedDataParallel
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        else:
            return model


@contextlib.contextmanager
def _without_casts(model: Any) -> Iterator[None]:
    """The model's own forward for a while, where accelerate has put one in mixed precision."""
    own, casting = vars(model).get("_original_forward"), vars(model).get("forward")
    if own is None or casting is None:
        yield
        return
    model.forward = own
    try:
        yield
    finally:
        model.forward = casting


def _is_sharded(model: Any) -> bool:
    """Whether weights are shared out by FSDP2; ModelError where they are in another way."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ModelError(
            "FullyShardedDataParallel keeps weights in flat pieces; shard the layers with"
            " torch.distributed.fsdp.fully_shard instead",
            where="online",
        )
    if any(hasattr(parameter, "ds_status") for parameter in model.parameters()):
        raise ModelError(
            "DeepSpeed's ZeRO-3 has taken the weights apart; use stage 2 at most, or fully_shard",
            where="online",
        )
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


class LiveModel:
    """A model in training, its output layer, and how candidates are scored with it."""

    def __init__(
        self,
        model: Any,
        mode: Mode = "eval",
        optimizer: Any = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.wrapped, self.mode, self.optimizer, self.autocast = model, mode, optimizer, autocast
        self.model = unwrap(model)
        self.reason = ""
        self.head: heads.Head | None = None
        self.sharded = _is_sharded(model)
        if self.sharded:
            self.reason = "weights are sharded (fully_shard), and come together in a forward only"
            return
        with self.scoring(), _without_casts(self.model):
            try:
                self.head = heads.find_head(self.model)
            except ModelError as error:
                self.reason = str(error)
        layer = self.model.get_output_embeddings()
        if layer is not None and any(hasattr(part, "base_layer") for part in layer.modules()):
            # an adapter that starts at zero passes the check, and is wrong after one step
            self.head, self.reason = None, "the output layer itself carries an adapter"

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.model.parameters()).device
        return found

    def _follow(self) -> None:
        """Where the model was moved (`to`), its output layer has new weights."""
        layer = self.model.get_output_embeddings()
        if self.head is not None and layer.weight.data_ptr() != self.head.weight.data_ptr():
            bias = None if self.head.bias is None else layer.bias.detach()
            self.head = replace(self.head, weight=layer.weight.detach(), bias=bias)

    def whole(self, what: str) -> None:
        """ModelError where weights are sharded, for `what` reads or moves them itself."""
        if self.sharded:
            raise ModelError(
                f"{what} needs whole weights in each process, but {self.reason}; methods that only"
                " look at a forward work (max_loss, uncertainty, rho_loss, uds, rho1)",
                where="online",
            )

    def scoring(self) -> contextlib.AbstractContextManager[None]:
        """The mode in which candidates are scored, and back again."""
        return _Scoring(self.model, self.mode)

    def look(
        self,
        candidates: Candidates,
        names: Sequence[str],
        hidden: bool = False,
        graph: bool = False,
    ) -> Seen:
        """The named signals (token and document) of the candidates, and their hidden states.

        `graph` makes the forward with gradients and keeps its graph (where the head is known).
        """
        validate(names)
        self._follow()
        ids, lengths, counted = compact(candidates)
        self._known(candidates, ids)
        batch = Batch(np.arange(len(ids)), ids.numpy(), lengths.numpy(), counted.numpy())
        counts = batch.counted.sum(1).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        states: torch.Tensor | None = None
        kept: torch.Tensor | None = None
        with torch.no_grad(), self.scoring():
            if self.head is not None and (names or hidden or graph):
                with torch.set_grad_enabled(graph), self._cast():
                    states = heads.last_hidden(self.model, ids.to(self.device))
                states = states.to(self.head.weight.dtype)
                states, kept = states.detach(), states if graph else None
                token, document = reduce(states, batch, self.head, names, counts)
            else:
                token, document = self._from_logits(ids, batch, names)
        for name, values in document.items():
            if name != "hidden_mean":
                values[counts == 0] = np.nan
        vocabulary = 0 if self.head is None else len(self.head.weight)
        signals = Signals(token, document, offsets, vocabulary)
        shown = states if hidden else None
        return Seen(candidates, signals, lengths, ids, counted, shown, kept)

    def _known(self, candidates: Candidates, ids: torch.Tensor) -> None:
        """DataError where a token is none of the model's; on a GPU that would end the process."""
        known = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        if known is not None and ids.numel() and int(ids.max()) >= known:
            row = int(ids.amax(1).argmax())
            raise DataError(
                f"row {candidates.ids[row]} has token {int(ids.max())}, the model knows {known}",
                where="input_ids",
            )

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """[B, T, V] the model's own logits, in float32 (for what cannot go through the head)."""
        with self._cast():
            found: torch.Tensor = self.model(input_ids=ids.to(self.device), use_cache=False).logits
        return found.float()

    def _cast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision in the model's layers; signals are float32 in any case."""
        if self.autocast is None:
            return contextlib.nullcontext()
        # a cache filled without gradients would serve the training, which may be cast as well
        return torch.autocast(self.device.type, self.autocast, cache_enabled=False)

    def _from_logits(
        self, ids: torch.Tensor, batch: Batch, names: Sequence[str]
    ) -> tuple[dict[str, Floats], dict[str, Any]]:
        """Signals without an output layer that is known; those of hidden states cannot be had."""
        lost = [n for n in names if n in DOCUMENT]
        if lost:
            raise ModelError(f"{', '.join(lost)} cannot be had: {self.reason}", where="online")
        wanted = [n for n in names if n in TOKEN]
        if not wanted:
            return {}, {}
        positions, targets = (torch.from_numpy(x).to(self.device) for x in batch.shift())
        rows = self.logits(ids).flatten(0, 1)[positions]
        log = torch.log_softmax(rows, dim=1)
        p, two = log.exp(), log.topk(2, dim=1).values.exp()
        entropy = torch.special.entr(p).sum(1)
        around = log.clamp_min(-1e4) + entropy[:, None]  # a token ruled out gives no NaN
        found = {
            "nll": -log.gather(1, targets[:, None])[:, 0],
            "entropy": entropy,
            "log_variance": (p * around.square()).sum(1),
            "top_prob": two[:, 0],
            "margin": two[:, 0] - two[:, 1],
        }
        return {n: found[n].cpu().numpy() for n in wanted}, {}


class _Scoring(contextlib.AbstractContextManager[None]):
    """Eval mode for a while where that was asked for."""

    def __init__(self, model: Any, mode: Mode) -> None:
        self.model, self.mode = model, mode
        self.before: list[tuple[Any, bool]] = []

    def __enter__(self) -> None:
        if self.mode == "eval":
            self.before = [(m, m.training) for m in self.model.modules()]
            self.model.eval()

    def __exit__(self, *error: object) -> None:
        for module, training in self.before:
            module.training = training


def compact(candidates: Candidates) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids [B, T], lengths [B], counted [B, T]) with the pads taken out, on the CPU."""
    real = candidates.attention_mask.cpu().bool()
    lengths = real.sum(1)
    width = max(1, int(lengths.max()) if len(lengths) else 1)
    order = (~real).int().argsort(dim=1, stable=True)[:, :width]
    behind = torch.arange(width) >= lengths[:, None]
    ids = candidates.input_ids.cpu().gather(1, order).masked_fill(behind, 0)
    labels = candidates.labels.cpu().gather(1, order)
    counted = (labels != IGNORED) & ~behind
    counted[:, 0] = False
    return ids, lengths, counted
