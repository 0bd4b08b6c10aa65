"""The model pass: one forward a view, and from it every signal that the step's scorers declare.

`score_table` takes a window of rows and gives each scorer's columns. `compute` is the pass itself.
Cost: the forward of the model's body over every token, and of its output layer over counted tokens
alone. Memory: activations of `batch_tokens` tokens, and one tile of logits.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from foresift.pipeline.lm import head as heads
from foresift.pipeline.lm.batches import Batch, Integers, batches, segments
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.pipeline.lm.signals import (
    DOCUMENT,
    TOKEN,
    VIEW,
    Floats,
    Signals,
    Tokens,
    segment_sums,
    validate,
)
from foresift.pipeline.nouns import ModelScorer
from foresift.pipeline.tables import content_columns

#: where `batch_tokens` is 0: on a CPU activations that stay near the cache; on a GPU enough work
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}


def score_table(
    table: pa.Table, spec: ModelSpec, scorers: Sequence[ModelScorer]
) -> list[dict[str, Any]]:
    """The columns of each scorer for the rows of a window, from one shared pass."""
    names = tuple(dict.fromkeys(n for scorer in scorers for n in scorer.signals))
    validate(names)
    loaded = load(spec)
    with cpu_threads(spec.threads if loaded.device == "cpu" else 0):
        tokens, signals = window(table, spec, loaded, names)
        needs = dict.fromkeys(["id", *(n for scorer in scorers for n in scorer.needs)])
        here = table.select([n for n in needs if n in table.column_names])
        tokens = Tokens(here, tokens.offsets, tokens.lengths, tokens.cut, tokens.prompted)
        return [dict(scorer.score(tokens, signals)) for scorer in scorers]


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run with so many CPU threads (0: leave them), so that no engine changes the numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def window(
    table: pa.Table, spec: ModelSpec, loaded: Loaded, names: Sequence[str]
) -> tuple[Tokens, Signals]:
    """Tokens and signals of a window, both views joined under the offsets of the full one."""
    full = encode(table, loaded.tokenizer, spec)
    plain = content_columns(table.column_names) == ["text"]
    direct = [n for n in names if not n.endswith(VIEW)]
    asked = [n.removesuffix(VIEW) for n in names if n.endswith(VIEW)]
    wanted = [*direct, *(asked if plain else [])]  # plain text is its own response
    found = compute(full, loaded, list(dict.fromkeys(wanted)), spec.batch_tokens)
    token, document = dict(found.token), dict(found.document)
    if asked:
        other = found
        if not plain:
            bare = encode(table, loaded.tokenizer, spec, view="response")
            other = compute(bare, loaded, asked, spec.batch_tokens)
        token |= {
            n + VIEW: _align(v, other.offsets, found.offsets)
            for n, v in other.token.items()
            if n in asked
        }
        document |= {n + VIEW: v for n, v in other.document.items() if n in asked}
    before = full.lengths - found.counts
    prompted = (before > 1) & (found.counts > 0) & (not plain)
    tokens = Tokens(table, found.offsets, full.lengths, full.cut, prompted)
    return tokens, Signals(token, document, found.offsets, found.vocab_size)


def _align(values: Floats, theirs: Integers, ours: Integers) -> Floats:
    """Bring a view's tokens under our offsets.

    A document has more tokens there where the prompt's length cut ours: they are left away. It has
    fewer where its first could not be predicted: NaN stands in front.
    """
    have, want = np.diff(theirs), np.diff(ours)
    shared = np.minimum(have, want)
    out = np.full(int(ours[-1]), np.nan, dtype=np.float32)
    out[segments(ours[1:] - shared, shared)] = values[segments(theirs[:-1], shared)]
    return out


_checked: weakref.WeakKeyDictionary[Any, heads.Head] = weakref.WeakKeyDictionary()


def _head(model: Any) -> heads.Head:
    """The output layer; it is checked once a model."""
    if model not in _checked:
        _checked[model] = heads.find_head(model, where=model.config.name_or_path)
    return _checked[model]


@torch.inference_mode()
def compute(encoded: Encoded, loaded: Loaded, names: Sequence[str], batch_tokens: int) -> Signals:
    """The named signals (without suffix) of encoded documents, in row order."""
    validate(names)
    batch_tokens = batch_tokens or BATCH_TOKENS["cpu" if loaded.device == "cpu" else "cuda"]
    counts = segment_sums(encoded.counts, encoded.offsets).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    head = _head(loaded.model)
    token = {n: np.empty(int(offsets[-1]), dtype=np.float32) for n in names if n in TOKEN}
    document = {n: _blank(n, len(encoded), head) for n in names if n in DOCUMENT}
    wanted = encoded.lengths if "hidden_mean" in names else counts
    for batch in batches(encoded, np.flatnonzero(wanted * bool(names)), batch_tokens):
        tokens, documents = _forward(batch, loaded, head, names, counts)
        flat = segments(offsets[batch.documents], counts[batch.documents])
        for name, values in tokens.items():
            token[name][flat] = values
        for name, values in documents.items():
            document[name][batch.documents] = values
    return Signals(token, document, offsets, len(loaded.tokenizer))


def _blank(name: str, rows: int, head: heads.Head) -> Floats:
    shape = (rows,) if name == "grad_norm" else (rows, head.weight.shape[1])
    return np.full(shape, np.nan, dtype=np.float32)


def _forward(
    batch: Batch, loaded: Loaded, head: heads.Head, names: Sequence[str], counts: Integers
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Token signals in flat order and document signals of one batch."""
    device = loaded.device
    hidden = heads.last_hidden(loaded.model, torch.from_numpy(batch.ids).to(device))
    documents = {n: _pool(hidden, batch, n) for n in names if n.startswith("hidden_mean")}
    wanted = [n for n in names if n in TOKEN]
    found: dict[str, torch.Tensor] = {}
    if wanted or "grad_norm" in names:
        positions, targets = (torch.from_numpy(x).to(device) for x in batch.shift())
        rows = hidden.flatten(0, 1)[positions]
        del hidden
        found = heads.statistics(head, rows, targets, wanted)
        if "grad_norm" in names:
            sizes = counts[batch.documents].tolist()
            norms = heads.gradient_norms(head, rows, targets, found["log_norm"], sizes)
            documents["grad_norm"] = norms.cpu().numpy()
    return {n: found[n].cpu().numpy() for n in wanted}, documents


def _pool(hidden: torch.Tensor, batch: Batch, name: str) -> Floats:
    """[B, d] mean hidden state over all real tokens, or over the counted ones."""
    real = np.arange(hidden.shape[1]) < batch.lengths[:, None]
    mask = batch.counted if name == "hidden_mean_response" else real
    with np.errstate(invalid="ignore"):
        weights = (mask / mask.sum(1, keepdims=True)).astype(np.float32)
    share = torch.from_numpy(weights).to(hidden.device)[:, None]
    pooled: Floats = torch.bmm(share, hidden.float())[:, 0].cpu().numpy()
    return pooled
