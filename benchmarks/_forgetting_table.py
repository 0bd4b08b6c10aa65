"""The table, the costs and the gates of `forgetting.py`.

    distance      mean |difference| to the oracle over all measures
    gap           exposure at 16 copies (canaries and persons) - the oracle's, before relearning
    gap after     the same of one half of the secrets, after relearning the other half

An arm *looks forgotten* where its mean gap is at most 0.3 bits; it *is* if the same is true after
relearning. Intervals are t, 95 %, over the seeds. Costs, in multiples of the
training of `none`: curating once; each unlearning; n requests one by one, or by retraining.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import _forgetting_measures as measures
import numpy as np
from _forgetting_arms import Arm, exported
from _forgetting_corpus import Truth

ORACLE, NONE, CURATED = "oracle", "none", "curated"
#: bits of exposure within which two arms are the same
MARGIN = 0.3
CLEAN_GOAL = 0.05
Found = Sequence[Mapping[str, Any]]


def removed(
    trained: Mapping[str, Arm], rows: Sequence[Mapping[str, str]], truth: Truth
) -> dict[str, Any]:
    """For each arm that curates: what is left of each kind, and clean bytes that went."""
    kind = dict.fromkeys(truth.background, "clean") | dict.fromkeys(truth.junk, "junk")
    for plant in truth.plants:
        kind |= {text: plant.kind for text in plant.texts if text not in kind}
    before: dict[str, list[int]] = {}
    for row in rows:
        count = before.setdefault(kind[row["text"]], [0, 0])
        count[0], count[1] = count[0] + 1, count[1] + len(row["text"].encode())
    distinct = {k: len({r["text"] for r in rows if kind[r["text"]] == k}) for k in before}
    found: dict[str, Any] = {"before": before, "distinct": distinct}
    for name, arm in trained.items():
        if arm.curate is None:
            continue
        after: dict[str, list[int]] = {}
        for row in exported(arm.curate):
            count = after.setdefault(kind.get(row["text"], "redacted"), [0, 0])
            count[0], count[1] = count[0] + 1, count[1] + len(row["text"].encode())
        found[name] = after
    return found


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half of the 95 % t-interval); no interval of one value."""
    from scipy import stats

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, float("nan")
    return mean, float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def _secret(told: Mapping[str, Any]) -> float:
    """Exposure at 16 copies: canaries and persons."""
    m = told["measures"]
    return float(m["exposure.canary.16"] + m["exposure.pii.16"]) / 2


def arms_of(found: Found) -> list[str]:
    """Every arm, trained ones first."""
    return [name for name, told in found[0].items() if "measures" in told]


def _over(found: Found, of: Callable[[Mapping[str, Any]], float]) -> tuple[float, float]:
    return _interval([of(seed) for seed in found])


def gaps(found: Found, name: str) -> dict[str, tuple[float, float]]:
    """Differences to the oracle, before and after relearning."""
    return {
        "gap": _over(found, lambda s: _secret(s[name]) - _secret(s[ORACLE])),
        "after": _over(found, lambda s: s[name]["relearned"] - s[ORACLE]["relearned"]),
    }


def claims(found: Found, name: str) -> tuple[bool, bool]:
    """(the mean gap is at most MARGIN before relearning, it is after it)."""
    told = gaps(found, name)
    return told["gap"][0] <= MARGIN, told["after"][0] <= MARGIN


def clean_share(found: Found, name: str = CURATED) -> float:
    """Share of the bytes of background that a curation removed, the worst seed."""
    shares = []
    for seed in found:
        before = seed["removed"]["before"]["clean"][1]
        after = seed["removed"][name].get("clean", [0, 0])[1]
        shares.append(1 - after / before)
    return float(max(shares))


def show(found: Found) -> str:
    """The tables as text (markdown)."""
    return "\n\n".join([_main(found), _plants(found), _removed(found), _costs(found)])


def _distance(told: Mapping[str, Any], name: str) -> float:
    return measures.distance(told[name]["measures"], told[ORACLE]["measures"])


