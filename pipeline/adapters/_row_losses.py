"""The loss of each row, from the forward that trains: what a model put out is looked at once more.

    sum of row i = sum of -log p(label) over its counted tokens, in nats, float32
    counted: the label is not IGNORED; position t predicts token t + 1

from `logits` ([b, L, V], one row in float32 at a time), or from the `log_probs` and `label_mask` of
a fused head ([b, L - 1], zero where a token does not count).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.online import IGNORED


@contextmanager
def watched(model: Any) -> Iterator[list[Any]]:
    """What a model puts out meanwhile."""
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    try:
        yield seen
    finally:
        handle.remove()


def row_sums(
    seen: Sequence[Any], labels: Any, weighs: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of the losses of its counted tokens, their number) of each row.

    weighs    rows whose sum can be differentiated
    """
    out = seen[-1] if seen else None
    if labels is None or out is None:
        raise DataError("a micro-batch was trained on without labels or a forward", where="labels")
    if len(labels) != len(weighs):
        raise DataError(
            f"{len(weighs)} rows were collated to {len(labels)} lines; one line a row is needed"
            " (packing is not possible here)",
            where="collate",
        )
    if getattr(out, "log_probs", None) is not None:
        sums, counts = -out.log_probs.float().sum(1), out.label_mask.sum(1)
    elif getattr(out, "logits", None) is not None:
        labels = labels.to(out.logits.device)
        counts = (labels[:, 1:] != IGNORED).sum(1)
        if out.logits.shape[:2] != labels.shape:
            raise DataError(
                f"logits {list(out.logits.shape)} do not fit labels {list(labels.shape)}",
                where="logits",
            )
        rows = zip(out.logits, labels, weighs, strict=True)
        sums = torch.stack([_row_sum(*row) for row in rows])
    else:
        raise DataError(
            "the model gives neither logits nor log_probs in training, so the losses of rows are"
            " not known; a kernel that fuses the output layer and the loss has to be switched off"
            ' (liger_kernel_config={"fused_linear_cross_entropy": False})',
            where="logits",
        )
    return sums, counts


def _row_sum(logits: torch.Tensor, labels: torch.Tensor, weighs: bool) -> torch.Tensor:
    """Position t predicts token t + 1; without waiting for the device."""
    with torch.set_grad_enabled(weighs):
        return torch.nn.functional.cross_entropy(
            logits[:-1].float(), labels[1:], ignore_index=IGNORED, reduction="sum"
        )
