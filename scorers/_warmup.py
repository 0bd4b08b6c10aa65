"""LESS's warm-up: adapters trained for a few epochs on a small part of the pool.

    W x  ->  W x + (alpha / rank) B A x        A, B trained, everything else frozen (LoRA)
    rate(t) = peak * t / w            for t < w = ceil(0.03 S)      t = 0 ... S - 1, the step
              peak * (S - t) / (S - w)                                otherwise

AdamW (betas 0.9 and 0.999, no weight decay, gradients clipped to norm 1) on the mean NLL of the
counted tokens of `batch` documents, drawn in a new order in each epoch, without dropout. An epoch
leaves one file, `warmup-<epoch>/optimizer.safetensors`:

    parameter.<name>, exp_avg.<name>, exp_avg_sq.<name>     the adapters and AdamW's moments
    metadata: step                                          updates so far

It is the epoch's checkpoint and what a killed warm-up goes on from. Errors: ModelError without
`peft` or without layers of the names wanted, DataError where the loss is not finite.
Cost: 6 P T an epoch at most (P parameters, T tokens); the model's weights once more in memory.
Source: LESS (Xia et al. 2024), section 4.1 and appendix B; Hu et al. 2022 (LoRA).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.batches import Integers, batches
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.gradients.adamw import OPTIMIZER
from foresift.pipeline.lm.gradients.reference import BACKWARD_TOKENS
from foresift.pipeline.lm.gradients.samples import sum_losses, trainable
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.pipeline.lm.signals import segment_sums
from foresift.pipeline.store import publish, temporary

#: names of attention projections, one family of models a line
ATTENTION = (
    ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"),
    ("query_key_value", "dense"),
    ("c_attn", "attn.c_proj"),
)
BETAS, EPS, CLIP, RISE = (0.9, 0.999), 1e-8, 1.0, 0.03


@dataclass(frozen=True)
class Adapters:
    """Which adapters a model is given."""

    rank: int
    alpha: int
    targets: tuple[str, ...] = ()
    """Ends of module names; empty: the attention projections of the model's family."""


@dataclass(frozen=True)
class WarmUp:
    """How the adapters are trained."""

    epochs: int
    batch: int
    learning_rate: float
    seed: int


@functools.lru_cache(maxsize=1)
def adapted(spec: ModelSpec, adapters: Adapters) -> Loaded:
    """A copy of the model of our own, with adapters; nobody else's model is touched."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError(
            "LESS's warm-up trains adapters and `peft` is not installed: pip install peft; or name "
            "`checkpoints`, or set rank: 0",
            where="gradient_similarity",
        ) from error
    loaded = load.__wrapped__(spec)
    names = targets(loaded.model, adapters.targets, spec.init)
    transposed = type(loaded.model.get_submodule(names[0])).__name__ == "Conv1D"
    config = LoraConfig(
        r=adapters.rank, lora_alpha=adapters.alpha, target_modules=names, fan_in_fan_out=transposed
    )
    with torch.random.fork_rng():
        model = inject_adapter_in_model(config, loaded.model)
    for p in trainable(model).values():
        p.data = p.data.float()
    return Loaded(model.eval(), loaded.tokenizer, loaded.device)


def targets(model: Any, wanted: Sequence[str], where: str = "") -> list[str]:
    """Full names of the modules that get adapters."""
    every = [name for name, module in model.named_modules() if hasattr(module, "weight")]
    for family in [wanted] if wanted else ATTENTION:
        found = [n for n in every if any(n == t or n.endswith(f".{t}") for t in family)]
        if found:
            return found
    asked = f"ends with {' or '.join(wanted)}" if wanted else "is an attention projection by name"
    raise ModelError(
        f"no module {asked}; name the modules in `targets` (there are "
        f"{', '.join(sorted({n.rpartition('.')[2] for n in every}))})",
        where=where,
    )


def schedule(steps: int, peak: float) -> list[float]:
    """The learning rate of each step."""
    rise = math.ceil(RISE * steps)
    return [peak * (t / rise if t < rise else (steps - t) / (steps - rise)) for t in range(steps)]


def folder(out: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies."""
    return out / f"warmup-{epoch}"


