"""What every part on disk gives for the samples, as digests; run as a module it prints them.

Two processes must agree: nothing may depend on hash seeds, environment, clock or process.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline.nouns import (
    AimedScorer,
    Arrays,
    Budget,
    Choice,
    FittedModelScorer,
    FittedScorer,
    Order,
    Part,
    Rng,
    Selector,
)
from foresift.pipeline.parts import digest
from tests.contract import asked, samples
from tests.contract.checks import is_json, written
from tests.contract.examples import build, on_disk

CONTENT = ("text", "pair", "messages")
RNG = Rng(7).at("contract")


def fit(part: Any, kind: str, out: Path) -> Path:
    """Fit where that is needed; returns the folder that holds what was learned."""
    if isinstance(part, FittedModelScorer):
        return asked.fit(part, kind)
    return fit_batches(part, kind, out, [range(samples.ROWS)])


def fit_batches(part: Any, kind: str, out: Path, batches: Sequence[Sequence[int]]) -> Path:
    """Fit to the sample, handed over in these batches of rows."""
    if isinstance(part, (FittedScorer, AimedScorer)):
        out.mkdir(parents=True)
        names = [*samples.content(kind).column_names] if part.reads_content else []
        table = samples.table(kind).select(list(dict.fromkeys([*names, "id", *part.needs])))
        tables = iter([table.take(pa.array(rows, pa.int64())) for rows in batches])
        aims = [asked.references(part)] if isinstance(part, AimedScorer) else []
        is_json(part.fit(tables, *aims, out) or {})
    return out


def measure(part: Any, rows: Sequence[int], kind: str, fitted: Path) -> Arrays:
    """The scores of some rows of the sample."""
    if isinstance(part, FittedModelScorer):
        return asked.score(part, rows, kind, fitted)
    return samples.measure(part, rows, kind, fitted)


def choose(part: Selector, rows: Sequence[int]) -> tuple[list[bytes], Choice]:
    """A selector given the columns it needs and the cost column, at a third of the tokens."""
    table = samples.table().select(list(dict.fromkeys(["id", "n_tokens", *part.needs])))
    table = table.take(pa.array(rows, pa.int64()))
    return table["id"].to_pylist(), part.select(table, Budget(0.33, True), RNG)


def arrange(part: Order, rows: Sequence[int]) -> tuple[list[bytes], np.ndarray]:
    """An order given the columns it needs."""
    table = samples.table().select(list(dict.fromkeys(["id", *part.needs])))
    table = table.take(pa.array(rows, pa.int64()))
    return table["id"].to_pylist(), part.order(table, RNG)


def result(verb: str, part: Part) -> Any:
    """Everything the part gives for the sample, as plain values."""
    rows = range(samples.ROWS)
    if isinstance(part, Selector):
        choice = choose(part, rows)[1]
        return [choice.kept.tolist(), choice.rank.tolist(), choice.reason.tolist(), choice.facts]
    if isinstance(part, Order):
        return arrange(part, rows)[1].tolist()
    if verb != "score":
        return None
    found = []
    # what asks the model is fitted for one kind of content, which takes long enough
    for kind in CONTENT[:1] if isinstance(part, FittedModelScorer) else CONTENT:
        with tempfile.TemporaryDirectory() as folder:
            fitted = fit(part, kind, Path(folder) / "fitted")
            scores = measure(part, rows, kind, fitted)
            found.append(written(scores, part.columns))  # type: ignore[attr-defined]
    return found


def digests() -> dict[str, str]:
    """`verb name #example` -> digest of fingerprint and results."""
    return {
        f"{verb} {name} #{number}": digest([part.fingerprint, result(verb, part)])
        for verb, name in on_disk()
        for number, part in enumerate(build(verb, name))
    }


if __name__ == "__main__":
    print(json.dumps(digests()))
