"""Job: what a step may use besides its inputs, and the engine that maps work over workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts, shard_facts

if TYPE_CHECKING:
    from foresift.pipeline.beside import Beside

#: bytes of content below which starting processes costs more than they save
SMALL_BYTES = 48 << 20


@dataclass(frozen=True)
class Resources:
    """What one worker of a job holds."""

    cpus: int = 1
    gpus: float = 0.0
    small: bool = False
    """True where the whole job is less work than starting processes for it."""


class Engine(Protocol):
    """Maps a picklable task over items, in any order, each at least once."""

    def map(
        self, task: Callable[[Any], Facts], items: Sequence[Any], resources: Resources
    ) -> Iterator[tuple[int, Facts]]:
        """Yield (position, facts) as items finish."""


class Progress(Protocol):
    """Told how far a job is."""

    def __call__(self, done: int, total: int, label: str) -> None: ...


def silent(done: int, total: int, label: str) -> None:
    """A progress that says nothing."""


@dataclass(frozen=True)
class Job:
    """What a stage may use besides its inputs: an engine, randomness, a progress bar, a log."""

    engine: Engine
    rng: Rng
    progress: Progress = silent
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("foresift"))
    beside: Beside | None = None
    """Scores that a reader may take as it reads."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by kind of work, for the manifest: facts know no clock."""

    def map(
        self,
        task: Callable[[Any], Facts],
        items: Sequence[Any],
        resources: Resources = Resources(),
        label: str = "",
        done: int = 0,
    ) -> list[Facts]:
        """Run `task` on every item; facts in item order. `done` items were finished before."""
        found: list[Facts] = [{} for _ in items]
        total = done + len(items)
        self.progress(done, total, label)
        for position, facts in self.engine.map(task, items, resources):
            found[position] = facts
            done += 1
            self.progress(done, total, label)
        return found

    def map_shards(
        self,
        task: Callable[[Any], Facts],
        items: Sequence[Any],
        paths: Sequence[Path],
        resources: Resources = Resources(),
        label: str = "",
    ) -> list[Facts]:
        """Run `task` on the items whose path does not exist yet; return all facts in item order.

        The task must publish `paths[i]` with a ShardWriter; that file's own facts are returned.
        """
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        done = len(items) - len(missing)
        self.map(task, [items[i] for i in missing], resources, label, done)
        return [shard_facts(path) for path in paths]
