"""Memory of tensors within a block of code: the most that stood at once, and what still stands.

On a GPU the allocator's own count of the device. On a CPU, where nothing counts, each tensor that
an operation returns is followed until its storage goes; what a kernel uses within itself is not
seen, nor is what stood before. Following costs time: nothing is to be timed within.
"""

from __future__ import annotations

import gc
import weakref
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Memory:
    """Bytes beyond those at the start: `peak` at the most, `held` at the end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = self.held = 0
        self._before = 0
        self._live: _Live | None = None

    def __enter__(self) -> Memory:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._live = _Live()
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            gc.collect(1)  # of what came just now
            self.peak, self.held = self._live.peak, max(0, self._live.now)
            self._live.forget()
        else:
            gc.collect()
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device) - self._before
            self.held = max(0, torch.cuda.memory_allocated(self.device) - self._before)


class _Live(TorchDispatchMode):
    """Storages that came and have not gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._here: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        out = func(*args, **given)
        before = {_storage(leaf) for leaf in tree_leaves((args, given))}  # changed, or looked at
        for leaf in tree_leaves(out):
            key = _storage(leaf)
            if key and key not in before and key not in self._here:
                self._add(key, leaf.untyped_storage())
        return out

    def _add(self, key: int, storage: Any) -> None:
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._here[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        if self._here.pop(key, None) is not None:
            self.now -= size

    def forget(self) -> None:
        """Follow nothing any more."""
        self._here.clear()


def _storage(leaf: Any) -> int:
    """What tells the memory of a dense tensor on the CPU; 0 for anything else."""
    if not isinstance(leaf, torch.Tensor) or leaf.device.type != "cpu":
        return 0
    return int(leaf.untyped_storage()._cdata) if leaf.layout == torch.strided else 0