def train(loaded: Loaded, encoded: Encoded, rule: WarmUp, out: Path) -> list[float]:
    """Train the adapters, or go on where a killed training was; the mean rate of each epoch."""
    some = np.flatnonzero(segment_sums(encoded.counts, encoded.offsets))
    if not len(some):
        raise DataError("the warm-up drew no document that has a token to predict", where="share")
    length = -(-len(some) // rule.batch)
    rate = schedule(length * rule.epochs, rule.learning_rate)
    means = [float(np.mean(rate[e * length : (e + 1) * length])) for e in range(rule.epochs)]
    done = sum((folder(out, e) / OPTIMIZER).exists() for e in range(rule.epochs))
    if done == rule.epochs:
        return means
    optimizer = torch.optim.AdamW(
        trainable(loaded.model).values(), lr=1.0, betas=BETAS, eps=EPS, weight_decay=0.0
    )
    _begin(loaded.model, optimizer, rule.seed, out, done)
    for epoch in range(done, rule.epochs):
        order = np.random.default_rng([rule.seed, epoch]).permutation(some)
        for step in range(length):
            optimizer.param_groups[0]["lr"] = rate[epoch * length + step]
            _step(loaded, optimizer, encoded, order[step * rule.batch : (step + 1) * rule.batch])
        _save(loaded.model, optimizer, (epoch + 1) * length, folder(out, epoch))
    return means


def _begin(model: Any, optimizer: Any, seed: int, out: Path, done: int) -> None:
    """Fresh adapters (A random, B zero), or those of the last epoch with its moments."""
    from safetensors.torch import load_file

    if not done:
        draws = torch.Generator().manual_seed(seed)
        for name, p in trainable(model).items():
            values = torch.zeros(p.shape)
            if "lora_A" in name:
                torch.nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=draws)
            with torch.no_grad():
                p.copy_(values)
        return
    kept, step = load_file(folder(out, done - 1) / OPTIMIZER), restore(model, folder(out, done - 1))
    for name, p in trainable(model).items():
        moments = {m: kept[f"{m}.{name}"].to(p.device) for m in ("exp_avg", "exp_avg_sq")}
        optimizer.state[p] = {"step": torch.tensor(float(step)), **moments}


def restore(model: Any, checkpoint: Path) -> int:
    """Give the model the adapters of an epoch; the steps they had taken."""
    from safetensors import safe_open

    with safe_open(checkpoint / OPTIMIZER, framework="pt") as file:
        with torch.no_grad():
            for name, p in trainable(model).items():
                p.copy_(file.get_tensor(f"parameter.{name}"))
        return int(file.metadata()["step"])


def _step(loaded: Loaded, optimizer: Any, encoded: Encoded, rows: Integers) -> None:
    size = BACKWARD_TOKENS["cpu" if loaded.device == "cpu" else "cuda"]
    total = sum(int(encoded.counts[slice(*encoded.offsets[r : r + 2])].sum()) for r in rows)
    optimizer.zero_grad()
    with torch.enable_grad():
        for batch in batches(encoded, rows, size):
            (sum_losses(loaded.model, batch).sum() / total).backward()
    norm = torch.nn.utils.clip_grad_norm_(trainable(loaded.model).values(), CLIP)
    if not torch.isfinite(norm):
        raise DataError(
            "the loss of LESS's warm-up is not finite; lower its learning_rate",
            where="gradient_similarity",
        )
    optimizer.step()
    optimizer.zero_grad()


def _save(model: Any, optimizer: Any, step: int, out: Path) -> None:
    from safetensors.torch import save_file

    tensors = {}
    for name, p in trainable(model).items():
        tensors[f"parameter.{name}"] = p.detach().cpu().contiguous()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[p][moment].detach().cpu().contiguous()
    out.mkdir(parents=True, exist_ok=True)
    path = out / OPTIMIZER
    save_file(tensors, temporary(path), metadata={"step": str(step)})
    publish(temporary(path), path)
