"""What every part must do, as functions that a package with its own parts can call too.

`score` stands for a scorer applied to some rows of a sample: row numbers -> {column: array}.
`choose` stands for a selector in the same way: row numbers -> (ids, Choice).
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
import math
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch.nn.modules.module import register_module_forward_pre_hook

from foresift.pipeline.lm.signals import validate
from foresift.pipeline.nouns import Choice, Column, FittedModelScorer, Part
from foresift.pipeline.parts import field_docs
from foresift.pipeline.scoring import stored as as_stored

Score = Callable[[Sequence[int]], Mapping[str, Any]]
Choose = Callable[[Sequence[int]], tuple[list[bytes], Choice]]
Arrange = Callable[[Sequence[int]], tuple[list[bytes], npt.NDArray[np.int64]]]
PICKLE_BYTES = 2000


def stored(found: Mapping[str, Any], columns: Mapping[str, Column]) -> dict[str, pa.Array]:
    """Values as they would be stored."""
    return {n: as_stored(found[n], columns[n].dtype) for n in found}


def written(found: Mapping[str, Any], columns: Mapping[str, Column]) -> dict[str, list[str]]:
    """Values as they would be stored, in a form in which NaN equals NaN."""
    return {n: [repr(v) for v in array.to_pylist()] for n, array in stored(found, columns).items()}


def declares_what_it_gives(found: Mapping[str, Any], columns: Mapping[str, Column], n: int) -> None:
    """Declared columns and given ones have the same names; values fit the declared types."""
    assert set(found) == set(columns), f"declares {sorted(columns)}, gives {sorted(found)}"
    for name, column in columns.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name), f"{name!r} is not a plain column name"
        array = as_stored(found[name], column.dtype)
        assert len(array) == n, f"{name}: {len(array)} values for {n} rows"
        assert column.unit, f"{name} has no unit"
        assert column.better in ("higher", "lower", "neither")
        assert name != "utility" or column.better == "higher", "utility is larger = keep first"


def rows_stand_alone(
    score: Score, columns: Mapping[str, Column], n: int, close: float = 0.0
) -> None:
    """The same row gives the same numbers in any order and in any batch, and none in none.

    Scores that run forwards of their own may differ by `close` of the column's largest number: a
    batch of another shape rounds otherwise.
    """
    whole = stored(score(range(n)), columns)
    order = np.random.default_rng(0).permutation(n).tolist()
    shuffled = stored(score(order), columns)
    pieces = [stored(score(range(a, min(a + 5, n))), columns) for a in range(0, n, 5)]
    empty = score([])
    declares_what_it_gives(empty, columns, 0)
    for name, values in whole.items():
        turned = values.take(pa.array(order, pa.int64()))
        assert _same(shuffled[name], turned, close), f"{name} depends on the order of rows"
        split = pa.concat_arrays([piece[name] for piece in pieces])
        assert _same(split, values, close), f"{name} depends on the batch"


def _same(found: pa.Array, expected: pa.Array, close: float) -> bool:
    """Equal, NaN to NaN and null to null; fractions within `close` of the largest.

    Of findings, reasons and places are equal, and values within `close` of the largest.
    """
    if not close:
        return [repr(v) for v in found.to_pylist()] == [repr(v) for v in expected.to_pylist()]
    if not found.is_null().equals(expected.is_null()):
        return False
    if pa.types.is_list(found.type):
        lengths = found.value_lengths().equals(expected.value_lengths())
        return lengths and _same(found.flatten(), expected.flatten(), close)
    if pa.types.is_struct(found.type):
        return all(
            _same(a, b, close) for a, b in zip(found.flatten(), expected.flatten(), strict=True)
        )
    if not pa.types.is_floating(found.type):
        return bool(found.equals(expected))
    a, b = (np.asarray(x.drop_null(), dtype=np.float64) for x in (found, expected))
    finite = np.abs(b[np.isfinite(b)])
    return np.allclose(a, b, rtol=0, atol=close * finite.max(initial=0), equal_nan=True)


def fit_belongs_to_documents(
    fit: Callable[[Sequence[Sequence[int]]], Score], columns: Mapping[str, Column], n: int
) -> None:
    """What is learned does not depend on the order of rows or on the batches they come in."""
    order = np.random.default_rng(1).permutation(n).tolist()
    once, again = (
        stored(fit(batches)(range(n)), columns)
        for batches in ([range(n)], [order[:20], order[20:33], order[33:]])
    )
    for name, values in once.items():
        assert _same(again[name], values, 1e-6), f"{name} depends on the order of rows in `fit`"


def says_what_it_asked(part: FittedModelScorer, out: Path, facts: Any) -> None:
    """Signals that exist, forwards and costs that are numbers, facts that JSON can hold."""
    signals = part.signals(out)
    assert isinstance(signals, tuple)
    validate(signals)
    assert part.passes(out) >= 0
    asked, forwards = part.estimate(1_000_000, 500_000, 3_000)
    assert 0 <= asked < math.inf
    assert part.passes(out) <= forwards < math.inf, "an estimate is an upper bound"
    is_json(facts)
    assert facts["flops"] > 0, "asking a model takes operations"


def fits_once(again: Callable[[], Any], out: Path, facts: Any) -> None:
    """A second fit into the same folder asks the model nothing, and writes and says the same."""
    before, asked = _files(out), []
    hook = register_module_forward_pre_hook(lambda module, _: asked.append(type(module).__name__))
    try:
        told = again()
    finally:
        hook.remove()
    assert not asked, f"the model was asked again: {asked[0]}"
    assert told == facts, "a second fit says something else"
    assert _files(out) == before, "a second fit wrote something else"


def _files(folder: Path) -> dict[str, bytes]:
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def input_is_left_alone(use: Callable[[pa.Table], object], table: pa.Table) -> None:
    """The table that was handed over holds the same bytes afterwards."""
    before = _bytes(table)
    use(table)
    assert _bytes(table) == before, "the input was changed"


def _bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def signals_are_left_alone(use: Callable[[], object], arrays: Mapping[str, Any]) -> None:
    """The arrays of a model pass are shared by scorers: none may write to them."""
    before = {name: np.array(values) for name, values in arrays.items()}
    use()
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, before[name], err_msg=f"{name} was changed")


def use_leaves_no_trace(part: Part, use: Callable[[], object]) -> None:
    """Fingerprint and pickle are those of the fields, before use and after; pickles are small."""
    fingerprint, packed = part.fingerprint, pickle.dumps(part)
    assert len(packed) < PICKLE_BYTES, f"a pickle of {len(packed)} bytes"
    use()
    assert part.fingerprint == fingerprint, "use changed the fingerprint"
    assert pickle.dumps(part) == packed, "use changed the pickle"
    again = pickle.loads(packed)
    assert again == part
    assert again.fingerprint == fingerprint
    same = type(part)(**{f.name: getattr(part, f.name) for f in dataclasses.fields(part)})
    assert same.fingerprint == fingerprint


def is_documented(kind: type[Part]) -> None:
    """A head for the file, a line for the class, a text under each field; frozen, keyword-only."""
    module = importlib.import_module(kind.__module__)
    assert len(module.__doc__ or "") > 100, f"{kind.__module__} has no head"
    summary = (inspect.getdoc(kind) or "").split("\n")[0]
    assert 10 < len(summary) <= 100, f"{kind.__name__} has no one-line summary"
    docs = field_docs(kind)
    bare = [f.name for f in dataclasses.fields(kind) if not docs.get(f.name)]
    assert not bare, f"{kind.__name__}: fields without a text under them: {bare}"
    assert all(f.kw_only for f in dataclasses.fields(kind)), f"{kind.__name__}: not keyword-only"
    parameters = kind.__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen, f"{kind.__name__}: not frozen"
    assert isinstance(kind.version, int)
    assert kind.version >= 1


def decides_on_every_row(choice: Choice, n: int) -> None:
    """One decision, rank, weight and reason a row; facts that JSON can hold."""
    for array in (choice.kept, choice.rank, choice.weight, choice.reason):
        assert len(array) == n
    assert choice.kept.dtype == np.bool_
    assert all(isinstance(r, str) and r for r in choice.reason), "a row without a reason"
    ranked = np.sort(choice.rank[choice.rank >= 0])
    np.testing.assert_array_equal(ranked, np.arange(len(ranked)), err_msg="ranks are not 0..k-1")
    is_json(choice.facts)


def is_json(value: Any, where: str = "facts") -> None:
    """Strings, numbers, lists and mappings by strings; no NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            assert isinstance(key, str), f"{where}: the key {key!r} is not a string"
            is_json(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            is_json(item, where)
    else:
        plain = value is None or type(value) in (bool, int, float, str)
        assert not (isinstance(value, float) and not math.isfinite(value)), f"{where}: {value}"
        assert plain, f"{where}: {type(value).__name__} is not JSON"


def choice_belongs_to_ids(choose: Choose, n: int) -> None:
    """The same ids are kept, for the same reasons, in any row order."""
    ids, choice = choose(range(n))
    order = np.random.default_rng(0).permutation(n).tolist()
    other_ids, other = choose(order)
    assert _decisions(ids, choice) == _decisions(other_ids, other), "depends on the order of rows"
    decides_on_every_row(choose([])[1], 0)


def _decisions(ids: list[bytes], choice: Choice) -> list[tuple[Any, ...]]:
    rows = zip(
        ids, choice.kept.tolist(), choice.rank.tolist(), choice.reason.tolist(),
        choice.weight.tolist(), strict=True,
    )  # fmt: skip
    return sorted(rows)


def order_is_a_permutation(arrange: Arrange, n: int, repeats: bool = False) -> None:
    """Every row has one place (at least one, if the order declares repeats), whatever row order."""
    ids, order = arrange(range(n))
    assert order.dtype == np.int64
    if repeats:
        assert set(order.tolist()) == set(range(n)), "a row has no place"
        assert len(order) > n, "the example should repeat a row"
    else:
        assert sorted(order.tolist()) == list(range(n)), "not a permutation"
    other_ids, other = arrange(np.random.default_rng(0).permutation(n).tolist())
    assert [ids[i] for i in order] == [other_ids[i] for i in other], "depends on the order of rows"
    assert arrange([])[1].shape == (0,)
