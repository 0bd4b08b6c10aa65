"""Relearning sets (BLUR): what an attacker might train on who does not have the forget set.

    relearn_hi    direct and indirect neighbours: of the same family, or linked by a name
    relearn_mid   neighbours by style: of the same form, without a link
    relearn_lo    general text: rows of retain

No row of them is forgotten. Each takes at most `size` rows, the half of its pool with the smaller
draws (at least one), so that the other half is left to measure what was kept. An attack that trains
on a part of the forget set itself is the audit's: it splits `forget`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foresift.stages.forget._rows import Row
from foresift.stages.forget.folder import NEIGHBOURS, RELEARN

#: which sets each is drawn from
POOLS = {
    RELEARN[0]: (NEIGHBOURS[0], NEIGHBOURS[1]),
    RELEARN[1]: (NEIGHBOURS[2],),
    RELEARN[2]: ("retain",),
}


def relearn(
    sets: Mapping[str, Sequence[Row]], draws: Mapping[bytes, float], size: int
) -> dict[str, list[Row]]:
    """The three sets, from the rows of the others."""
    found = {}
    for name, pools in POOLS.items():
        pool = sorted((r for p in pools for r in sets[p]), key=lambda r: (draws[r.id], r.id))
        found[name] = pool[: min(size, (len(pool) + 1) // 2)]
    return found
