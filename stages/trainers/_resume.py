"""Going on with a training that was interrupted: its checkpoints, and what each of them has seen.

    checkpoints/step-000100/   weights, tokenizer, optimizer moments, curve.parquet so far, and
    training.json              step             of this training, and where it stands (`_loop.At`)
                               steps_before     of the optimizer, where it went on with its moments
                               planned_steps, planned_tokens   that the schedule was made for
                               tokens, exposures   consumed so far
                               ledger           digest of (id, step, tokens) of these exposures
                               digest           the same with the weights of their tokens

A training goes on from the newest checkpoint whose digest is that of the first steps of the plan as
it is now. A checkpoint that has seen a document which the plan no longer has is therefore taken
away, and with it all after it; so a training whose plan lost documents is replayed from the last
clean checkpoint. The schedule stays that of the training that began; one that was made for fewer
tokens than there are now does not fit.

The order in which things get to disk: exposures, then the checkpoint that has seen them; in the end
the curve, the final checkpoint, and the sealed ledger.
Cost: before going on, the documents up to the newest checkpoint are tokenised once more.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from foresift.pipeline import checkpoints
from foresift.pipeline.checkpoints import FACTS, Checkpoint
from foresift.pipeline.errors import DataError, ForesiftError
from foresift.pipeline.ledger import FILE, FOLDER, Ledger, Log
from foresift.pipeline.ledger import Row as Exposure
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.pipeline.parts import digest
from foresift.pipeline.store import Facts, read_json, temporary, write_json, write_shard
from foresift.pipeline.tables import id_words
from foresift.stages.trainers import _checkpoint
from foresift.stages.trainers._packing import Row

CURVE = "curve.parquet"


class Trail:
    """What a training has consumed: counts, a digest, and the curve."""

    def __init__(self) -> None:
        self.tokens = self.exposures = self.documents = 0
        """`documents`: entries of the plan that were trained, a repeated one counted each time."""
        self.curve: list[tuple[int, int, float, float]] = []
        self._ledger = _Columns()
        self._weights = xxhash.xxh3_128()

    def consume(self, step: int, rows: Iterable[Row]) -> list[Exposure]:
        """The exposures of one step, in order."""
        pieces: list[list[Any]] = []
        for row in rows:
            self._weights.update(np.ascontiguousarray(row.weights, "<f4").data)
            for number, place, tokens in row.pieces:
                if pieces and pieces[-1][0] == number:
                    pieces[-1][2] += tokens
                else:
                    pieces.append([number, place, tokens])
        found: list[Exposure] = [(*place, step, tokens) for _, place, tokens in pieces]
        self.tokens += sum(tokens for _, _, tokens in pieces)
        self.exposures += len(found)
        self.documents = pieces[-1][0] + 1
        self._ledger.add(
            b"".join(row[0] for row in found), [step] * len(found), [row[4] for row in found]
        )
        return found

    @property
    def ledger(self) -> str:
        """Stands for the exposures so far."""
        return self._ledger.digest()

    @property
    def digest(self) -> str:
        """Stands for the exposures so far and the weights of their tokens."""
        return digest([self.ledger, self._weights.hexdigest()])


class _Columns:
    """A digest of (id, step, tokens), the same in whatever parts they come."""

    def __init__(self) -> None:
        self._hashes = [xxhash.xxh3_128() for _ in range(3)]

    def add(self, ids: bytes, steps: Any, tokens: Any) -> None:
        parts = [ids, *(np.ascontiguousarray(c, "<i4").tobytes() for c in (steps, tokens))]
        for hasher, part in zip(self._hashes, parts, strict=True):
            hasher.update(part)

    def digest(self) -> str:
        return digest([hasher.hexdigest() for hasher in self._hashes])


@dataclass(frozen=True)
class Start:
    """The checkpoint from which a training goes on; without one, its beginning."""

    path: Path | None = None
    told: Facts = field(default_factory=dict)

    @property
    def step(self) -> int:
        return int(self.told.get("step", 0))

    @property
    def final(self) -> bool:
        """Whether all is trained and published, and only `stage.json` is wanting."""
        return self.path is not None and self.path.name == checkpoints.FINAL

    def curve(self) -> list[tuple[int, int, float, float]]:
        """The curve up to here."""
        if self.path is None:
            return []
        rows = pq.read_table(_curve_of(self.path)).to_pylist()
        return [tuple(row.values()) for row in rows]

    def restore(self, model: Any, optimizer: Any, spec: ModelSpec) -> None:
        """Give model and optimizer what they had; the configuration stays that of the model."""
        assert self.path is not None
        saved: Loaded = load.__wrapped__(spec.at(self.path))
        model.load_state_dict(saved.model.state_dict())
        _checkpoint.restore_moments(self.path / _checkpoint.OPTIMIZER, model, optimizer)


def _curve_of(checkpoint: Path) -> Path:
    final = checkpoint.name == checkpoints.FINAL
    return (checkpoint.parent if final else checkpoint) / CURVE


def find(out: Path, steps: int, tokens: int, batches: Iterator[list[Row]]) -> Start:
    """The newest checkpoint that fits the plan, of so many steps and tokens; others are removed."""
    found = checkpoints.intermediate(out)
    final = out / checkpoints.FINAL
    if (final / FACTS).exists():  # published, but not declared done
        found.append(Checkpoint(steps, final))
    told = {c: _told(c, steps, tokens) for c in found}
    trail, best = Trail(), Start()
    last = max((t["step"] for t in told.values() if t), default=0)
    for step in range(1, last + 1):
        trail.consume(step, next(batches))
        for checkpoint, facts in told.items():
            if facts and facts["step"] == step:
                if facts["digest"] == trail.digest:
                    best = Start(checkpoint.path, facts)
                else:
                    told[checkpoint] = None
    for checkpoint, facts in told.items():
        if facts is None:
            _checkpoint.remove(checkpoint.path)
    return best


def _told(checkpoint: Checkpoint, steps: int, tokens: int) -> Facts | None:
    """What a checkpoint says of itself; None where nothing can go on from it."""
    try:
        facts = read_json(checkpoint.path / FACTS)
        whole = pq.read_metadata(_curve_of(checkpoint.path)).num_rows == checkpoint.step
    except (ForesiftError, OSError, ValueError):
        return None
    if facts.get("step") != checkpoint.step or not whole:
        return None
    fits = facts["step"] <= steps and facts["planned_tokens"] >= tokens
    return facts if fits else None


def open_log(out: Path, start: Start, batches: Iterator[list[Row]]) -> Log:
    """The ledger of a training that goes on; it says what the checkpoint has seen, or is made to.

    It says less where a checkpoint was brought here without it, where it was sealed already, or
    where two processes did the same training.
    """
    folder = out / FOLDER
    if start.step and _digest_until(folder, start.step) != start.told["ledger"]:
        made = temporary(folder)
        shutil.rmtree(made, ignore_errors=True)
        log, trail = Log(made), Trail()
        for step in range(1, start.step + 1):
            log.add(trail.consume(step, next(batches)))
        log.flush()
        if folder.exists():
            _checkpoint.remove(folder)
        _checkpoint.place(made, folder)
    return Log(folder, start.step)


def _digest_until(path: Path, step: int) -> str | None:
    """`Trail.ledger` of what a ledger says up to a step; None where there is no ledger."""
    columns = _Columns()
    try:
        for table in Ledger.open(path).tables(["id", "step", "tokens"]):
            rows = table.filter(pc.less_equal(table["step"], step))
            columns.add(id_words(rows["id"]).tobytes(), rows["step"], rows["tokens"])
    except DataError:
        return None
    return columns.digest()


def describe(folder: Path, trail: Trail, facts: Facts) -> None:
    """Write what a checkpoint has seen beside its weights."""
    seen = {"tokens": trail.tokens, "exposures": trail.exposures}
    digests = {"ledger": trail.ledger, "digest": trail.digest}
    write_json(folder / FACTS, {**facts, **seen, **digests})


def write_curve(path: Path, trail: Trail) -> None:
    """The curve so far."""
    write_shard(path, _checkpoint.curve_table(trail.curve))


def seal(out: Path, log: Log, trail: Trail, batches: Iterator[list[Row]]) -> None:
    """Put the ledger into one file; from the plan, where another process took some of it away."""
    log.flush()
    steps, sealed = len(trail.curve), out / FILE
    if _digest_until(log.folder, steps) != trail.ledger:
        if _digest_until(sealed, steps) == trail.ledger:
            _checkpoint.remove(log.folder)
            return
        log = open_log(out, Start(None, {"step": steps, "ledger": trail.ledger}), batches)
    log.seal(sealed)
