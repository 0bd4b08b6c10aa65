"""What a step of training costs when the live model chooses its rows, before any training is done.

    plain K     a step on K rows: forward, backward, optimizer
    plain B     a step on all B candidates, in micro-batches of K
    forward     a forward of B without gradients, up to the final hidden states
    logits      the same with the output layer
    a method    its choice of K of B, and a step on what it chose

Everything is timed in turns (one of each, and again), so that a machine that becomes slower becomes
so for all; of each the median counts, the first turn not. Methods may choose longer rows than
chance does, so choosing and training are timed apart. A token selector is measured on K rows
chosen by chance, and so is compared with plain K. A plan of epochs costs a step nothing.

Memory is what stands beyond weights and optimizer: on a GPU as its allocator counts, on a CPU by
the tensors that operations return (what a kernel uses within itself is not seen).

Parts that need a file (a reference, a table of losses) get one made of the same rows, of a size
that is told; a reference model is a second copy of the model.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from foresift.pipeline.errors import DataError, ForesiftError, RecipeError
from foresift.pipeline.lm.live import unwrap
from foresift.pipeline.lm.model import load
from foresift.pipeline.online import IGNORED, BatchMethod, EpochPlan, TokenSelector
from foresift.pipeline.parts import Part, find, names
from foresift.pipeline.stream import Stream
from foresift.pipeline.tensor_memory import Memory

Row = dict[str, Any]
#: a turn of one thing that is timed: (seconds of choosing, seconds of training)
Side = Callable[[int], tuple[float, float]]


@dataclass(frozen=True)
class Sizes:
    """The shape of a step."""

    keep: int
    """K, rows trained on."""
    of: int
    """B, candidates."""
    at_once: int = 8
    """Candidates in one forward."""


@dataclass
class Cost:
    """What one side cost in each turn."""

    name: str
    choosing: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    peak: int = 0
    """Bytes beyond weights and optimizer at the most: while choosing, or of a plain step."""
    held: int = 0
    """Bytes of these that stay from step to step."""
    needs: str = ""
    refused: str = ""

    @property
    def seconds(self) -> float:
        """Median of a turn."""
        return statistics.median(map(sum, zip(self.choosing, self.training, strict=True)))

    def over(self, *others: Cost) -> float:
        """Median over the turns of the ratio to others' sum, drift of the machine cancelled."""
        rest = map(sum, zip(*(x for o in others for x in (o.choosing, o.training)), strict=True))
        own = map(sum, zip(self.choosing, self.training, strict=True))
        return statistics.median(a / b for a, b in zip(own, rest, strict=True))

    def over_floor(self, *forwards: Cost) -> float:
        """The same to those forwards and a step on the very rows that were chosen."""
        need = map(sum, zip(*(f.choosing for f in forwards), strict=True))
        turns = zip(self.choosing, self.training, need, strict=True)
        return statistics.median((a + b) / (f + b) for a, b, f in turns)


