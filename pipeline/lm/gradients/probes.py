"""Probing: by how much one update on a document would lower the reference loss.

    exact    u = J(theta) - J(theta'_x)      theta'_x: one AdamW step on x from restored state
    linear   u = clip_x <P grad J, grad l_x>   the same to first order (`adamw.py`), from one or two
             forwards of x along the direction P grad J (`directional.py`)

u is in nats per token of the reference; larger is better (MATES stores the loss J(theta'_x), which
ranks alike within a checkpoint but cannot be compared across checkpoints). clip_x = min(1, clip /
|grad l_x|) needs a norm that forwards do not give: it is read off the norm h_x of the output
matrix's gradient, which the forward gives in closed form,

    |grad l_x| = a h_x                         a: the median over a few documents with exact norms

Cost of a label: exact 6 P T_x + 2 P R; linear 2 P T_x or 4 P T_x (P parameters, T_x tokens of the
document, R of the reference). Exact probing of a 1,024-item reference is therefore hundreds of
times dearer. Source: MATES (Yu, Das, Xiong 2024), section on locally probed oracles.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.batches import Batch, batches
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.forward import compute
from foresift.pipeline.lm.gradients import reference as references
from foresift.pipeline.lm.gradients.adamw import (
    AdamW,
    Moments,
    Snapshot,
    Tensors,
    preconditioned,
)
from foresift.pipeline.lm.gradients.directional import Step, choose_step, means, slopes
from foresift.pipeline.lm.gradients.ghost import ghost
from foresift.pipeline.lm.gradients.hessian import loss_gradient
from foresift.pipeline.lm.gradients.oracle import per_sample_gradients
from foresift.pipeline.lm.gradients.reference import BACKWARD_TOKENS, ReferenceSet
from foresift.pipeline.lm.model import Loaded
from foresift.pipeline.store import publish, temporary, write_json

Floats = npt.NDArray[np.float64]
_DIRECTIONS, _ABOUT = "directions.safetensors", "probe.json"


@dataclass(frozen=True)
class Probe:
    """What linear labels need: directions, how far to go along them, and how norms are told."""

    directions: tuple[Tensors, ...]
    weights: tuple[float, ...]
    """[D] with which the utilities of the directions add up."""
    steps: tuple[Step, ...]
    clip: float
    norm: float | None
    """a of the norm's formula; None where nothing is clipped."""

    @property
    def signals(self) -> tuple[str, ...]:
        """What labels read of the pass at theta."""
        base = ("nll",) if self.norm or not all(s.central for s in self.steps) else ()
        return (*base, "grad_norm") if self.norm else base

    @property
    def forwards(self) -> int:
        """Forwards besides the one at theta."""
        return sum(1 + s.central for s in self.steps)

    def facts(self) -> dict[str, Any]:
        return {"steps": [s.facts() for s in self.steps], "norm": self.norm}


def prepare(
    aims: Sequence[tuple[ReferenceSet, float]],
    loaded: Loaded,
    rule: AdamW,
    moments: Moments | None,
    sample: Encoded,
    *,
    each: bool = False,
    batch_tokens: int = 0,
) -> tuple[Probe, list[float]]:
    """The probe of a model for weighted references, and J of each; `sample` sets the steps.

    `each` keeps the references apart (one direction each); otherwise one direction serves all.
    """
    found = [references.gradient(aim, loaded) for aim, _ in aims]
    weights = [weight for _, weight in aims]
    gradients = [g for _, g in found]
    if not each:
        pairs = zip(gradients, weights, strict=True)
        gradients, weights = [references.combined(list(pairs))], [1.0]
    directions = tuple(preconditioned(g, moments, rule) for g in gradients)
    steps = tuple(choose_step(sample, loaded, d, batch_tokens=batch_tokens) for d in directions)
    norm = _norms(sample, loaded) if rule.clip else None
    return Probe(directions, tuple(weights), steps, rule.clip, norm), [j for j, _ in found]


