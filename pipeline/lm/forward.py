"""The model pass: one forward a view, and from it every signal that the step's scorers declare.

`score_table` takes a window of rows and gives each scorer's columns. `compute` is the pass itself.
Cost: the forward of the model's body over every token, and of its output layer over counted tokens
alone. Memory: activations of `batch_tokens` tokens, and one tile of logits.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
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
    Window,
    segment_sums,
    validate,
)
from foresift.pipeline.nouns import FittedModelScorer, ModelScorer
from foresift.pipeline.tables import content_columns

#: where `batch_tokens` is 0: on a CPU activations that stay near the cache; on a GPU enough work
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}


def score_table(
    table: pa.Table,
    spec: ModelSpec,
    scorers: Sequence[ModelScorer | FittedModelScorer],
    fitted: Sequence[Path | None] = (),
) -> list[dict[str, Any]]:
    """The columns of each scorer for the rows of a window, from one shared pass.

    `fitted` holds, for each scorer that was fitted, the folder of what it learned.
    """
    return score_window(table, spec, scorers, fitted)[0]


def score_window(
    table: pa.Table,
    spec: ModelSpec,
    scorers: Sequence[ModelScorer | FittedModelScorer],
    fitted: Sequence[Path | None] = (),
) -> tuple[list[dict[str, Any]], Window]:
    """As `score_table`, with the window that was scored."""
    folders = list(fitted) or [None] * len(scorers)
    asked = [_signals(s, f) for s, f in zip(scorers, folders, strict=True)]
    names = tuple(dict.fromkeys(n for each in asked for n in each))
    validate(names)
    loaded = load(spec)
    with cpu_threads(spec.threads if loaded.device == "cpu" else 0):
        seen = window(table, spec, loaded, names)
        seen = replace(seen, tokens=_shown(seen, scorers))
        return [_score(s, seen, f) for s, f in zip(scorers, folders, strict=True)], seen


def _shown(seen: Window, scorers: Sequence[ModelScorer | FittedModelScorer]) -> Tokens:
    """The window's tokens with what the scorers say that they read, and no more."""
    table = seen.tokens.table
    needs = ["id", *(n for scorer in scorers for n in scorer.needs)]
    reads = any(isinstance(s, ModelScorer) and s.reads_content for s in scorers)
    if reads:
        needs += content_columns(table.column_names)
    here = table.select([n for n in dict.fromkeys(needs) if n in table.column_names])
    if not reads:
        return replace(seen.tokens, table=here)
    tokenizer = seen.loaded.tokenizer
    return replace(seen.tokens, table=here, encoded=seen.encoded, tokenizer=tokenizer)


def _signals(scorer: ModelScorer | FittedModelScorer, fitted: Path | None) -> tuple[str, ...]:
    if isinstance(scorer, ModelScorer):
        return scorer.signals
    assert fitted is not None
    return scorer.signals(fitted)


def _score(
    scorer: ModelScorer | FittedModelScorer, whole: Window, fitted: Path | None
) -> dict[str, Any]:
    if isinstance(scorer, ModelScorer):
        return dict(scorer.score(whole.tokens, whole.signals))
    assert fitted is not None
    return dict(scorer.score(whole, fitted))


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run with so many CPU threads (0: leave them), so that no engine changes the numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def window(table: pa.Table, spec: ModelSpec, loaded: Loaded, names: Sequence[str]) -> Window:
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
    signals = Signals(token, document, found.offsets, found.vocab_size)
    return Window(tokens, signals, full, loaded, spec)


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
    ids = torch.from_numpy(batch.ids).to(loaded.device)
    return reduce(heads.last_hidden(loaded.model, ids), batch, head, names, counts)


def reduce(
    hidden: torch.Tensor, batch: Batch, head: heads.Head, names: Sequence[str], counts: Integers
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """The same from [B, L, d] final hidden states; `counts`: counted tokens by document number."""
    device = hidden.device
    documents = {n: _pool(hidden, batch, n) for n in names if n.startswith("hidden_mean")}
    wanted = [n for n in names if n in TOKEN]
    found: dict[str, torch.Tensor] = {}
    if wanted or "grad_norm" in names:
        positions, targets = (torch.from_numpy(x).to(device) for x in batch.shift())
        rows = hidden.flatten(0, 1)[positions]
        del hidden  # of the offline pass nobody else holds it
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
