"""The processes that train together: which one this is, and how they put rows side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from foresift.pipeline.errors import DataError

#: [b, ...] of this process -> [world x b, ...] of all, in the order of the processes
Gather = Callable[[torch.Tensor], torch.Tensor]


class Ranks:
    """This process among those that train one model, each on its own rows."""

    def __init__(
        self, rank: int | None = None, world: int | None = None, gather: Gather | None = None
    ) -> None:
        there = dist.is_available() and dist.is_initialized()
        self.world = world if world is not None else (dist.get_world_size() if there else 1)
        self.rank = rank if rank is not None else (dist.get_rank() if there else 0)
        if not 0 <= self.rank < self.world:
            raise DataError(f"rank {self.rank} is not among {self.world} processes", where="rank")
        if self.world > 1 and gather is None and not there:
            raise DataError(
                f"{self.world} processes, but torch.distributed is not initialised; initialise it,"
                " or give gather=, which puts the rows of all processes side by side",
                where="world",
            )
        self.given = gather

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of all processes, each of which has as many."""
        if self.world == 1:
            return rows
        if self.given is not None:
            return self.given(rows)
        wire = rows.to("cuda") if dist.get_backend() == "nccl" else rows.cpu()
        parts = [torch.empty_like(wire) for _ in range(self.world)]
        dist.all_gather(parts, wire.contiguous())
        return torch.cat(parts).to(rows.device)

    def gathered(self, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same for each of several, in the order of their names."""
        return {name: self.gather(named[name]) for name in sorted(named)}

    def assert_equal(self, what: int, step: int) -> None:
        """DataError where the processes do not hold the same 63-bit number."""
        if self.world > 1:
            found = set(self.gather(torch.tensor([what])).tolist())
            if len(found) > 1:
                raise DataError(
                    f"the processes chose {len(found)} different batches at step {step}; each needs"
                    " the same data, method, seed and weights",
                    where=f"rank {self.rank}",
                )
