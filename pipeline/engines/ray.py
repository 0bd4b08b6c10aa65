"""The Ray engine: shard descriptors as a Ray Data dataset, mapped by a pool of actors.

Documents never pass through the object store; a descriptor is a few hundred bytes. Ray schedules,
restarts and scales; order, resume and provenance are ours. This is the one module that imports Ray.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import ray.data

from foresift.pipeline.errors import ForesiftError
from foresift.pipeline.nouns import Resources
from foresift.pipeline.store import Facts

#: enough for descriptors and facts; Ray would otherwise take 30 % of the memory
OBJECT_STORE_BYTES = 256 << 20


class RayEngine:
    """Maps a task over items by an actor pool of `workers` on a Ray cluster."""

    def __init__(self, workers: int = 0, address: str = "") -> None:
        self._started = False
        if not ray.is_initialized():
            address = address or os.environ.get("RAY_ADDRESS", "")
            where: dict[str, Any] = (
                {"address": address}
                if address
                else {
                    "num_cpus": workers or os.cpu_count(),
                    "object_store_memory": OBJECT_STORE_BYTES,
                    "include_dashboard": False,
                }
            )
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
            self._started = True
        self.workers = workers or int(ray.cluster_resources().get("CPU", 1))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = 0

    def map(
        self, task: Callable[[Any], Facts], items: Sequence[Any], resources: Resources
    ) -> Iterator[tuple[int, Facts]]:
        """Yield (position, facts) as items finish."""
        if not items:
            return
        size = max(1, min(self.workers // max(resources.cpus, 1), len(items)))
        rows = [{"item": i} for i in range(len(items))]
        dataset = ray.data.from_items(rows, override_num_blocks=len(items)).map_batches(
            _Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=size),
            num_cpus=min(resources.cpus, self.workers),
            num_gpus=resources.gpus or None,
            fn_constructor_args=(task, list(items)),
        )
        for row in dataset.iter_rows():
            outcome = pickle.loads(row["facts"])
            if isinstance(outcome, (ForesiftError, OSError)):
                raise outcome
            yield int(row["item"]), outcome

    def close(self) -> None:
        """Shut down what this engine started."""
        if self._started:
            ray.shutdown()


class _Actor:
    """One worker: holds the task, so that models stay loaded between shards."""

    def __init__(self, task: Callable[[Any], Facts], items: list[Any]) -> None:
        import pyarrow as pa

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        pa.set_cpu_count(1)
        self.task, self.items = task, items

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        position = int(batch["item"][0])
        try:
            outcome: Any = self.task(self.items[position])
        except (ForesiftError, OSError) as error:  # the user's to mend: as itself, not as Ray's
            outcome = error
        return {
            "item": np.asarray([position]),
            "facts": np.asarray([pickle.dumps(outcome)], object),
        }
