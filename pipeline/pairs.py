"""Preference pairs as candidates: a chosen and a rejected completion of one prompt, taken together.

The collator makes two lines of a pair, as TRL's `DataCollatorForPreference` does: of b pairs

    input_ids, completion_mask [2b, L]    chosen lines 0 .. b-1, rejected lines b .. 2b-1
    attention_mask [2b, L]                without one, every token is real
    all else                              of pairs or of lines; goes on to the training unread

A token counts where the completion mask says so. A method looks at every line by itself, under the
id of its pair, and what it measures becomes one value a pair:

    side = "mean"         (chosen + rejected) / 2 of every number, vectors by their entries
    side = "chosen"       that of the chosen line; rejected lines are not looked at
    side = "rejected"     that of the rejected line; chosen lines are not looked at
    side = "difference"   chosen - rejected of every number: with `max_loss`, the pairs whose order
                          the model has wrong come first

The mean of sketches that are linear in the logits (UDS) is the sketch of the mean of the logits.
With both sides a pair can be judged where each of them can: NaN of one is NaN of the pair. (A side
without a token that counts, or with a loss that is not finite, makes no pair to learn from.) Flags
hold where they hold of both sides. Whole numbers name or count things of the pair, so they must be
equal on both sides, or it is a DataError.

Methods judge a side by the loss of its tokens, not by the preference loss.

Cost: with "mean" and "difference" a pair is a candidate of two lines, else of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.online import IGNORED, Candidates, Rows, TokenSelector
from foresift.pipeline.stream_rows import Collate, RowSource

Side = Literal["mean", "chosen", "rejected", "difference"]
#: sides for which both lines are looked at, and the sign of the rejected one
_BOTH: dict[str, int] = {"mean": 1, "difference": -1}


class PairSource(RowSource):
    """A data set of pairs, its ids and its collator."""

    def __init__(self, data: Any, ids: str, collate: Collate, side: Side) -> None:
        super().__init__(data, ids, collate)
        if side not in get_args(Side):
            raise DataError(
                f"must be {', '.join(map(repr, get_args(Side)))}, got {side!r}", where="side"
            )
        self.side = side

    def candidates(
        self, batch: Any, rows: Rows, examples: Sequence[tuple[str, dict[str, Any]]]
    ) -> Candidates:
        """The lines of a collated batch that are looked at, each under the id of its pair."""
        for name in ("input_ids", "completion_mask"):
            if not isinstance(batch, Mapping) or name not in batch:
                has = ", ".join(batch) if isinstance(batch, Mapping) else type(batch).__name__
                raise DataError(
                    f"the collator gives no {name!r} (it gives: {has}); pairs are collated as by"
                    " TRL's DataCollatorForPreference",
                    where=name,
                )
        ids, counts = (torch.as_tensor(batch[n]) for n in ("input_ids", "completion_mask"))
        if ids.ndim != 2 or len(ids) != 2 * len(rows) or counts.shape != ids.shape:
            raise DataError(
                f"{len(rows)} pairs were collated to input_ids {list(ids.shape)} and"
                f" completion_mask {list(counts.shape)}; two lines a pair are needed, all chosen"
                " ones before the rejected",
                where="collate",
            )
        mask = batch.get("attention_mask")
        found = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids) if mask is None else torch.as_tensor(mask),
            "labels": ids.masked_fill(counts == 0, IGNORED),
        }
        if self.side in _BOTH:
            return super().candidates(found, np.tile(rows, 2), [*examples, *examples])
        half = slice(len(rows)) if self.side == "chosen" else slice(len(rows), None)
        return super().candidates({n: v[half] for n, v in found.items()}, rows, examples)

    def folded(self, measured: Mapping[str, torch.Tensor], lines: int) -> dict[str, torch.Tensor]:
        if self.side not in _BOTH:
            return super().folded(measured, lines)
        sign = _BOTH[self.side]
        return {name: _fold(name, values, lines, sign) for name, values in measured.items()}


def source_of(
    data: Any, ids: str, collate: Collate, side: Side | None, tokens: TokenSelector | None
) -> RowSource:
    """The rows of a data set, or where a side is said, its pairs."""
    if side is None:
        return RowSource(data, ids, collate)
    if tokens is not None:
        raise DataError(
            "a preference loss is of whole completions and reads no labels, so no token can be left"
            " out of it; choose pairs alone, without a token selector",
            where="tokens",
        )
    return PairSource(data, ids, collate, side)


def _fold(name: str, values: torch.Tensor, lines: int, sign: int) -> torch.Tensor:
    """[lines / 2, ...] of chosen lines and rejected lines: their mean, or their difference."""
    if len(values) != lines:
        raise DataError(f"{len(values)} values for the {lines} sides of pairs", where=name)
    chosen, rejected = values[: lines // 2], values[lines // 2 :]
    if values.dtype == torch.bool:
        return chosen & rejected
    if values.is_floating_point():
        return (chosen + rejected) / 2 if sign > 0 else chosen - rejected
    if not torch.equal(chosen, rejected):
        raise DataError(
            "whole numbers differ between the sides of a pair, and have no mean or difference;"
            ' say side="chosen" or side="rejected"',
            where=name,
        )
    return chosen
