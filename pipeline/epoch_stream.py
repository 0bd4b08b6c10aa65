"""EpochStream: the batches of an epoch plan, in any loop.

    epochs = EpochStream(data, InfoBatch(), batch=8, epochs=5, collate=collate)
    for batch, weights, positions in epochs:
        losses = document_losses(model(**batch).logits, batch["labels"])     # one a row
        weighted(losses, weights).backward(); optimizer.step(); optimizer.zero_grad()
        epochs.observe(positions, losses)

A plan says which rows an epoch visits, in which order and with which loss weights. A step is
`batch` of them in all processes together; each process gets its share, one after the other. So the
rows of a step do not depend on the number of processes, and the mean over all of the losses times
their weights is the mean of the processes' own means (DistributedDataParallel takes that). Where
an epoch visits no multiple of `batch` rows, the rest of fewer rows is left out; plans arrange their
rows at random, so the rest is a random one.

`observe` tells the plan the losses that training gave anyway, of all processes: every process must
call it as often, and may tell of a different number of rows. Losses that are not finite (a row
without a counted token) are not remembered. Save `state_dict()` after `observe`; a run that goes on
from it gets the batches that it would have got. What a collator draws is keyed by seed, epoch, step
and process; the global random state is left alone.

Schedules: `planned_steps` is what `forecast` of the plan makes of it, before training. Some plans
know their sizes only when the losses are known (`seta` with k-means, `infobatch`): then the steps
that are done differ from it, by as much as the sizes do. Cost: what the plan costs an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.online import EpochPlan, Floats, Rows, State, Stateful
from foresift.pipeline.parts import digest
from foresift.pipeline.ranks import Gather, Ranks
from foresift.pipeline.stream_ledger import opened
from foresift.pipeline.stream_rows import Collate, RowSource
from foresift.pipeline.torch_draws import drawing


class Visit(NamedTuple):
    """What a process trains on at once."""

    batch: Any
    """What the collator made of the rows."""
    weights: torch.Tensor
    """[b] float32 loss weight of each row."""
    positions: Rows
    """[b] row numbers in the data set."""


class EpochStream(Stateful):
    """Batches of the rows that each epoch visits."""

    def __init__(
        self,
        data: Any,
        plan: EpochPlan,
        *,
        batch: int,
        epochs: int,
        collate: Collate,
        seed: int = 0,
        ids: str = "id",
        rank: int | None = None,
        world: int | None = None,
        gather: Gather | None = None,
        ledger: str | Path | None = None,
    ) -> None:
        """Begin at epoch 0.

        data      map-style data set; a row is a mapping of what `collate` takes, and its id
        batch     rows of a step, in all processes together
        collate   rows -> batch
        ids       the column of ids, or "row" where row numbers are the same in every run
        rank, world, gather   of torch.distributed, where it is initialised and nothing is said
        ledger    folder in which it is kept which rows entered which step (`stream_ledger.py`)
        """
        self.ranks = Ranks(rank, world, gather)
        self.source = RowSource(data, ids, collate)
        n = len(self.source)
        if not 1 <= batch <= n:
            raise DataError(f"must be 1 .. {n}, the rows of the data, got {batch}", where="batch")
        if batch % self.ranks.world:
            raise DataError(
                f"{batch} cannot be shared out evenly to {self.ranks.world} processes",
                where="batch",
            )
        self.batch, self.count, self.seed = batch, epochs, seed
        self.ledger = opened(ledger, self.ranks.rank)
        self.epochs = plan.open(n, epochs, seed)
        self.plan = digest([plan, self.source.digest(), seed, batch, epochs])
        self.epoch, self.step, self.done, self.rows_done = 0, 0, 0, 0
        self._visits: tuple[Rows, npt.NDArray[np.float32]] | None = None
        self._named: dict[str, list[int]] = {}

    @property
    def planned_steps(self) -> int:
        """Steps of the whole training as the plan forecasts them, for schedules."""
        return sum(self.planned_steps_by_epoch)

    @property
    def planned_steps_by_epoch(self) -> list[int]:
        """Steps of each epoch as the plan forecasts them."""
        return [int(rows + 1e-9) // self.batch for rows in self.epochs.forecast()]

    def __iter__(self) -> Iterator[Visit]:
        return self

    def __next__(self) -> Visit:
        return self.take()[0]

    def take(self, cut: int = 1) -> list[Visit]:
        """The next step's rows of this process, in so many micro-batches of one size.

        StopIteration after the last epoch.
        """
        share = self.batch // self.ranks.world
        if cut < 1 or share % cut:
            raise DataError(f"{share} rows cannot be cut into {cut} micro-batches", where="batch")
        if not self.more():
            self.flush()
            raise StopIteration
        rows, weights = self._planned()
        first = self.step * self.batch + self.ranks.rank * share
        self._named = {}
        visits = [
            self._visit(rows[at : at + share // cut], weights[at : at + share // cut])
            for at in range(first, first + share, share // cut)
        ]
        self.step, self.done, self.rows_done = (
            self.step + 1,
            self.done + 1,
            self.rows_done + self.batch,
        )
        self._keep(rows[first : first + self.batch])
        return visits

    def _keep(self, rows: Rows) -> None:
        """Put the rows of the step that was taken into the ledger; those of this process first."""
        if self.ledger is not None and self.ledger.writes:
            own = [(row, name) for name, places in self._named.items() for row in places]
            names = dict(own)
            absent = np.array([row for row in rows.tolist() if row not in names], dtype=np.int64)
            if len(absent):
                with drawing(torch.device("cpu"), self.seed, "ledger", self.done):
                    found = [name for name, _ in self.source.read(absent)]
                names.update(zip(absent.tolist(), found, strict=True))
            self.ledger.add(self.done, [names[row] for row in rows.tolist()])

    def flush(self) -> None:
        """Write the ledger, where there is one."""
        if self.ledger is not None:
            self.ledger.flush()

    @property
    def steps_of_epoch(self) -> int:
        """Steps of the epoch that is under way."""
        return len(self._planned()[0]) // self.batch

    def more(self) -> bool:
        """Whether a step is left. Goes on to its epoch, so all losses before it must be told."""
        while self.step >= self.steps_of_epoch:
            if self.epoch + 1 >= self.count:
                return False
            self.epoch, self.step, self._visits = self.epoch + 1, 0, None
        return True

    def _planned(self) -> tuple[Rows, npt.NDArray[np.float32]]:
        """(rows, weights) of the epoch that is under way."""
        if self._visits is None:
            rows, weights = self.epochs.epoch(self.epoch)
            self._visits = np.asarray(rows, np.int64), np.asarray(weights, np.float32)
        return self._visits

    def _visit(self, rows: Rows, weights: npt.NDArray[np.float32]) -> Visit:
        place = ("epochs", self.epoch, self.step, self.ranks.rank, int(rows[0]))
        with drawing(torch.device("cpu"), self.seed, *place):
            examples = self.source.read(rows)
            batch = self.source.collated(examples)
        for (name, _), row in zip(examples, rows.tolist(), strict=True):
            self._named.setdefault(name, []).append(row)
        return Visit(batch, torch.from_numpy(weights.copy()), rows)

    def observe(self, which: Rows | Sequence[int] | Sequence[str], losses: Any) -> None:
        """Tell the plan losses in nats per token, each of one row.

        which    their positions, or their ids (of the step that was taken last)
        losses   as many: a tensor, an array or a list
        """
        values = losses.detach().cpu() if isinstance(losses, torch.Tensor) else losses
        told: Floats = np.asarray(values, dtype=np.float64)
        rows, told = self._positions(which, told)
        rows, told = self._of_all(rows, told)
        self.epochs.update(rows, told)

    def _positions(self, which: Any, told: Floats) -> tuple[Rows, Floats]:
        """Row numbers and their losses; exact copies that share an id share the loss."""
        if told.ndim != 1 or len(which) != len(told):
            raise DataError(
                f"{len(which)} rows, losses of shape {list(told.shape)}", where="losses"
            )
        if not len(told) or not isinstance(which[0], str):
            return np.asarray(which, dtype=np.int64), told
        unknown = [name for name in which if name not in self._named]
        if unknown:
            raise DataError(
                f"{unknown[0]!r} is not among the rows of this process in the last step",
                where="ids",
            )
        places = [(row, i) for i, name in enumerate(which) for row in self._named[name]]
        rows, at = np.array(places, dtype=np.int64).T
        return rows, told[at]

    def _of_all(self, rows: Rows, told: Floats) -> tuple[Rows, Floats]:
        """The same of all processes, which may have different numbers of rows."""
        if self.ranks.world == 1:
            return rows, told
        counts = self.ranks.gather(torch.tensor([len(rows)]))
        padded = np.full((2, int(counts.max())), np.nan)
        padded[:, : len(rows)] = rows, told
        found = self.ranks.gather(torch.from_numpy(padded)[None]).cpu().numpy()
        joined = np.concatenate([p[:, :k] for p, k in zip(found, counts.tolist(), strict=True)], 1)
        return joined[0].astype(np.int64), joined[1]

    def state_dict(self) -> State:
        """Where the stream stands; equal in every process. Ask for it before weights are saved."""
        self.flush()
        return {
            "plan": self.plan, "epoch": self.epoch, "step": self.step, "done": self.done,
            "rows": self.rows_done, "epochs": self.epochs.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        if state.get("plan") != self.plan:
            raise DataError(
                f"the state belongs to plan {state.get('plan')}, this stream is plan {self.plan};"
                " plan, data, seed, batch and epochs must be those it was saved with",
                where="state",
            )
        self.epochs.load_state_dict(state["epochs"])
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        self.done, self.rows_done = int(state["done"]), int(state["rows"])
        self._visits, self._named = None, {}
        if self.ledger is not None:
            self.ledger.go_on(self.done)

    def report(self) -> dict[str, Any]:
        """What was done so far, and what was planned."""
        return {
            "plan": self.plan,
            "epoch": self.epoch,
            "steps": self.done,
            "rows_trained_on": self.rows_done,
            "planned_steps": self.planned_steps,
            "effective_batch": self.batch,
        }
