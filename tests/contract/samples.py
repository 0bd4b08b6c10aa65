"""Small awkward inputs for parts: rows of every kind of content, columns, tokens and signals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.model import ModelSpec, load_tokenizer
from foresift.pipeline.lm.signals import DOCUMENT, TOKEN, VIEW, Signals, Tokens, segment_sums
from foresift.pipeline.nouns import AimedScorer, Arrays, FittedScorer, ModelScorer, Scorer
from foresift.pipeline.tables import MESSAGES, content_bytes, content_ids

ROWS = 48
WIDTH = 8
VOCABULARY = 100
BYTES = load_tokenizer("bytes")

_TEXTS = [
    None,
    "",
    " \n\t ",
    "a",
    "Straße, naïve café: 東京 and \U0001f600\u200d\U0001f680 \x00 end",
    "one two two three three three. " * 40,
    "def f(x):\n    return x  # no comment\n",
    "Call +49 30 1234567 or write to someone@example.org; 4111 1111 1111 1111.",
    "word " * 5000,
    "UPPER CASE!!! " * 9,
]


def texts(n: int = ROWS) -> list[str | None]:
    """The awkward ones, then random words; every text is there once."""
    rng = np.random.default_rng(0)
    words = np.array(["the", "of", "model", "data", "x1", "über", "42", "and,", "end."])
    made = (f"{i} " + " ".join(rng.choice(words, rng.integers(1, 80))) for i in range(n))
    return [*_TEXTS, *made][:n]


def content(kind: str) -> pa.Table:
    """ROWS rows of `text`, `messages` or `prompt` and `response`."""
    body = texts()
    if kind == "text":
        return pa.table({"text": pa.array(body, pa.string())})
    if kind == "pair":
        return pa.table({"prompt": pa.array(body[::-1]), "response": pa.array(body)})
    roles = ["system", "user", "assistant"]
    chats = [
        None if t is None else [{"role": roles[j % 3], "content": t} for j in range(i % 4)]
        for i, t in enumerate(body)
    ]
    return pa.table({"messages": pa.array(chats, MESSAGES)})


def table(kind: str = "text") -> pa.Table:
    """Content, the columns of a reader, and the columns that examples name."""
    rng = np.random.default_rng(1)
    rows = content(kind)
    size = content_bytes(rows)
    gap = pa.array(
        [None if i % 7 == 0 else float("nan") if i % 5 == 0 else i % 4 for i in range(ROWS)],
        pa.float64(),
        from_pandas=False,
    )
    vectors = [None if i % 9 == 0 else rng.standard_normal(WIDTH).tolist() for i in range(ROWS)]
    beside = {
        "id": content_ids(rows),
        "source": pa.array([f"bucket{i % 2}/file#{i}" for i in range(ROWS)]),
        "holdout": pa.array([False] * ROWS),
        "n_bytes": pa.array(size),
        "n_tokens": pa.array(size % 97 + 1),
        "s.u": pa.array(rng.permutation(ROWS) - ROWS / 2),
        "s.gap": gap,
        "s.flag": pa.array([None if i % 11 == 0 else i % 3 == 0 for i in range(ROWS)]),
        "s.vector": pa.array(vectors, pa.list_(pa.float32())),
    }
    for name, column in beside.items():
        rows = rows.append_column(name, column)
    return rows


def window(part: ModelScorer, rows: Sequence[int], kind: str = "text") -> tuple[Tokens, Signals]:
    """Tokens and signals of some documents; what document i has depends on i alone.

    A part that reads content gets the tokens of its rows, by their bytes; others any number.
    """
    counts = np.array([0 if i % 6 == 0 else 1 + i * 7 % 23 for i in rows], dtype=np.int64)
    numbers = np.array(rows, dtype=np.int64)
    names = [*content(kind).column_names] if part.reads_content else []
    some = table(kind).select(list(dict.fromkeys(["id", *names, *part.needs])))
    some, encoded = some.take(pa.array(numbers)), None
    if part.reads_content:
        encoded = encode(some, BYTES, ModelSpec(init="none", max_length=96))
        counts = segment_sums(encoded.counts, encoded.offsets).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    tokens = Tokens(
        table=some,
        offsets=offsets,
        lengths=counts + 1 + numbers % 3 if encoded is None else encoded.lengths,
        cut=numbers % 10 == 0 if encoded is None else encoded.cut,
        prompted=(numbers % 3 > 0) & (counts > 0),
        encoded=encoded,
        tokenizer=BYTES if encoded else None,
    )
    token, document = {}, {}
    for name in part.signals:
        base = name.removesuffix(VIEW)
        assert base in TOKEN or base in DOCUMENT, f"{part} asks for the unknown signal {name!r}"
        rngs = [np.random.default_rng([i, *name.encode()]) for i in rows]
        if base in TOKEN:
            values = [_token(name, rng, n) for rng, n in zip(rngs, counts, strict=True)]
            token[name] = np.concatenate([np.empty(0), *values]).astype(np.float32)
        else:
            shape = () if base == "grad_norm" else (WIDTH,)
            made = np.array([rng.standard_normal(shape) for rng in rngs], dtype=np.float32)
            document[name] = _blank(made.reshape(len(rows), *shape), base, counts)
    return tokens, Signals(token, document, offsets, VOCABULARY)


def _token(name: str, rng: np.random.Generator, count: int) -> np.ndarray:
    values = rng.random(count) if name in ("top_prob", "margin") else 5 * rng.random(count)
    if name.endswith(VIEW) and count % 2:
        values[:1] = np.nan  # the first token of a response that nothing stands before
    return values


def _blank(values: np.ndarray, base: str, counts: np.ndarray) -> np.ndarray:
    if base == "grad_norm":
        values = np.abs(values)
    if base != "hidden_mean":
        values[counts == 0] = np.nan
    return values


def measure(
    part: Scorer | AimedScorer | FittedScorer | ModelScorer,
    rows: Sequence[int],
    kind: str,
    fitted: object = None,
) -> Arrays:
    """The scores of some rows of the sample, given only what the part says it needs."""
    if isinstance(part, ModelScorer):
        return part.score(*window(part, rows, kind))
    names = [*content(kind).column_names] if getattr(part, "reads_content", True) else []
    names += ["id", *part.needs]
    batch = table(kind).select(list(dict.fromkeys(names))).take(pa.array(rows, pa.int64()))
    if isinstance(part, (AimedScorer, FittedScorer)):
        return part.score(batch, fitted)  # type: ignore[arg-type]
    return part.score(batch)
