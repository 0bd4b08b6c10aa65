"""Which documents a deletion would fail on: loss after a short unlearning drill, ranked.

The documents of a sample are put into groups (the values of `cluster`, else each its own) and the
groups dealt into `folds`. For each fold a copy of the model unlearns it by `steps` of sign-SGD,

    theta <- theta - rate sign(grad [ sum_i (1 - w_i) l_i / sum_i (1 - w_i)
                                      - ascent sum_i w_i l_i / sum_i w_i ])     w_i = 1 in the fold

over `batch` documents of each kind a step, and then tells the loss l_i(theta_u) of the fold. So
each document is unlearned once, by the same drill. One upper step of the bi-level problem follows,
over the G groups with their mean losses,

    weight = Proj(m / G - weight_rate l_g)      on {0 <= w <= 1, sum w = m},  m = share G
    rank   = share of the other groups that end with a higher loss; 1: the hardest to forget

`after` is l_i(theta_u) and `rise` is after - l_i(theta), in nats per token. What stays low is what
copies, templates or common knowledge bring back: a worst case, for tests of every deletion method.
Utility = after (larger = forgotten more easily = keep first). The published problem starts from
even weights; the losses after its first round would then say what is easy, not what is unlearned,
so the first selection is dealt instead. Cluster near copies first: one that is left among what is
kept makes its twin trivially hard.

Only a sample is asked (`_forget_sample.py`): `after` and `rise` are NaN outside it. `utility`,
`weight` and `rank` are told of all rows of a sampled cluster. Facts say how far the drill went:
mean loss of what was forgotten and of what was kept, before and after; where the first does not
rise, or the second does as much, change `rate`, `steps` or `ascent`.

Known answer: Proj of (0.9, 0.6, 0.1) on sum 1: (0.65, 0.35, 0). Errors: DataError for fewer groups
than folds, and where the drill leaves the finite numbers. Cost: folds x steps x batch x 2 documents
forward and backward, and three forwards of the sample; a copy of the model.
Source: worst-case forget sets (Fan et al. 2024, bi-level, sign-SGD, the fine-tuning form of w).
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.batches import batches
from foresift.pipeline.lm.gradients.directional import losses
from foresift.pipeline.lm.gradients.hessian import loss_gradient
from foresift.pipeline.lm.gradients.reference import BACKWARD_TOKENS
from foresift.pipeline.lm.gradients.samples import Parameters, trainable
from foresift.pipeline.lm.model import Loaded
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column
from foresift.pipeline.unlearn.worst_case import project
from foresift.scorers._forget_sample import TOKENS, Asked, AsksSample, Numbers

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class WorstCase(AsksSample):
    """Loss of a document after a short unlearning drill, and its place among the hardest."""

    folds: int = 4
    """Parts of the sample that are unlearned in turn, each from the model as it was."""
    steps: int = 10
    """Steps of a drill."""
    batch: int = 16
    """Documents that are forgotten, and as many that are kept, in a step."""
    rate: float = 1e-4
    """How far each weight moves in a step."""
    ascent: float = 1.0
    """Weight of forgetting against keeping; 0: the rest is fine-tuned, as in the source."""
    share: float = 0.1
    """Of the groups that the worst-case set has."""
    weight_rate: float = 1.0
    """How far a nat of loss moves a group's weight."""

    shared: ClassVar[tuple[str, ...]] = ("weight", "rank")
    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "loss after, nats per token", "higher"),
        "after": Column(pa.float32(), "nats per token, of sampled rows", "higher"),
        "rise": Column(pa.float32(), "nats per token, of sampled rows", "higher"),
        "weight": Column(pa.float32(), "in the worst-case set, 0 to 1", "lower"),
        "rank": Column(pa.float32(), "1: hardest to forget, 0: easiest", "lower"),
        "by_cluster": Column(pa.float32(), "mean loss after of its cluster", "higher"),
    }

    def __post_init__(self) -> None:
        self.checked()
        if self.folds < 2 or self.steps < 1 or self.batch < 1:
            raise ValueError("folds are at least 2, steps and batch at least 1")
        if not (self.rate > 0 and self.weight_rate > 0 and self.ascent >= 0 and 0 < self.share < 1):
            raise ValueError("rates are positive, ascent is not negative, share lies in (0, 1)")

    @property
    def main(self) -> tuple[str, float]:
        return "after", 1.0

    def measure(self, asked: Asked) -> tuple[Numbers, Facts]:
        before = asked.piece("before", lambda: ({"loss": losses(asked.encoded, asked.loaded)}, {}))
        start = before[0]["loss"]
        groups = grouped(asked.clusters)
        fold = self._dealt(groups, asked)
        after, told = np.full(len(asked), math.nan), []
        for number in range(self.folds):
            mine = fold == number
            drill = functools.partial(self._drill, asked, mine, start, number)
            found, facts = asked.piece(f"fold-{number}", drill)
            after[mine] = found["loss"][mine]
            told.append(facts)
            asked.look.job.progress(number + 1, self.folds, "drills")
        weight, rank = self._ranked(after, groups)
        kept = [float(np.mean([f[k] for f in told])) for k in ("kept_before", "kept_after")]
        numbers = {"after": after, "rise": after - start, "weight": weight, "rank": rank}
        return numbers, {
            "groups": int(groups.max()) + 1,
            "forgotten": {"before": float(np.nanmean(start)), "after": float(np.nanmean(after))},
            "kept": {"before": kept[0], "after": kept[1]},
            "flops": asked.flops(1 + self.folds) + sum(f["flops"] for f in told),
        }

    def estimate(self, parameters: int, pool: int, references: int) -> tuple[float, float]:
        tokens = self.asked_tokens(pool)
        drilled = self.folds * self.steps * min(2.0 * self.batch * TOKENS, tokens)
        return parameters * (2.0 * (1 + self.folds) * tokens + 6.0 * drilled), 0.0

    def _dealt(self, groups: Rows, asked: Asked) -> Rows:
        """[n] the fold of each document: groups in a drawn order, dealt one after another."""
        count = int(groups.max()) + 1
        if count < self.folds:
            raise DataError(
                f"{count} groups in the sample for {self.folds} folds; raise `sample`, lower "
                "`folds`, or name finer clusters",
                where="worst_case",
            )
        draws = np.full(count, np.inf)
        np.minimum.at(draws, groups, asked.rng.at("folds").uniform(asked.table["id"]))
        place = np.empty(count, dtype=np.int64)
        place[np.argsort(draws, kind="stable")] = np.arange(count)
        return place[groups] % self.folds

    def _drill(
        self, asked: Asked, forget: npt.NDArray[np.bool_], start: Floats, number: int
    ) -> tuple[Numbers, Facts]:
        """Unlearn some documents on a copy of the model; losses of all after it."""
        counted = np.isin(np.arange(len(asked)), asked.counted)
        sides = [np.flatnonzero(counted & forget), np.flatnonzero(counted & ~forget)]
        if not all(map(len, sides)):
            raise DataError("a fold without a token to predict; raise `sample`", where="worst_case")
        model = copy.deepcopy(asked.loaded.model)
        other = Loaded(model, asked.loaded.tokenizer, asked.loaded.device)
        parameters, tokens = trainable(model), 0
        for step in range(self.steps):
            draw = asked.rng.at("drill", number, step).generator()
            chosen = [np.sort(draw.permutation(side)[: self.batch]) for side in sides]
            for side, sign in zip(chosen, (-self.ascent, 1.0), strict=True):
                tokens += int(asked.encoded.lengths[side].sum()) * (sign != 0)
                _add(parameters, asked, other, side, sign / len(side))
            with torch.no_grad():
                for p in parameters.values():
                    if p.grad is not None:
                        p -= self.rate * p.grad.sign()
                        p.grad = None
        if not all(bool(p.isfinite().all()) for p in parameters.values()):
            raise DataError("the drill leaves the finite numbers; lower `rate`", where="worst_case")
        after = losses(asked.encoded, other)
        told = {"kept_before": float(start[sides[1]].mean())}
        told["kept_after"] = float(after[sides[1]].mean())
        told["flops"] = asked.flops(3) * tokens / len(asked.encoded.ids)
        return {"loss": after}, told

    def _ranked(self, after: Floats, groups: Rows) -> tuple[Floats, Floats]:
        """[n] weight and rank of each document's group; NaN where none of it has a loss."""
        known = np.isfinite(after)
        count = int(groups.max()) + 1
        counts = np.bincount(groups[known], minlength=count)
        sums = np.bincount(groups[known], weights=after[known], minlength=count)
        mean = np.divide(sums, counts, out=np.full(count, math.nan), where=counts > 0)
        some = np.flatnonzero(counts)
        weight, rank = np.full(count, math.nan), np.full(count, math.nan)
        total = max(1.0, self.share * len(some))
        weight[some] = project(total / len(some) - self.weight_rate * mean[some], total)[0]
        above = (mean[some][None] > mean[some][:, None]).sum(axis=1)
        rank[some] = above / max(1, len(some) - 1)
        return weight[groups], rank[groups]


def grouped(clusters: list[str | None]) -> Rows:
    """[n] the group of each document: its cluster, or one of its own without."""
    keys = [(label, -1) if label is not None else ("", k) for k, label in enumerate(clusters)]
    place = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([place[key] for key in keys], dtype=np.int64)


def _add(parameters: Parameters, asked: Asked, other: Loaded, rows: Rows, weight: float) -> None:
    """Add the gradient of weight x the summed mean losses of some documents to the model's."""
    if not weight:
        return
    size = BACKWARD_TOKENS["cpu" if other.device == "cpu" else "cuda"]
    for batch in batches(asked.encoded, rows, size):
        found = loss_gradient(other.model, batch, [weight] * len(batch.ids))
        for name, p in parameters.items():
            p.grad = found[name] if p.grad is None else p.grad + found[name]
