"""Tokens of the content of each row, as `read` and the `length` scorer count them.

""        an estimate, ceil(n_bytes / 4)
"bytes"   n_bytes
other     a folder, `tokenizer.json` or hub id: its tokens, without special tokens
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.tables import content_bytes, content_texts


def count_tokens(table: pa.Table, tokenizer: str) -> npt.NDArray[np.int64]:
    """Tokens of each row (int64). Turns and halves are joined by a newline."""
    sizes = content_bytes(table)
    if tokenizer == "":
        return np.asarray(-(-sizes // 4), dtype=np.int64)
    if tokenizer == "bytes" or table.num_rows == 0:
        return sizes
    from foresift.pipeline.lm.model import load_tokenizer

    coder = load_tokenizer(tokenizer)
    # one text a call where texts are huge: the encodings of a batch are held together
    step = max(1, min(1024, int((8 << 20) // max(int(sizes.max()), 1))))
    counts: list[int] = []
    for start in range(0, table.num_rows, step):
        texts = content_texts(table.slice(start, step))
        encoded = coder(texts, add_special_tokens=False, verbose=False)["input_ids"]
        counts += [len(ids) for ids in encoded]
    return np.asarray(counts, dtype=np.int64)


def check_tokenizer(tokenizer: str) -> None:
    """Raise a located error if the tokenizer does not load."""
    if tokenizer not in ("", "bytes"):
        from foresift.pipeline.lm.model import load_tokenizer

        load_tokenizer(tokenizer)


def token_rule(tokenizer: str) -> str:
    """How tokens were counted, in words for manifests and reports."""
    return tokenizer or "estimated n_bytes/4"
