"""Numbers found again by id, and words by their hash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.tables import ID, id_words
from foresift.pipeline.words import hashed_words


def ids(*pairs: tuple[int, int]) -> pa.Array:
    return pa.array([a.to_bytes(8, "little") + b.to_bytes(8, "little") for a, b in pairs], ID)


def test_each_id_finds_its_numbers(tmp_path: Path) -> None:
    known = ids((1, 5), (1, 7), (1, 9), (2**63, 0))
    write_by_id(
        tmp_path,
        id_words(known),
        {
            "x": np.array([0.5, 1.5, 2.5, 3.5], dtype=np.float32),
            "n": np.arange(4),
            "flag": np.array([True, True, False, True]),
            "pair": np.arange(8.0).reshape(4, 2),
        },
    )
    wanted = ids((1, 9), (1, 6), (2**63, 0), (1, 5), (0, 0), (1, 9), (2**63, 1))
    found = read_by_id(tmp_path, pa.chunked_array([wanted[:3], wanted[3:]]))
    np.testing.assert_array_equal(found["x"], [2.5, np.nan, 3.5, 0.5, np.nan, 2.5, np.nan])
    assert found["n"].tolist() == [2, -1, 3, 0, -1, 2, -1]
    assert found["flag"].tolist() == [False, False, True, True, False, False, False]
    np.testing.assert_array_equal(found["pair"][:3], [[4, 5], [np.nan] * 2, [6, 7]])
    assert read_by_id(tmp_path, ids())["x"].shape == (0,)


def test_words_are_lower_case_runs() -> None:
    texts = ["It's über-GOOD, 3.5!", None, "", "it"]
    found = hashed_words(texts)
    words = ["it", "'", "s", "über", "-", "good", ",", "3", ".", "5", "!", "it"]
    assert found.lengths.tolist() == [11, 0, 0, 1]
    assert found.ids.tolist() == [xxhash.xxh3_64_intdigest(w.encode()) for w in words]
