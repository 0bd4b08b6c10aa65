"""A tiny real model, a reference and a pool, for parts that ask the model before they score.

Everything is made once a process, under one temporary folder; a part is fitted once for each kind
of content. The pool is short documents and the sample of `samples.py`; the reference is other text.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline.lm.forward import score_window
from foresift.pipeline.lm.model import ModelSpec, load
from foresift.pipeline.lm.signals import Window
from foresift.pipeline.nouns import (
    AimedScorer,
    Arrays,
    Facts,
    FittedModelScorer,
    Job,
    Look,
    Reference,
)
from foresift.pipeline.references import aim_specs
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import finite
from foresift.pipeline.tables import MESSAGES
from tests.contract import samples
from tests.corpora import Serial, make_corpus

CONFIG = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 96,
    "initializer_range": 0.3,
}  # fmt: skip
SHORT = 40
WORDS = ["the", "sum", "of", "two", "cats", "and", "is", "7", "x = y", "done"]
AIM = [f"{a} and {b} make {a + b}." for a, b in ((1, 2), (3, 5), (20, 4), (7, 7), (12, 30))]


@functools.cache
def folder() -> Path:
    """The temporary folder of this process."""
    path = Path(tempfile.mkdtemp(prefix="contract-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def model() -> ModelSpec:
    """One layer with random weights and the byte tokenizer."""
    path = folder() / "llama.json"
    path.write_text(json.dumps(CONFIG))
    return ModelSpec(init=str(path), tokenizer="bytes", device="cpu", max_length=96)


@functools.cache
def _corpus(kind: str) -> Any:
    """The pool of a kind of content, or the reference."""
    if kind == "aim":
        vectors = np.random.default_rng(5).standard_normal((len(AIM), samples.WIDTH))
        column = pa.array(vectors.tolist(), pa.list_(pa.float32()))
        return make_corpus(folder() / kind, [AIM], columns={"s.vector": [column]})
    sample = samples.table(kind)
    beside = {
        name: [sample[name].slice(0, SHORT), sample[name]]
        for name in sample.column_names
        if name.startswith("s.")
    }
    shards = [_short(kind), samples.content(kind)]
    return make_corpus(folder() / kind, shards, columns=beside)


def _short(kind: str) -> pa.Table:
    """Short documents, of a prompt and its answer where there are prompts."""
    draw = np.random.default_rng(2)
    words = [" ".join(draw.choice(WORDS, draw.integers(2, 7))) for _ in range(SHORT)]
    texts = [f"{k} {text}" for k, text in enumerate(words)]
    if kind == "text":
        return pa.table({"text": texts})
    if kind == "pair":
        return pa.table({"prompt": ["Go on."] * len(texts), "response": texts})
    turns = [[("user", "Go on."), ("assistant", text)] for text in texts]
    chats = [[{"role": r, "content": c} for r, c in chat] for chat in turns]
    return pa.table({"messages": pa.array(chats, MESSAGES)})


def look(part: FittedModelScorer, kind: str) -> Look:
    """What the planner and the engine would hand to `fit`."""
    return Look(_corpus(kind), references(part), model(), Job(engine=Serial(), rng=Rng(7)))


def references(part: AimedScorer | FittedModelScorer) -> tuple[Reference, ...]:
    """The references that a part names: `aim`, with vectors beside it."""
    aims = [] if part.aims is None else aim_specs(part.aims, ["aim"], "contract")
    return tuple(Reference(a.name, _corpus("aim"), a.weight) for a in aims)


_FITS: dict[tuple[str, str], tuple[Path, Facts]] = {}


def fit(part: FittedModelScorer, kind: str) -> Path:
    """The folder of what a part learned of the pool; it is asked once."""
    return fitted(part, kind)[0]


def fitted(part: FittedModelScorer, kind: str) -> tuple[Path, Facts]:
    """As `fit`, and what the part said of it."""
    key = (part.fingerprint, kind)
    if key not in _FITS:
        out = folder() / f"{kind}-{part.fingerprint}"
        out.mkdir(exist_ok=True)
        _FITS[key] = out, finite(part.fit(look(part, kind), out))
    return _FITS[key]


def again(part: FittedModelScorer, kind: str) -> Facts:
    """What the part says when it is asked to fit into a folder where it is done."""
    facts: Facts = finite(part.fit(look(part, kind), fit(part, kind)))
    return facts


def score(part: FittedModelScorer, rows: Sequence[int], kind: str, out: Path) -> Arrays:
    """The scores of some rows of the sample, from the model pass as engines run it."""
    return score_window(_table(part, rows, kind), model(), [part], [out])[0][0]


def window(part: FittedModelScorer, rows: Sequence[int], kind: str, out: Path) -> Window:
    """What `score` is given for these rows."""
    return score_window(_table(part, rows, kind), model(), [part], [out])[1]


def arrays(seen: Window) -> dict[str, Any]:
    """Every array of a window, by name."""
    parts = (seen.signals.token, seen.signals.document, vars(seen.tokens), vars(seen.encoded))
    found = {f"{n}-{k}": v for k, part in enumerate(parts) for n, v in part.items()}
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


def rounding(part: FittedModelScorer, out: Path) -> float:
    """By how much a score may depend on its batch, as a share of the column's largest number.

    Exact where no forward is read. A batch of another shape rounds float32 otherwise, and a
    difference of two losses shows it a hundred times larger than the losses do.
    """
    if part.passes(out):
        return 2e-4
    return 1e-5 if part.signals(out) else 0.0


def _table(part: FittedModelScorer, rows: Sequence[int], kind: str) -> pa.Table:
    names = dict.fromkeys([*samples.content(kind).column_names, "id", *part.needs])
    return samples.table(kind).select(list(names)).take(pa.array(rows, pa.int64()))


def weights() -> Mapping[str, bytes]:
    """The model that all parts share, to the last bit."""
    return {n: p.detach().numpy().tobytes() for n, p in load(model()).model.named_parameters()}
