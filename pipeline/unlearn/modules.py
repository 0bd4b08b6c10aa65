"""MELU's order of an unlearning run: entity after entity, with neighbours in every batch.

    for each entity e, for s in 1 .. S:  { b_f items of e,  b_n of each of its neighbour sets,  b_g
    general items }                      e1 e1 e2 e2 e3 e3 for three entities and S = 2

Items of a set are taken in passes, each shuffled by (seed, entity, set, pass). `follow` hands the
batches to an update, ends a module once its forget measure has reached the holdout's band, and
measures all earlier modules after each, so that a gap that reopens is seen. The interleaved 1:1
pairing of the usual loaders is what this is compared with. Details of the schedule are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

from foresift.pipeline.errors import DataError
from foresift.pipeline.rng import Rng

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Module(Generic[Item]):
    """One entity: what to forget, and the sets around it by kind."""

    entity: str
    forget: Sequence[Item]
    neighbours: Mapping[str, Sequence[Item]]
    """For example direct, indirect and stylistic neighbours."""


@dataclass(frozen=True, kw_only=True)
class ModuleBatch(Generic[Item]):
    """The items of one step."""

    entity: str
    step: int
    forget: tuple[Item, ...]
    neighbours: dict[str, tuple[Item, ...]]
    general: tuple[Item, ...]


def schedule(
    modules: Sequence[Module[Item]],
    general: Sequence[Item],
    *,
    steps: int,
    forget: int = 4,
    neighbour: int = 2,
    retain: int = 4,
    seed: int = 0,
) -> Iterator[ModuleBatch[Item]]:
    """The batches of all modules; sizes are items from each set."""
    _check(modules, general)
    for module in modules:
        rng = Rng(seed).at("unlearn", "module", module.entity)
        for step in range(steps):
            yield ModuleBatch(
                entity=module.entity,
                step=step,
                forget=_take(module.forget, forget, step, rng.at("forget")),
                neighbours={
                    kind: _take(items, neighbour, step, rng.at("neighbours", kind))
                    for kind, items in sorted(module.neighbours.items())
                },
                general=_take(general, retain, step, rng.at("general")),
            )


def _check(modules: Sequence[Module[Item]], general: Sequence[Item]) -> None:
    names = [m.entity for m in modules]
    if len(set(names)) < len(names):
        raise DataError("two modules have the same entity", where="modules")
    kinds = {kind for m in modules for kind in m.neighbours}
    for module in modules:
        empty = sorted(k for k in kinds if not module.neighbours.get(k))
        if empty or not module.forget:
            lacking = ", ".join(empty) if empty else "forget"
            raise DataError(f"entity {module.entity!r} has no {lacking} items", where="modules")
    if not general:
        raise DataError("there are no general items", where="modules")


def _take(items: Sequence[Item], size: int, step: int, rng: Rng) -> tuple[Item, ...]:
    """Items step * size and on of the endless, pass by pass shuffled sequence."""
    size = min(size, len(items))
    places = range(step * size, (step + 1) * size)
    orders = {
        p: rng.at(p).generator().permutation(len(items)) for p in {i // len(items) for i in places}
    }
    return tuple(items[int(orders[i // len(items)][i % len(items)])] for i in places)


def follow(
    batches: Iterator[ModuleBatch[Item]],
    update: Callable[[ModuleBatch[Item]], None],
    measure: Callable[[str], float],
    reached: Callable[[str, float], bool],
) -> list[dict[str, float]]:
    """Run the schedule; after each module, the measure of every entity so far."""
    found: list[dict[str, float]] = []
    for entity, own in groupby(batches, key=lambda b: b.entity):
        for batch in own:
            update(batch)
            if reached(entity, measure(entity)):
                break
        earlier = list(found[-1]) if found else []
        found.append({name: measure(name) for name in [*earlier, entity]})
    return found
