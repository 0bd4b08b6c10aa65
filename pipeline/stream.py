"""Stream: the live model chooses its next batch, once an optimizer step, in any loop.

    for batch in Stream(data, method, model, keep=8, of=32, collate=collate):
        loss = model(**batch).loss; loss.backward(); optimizer.step(); optimizer.zero_grad()

A step has `of` candidates in all processes together. Each process measures its share of them with
the weights of that moment; the measurements are put together in the order of the candidates; every
process takes the `keep` of the largest utility (ties by the hash of the id; rows that cannot be
judged last) and trains on its share of those, again in the order of the candidates. The same rows
are chosen whatever the number of processes: candidates are measured `at_once` at a time, so where
`of / world` is a multiple of that, even the rounding is the same.

Ask for a batch when the step before has updated the weights; save `state_dict()` then too, before
the next batch is asked for. A run that goes on from a saved state sees what it would have seen.

Candidates follow a seeded order of the rows, or the one that is given (`given_order.py`): row
numbers, or the plan of a run, in which rows may come again.

A row may be a preference pair (`side`, see `pairs.py`): `keep` and `of` then count pairs.

Cost of a step: one forward without gradients over the candidates (roughly `of / 3 keep` of a step's
own cost) on top of the training. `loss()` in place of a batch trains on that very forward, at the
price of the activations of all candidates (`shared_forward.py`).
A batch lies where the collator put it; move it to the model's device if that is another one.
The global random state is left as it was: dropout (`mode="train"`) and random collators draw from
torch generators keyed by seed, step and candidate.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from foresift.pipeline.errors import DataError
from foresift.pipeline.given_order import GivenOrder, candidate_order
from foresift.pipeline.lm.live import LiveModel, Mode, Seen
from foresift.pipeline.online import (
    IGNORED,
    BatchMethod,
    Floats,
    Rows,
    State,
    Stateful,
    TokenSelector,
)
from foresift.pipeline.pairs import Side, source_of
from foresift.pipeline.parts import digest
from foresift.pipeline.ranks import Gather, Ranks
from foresift.pipeline.shared_forward import mean_loss, refuse
from foresift.pipeline.stream_ledger import opened
from foresift.pipeline.stream_rows import Collate, id_words
from foresift.pipeline.torch_draws import drawing

#: place among the candidates of a step -> (id, row without it)
Named = dict[int, tuple[str, dict[str, Any]]]


class Stream(Stateful):
    """Batches that a model in training chooses from the candidates of each step."""

    def __init__(
        self,
        data: Any,
        method: BatchMethod,
        model: Any,
        *,
        keep: int,
        of: int,
        collate: Collate,
        seed: int = 0,
        ids: str = "id",
        optimizer: Any = None,
        mode: Mode = "eval",
        rank: int | None = None,
        world: int | None = None,
        gather: Gather | None = None,
        tokens: TokenSelector | None = None,
        steps: int | None = None,
        order: Any = None,
        side: Side | None = None,
        autocast: torch.dtype | None = None,
        at_once: int = 8,
        check_every: int = 50,
        ledger: str | Path | None = None,
    ) -> None:
        """Begin at step 0.

        data      map-style data set; a row is a mapping of what `collate` takes, and its id
        keep, of  rows trained on and candidates of a step, in all processes together
        collate   rows -> batch with input_ids, labels and attention_mask
        ids       the column of ids, or "row" where row numbers are the same in every run
        mode      "eval": dropout is off while candidates are scored; "train": it is as the model's
        rank, world, gather   of torch.distributed, where it is initialised and nothing is said
        tokens    also choose which tokens of the chosen rows count
        steps     end of the iteration, counted from step 0; None: without end
        order     candidates in this order: row numbers, a run, or the path of a plan
        side      rows are preference pairs: what stands for a pair, of the sides' measurements
        autocast  torch.bfloat16 or float16: candidates are scored in mixed precision
        at_once   candidates in one forward; changes memory and speed
        check_every   steps between two comparisons of what the processes chose
        ledger    folder in which it is kept which rows entered which step (`stream_ledger.py`)
        """
        self.ranks, self._trained = Ranks(rank, world, gather), model
        self.source = source_of(data, ids, collate, side, tokens)
        self.order = candidate_order(order, self.source, of, seed)
        _check_sizes(keep, of, self.ranks.world, at_once, mode)
        self.method, self.tokens, self.side, self.seed = method, tokens, side, seed
        self.keep, self.of, self.steps = keep, of, steps
        self.at_once, self.check_every = at_once, check_every
        self.step, self.account = 0, _Account()
        self.ledger = opened(ledger, self.ranks.rank)
        with self._drawing("open"):
            unwrapped = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
            self.live = LiveModel(model, mode, unwrapped, autocast)
            self.chooser = method.open(self.live)
            self.masker = None if tokens is None else tokens.open(self.live)
        given = [self.order.digest] if isinstance(self.order, GivenOrder) else []
        given += [] if side is None else [f"side {side}"]
        given += [] if autocast is None else [str(autocast)]
        self.plan = digest([method, tokens, self.source.digest(), seed, keep, of, mode, *given])

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which the candidates go once through the data (a rest below `of` is dropped)."""
        return self.order.steps_per_epoch

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.steps is not None and self.step >= self.steps:
            self.flush()
            raise StopIteration
        return self.take()[0]

    def take(self, cut: int = 1) -> list[Any]:
        """The next step's batch of this process, in so many micro-batches of one size."""
        share = self.keep // self.ranks.world
        if cut < 1 or share % cut:
            raise DataError(f"{share} rows cannot be cut into {cut} micro-batches", where="keep")
        rows = self.order.rows(self.step)
        chosen, named, _ = self._next(rows)
        mine = chosen[self.ranks.rank * share :][:share]
        absent = [place for place in mine.tolist() if place not in named]
        with self._drawing("read", self.ranks.rank):
            named.update(zip(absent, self.source.read(rows[absent]), strict=True))
        batches = [self._batch(part, rows, named) for part in mine.reshape(cut, -1)]
        counts = self.masker is None or any((b["labels"][:, 1:] != IGNORED).any() for b in batches)
        if not counts:
            raise DataError(
                f"{type(self.tokens).__name__} leaves no token of step {self.step} to train on, and"
                " the loss would be NaN; let it keep more (a threshold that is wider, or a share)",
                where="tokens",
            )
        self._taken(chosen, rows, named)
        return batches

    def loss(self) -> torch.Tensor:
        """The mean loss over the tokens of the next step's rows, in the forward that scored them.

        In one process, with mode "train"; call `backward` on it. See `shared_forward.py`.
        """
        refuse(self)
        rows = self.order.rows(self.step)
        chosen, named, looks = self._next(rows, graph=True)
        self._taken(chosen, rows, named)
        return mean_loss(self.live, looks, chosen)

    def _taken(self, chosen: Rows, rows: Rows, named: Named) -> None:
        """Go on to the next step, and keep what this one trains on."""
        self.step += 1
        if self.ledger is not None and self.ledger.writes:
            absent = [place for place in chosen.tolist() if place not in named]
            with self._drawing("ledger"):
                named.update(zip(absent, self.source.read(rows[absent]), strict=True))
            self.ledger.add(self.step, [named[place][0] for place in chosen.tolist()])

    def _next(self, rows: Rows, graph: bool = False) -> tuple[Rows, Named, list[Seen]]:
        """(places of the chosen, candidates of this process, looks at them with their graphs)."""
        self.account.begin()
        named, measured, looks = self._measure(rows, graph)
        words = self.ranks.gather(id_words(name for name, _ in named.values()))
        chosen = self._choose(rows, words.cpu().numpy().view(np.uint64), measured)
        self.account.scored()
        return chosen, named, looks

    def _measure(
        self, rows: Rows, graph: bool
    ) -> tuple[Named, dict[str, torch.Tensor], list[Seen]]:
        """What each candidate of this process measures, put together with the others'."""
        size = self.of // self.ranks.world
        first = self.ranks.rank * size
        named: Named = {}
        parts: list[Mapping[str, torch.Tensor]] = []
        looks: list[Seen] = []
        for start in range(first, first + size, self.at_once):
            places = range(start, min(start + self.at_once, first + size))
            some = rows[places.start : places.stop]
            with self._drawing("candidate", start), self._asking():
                examples = self.source.read(some)
                named.update(zip(places, examples, strict=True))
                found = self.source.candidates(self.source.collated(examples), some, examples)
                seen = self.live.look(found, self.method.signals, self.method.hidden, graph)
                looks += [seen] if graph else []
                parts.append(self.source.folded(self.chooser.measure(seen), len(seen)))
        own = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name, values in own.items():
            if len(values) != size:
                raise DataError(f"{len(values)} values for {size} candidates", where=name)
        return named, self.ranks.gathered(own), looks

    def _choose(
        self, rows: Rows, words: npt.NDArray[np.uint64], measured: Mapping[str, torch.Tensor]
    ) -> Rows:
        """[keep] places of the chosen among the candidates, ascending."""
        utility = np.asarray(self.chooser.utility(measured, self.step), dtype=np.float64)
        if utility.shape != (self.of,):
            raise DataError(
                f"{type(self.method).__name__} gave utilities of shape {list(utility.shape)} for"
                f" {self.of} candidates",
                where="method",
            )
        if np.isnan(utility).all():
            raise DataError(
                f"no candidate of step {self.step} can be judged: {type(self.method).__name__}"
                " gave NaN for all of them",
                where="method",
            )
        chosen = best(utility, words, rows, self.keep)
        self.chooser.observe(measured, chosen)
        self.account.add(self.of, self.keep, int(np.isnan(utility).sum()))
        self.account.agreement = xxhash.xxh3_64_hexdigest(
            np.append(rows[chosen], self.step).astype("<i8").tobytes()
        )
        if self.step % self.check_every == 0:
            self.ranks.assert_equal(int(self.account.agreement, 16) >> 1, self.step)
        return chosen

    def _batch(self, places: Rows, rows: Rows, named: Named) -> Any:
        """Chosen candidates collated, with the labels of the tokens that count."""
        examples = [named[place] for place in places.tolist()]
        with self._drawing("batch", int(places[0])):
            batch = self.source.collated(examples)
            if self.masker is None or self.tokens is None:
                return batch
            with self._asking():
                found = self.source.candidates(batch, rows[places], examples)
                seen = self.live.look(found, self.tokens.signals, self.tokens.hidden)
                labels = self.masker.labels(seen, self.step)
        if labels.shape != found.labels.shape:
            raise DataError(
                f"labels of shape {list(labels.shape)}, not {list(found.labels.shape)}",
                where="tokens",
            )
        batch["labels"] = labels.to(found.labels.device)
        return batch

    def _drawing(self, *place: str | int) -> contextlib.AbstractContextManager[None]:
        """Torch draws keyed by seed, step and place."""
        device = next(self._trained.parameters()).device
        return drawing(device, self.seed, "online", self.step, *place)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """No gradients, and the mode in which candidates are scored."""
        with torch.no_grad(), self.live.scoring():
            yield

    def state_dict(self) -> State:
        """Where the stream stands; equal in every process as long as the token selector's is.

        Ask for it before the weights are saved, where there is a ledger: this writes it.
        """
        self.flush()
        return self.standing()

    def flush(self) -> None:
        """Write the ledger, where there is one."""
        if self.ledger is not None:
            self.ledger.flush()

    def standing(self) -> State:
        """`state_dict`, of which nothing is to be saved yet."""
        return {
            "plan": self.plan,
            "step": self.step,
            "cursor": self.order.cursor(self.step),
            "account": self.account.totals(),
            "chooser": self.chooser.state_dict(),
            "masker": {} if self.masker is None else self.masker.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        if state.get("plan") != self.plan:
            raise DataError(
                f"the state belongs to plan {state.get('plan')}, this stream is plan {self.plan};"
                " method, data, order, seed, keep, of, mode, side and autocast must be those it was"
                " saved with",
                where="state",
            )
        self.chooser.load_state_dict(state["chooser"])
        if self.masker is not None:
            self.masker.load_state_dict(state["masker"])
        self.step = int(state["step"])
        self.account = _Account(*state["account"])
        if self.ledger is not None:
            self.ledger.go_on(self.step)

    def report(self) -> dict[str, Any]:
        """What the choosing did and cost, so far; seconds are of this process.

        method, tokens   what the method and the token selector say of themselves (their `facts`)
        """
        account = self.account
        steps = max(1, account.steps)
        return {
            "plan": self.plan,
            "steps": account.steps,
            "candidates_seen": account.seen,
            "rows_trained_on": account.trained,
            "effective_batch": self.keep,
            "keep_fraction": self.keep / self.of,
            "nan_rows": account.nan,
            "seconds_scoring": account.scoring,
            "seconds_scoring_per_step": account.scoring / steps,
            "seconds_per_step": account.pace(),
            "agreement": account.agreement,
            "method": dict(getattr(self.chooser, "facts", {})),
            "tokens": dict(getattr(self.masker, "facts", {})),
        }


class _Account:
    """Counts that go on over an interruption, and clocks."""

    def __init__(
        self, steps: int = 0, seen: int = 0, trained: int = 0, nan: int = 0, scoring: float = 0.0
    ) -> None:
        self.steps, self.seen, self.trained = int(steps), int(seen), int(trained)
        self.nan, self.scoring, self.agreement = int(nan), float(scoring), ""
        self.first = self.last = 0.0
        self.begun = 0

    def begin(self) -> None:
        self.last = time.perf_counter()
        self.first = self.first if self.begun else self.last
        self.begun += 1

    def scored(self) -> None:
        self.scoring += time.perf_counter() - self.last

    def add(self, seen: int, trained: int, nan: int) -> None:
        self.steps, self.seen = self.steps + 1, self.seen + seen
        self.trained, self.nan = self.trained + trained, self.nan + nan

    def pace(self) -> float | None:
        """Seconds from one step to the next, training included; None before the second."""
        return (self.last - self.first) / (self.begun - 1) if self.begun > 1 else None

    def totals(self) -> list[float]:
        return [self.steps, self.seen, self.trained, self.nan, self.scoring]


def best(utility: Floats, words: npt.NDArray[np.uint64], rows: Rows, keep: int) -> Rows:
    """[keep] places of the largest, ascending; ties by id, then by row; NaN after all others."""
    unknown = np.isnan(utility)
    value = np.where(unknown, 0.0, -utility)
    order = np.lexsort((rows, words[:, 1], words[:, 0], value, unknown))
    return np.sort(order[:keep]).astype(np.int64)


def _check_sizes(keep: int, of: int, world: int, at_once: int, mode: str) -> None:
    if not 1 <= keep <= of:
        raise DataError(f"keep must be 1 .. of = {of}, got {keep}", where="keep")
    for name, value in (("keep", keep), ("of", of)):
        if value % world:
            near = sorted({value // world * world, -(-value // world) * world} - {0})
            raise DataError(
                f"{value} cannot be shared out evenly to {world} processes; take"
                f" {' or '.join(map(str, near))}",
                where=name,
            )
    if at_once < 1:
        raise DataError(f"must be at least 1, got {at_once}", where="at_once")
    if mode not in ("eval", "train"):
        raise DataError(f"must be 'eval' or 'train', got {mode!r}", where="mode")
