"""Tables that the selector and order tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline.nouns import Choice


def ids(n: int, seed: int = 0) -> pa.Array:
    raw = np.random.default_rng(seed).bytes(16 * n)
    return pa.Array.from_buffers(pa.binary(16), n, [None, pa.py_buffer(raw)])


def corpus(n: int, seed: int = 0, **columns: Any) -> pa.Table:
    """n rows with ids, log-normal token counts, a normal score `s.u` and whatever is given."""
    rng = np.random.default_rng([seed, 1])
    tokens = np.maximum(1, rng.lognormal(4, 1, n)).astype(np.int64)
    base = {"id": ids(n, seed), "n_tokens": tokens, "s.u": rng.standard_normal(n)}
    return pa.table({**base, **columns})


def kept_ids(table: pa.Table, choice: Choice) -> list[bytes]:
    return sorted(table.filter(pa.array(choice.kept))["id"].to_pylist())
