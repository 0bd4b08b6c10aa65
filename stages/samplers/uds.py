"""UDS: rows whose logits carry much and differ from those of the rows trained on lately.

    utility_i = |Z_i|_*  +  a (1 / m) sum_j |s_i - q_j|_2

Z_i [L, V] are the raw logits of row i, before softmax; |.|_* is the sum of singular values. s_i is
a random sketch of Z_i with E |s_i|^2 = |Z_i|_F^2, and q_1 .. q_m (m <= `memory`) are the sketches
of the rows that were chosen last; with none yet the second term is 0. Rows that were not chosen
never enter. Both terms are computed from the final hidden states (`_uds.py`): exactly, and without
the logits. Two alike candidates of one step may both be chosen: the memory is of steps before.

The mean over a long memory hardly feels one copy in it. `distance: nearest` (ours) takes
min_j |s_i - q_j|_2 instead, 0 for a row that the memory holds as it is now.

Units: those of logits. Larger is kept first; a row without a counted token is NaN. The norm grows
with a row's length and with confident, diverse logits, which noise has as well.

a: the release multiplies distances of unnormalised transforms, sqrt(V T) / 2 times ours, so its
1.5e-3 at V = 152,064 and T = 512 is the 6.6 used here. Rows longer than T are sketched whole.

The released code reads pads and prompt as well, and draws frequencies with repetition: `rows: all`
and `frequencies: released` do the same (with `rows: all` the padded batch is passed once more).

Cost: one forward without gradients, and O(L^2 d + L^3) a row. State: masks, memory and its cursor.
Source: UDS, utility-diversity sampling for online batch selection, and its released code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.online import BatchMethod, Chooser, Floats, Rows, State
from foresift.pipeline.rng import Rng
from foresift.stages.samplers._uds import SIGNS, Kernel, Masks

if TYPE_CHECKING:
    from foresift.pipeline.lm.live import LiveModel, Seen


@dataclass(frozen=True, kw_only=True)
class UDS(BatchMethod):
    """Nuclear norm of a row's logits, and its distance from the rows trained on lately."""

    alpha_normalised: float = 6.6
    """Weight of the Frobenius distance against the nuclear norm; 0: the norm alone."""
    distance: Literal["mean", "nearest"] = "mean"
    """Over the memory: the mean distance as published, or that to the nearest row."""
    memory: int = 1024
    """Sketches of chosen rows that are remembered; the oldest leaves first."""
    rows: Literal["nonpad", "response", "all"] = "nonpad"
    """Positions of Z: every token, those that predict a counted token, or pads as well."""
    length_norm: Literal["none", "sqrt_length", "length"] = "none"
    """What Z is divided by, L being its positions: 1, sqrt(L) or L (norm and distances alike)."""
    frequencies: Literal["distinct", "released"] = "distinct"
    """Distinct frequencies of the half spectrum, or as released: with repetition, from all."""
    d1: int = 128
    """Frequencies over the vocabulary."""
    d2: int = 8
    """Frequencies over the positions; a sketch has d1 x d2 numbers."""
    max_length: int = 512
    """T, the period of the position frequencies."""
    seed: int = 0
    """Of the random signs and frequencies."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha_normalised) and self.alpha_normalised >= 0):
            raise ValueError("alpha_normalised must be a number from 0 on")
        for name in ("memory", "d1", "d2", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 at least")

    @property
    def signals(self) -> tuple[str, ...]:
        return ()

    @property
    def hidden(self) -> bool:
        return self.rows != "all"

    def open(self, live: LiveModel) -> UDSChooser:
        return UDSChooser(self, live)


class UDSChooser(Chooser):
    """The memory of chosen rows."""

    def __init__(self, part: UDS, live: LiveModel) -> None:
        masks = Masks.draw(
            Rng(part.seed).at("uds"),
            _vocabulary(live),
            part.max_length,
            (part.d1, part.d2),
            part.frequencies == "released",
        )
        self.part, self.kernel = part, Kernel(live, masks, part.rows)
        self.memory = torch.zeros(part.memory, masks.width)
        self.held = self.cursor = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it."""
        masks = self.kernel.masks
        raw = 2 * self.part.alpha_normalised / math.sqrt(masks.vocabulary * masks.length)
        return {"remembered": self.held, "sketch": masks.width, "alpha_as_released": raw}

    def measure(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        norms, sketches, lengths = self.kernel(seen)
        powers = {"none": 0.0, "sqrt_length": 0.5, "length": 1.0}
        divisor = lengths.clamp_min(1).double() ** powers[self.part.length_norm]
        norms = norms / divisor
        norms[~seen.counted.any(1)] = torch.nan
        return {"intra": norms, "sketch": (sketches / divisor[:, None]).float()}

    def utility(self, measured: Mapping[str, torch.Tensor], step: int) -> Floats:
        intra = measured["intra"].cpu().double().numpy()
        return intra + self.part.alpha_normalised * self.distances(measured["sketch"])

    def distances(self, sketches: torch.Tensor) -> Floats:
        """[B] distance from what is remembered; 0 where nothing is.

        By inner products in float64; what is nearer than float32 can tell is at distance 0.
        """
        if not self.held:
            return np.zeros(len(sketches))
        held = self.memory[: self.held].double()
        fast = "use_mm_for_euclid_dist"
        wide = sketches.cpu().double()
        found = torch.cdist(wide, held, compute_mode=fast)
        found[found < 1e-6 * wide.norm(dim=1, keepdim=True)] = 0.0
        folded = found.mean(1) if self.part.distance == "mean" else found.amin(1)
        return np.asarray(folded.numpy(), dtype=np.float64)

    def observe(self, measured: Mapping[str, torch.Tensor], chosen: Rows) -> None:
        which = np.asarray(chosen, dtype=np.int64).tolist()
        for intra, sketch in zip(
            measured["intra"][which].tolist(), measured["sketch"][which].cpu(), strict=True
        ):
            if math.isfinite(intra):
                self.memory[self.cursor] = sketch
                self.cursor = (self.cursor + 1) % len(self.memory)
                self.held = min(self.held + 1, len(self.memory))

    def state_dict(self) -> State:
        masks = {name: getattr(self.kernel.masks, name).clone() for name in SIGNS}
        held = {"memory": self.memory[: self.held].clone(), "cursor": self.cursor}
        return {**masks, **held}

    def load_state_dict(self, state: State) -> None:
        masks = self.kernel.masks
        drawn = {name: torch.as_tensor(state[name]) for name in SIGNS}
        memory, cursor = torch.as_tensor(state["memory"]), int(state["cursor"])
        for name, values in drawn.items():
            have = getattr(masks, name)
            if values.shape != have.shape:
                raise DataError(
                    f"the state has {tuple(values.shape)} {name}, this configuration and model "
                    f"{tuple(have.shape)}",
                    where="uds",
                )
        if memory.ndim != 2 or memory.shape[1] != masks.width or len(memory) > len(self.memory):
            raise DataError(
                f"the state remembers {tuple(memory.shape)} sketches, this configuration at most "
                f"{tuple(self.memory.shape)}",
                where="uds",
            )
        full = len(memory) == len(self.memory)
        if not 0 <= cursor < len(self.memory) or (cursor != len(memory) and not full):
            raise DataError(f"the state's cursor {cursor} is none of this memory", where="uds")
        self.kernel = Kernel(self.kernel.live, masks.having(drawn), self.kernel.rows)
        self.memory = torch.zeros_like(self.memory)
        self.memory[: len(memory)] = memory
        self.held, self.cursor = len(memory), cursor


def _vocabulary(live: LiveModel) -> int:
    """Columns of the logits."""
    if live.head is not None:
        return len(live.head.weight)
    layer = live.model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    return int(live.model.config.get_text_config().vocab_size if weight is None else len(weight))
