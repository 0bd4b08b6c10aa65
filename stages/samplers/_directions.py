"""Directions in the space of the weights, from the optimizer in training and from a reference.

The optimizer is read, never changed. What it holds for a parameter says what it is:

    exp_avg m, exp_avg_sq v, step s    Adam, AdamW
    momentum_buffer m                  SGD with momentum

A parameter that the optimizer does not hold, or
holds nothing for, stays where it is. Optimizers that keep their moments in another form (packed in
8 bits, factored, or flattened and shared out between processes) are refused with a ModelError.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from foresift.pipeline.errors import DataError, ModelError, nearest
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.gradients import adamw, reference
from foresift.pipeline.lm.gradients.adamw import AdamW, Moments
from foresift.pipeline.lm.gradients.directional import means, shifted
from foresift.pipeline.lm.gradients.samples import trainable
from foresift.pipeline.lm.model import Loaded
from foresift.pipeline.online import IGNORED, Candidates, Floats

if TYPE_CHECKING:
    from foresift.pipeline.lm.live import LiveModel

Tensors = dict[str, torch.Tensor]


def losses_at(live: LiveModel, some: Candidates, direction: Tensors, size: float) -> Floats:
    """[b] mean losses at theta + size * direction; the weights are put back bit for bit."""
    with torch.no_grad(), shifted(live.model, direction, size):
        return means(live.look(some, ("nll",)).signals)


def momentum(live: LiveModel, where: str) -> Tensors:
    """The update if the next gradient is like those remembered; empty before the first step."""
    out: Tensors = {}
    for name, _, group, state in _held(live, where):
        if "momentum_buffer" in state:
            if state["momentum_buffer"] is not None:
                out[name] = state["momentum_buffer"] * -float(group["lr"])
        else:
            (b1, b2), steps = group["betas"], float(state["step"])
            root = (state["exp_avg_sq"] / (1 - b2**steps)).sqrt_().add_(group["eps"])
            out[name] = state["exp_avg"] / root * (-float(group["lr"]) / (1 - b1**steps))
    return out


def preconditioned(live: LiveModel, gradient: Tensors, where: str) -> Tensors:
    """P g as in `adamw.py`; the gradient as it is where nothing was updated yet, or the rate is 0.

    SGD moves every weight by its group's learning rate alone: P = lr.
    """
    out: Tensors = {}
    for name, _, group, state in _held(live, where):
        if name not in gradient:
            continue
        one, rate = {name: gradient[name]}, float(group["lr"])
        if "momentum_buffer" in state:
            out[name] = one[name] * rate
        else:
            rule = AdamW(rate, tuple(group["betas"]), group["eps"])
            moments = Moments({}, {name: state["exp_avg_sq"]}, int(state["step"]))
            out |= adamw.preconditioned(one, moments, rule)
    return out if any(bool(v.any()) for v in out.values()) else gradient


def _held(live: LiveModel, where: str) -> list[tuple[str, Any, Mapping[str, Any], Any]]:
    """(name, parameter, group, state) of every parameter that the optimizer has moved."""
    if live.optimizer is None:
        raise ModelError("needs the optimizer of the training: give optimizer=...", where=where)
    names = {id(p): n for n, p in trainable(live.model).items()}
    found, known = [], 0
    for group in live.optimizer.param_groups:
        for parameter in group["params"]:
            name = names.get(id(parameter))
            state = live.optimizer.state.get(parameter) or {}
            known += name is not None
            if name is None or not state:
                continue
            adam = {"exp_avg", "exp_avg_sq", "step"} <= set(state)
            if not (adam or "momentum_buffer" in state) or any(
                torch.is_tensor(state.get(key)) and state[key].shape != parameter.shape
                for key in ("exp_avg", "exp_avg_sq", "momentum_buffer")
            ):
                raise ModelError(
                    f"{type(live.optimizer).__name__} keeps {', '.join(map(str, state))} for "
                    f"{name}, from which its next step cannot be read; use Adam, AdamW or SGD "
                    "with momentum",
                    where=where,
                )
            found.append((name, parameter, group, state))
    if not known:
        raise ModelError(
            f"{type(live.optimizer).__name__} holds none of the model's parameters as they are "
            "(flattened, sharded, or of another model)",
            where=where,
        )
    return found


def read_reference(
    path: str, reduction: reference.Reduction, vocabulary: int
) -> reference.ReferenceSet:
    """Rows of token ids from a parquet file, with the weights that make their loss."""
    columns = _lists(path)
    ids, labels = columns["input_ids"], columns.get("labels")
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    flat = _flat(ids)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if len(flat) and (flat.min() < 0 or flat.max() >= vocabulary):
        raise DataError(
            f"token ids from {int(flat.min())} to {int(flat.max())}, the model has {vocabulary} "
            "tokens",
            where=path,
        )
    counts = np.ones(len(flat), dtype=np.bool_)
    if labels is not None:
        if [len(row) for row in labels] != lengths.tolist():
            raise DataError("labels and input_ids differ in length", where=path)
        counts = _flat(labels) != IGNORED
    counts[offsets[:-1][lengths > 0]] = False  # a row's first token is never predicted
    cut = np.zeros(len(lengths), dtype=np.bool_)
    encoded = Encoded(flat.astype(np.int32), counts, offsets, cut)
    return reference.reference_set(encoded, reduction, path)


def _flat(rows: list[Any]) -> npt.NDArray[np.int64]:
    empty = np.empty(0, dtype=np.int64)
    return np.concatenate([empty, *(np.asarray(row, dtype=np.int64) for row in rows)])


def _lists(path: str) -> dict[str, list[Any]]:
    """The columns of token ids (and of labels, where there are any)."""
    try:
        have = pq.read_schema(Path(path)).names
        if "input_ids" not in have:
            raise DataError(f"has no column 'input_ids'{nearest('input_ids', have)}", where=path)
        kind = pa.list_(pa.int64())
        names = [n for n in ("input_ids", "labels") if n in have]
        table = pq.read_table(path, columns=names)
        columns = {n: table[n].cast(kind).to_pylist() for n in names}
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"cannot be read as rows of token ids: {error}", where=path) from error
    if any(row is None or None in row for rows in columns.values() for row in rows):
        raise DataError("has a row without token ids or labels", where=path)
    return columns


def reference_gradient(live: LiveModel, rows: reference.ReferenceSet) -> Tensors:
    """The gradient of the reference's loss as the model is now, in float32 at least."""
    loaded = Loaded(live.model, None, str(live.device))
    with torch.enable_grad(), live.scoring():
        return reference.gradient(rows, loaded)[1]
