"""MELU's schedule: entity after entity, all neighbours in every batch."""

from __future__ import annotations

from collections import Counter

import pytest

from foresift.pipeline.errors import DataError
from foresift.pipeline.unlearn.modules import Module, follow, schedule

KINDS = ("direct", "indirect", "stylistic")


def modules(count: int = 3) -> list[Module[str]]:
    return [
        Module(
            entity=f"e{n}",
            forget=[f"e{n}f{i}" for i in range(4)],
            neighbours={k: [f"e{n}{k}{i}" for i in range(3)] for k in KINDS},
        )
        for n in range(1, count + 1)
    ]


GENERAL = [f"g{i}" for i in range(10)]


def test_three_entities_and_two_steps() -> None:
    batches = list(schedule(modules(), GENERAL, steps=2, forget=2, neighbour=1, retain=3))
    assert [b.entity for b in batches] == ["e1", "e1", "e2", "e2", "e3", "e3"]
    for batch in batches:
        assert set(batch.neighbours) == set(KINDS)
        assert all(len(items) == 1 for items in batch.neighbours.values())
        assert all(item.startswith(batch.entity) for item in batch.forget)
        assert len(batch.general) == 3


def test_a_pass_reads_every_item_once() -> None:
    batches = list(schedule(modules(1), GENERAL, steps=4, forget=1, neighbour=3, retain=5))
    assert Counter(i for b in batches for i in b.forget) == Counter(modules(1)[0].forget)
    assert set(Counter(i for b in batches for i in b.general).values()) == {2}


def test_batches_depend_on_the_entity_and_not_on_its_place() -> None:
    fields = {"steps": 2, "seed": 5}
    first = list(schedule(modules(2), GENERAL, **fields))
    turned = list(schedule(modules(2)[::-1], GENERAL, **fields))
    assert turned[2:] == first[:2]


def test_a_module_ends_when_reached_and_earlier_ones_are_measured_again() -> None:
    seen: Counter[str] = Counter()
    found = follow(
        schedule(modules(), GENERAL, steps=5),
        update=lambda batch: seen.update([batch.entity]),
        measure=lambda entity: float(seen[entity]),
        reached=lambda entity, value: value >= 3,
    )
    assert seen == {"e1": 3, "e2": 3, "e3": 3}
    assert [list(line) for line in found] == [["e1"], ["e1", "e2"], ["e1", "e2", "e3"]]


def test_bad_input() -> None:
    bare = Module(entity="e9", forget=["x"], neighbours={"direct": ["y"]})
    with pytest.raises(DataError, match="'e9' has no indirect, stylistic items"):
        list(schedule([*modules(), bare], GENERAL, steps=1))
    with pytest.raises(DataError, match="same entity"):
        list(schedule([*modules(), *modules()], GENERAL, steps=1))
    with pytest.raises(DataError, match="general"):
        list(schedule(modules(), [], steps=1))
