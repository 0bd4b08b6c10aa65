"""Passages of texts that other documents have too, found by some of their windows of n words.

    windows     64-bit hashes of every n consecutive words of the plain form
    chosen      of every `stride` consecutive windows the one with the smallest hash (winnowing)

The choice depends on the words alone, so a run of n + stride - 1 words or more that two documents
share always gives both the same chosen window, and a shared window is a shared run of n words: some
pairs with shorter runs are missed, none is invented. `stride` 1 chooses all, which is exact.
Of random texts 2 / (stride + 1) of the windows are chosen. Source: Schleimer, Wilkerson, Aiken
2003.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from foresift.pipeline.components import Ints, Keys
from foresift.pipeline.rng import mix

#: documents with a passage up to which all pairs are counted; beyond it the passage alone
CROWD = 64
_PAIRS = 1 << 22


def chosen(hashes: Keys, offsets: Ints, stride: int) -> tuple[Keys, Ints]:
    """(hashes of the chosen windows, the document of each); document d has `offsets[d]` on."""
    counts = np.diff(offsets)
    few = np.flatnonzero((counts > 0) & (counts < stride))
    many = np.flatnonzero(counts >= stride)
    starts = counts[many] - (stride - 1)
    document = np.repeat(many, starts)
    inside = np.arange(len(document)) - np.repeat(np.cumsum(starts) - starts, starts)
    values = _least(hashes, stride)[offsets[document] + inside] if len(many) else hashes[:0]
    again = np.zeros(len(values), dtype=np.bool_)
    again[1:] = (values[1:] == values[:-1]) & (document[1:] == document[:-1])
    whole = [hashes[offsets[d] : offsets[d + 1]].min() for d in few.tolist()]
    return (
        np.concatenate([values[~again], np.array(whole, dtype=np.uint64)]),
        np.concatenate([document[~again], few]).astype(np.int64),
    )


def _least(hashes: Keys, stride: int) -> Keys:
    """The smallest of `stride` consecutive hashes, at the place of the first of them."""
    found, span = hashes, 1
    while 2 * span <= stride:
        found, span = np.minimum(found[:-span], found[span:]), 2 * span
    rest = stride - span
    return np.minimum(found[: len(found) - rest], found[rest:]) if rest else found


def sharing(passages: Iterable[Keys], of_row: Ints, weight: Ints) -> Ints:
    """[documents] rows that share a passage with it, itself not counted.

    `passages` are (hash, row) with equal hashes in one array; a document is a number that `of_row`
    gives, `weight` its rows. Exact where no passage of a document is in more than CROWD of them,
    else at least the rows that have its most frequent passage.
    """
    n = len(weight)
    seen = np.empty(0, dtype=np.uint64)
    has, most = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.int64)
    codes = [np.empty(0, dtype=np.int64)]
    for table in passages:
        hashes, documents = _pairs(table, of_row)
        has[documents] = True
        first = np.flatnonzero(np.diff(hashes, prepend=hashes[:1] ^ np.uint64(1)) != 0)
        sizes = np.diff(np.append(first, len(hashes)))
        first, sizes = first[sizes > 1], sizes[sizes > 1]
        if not len(first):
            continue
        inside = [np.arange(s, s + k) for s, k in zip(first.tolist(), sizes.tolist(), strict=True)]
        rows = documents[np.concatenate(inside)]
        keys = np.add.reduceat(mix(rows.astype(np.uint64) + np.uint64(1)), np.cumsum(sizes) - sizes)
        fresh = np.zeros(len(keys), dtype=np.bool_)
        fresh[np.unique(keys, return_index=True)[1]] = True
        fresh &= ~np.isin(keys, seen)
        seen = np.union1d(seen, keys[fresh])
        begins = (np.cumsum(sizes) - sizes)[fresh]
        codes.append(_counted(rows, begins, sizes[fresh], weight, most))
        if sum(map(len, codes)) > _PAIRS:
            codes = [np.unique(np.concatenate(codes))]
    code = np.unique(np.concatenate(codes))
    few = np.bincount(code // max(n, 1), weight[code % max(n, 1)], minlength=n).astype(np.int64)
    return np.where(has, np.maximum(few, most) + weight - 1, 0)


def _pairs(table: Keys, of_row: Ints) -> tuple[Keys, Ints]:
    """Distinct pairs of a hash and a document, by hash, then by document."""
    hashes, documents = table[:, 0], of_row[table[:, 1].astype(np.int64)]
    order = np.lexsort((documents, hashes))
    hashes, documents = hashes[order], documents[order]
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = (hashes[1:] != hashes[:-1]) | (documents[1:] != documents[:-1])
    return hashes[fresh], documents[fresh]


def _counted(rows: Ints, begins: Ints, sizes: Ints, weight: Ints, most: Ints) -> Ints:
    """Codes a * n + b of all pairs in small groups; of large ones `most` is raised."""
    n, codes = len(weight), [np.empty(0, dtype=np.int64)]
    for size in np.unique(sizes).tolist():
        group = rows[begins[sizes == size][:, None] + np.arange(size)]
        if size > CROWD:
            others = weight[group].sum(axis=1, keepdims=True) - weight[group]
            np.maximum.at(most, group.reshape(-1), others.reshape(-1))
            continue
        apart = ~np.eye(size, dtype=np.bool_)
        step = max(1, _PAIRS // (size * size))
        for at in range(0, len(group), step):
            some = group[at : at + step]
            both = some[:, :, None] * n + some[:, None, :]
            codes.append(np.unique(both[:, apart]))
    return np.unique(np.concatenate(codes))
