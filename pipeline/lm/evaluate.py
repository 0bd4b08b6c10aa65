"""The loss of a model on documents that it was not trained on, in nats per token (lower is better).

With s_i the summed NLL and c_i the counted tokens of document i (n documents with c_i > 0):

    token_mean   = sum s_i / sum c_i        every token counts the same
    sample_mean  = (1 / n) sum s_i / c_i    every document counts the same

Standard errors are over documents, the unit that is sampled (tokens of one document depend on each
other): the usual one for sample_mean, and for the ratio (Cochran, Sampling Techniques, eq. 2.39)

    se(token_mean) = sqrt( n / (n - 1) * sum (s_i - token_mean * c_i)^2 ) / sum c_i

Cost: one forward over all tokens. Memory: 16 bytes a document besides one window.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.model import ModelSpec, load

#: documents in one window
WINDOW = 256
Floats = npt.NDArray[np.float64]


def evaluate(tables: Iterable[pa.Table], spec: ModelSpec) -> dict[str, Any]:
    """Mean losses over all documents of `tables`, their standard errors, and what was counted.

    Documents without a counted token (`empty`) enter no mean; those longer than the model's
    max_length (`cut`) enter with their beginning. What cannot be known (a mean of no
    document, an error from one) is None.
    """
    from foresift.pipeline.lm.forward import compute, cpu_threads

    loaded = load(spec)
    sums, counts, cut = [np.zeros(0)], [np.zeros(0)], 0
    for table in tables:
        for start in range(0, table.num_rows, WINDOW):
            encoded = encode(table.slice(start, WINDOW), loaded.tokenizer, spec)
            with cpu_threads(spec.threads if loaded.device == "cpu" else 0):
                signals = compute(encoded, loaded, ("nll",), spec.batch_tokens)
            sums.append(signals.sum("nll"))
            counts.append(signals.counts.astype(np.float64))
            cut += int(encoded.cut.sum())
    total, tokens = np.concatenate(sums), np.concatenate(counts)
    some = tokens > 0
    facts = means(total[some], tokens[some])
    return {**facts, "empty": int((~some).sum()), "cut": cut}


def means(sums: Floats, counts: Floats) -> dict[str, Any]:
    """The two means and their standard errors from summed NLL and tokens of each document."""
    n, tokens = len(sums), float(counts.sum())
    if n == 0:
        nothing = dict.fromkeys(("token_mean", "token_mean_se", "sample_mean", "sample_mean_se"))
        return {**nothing, "documents": 0, "tokens": 0}
    token_mean, each = float(sums.sum()) / tokens, sums / counts
    spread = float(np.square(sums - token_mean * counts).sum())
    single = n < 2
    return {
        "token_mean": token_mean,
        "token_mean_se": None if single else (n / (n - 1) * spread) ** 0.5 / tokens,
        "sample_mean": float(each.mean()),
        "sample_mean_se": None if single else float(each.std(ddof=1)) / n**0.5,
        "documents": n,
        "tokens": int(tokens),
    }
