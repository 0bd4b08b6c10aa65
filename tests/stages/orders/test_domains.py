"""Domain orders: chains by hand and against a plain version, labels of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Order, Rng
from foresift.stages.orders import domains as module
from foresift.stages.orders._domains import domains
from foresift.stages.orders.domains import Domains, chain, directions
from tests.stages.selectors.tables import ids

ANGLES = {"a": 0, "b": 100, "c": 30, "d": 65, None: 170}


def rows(labels: list[Any], vectors: Any = None, **columns: Any) -> pa.Table:
    made = {"id": ids(len(labels)), "d": pa.array(labels), **columns}
    if vectors is not None:
        made["v"] = pa.array(vectors, pa.list_(pa.float32()))
    return pa.table(made)


def on_circle(copies: dict[str | None, int]) -> pa.Table:
    labels = [label for label, n in copies.items() for _ in range(n)]
    angle = [np.deg2rad(ANGLES[label]) for label in labels]
    length = 1.0 + np.arange(len(labels))  # of no consequence
    spread = [[float(k * np.cos(a)), float(k * np.sin(a))] for k, a in zip(length, angle)]  # noqa: B905
    return rows(labels, spread)


def sequence(part: Order, table: pa.Table, seed: int = 0) -> list[Any]:
    """The labels in the order in which they come; each must come in one piece."""
    labels = table["d"].to_pylist()
    found = [labels[i] for i in part.order(table, Rng(seed))]
    firsts = [x for k, x in enumerate(found) if k == 0 or found[k - 1] != x]
    assert len(firsts) == len(set(firsts)), "a domain comes in two pieces"
    return firsts


def test_chains_on_a_circle() -> None:
    table = on_circle({"b": 2, "a": 3, None: 1, "d": 1, "c": 2})
    similar = Domains(by="d", arrange="similar", embedding="v")
    assert sequence(similar, table) == ["a", "c", "d", "b", None]
    far = Domains(by="d", arrange="dissimilar", embedding="v")
    # 0 -> 170 -> 30 (140 away) -> 100 (70 away) -> 65
    assert sequence(far, table) == ["a", None, "c", "b", "d"]


def test_domains_without_a_direction_stand_last() -> None:
    vectors = [[1.0, 0.0], None, [0.0, 0.0], [1.0, 2.0], [-1.0, -2.0], [0.0, 1.0]]
    table = rows(["z", "n", "m", "k", "k", "y"], vectors)
    part = Domains(by="d", arrange="similar", embedding="v")
    # k cancels; of y and z, equally large, the smaller label is first
    assert sequence(part, table) == ["y", "z", "k", "m", "n"]
    assert len(sequence(part, rows(["b", "a"], [None, None]))) == 2


def test_a_domain_whose_vectors_cancel_but_for_rounding_has_no_direction() -> None:
    angles = 0.3 + 2 * np.pi * np.arange(7) / 7
    sevenths = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert 0 < np.linalg.norm(sevenths.sum(axis=0, dtype=np.float64)) < 1e-6
    table = rows(["a"] * 7 + ["b"], [*sevenths.tolist(), [0.0, 1.0]])
    found = directions(table, "v", np.array([0] * 7 + [1]), 2)
    assert np.isnan(found).all(axis=1).tolist() == [True, False]


def test_directions_do_not_depend_on_row_order() -> None:
    rng = np.random.default_rng(2)
    table = rows(rng.integers(0, 3, 900).tolist(), rng.standard_normal((900, 6)).tolist())
    turned = table.take(pa.array(rng.permutation(900)))
    one, other = (directions(t, "v", np.asarray(t["d"]), 3) for t in (table, turned))
    np.testing.assert_array_equal(one, other)


def test_chain_agrees_with_a_plain_one() -> None:
    rng = np.random.default_rng(0)
    found = rng.standard_normal((40, 5))
    found /= np.linalg.norm(found, axis=1)[:, None]
    sizes = rng.integers(1, 9, 40)
    for sign in (1.0, -1.0):
        order = [int(np.flatnonzero(sizes == sizes.max())[0])]
        while len(order) < 40:
            here = found[order[-1]]
            left = [k for k in range(40) if k not in order]
            order.append(max(left, key=lambda k, here=here: sign * float(found[k] @ here)))
        assert chain(found, sizes, sign).tolist() == order


def test_directions_are_means_of_unit_vectors_in_any_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    vectors: list[Any] = rng.standard_normal((50, 4)).astype(np.float32).tolist()
    vectors[7] = None
    table = rows([None] * 50, vectors)
    domain = rng.integers(0, 6, 50)
    expected = np.zeros((6, 4))
    for label, vector in zip(domain, vectors, strict=True):
        if vector is not None:
            expected[label] += np.array(vector) / np.linalg.norm(vector)
    expected /= np.linalg.norm(expected, axis=1)[:, None]
    np.testing.assert_allclose(directions(table, "v", domain, 6), expected, atol=1e-6)
    monkeypatch.setattr(module, "BLOCK", 3)
    np.testing.assert_allclose(directions(table, "v", domain, 6), expected, atol=1e-6)


def test_given_order_and_labels_that_it_leaves_out() -> None:
    table = rows(["x", "y", None, "x", "z"])
    part = Domains(by="d", arrange="given", domains=("z", None, "absent", "x", "y"))
    assert sequence(part, table) == ["z", None, "x", "y"]
    short = Domains(by="d", arrange="given", domains=("x", "y", "z"))
    with pytest.raises(
        DataError, match="d: 1 labels are not among the given domains, such as None"
    ):
        short.order(table, Rng(0))


def test_random_order_follows_seed_and_label_alone() -> None:
    labels = [f"site{k % 12}" for k in range(60)]
    found = sequence(Domains(by="d"), rows(labels))
    assert found != sequence(Domains(by="d"), rows(labels), seed=1)
    fewer = sequence(Domains(by="d"), rows([x for x in labels if x != "site3"]))
    assert fewer == [x for x in found if x != "site3"]


def test_within_a_domain() -> None:
    table = rows(["x"] * 4 + ["y"] * 3, s=[2.0, None, 1.0, 3.0, 1.0, 0.0, 2.0])
    order = Domains(by="d", arrange="given", domains=("y", "x"), within="s")
    assert order.order(table, Rng(0)).tolist() == [5, 4, 6, 2, 0, 3, 1]
    assert order.needs == ("d", "s")
    many = rows(["x"] * 300)
    shuffled = Domains(by="d").order(many, Rng(0))
    assert abs(np.corrcoef(shuffled, np.arange(300))[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("column", "expected", "labels"),
    [
        (pa.array([3, None, 1, 3]), [1, 2, 0, 1], [1, 3, None]),
        (pa.array([True, False, True]), [1, 0, 1], [False, True]),
        (pa.array([0.5, float("nan"), None]), [0, 1, 1], [0.5, None]),
        (pa.array(["b", "a"]).dictionary_encode(), [1, 0], ["a", "b"]),
        (pa.nulls(2), [0, 0], [None]),
        (pa.array([], pa.string()), [], []),
        (pa.nulls(0), [], []),
    ],
)
def test_labels_are_numbered_in_their_own_order(
    column: pa.Array, expected: list[int], labels: list[Any]
) -> None:
    numbers, found = domains(pa.table({"d": column}), "d")
    assert numbers.tolist() == expected
    assert found == [None if x is None else str(x).lower() for x in labels]


def test_labels_are_not_lists() -> None:
    with pytest.raises(DataError, match="d: labels are numbers or strings"):
        Domains(by="d").order(rows([[1], [2]]), Rng(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arrange": "similar"}, "embedding"),
        ({"embedding": "v"}, "embedding"),
        ({"arrange": "given"}, "domains"),
        ({"domains": ["a"]}, "domains"),
        ({"arrange": "given", "domains": ["a", "a"]}, "twice"),
        ({"arrange": "nearest"}, "arrange"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Domains.parse({"by": "d", **fields}, "x")
