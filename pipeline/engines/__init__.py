"""Where work runs: in this process, in a process pool, or on Ray. All write the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from foresift.pipeline.errors import RecipeError, nearest


@contextmanager
def open_engine(name: str = "auto", workers: int = 0) -> Iterator[Any]:
    """The engine by name, closed afterwards: `local`, `ray`, or `auto` (ray with RAY_ADDRESS)."""
    if name == "auto":
        name = "ray" if os.environ.get("RAY_ADDRESS") else "local"
    chosen: Any
    if name == "ray":
        from foresift.pipeline.engines.ray import RayEngine

        chosen = RayEngine(workers)
    elif name == "local":
        from foresift.pipeline.engines.local import LocalEngine

        chosen = LocalEngine(workers)
    else:
        raise RecipeError(f"no engine {name!r}{nearest(name, ['auto', 'local', 'ray'])}")
    try:
        yield chosen
    finally:
        chosen.close()
