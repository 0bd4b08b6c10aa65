"""Losses of the same tokens under another model: a table, a loaded model, earlier weights.

    Table     losses cached once; by id, and checked by token counts, so that a shuffled loader or
              another truncation cannot shift them. Memory: 4 bytes a cached token.
    Loaded    a second model in memory; one forward a step.
    Weights   the trained weights as they were at the start, or their moving average
              h <- a h + (1 - a) w, once a step. Memory: a copy of the weights that are trained (of
              an adapter: of the adapter). They change places with the live ones for one forward.
    Adapters  PEFT adapters switched off for one forward; no memory at all.

All of them read without dropout, in nats, one float a counted token. Cached tables are parquet
files with columns `id`, `tokens` (all tokens of the row, pads left out) and `losses` (a list, one
float a counted token). float16 halves the table and rounds a loss by up to 0.05 %.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.lm.model import ModelSpec, load
from foresift.pipeline.online import Candidates, State, Stateful
from foresift.pipeline.store import publish, temporary

Floats = npt.NDArray[Any]


class Past(Stateful):
    """Another model, asked for the losses of tokens."""

    @abstractmethod
    def losses(self, seen: Seen, step: int) -> Floats:
        """[counted tokens] nats."""

    def advance(self, step: int) -> None:
        """Told of each step, whether losses are asked for or not."""
        return None

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        return None


def reference(name: str, live: LiveModel, where: str) -> Past:
    """A table (`.parquet`), or a model by folder or hub id."""
    return Table(Path(name), where) if name.endswith(".parquet") else Loaded(name, live, where)


def write_history(
    path: Path,
    ids: Sequence[str],
    losses: Sequence[Floats],
    tokens: Sequence[int],
    dtype: Literal["float16", "float32"] = "float32",
) -> None:
    """Write losses for `Table`: of each row all of its counted tokens, and its number of tokens."""
    kind = pa.float16() if dtype == "float16" else pa.float32()
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in losses])]).astype(np.int64)
    flat = np.concatenate([np.asarray(x, dtype=dtype) for x in losses] or [np.empty(0, dtype)])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat, kind))
    columns = {"id": pa.array(ids, pa.string()), "tokens": pa.array(tokens, pa.int32())}
    partial = temporary(path)
    pq.write_table(pa.table(columns | {"losses": lists}), partial)
    publish(partial, path)


def cache_history(
    live: LiveModel,
    batches: Iterable[Candidates],
    path: Path,
    dtype: Literal["float16", "float32"] = "float32",
) -> None:
    """Score every batch with a model and write its losses; exact copies once."""
    found: dict[str, tuple[Floats, int]] = {}
    for batch in batches:
        seen = live.look(batch, ("nll",))
        rows = np.split(seen.signals.token["nll"], seen.signals.offsets[1:-1])
        for name, values, length in zip(batch.ids, rows, seen.lengths.tolist(), strict=True):
            found.setdefault(name, (values, length))
    losses, tokens = [v for v, _ in found.values()], [n for _, n in found.values()]
    write_history(path, list(found), losses, tokens, dtype)


class Table(Past):
    """Cached losses."""

    def __init__(self, path: Path, where: str = "") -> None:
        self.path, self.where = path, where or str(path)
        try:
            table = pq.read_table(path, columns=["id", "tokens", "losses"])
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise DataError(
                f"no table of losses with id, tokens and losses: {error}", where=str(path)
            ) from error
        lists = table["losses"].combine_chunks()
        self.offsets = lists.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        self.flat = lists.values.to_numpy(zero_copy_only=False)
        self.tokens = table["tokens"].to_numpy()
        names = table["id"].to_pylist()
        self.rows = {str(name): row for row, name in reversed(list(enumerate(names)))}

    def of(self, name: str) -> Floats:
        """The losses of one row."""
        if name not in self.rows:
            raise DataError(f"row {name} has no cached losses in {self.path}", where=self.where)
        row = self.rows[name]
        found: Floats = self.flat[self.offsets[row] : self.offsets[row + 1]]
        return found

    def losses(self, seen: Seen, step: int) -> Floats:
        out = np.empty(int(seen.signals.offsets[-1]), dtype=np.float32)
        facts = zip(
            seen.candidates.ids, seen.lengths.tolist(), seen.signals.offsets[1:], strict=True
        )
        start = 0
        for name, length, stop in facts:
            cached = self.of(name)
            have = (int(self.tokens[self.rows[name]]), len(cached))
            if have != (length, int(stop) - start):
                raise DataError(
                    f"row {name} has {length} tokens of which {int(stop) - start} count, the cache "
                    f"{have[0]} and {have[1]}: another tokenizer, template or length",
                    where=self.where,
                )
            out[start:stop] = cached
            start = int(stop)
        return out


class Loaded(Past):
    """A frozen model beside the live one."""

    def __init__(self, name: str, live: LiveModel, where: str = "") -> None:
        model = load(ModelSpec(init=name, device=str(live.device))).model
        self.live = LiveModel(model)
        ours = live.model.get_input_embeddings().num_embeddings
        theirs = model.get_input_embeddings().num_embeddings
        if theirs < ours:
            raise ModelError(
                f"{name} knows {theirs} tokens, the model in training {ours}: they must share "
                "their tokenizer",
                where=where,
            )

    def losses(self, seen: Seen, step: int) -> Floats:
        return self.live.look(seen.candidates, ("nll",)).signals.token["nll"]


def _without_dropout(live: LiveModel) -> LiveModel:
    return live if live.mode == "eval" else LiveModel(live.wrapped, autocast=live.autocast)


class Weights(Past):
    """The weights that are trained, as they were when this was opened, or their moving average."""

    def __init__(self, live: LiveModel, decay: float = 1.0) -> None:
        live.whole("a history of weights")
        self.live, self.decay, self.step = _without_dropout(live), decay, -1
        self.now = {n: p for n, p in live.model.named_parameters() if p.requires_grad}
        self.then = {n: p.detach().clone() for n, p in self.now.items()}

    @torch.no_grad()
    def advance(self, step: int) -> None:
        if self.decay < 1 and step > self.step:
            for name, weight in self.now.items():
                self.then[name].lerp_(weight, 1 - self.decay)
            self.step = step

    @torch.no_grad()
    def _exchange(self) -> None:
        """In place, so that views of the weights (a tied output layer) see the change as well."""
        for name, weight in self.now.items():
            kept = weight.clone()
            weight.copy_(self.then[name])
            self.then[name].copy_(kept)

    def losses(self, seen: Seen, step: int) -> Floats:
        self.advance(step)
        self._exchange()
        try:
            return self.live.look(seen.candidates, ("nll",)).signals.token["nll"]
        finally:
            self._exchange()

    def state_dict(self) -> State:
        return {"step": self.step, "weights": {n: w.clone() for n, w in self.then.items()}}

    def load_state_dict(self, state: State) -> None:
        shapes = {n: tuple(w.shape) for n, w in state["weights"].items()}
        if shapes != {n: tuple(w.shape) for n, w in self.then.items()}:
            raise DataError(
                "the checkpoint's earlier weights are those of another model", where="history"
            )
        self.step = int(state["step"])
        for name, weight in state["weights"].items():
            self.then[name].copy_(weight)


class Adapters(Past):
    """The model below its PEFT adapters."""

    def __init__(self, live: LiveModel, where: str = "") -> None:
        self.live, self.peft = _without_dropout(live), live.wrapped
        while self.peft is not None and not hasattr(self.peft, "disable_adapter"):
            inner = getattr(self.peft, "module", None)
            self.peft = inner if inner is not None else getattr(self.peft, "_orig_mod", None)
        if self.peft is None:
            raise ModelError(
                "history: adapters needs a PEFT model; this one has none (try frozen)", where=where
            )

    @contextlib.contextmanager
    def _off(self) -> Iterator[None]:
        """Adapters off; what was frozen among them stays frozen afterwards."""
        trained = [(p, p.requires_grad) for p in self.peft.parameters()]
        try:
            with self.peft.disable_adapter():
                yield
        finally:
            for parameter, wanted in trained:
                parameter.requires_grad_(wanted)

    def losses(self, seen: Seen, step: int) -> Floats:
        with self._off():
            return self.live.look(seen.candidates, ("nll",)).signals.token["nll"]