def linear(
    probe: Probe, encoded: Encoded, loaded: Loaded, base: Any = None, batch_tokens: int = 0
) -> Floats:
    """[n, D] utilities to first order; NaN where a document has nothing that counts.

    `base` holds the probe's signals of the same documents where they are known already.
    """
    signals = base or compute(encoded, loaded, probe.signals, batch_tokens)
    here = means(signals) if "nll" in probe.signals else None
    found = [
        slopes(encoded, loaded, d, s, here, batch_tokens)
        for d, s in zip(probe.directions, probe.steps, strict=True)
    ]
    factor = np.ones(len(encoded))
    if probe.norm is not None:
        heads = np.asarray(signals.document["grad_norm"], dtype=np.float64)
        norms = probe.norm * np.maximum(heads, 1e-30)
        factor = np.minimum(1.0, probe.clip / norms)
    return np.stack(found, axis=1) * factor[:, None]


def _norms(sample: Encoded, loaded: Loaded) -> float:
    """The constant of the norm's formula: the median over a sample."""
    heads = compute(sample, loaded, ("grad_norm",), 0).document["grad_norm"].astype(np.float64)
    norms = gradient_norms(sample, loaded)
    some = np.isfinite(heads) & (heads > 0) & (norms > 0)
    return float(np.median(norms[some] / heads[some])) if some.any() else 1.0


def gradient_norms(encoded: Encoded, loaded: Loaded) -> Floats:
    """[n] norm of the gradient of each document's mean NLL; 0 where nothing counts."""
    norms = np.zeros(len(encoded))
    size = BACKWARD_TOKENS["cpu" if loaded.device == "cpu" else "cuda"]
    for batch in batches(encoded, np.flatnonzero(encoded.lengths), size):
        norms[batch.documents] = _squares(loaded.model, batch).sqrt().cpu().numpy()
    return norms


def _squares(model: Any, batch: Batch) -> torch.Tensor:
    try:
        found = ghost(model, batch, norms=True).squared_norms
        assert found is not None
        return found
    except ModelError:  # a layer that the ghost identities do not know
        each = per_sample_gradients(model, batch).values()
        return torch.stack([g.double().flatten(1).square().sum(1) for g in each]).sum(0)


def exact(
    aims: Sequence[ReferenceSet],
    encoded: Encoded,
    loaded: Loaded,
    rule: AdamW,
    moments: Moments | None,
    batch_tokens: int = 0,
) -> Floats:
    """[n, references] fall of each reference loss after one restored AdamW step on the document.

    The model is the same afterwards, bit for bit; a document's label does not depend on others.
    """
    snapshot = Snapshot(loaded.model)
    before = np.array([references.loss(aim, loaded, batch_tokens) for aim in aims])
    found = np.full((len(encoded), len(aims)), np.nan)
    counted = np.add.reduceat(np.append(encoded.counts, False), encoded.offsets[:-1])
    for row in np.flatnonzero((encoded.lengths > 0) & (counted > 0)):
        batch = next(batches(encoded, np.array([row]), 1))
        gradient = loss_gradient(loaded.model, batch, [1.0])
        try:
            snapshot.step(gradient, moments, rule)
            after = [references.loss(aim, loaded, batch_tokens) for aim in aims]
        finally:
            snapshot.restore()
        found[row] = before - np.array(after)
    return found


def save(probe: Probe, folder: Path) -> None:
    """Write a probe: `probe.json` last, so a probe that is there is whole."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _DIRECTIONS
    partial = temporary(path)
    tensors = {
        f"{k}.{n}": t.detach().cpu().contiguous()
        for k, d in enumerate(probe.directions)
        for n, t in d.items()
    }
    save_file(tensors, partial)
    publish(partial, path)
    about = {"weights": probe.weights, "clip": probe.clip, "norm": probe.norm}
    write_json(folder / _ABOUT, {**about, "steps": [asdict(s) for s in probe.steps]})


@functools.lru_cache(maxsize=4)
def load(folder: Path, device: str = "cpu") -> Probe:
    """Read a probe that `save` wrote. Cached within the process."""
    from safetensors.torch import load_file

    about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    directions: list[Tensors] = [{} for _ in about["steps"]]
    for key, tensor in load_file(folder / _DIRECTIONS, device=device).items():
        number, _, name = key.partition(".")
        directions[int(number)][name] = tensor
    return Probe(
        directions=tuple(directions),
        weights=tuple(about["weights"]),
        steps=tuple(Step(**s) for s in about["steps"]),
        clip=about["clip"],
        norm=about["norm"],
    )
