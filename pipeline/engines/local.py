"""The local engine: this process, or a pool of processes on this machine.

A killed worker costs its item, not the run: the pool is made anew and the item tried again. What
needs a GPU stays in this process, so that one model is loaded on it; several GPUs are Ray's work.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from foresift.pipeline.errors import StoreError
from foresift.pipeline.nouns import Resources
from foresift.pipeline.store import Facts

#: how often an item may lose its worker before the run gives up
ATTEMPTS = 4


class LocalEngine:
    """Maps a task over items in `workers` processes; one worker means this process."""

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None

    def map(
        self, task: Callable[[Any], Facts], items: Sequence[Any], resources: Resources
    ) -> Iterator[tuple[int, Facts]]:
        """Yield (position, facts) as items finish."""
        if self.workers == 1 or len(items) < 2 or resources.small or resources.gpus:
            for position, item in enumerate(items):
                yield position, task(item)
        else:
            yield from self._spread(task, items)

    def _spread(
        self, task: Callable[[Any], Facts], items: Sequence[Any]
    ) -> Iterator[tuple[int, Facts]]:
        left = dict.fromkeys(range(len(items)), 0)
        while left:
            pool = self._open()
            running: dict[Future[Facts], int] = {}
            try:
                running = {pool.submit(task, items[i]): i for i in left}
                while running:
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        position = running.pop(future)
                        facts = future.result()
                        del left[position]
                        yield position, facts
            except BrokenProcessPool:
                self.close()
                for position in left:
                    left[position] += 1
                if max(left.values()) >= ATTEMPTS:
                    raise StoreError(
                        f"worker processes died {ATTEMPTS} times over the same shards; most often "
                        "memory has run out: fewer --workers, or smaller shards (data.shard_mb)"
                    ) from None
            except BaseException:
                for future in running:
                    future.cancel()
                raise

    def _open(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, context, initializer=_quiet)
        return self._pool

    def close(self) -> None:
        """Let the workers go."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _quiet() -> None:
    """One worker, one core: libraries must not start a thread for every core in every process."""
    import pyarrow as pa

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pa.set_cpu_count(1)