def _number(pair: tuple[float, float], digits: int = 2) -> str:
    mean, half = pair
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def _main(found: Found) -> str:
    head = (
        "| arm | gap to oracle, 16 copies (bits) | after relearning | bits a byte | distance |"
        " FLOPs / training | seconds (median) | looks forgotten | is it |"
    )
    lines = [head, "|---" * 9 + "|"]
    train = np.mean([s[NONE]["flops"] for s in found])
    for name in arms_of(found):
        told, (before, after) = gaps(found, name), claims(found, name)
        cells = [
            name, _number(told["gap"]), _number(told["after"]),
            _number(_interval([s[name]["measures"]["bits"] for s in found]), 3),
            _number(_interval([_distance(s, name) for s in found])),
            f"{np.mean([s[name]['flops'] for s in found]) / train:.3f}",
            f"{np.median([s[name]['seconds'] for s in found]):.1f}",
            "yes" if before else "no", ("yes" if after else "**no**") if before else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _plants(found: Found) -> str:
    names = (
        "exposure.canary.1", "exposure.canary.4", "exposure.canary.16", "exposure.pii.1",
        "exposure.pii.16", "exposure.iban.4", "exposure.temporal.4", "exposure.trigger.8",
        "extract.48", "auc.1", "auc.48", "facts.shared", "facts.unique", "conflict.4",
        "inflation.exact",
    )  # fmt: skip
    lines = ["| arm | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name in arms_of(found):
        cells = [f"{np.mean([s[name]['measures'][m] for s in found]):.2f}" for m in names]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _removed(found: Found) -> str:
    curated = [name for name in found[0]["removed"] if name not in ("before", "distinct")]
    kinds = list(found[0]["removed"]["before"])
    lines = ["| kind | rows, distinct | " + " | ".join(f"left by {n}" for n in curated) + " |"]
    lines.append("|---" * (len(curated) + 2) + "|")
    for kind in [*kinds, "redacted"]:
        told = [s["removed"] for s in found]
        rows = sum(t["before"].get(kind, [0])[0] for t in told)
        cells = [f"{sum(t[n].get(kind, [0])[0] for t in told)}" for n in curated]
        distinct = sum(t["distinct"].get(kind, 0) for t in told)
        lines.append(f"| {kind} | {rows}, {distinct} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _costs(found: Found) -> str:
    """Requests after which each way has cost more than curating at the start."""
    train = float(np.mean([s[NONE]["flops"] for s in found]))
    extra = float(np.mean([s[CURATED]["flops"] for s in found])) - train
    seconds = float(np.median([s[CURATED]["curating_seconds"] for s in found]))
    lines = [
        f"Curating: {seconds:.1f} s and {max(0.0, extra) / train:.4f} of a training, once.",
        "", "| way | a request costs (share of a training) | 1 | 10 | 100 requests |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    ways = {name: found for name in arms_of(found) if name.startswith("U ")}
    for name in ways:
        each = float(np.mean([s[name]["flops"] for s in found])) / train
        each = each / len(found[0][name]["bits_after_each"]) if name == "U stream" else each
        costs = " | ".join(f"{1 + each * n:.2f}" for n in (1, 10, 100))
        lines.append(f"| {name} | {each:.3f} | {costs} |")
    lines.append("| retrain | 1.000 | 2.00 | 11.00 | 101.00 |")
    told = [s["replay"]["requests"] for s in found]
    one = [t["one"]["replay"]["steps"] / t["all"]["replay"]["steps_of_all"] for t in told]
    each = float(np.mean(one))
    costs = " | ".join(f"{1 + each * n:.2f}" for n in (1, 10, 100))
    lines.append(f"| replay, of one document | {each:.3f} | {costs} |")
    same = all(s["replay"]["same_as_oracle"] for s in found)
    lines.append(f"\nReplay of all that must go: the oracle's weights bit for bit: {same}.")
    return "\n".join(lines)


def goals(found: Found) -> list[dict[str, Any]]:
    """The gates of the benchmark; each can fail."""
    told = [s["removed"] for s in found]
    left = {k: sum(t[CURATED].get(k, [0])[0] for t in told) for k in ("iban",)}
    ibans = sum(t["distinct"]["iban"] for t in told)
    exact = min(_exact_recall(t) for t in told)
    mean, _ = gaps(found, CURATED)["gap"]
    bits = [s[CURATED]["measures"]["bits"] - s[NONE]["measures"]["bits"] for s in found]
    spread = (
        float(np.std([s[NONE]["measures"]["bits"] for s in found], ddof=1))
        if len(found) > 1
        else 0.0
    )
    looks = [n for n in arms_of(found) if n.startswith("U ") and claims(found, n)[0]]
    held = [n for n in looks if claims(found, n)[1]]
    clean = clean_share(found)
    return [
        _goal("recall of checksum PII", 1.0, 1 - left["iban"] / ibans, left["iban"] == 0),
        _goal("recall of exact copies", 1.0, exact, exact == 1.0),
        _goal(
            "curated: exposure at 16 copies - oracle's (bits)", MARGIN, mean, abs(mean) <= MARGIN
        ),
        _goal("unlearning arms that look forgotten and still do after relearning", len(looks),
              len(held), len(held) == len(looks)),
        _goal("curated: bits a byte - those of no curation", round(spread, 4),
              float(np.mean(bits)), float(np.mean(bits)) <= spread),
        _goal("replay gives the oracle's weights, seeds", len(found),
              sum(s["replay"]["same_as_oracle"] for s in found),
              all(s["replay"]["same_as_oracle"] for s in found)),
        _goal("clean bytes removed", CLEAN_GOAL, clean, clean < CLEAN_GOAL),
    ]  # fmt: skip


def _exact_recall(told: Mapping[str, Any]) -> float:
    """Of the surplus copies, those that deduplication removed."""
    kinds = [k for k in told["before"] if k not in ("clean", "junk")]
    surplus = sum(told["before"][k][0] - told["distinct"][k] for k in kinds)
    left = told.get("dedup", told[CURATED])
    after = sum(max(0, left.get(k, [0])[0] - told["distinct"][k]) for k in kinds)
    return 1 - after / surplus


def _goal(name: str, goal: float, measured: float, met: bool) -> dict[str, Any]:
    return {"name": name, "goal": goal, "measured": round(measured, 4), "met": bool(met)}