class Trainee:
    """A model in training on rows of tokens, and the clock."""

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        rows: Sequence[Row],
        sizes: Sizes,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if len(rows) < sizes.of:
            raise DataError(f"{len(rows)} rows, {sizes.of} candidates are wanted", where="data")
        self.model, self.optimizer, self.rows, self.sizes = model, optimizer, list(rows), sizes
        self.device = next(model.parameters()).device
        self._clock = clock

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self._clock()

    def some(self, turn: int, count: int) -> list[Row]:
        """Rows of a turn, by chance."""
        places = np.random.default_rng(turn).permutation(len(self.rows))[:count]
        return [self.rows[i] for i in places]

    def batch(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        return {n: v.to(self.device) for n, v in collate(list(rows)).items()}

    def train(self, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """A step over micro-batches."""
        self.gradient(batches)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def gradient(self, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
        self.model.train()
        for batch in batches:
            given = {n: v.to(self.device) for n, v in batch.items()}
            (self.model(**given).loss / len(batches)).backward()

    def plain(self, count: int, update: bool = True) -> Side:
        """A step on so many rows, in micro-batches of K; or its gradient alone."""

        def side(turn: int) -> tuple[float, float]:
            rows, size = self.some(turn, count), self.sizes.keep
            batches = [self.batch(rows[i : i + size]) for i in range(0, count, size)]
            begun = self.clock()
            if update:
                self.train(batches)
                return 0.0, self.clock() - begun
            self.gradient(batches)
            spent = self.clock() - begun
            self.optimizer.zero_grad(set_to_none=True)
            return spent, 0.0

        return side

    def forward(self, logits: bool) -> Side:
        """One forward of the candidates, as many at once as for a method."""

        def side(turn: int) -> tuple[float, float]:
            self.model.eval()
            inner = unwrap(self.model)
            inner = inner if logits else inner.base_model
            rows, size = self.some(turn, self.sizes.of), self.sizes.at_once
            begun = self.clock()
            with torch.no_grad():
                for start in range(0, len(rows), size):
                    ids = self.batch(rows[start : start + size])["input_ids"]
                    inner(input_ids=ids, use_cache=False)
            return self.clock() - begun, 0.0

        return side

    def stream(
        self, method: BatchMethod, tokens: TokenSelector | None = None, optimizer: Any = None
    ) -> Stream:
        """Steps that a method chooses; of K candidates where tokens alone are chosen."""
        sizes = self.sizes
        of = sizes.of if tokens is None else sizes.keep
        return Stream(
            self.rows, method, self.model, keep=sizes.keep, of=of, collate=collate, tokens=tokens,
            optimizer=optimizer or self.optimizer, at_once=sizes.at_once,
        )  # fmt: skip

    def chosen(self, stream: Stream) -> Side:
        """A step on what a stream chooses."""

        def side(turn: int) -> tuple[float, float]:
            begun = self.clock()
            batches = stream.take()
            between = self.clock()
            self.train(batches)
            return between - begun, self.clock() - between

        return side


def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Padded on the right to the longest."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for line, row in enumerate(rows):
        size = len(row["input_ids"])
        ids[line, :size] = torch.as_tensor(row["input_ids"])
        labels[line, :size] = torch.as_tensor(row["labels"])
        mask[line, :size] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def in_turns(sides: Mapping[str, Side], turns: int, warm: int = 1) -> dict[str, Cost]:
    """Each side once in a turn; the first `warm` turns are not kept."""
    costs = {name: Cost(name) for name in sides}
    for turn in range(turns + warm):
        for name, side in sides.items():
            choosing, training = side(turn)
            if turn >= warm:
                costs[name].choosing.append(choosing)
                costs[name].training.append(training)
    return costs


class Watched:
    """An optimizer that tells whether its state was looked into."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer, self.seen = optimizer, False

    def __getattr__(self, name: str) -> Any:
        self.seen |= name in ("state", "param_groups")
        return getattr(self._optimizer, name)


def measure(
    trainee: Trainee, parts: Mapping[str, Part | str], turns: int
) -> tuple[dict[str, Cost], dict[str, Cost]]:
    """(plain sides, each part) by name; a part that is a string is refused for that reason."""
    keep, of = trainee.sizes.keep, trainee.sizes.of
    plain = {
        "plain K": trainee.plain(keep),
        "plain B": trainee.plain(of),
        "forward": trainee.forward(False),
        "logits": trainee.forward(True),
    }
    peaks = {}
    plain["plain K"](0)  # an optimizer allocates in its first step
    for name, side in plain.items():
        with Memory(trainee.device) as memory:
            side(0)
        peaks[name] = memory.peak
    tried = {name: _try(trainee, name, part) for name, part in parts.items()}
    sides = {name: side for name, (_, side) in tried.items() if side is not None}
    found = in_turns(plain | sides, turns, warm=0)  # all of them have had a turn
    baselines = {name: found[name] for name in plain}
    for name, cost in baselines.items():
        cost.peak = peaks[name]
    methods = {name: cost for name, (cost, _) in tried.items()}
    for name in sides:
        methods[name].choosing = found[name].choosing
        methods[name].training = found[name].training
    return baselines, methods


def _try(trainee: Trainee, name: str, part: Part | str) -> tuple[Cost, Side | None]:
    """What a part needs and holds, and its side; or why it cannot work here."""
    cost = Cost(name)
    if isinstance(part, str):
        cost.refused = part
        return cost, None
    watched = Watched(trainee.optimizer)
    load.cache_clear()  # a reference model that another part has loaded is to be counted
    try:
        with Memory(trainee.device) as memory:
            if isinstance(part, TokenSelector):
                chance = find("sample", "random")()
                assert isinstance(chance, BatchMethod)
                stream = trainee.stream(chance, part, watched)
            else:
                assert isinstance(part, BatchMethod)
                stream = trainee.stream(part, None, watched)
            batches = stream.take()
        trainee.train(batches)
    except (ForesiftError, torch.OutOfMemoryError) as error:
        cost.refused = "out of memory" if isinstance(error, RuntimeError) else str(error)
        trainee.optimizer.zero_grad(set_to_none=True)
        return cost, None
    cost.peak, cost.held = memory.peak, memory.held
    cost.needs = _needs(part, watched.seen)
    return cost, trainee.chosen(stream)


def _needs(part: BatchMethod | TokenSelector, optimizer: bool) -> str:
    reads = [*part.signals, *(["hidden states"] if part.hidden else [])]
    files = [f"{f.name}: FILE" for f in dataclasses.fields(part) if _required(f)]
    return ", ".join([*reads, *(["optimizer"] if optimizer else []), *files])


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def wanted(methods: str) -> list[str]:
    """Names of parts, from a list with commas; all of them where it is empty."""
    known = names("sample")
    chosen = [n.strip() for n in methods.split(",") if n.strip()] or known
    for name in chosen:
        if ":" not in name and name not in known:
            find("sample", name, where="--methods")  # names the nearest
    return list(dict.fromkeys(chosen))


def build(chosen: Sequence[str], folder: Path, rows: Sequence[Row], model: str, keep: int) -> Any:
    """Name -> part with what stands in for its files, or the reason why it is not measured."""
    files = _Files(folder, rows, model, keep)
    out: dict[str, Part | str] = {}
    for name in chosen:
        kind = find("sample", name, where="--methods")
        if issubclass(kind, EpochPlan):
            out[name] = "plans epochs from the losses of training: a step costs what it costs"
            continue
        required = [f.name for f in dataclasses.fields(kind) if _required(f)]
        try:
            out[name] = kind.parse({n: files.of(kind, n) for n in required}, name)
        except RecipeError as error:
            out[name] = str(error)
    return out


class _Files:
    """What stands in for files that a part needs."""

    def __init__(self, folder: Path, rows: Sequence[Row], model: str, keep: int) -> None:
        self.folder, self.rows, self.model, self.keep = folder, rows, model, keep

    def of(self, kind: type[Part], name: str) -> str:
        path = self.folder / f"{name}.parquet"
        if issubclass(kind, TokenSelector) and name in ("reference", "base"):
            return self.model
        if name == "against":
            rows = {"id": [r["id"] for r in self.rows], "loss": [0.0] * len(self.rows)}
        elif name == "reference":
            some = self.rows[: self.keep]
            rows = {c: [list(map(int, r[c])) for r in some] for c in ("input_ids", "labels")}
        else:
            raise RecipeError(f"needs {name}, for which nothing can stand in", where=kind.__name__)
        pq.write_table(pa.table(rows), path)
        return str(path)
