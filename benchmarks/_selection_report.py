"""What the arms of `selection_quality.py` came to: ratios with intervals, a table, a picture."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.lm.evaluate import evaluate
from foresift.pipeline.lm.model import ModelSpec

#: (arm, seed) -> manifest
Manifests = Mapping[tuple[str, int], Mapping[str, Any]]
SELECTED, LENGTHS = "selected", "length_matched_random"


def curve(manifest: Mapping[str, Any], line: str = SELECTED) -> list[tuple[float, float, float]]:
    """(training tokens after the warm-up, FLOPs after it, loss) after each round."""
    points = []
    warm = next(s for s in manifest["steps"] if s["verb"] == "train" and not s["round"])
    before = sum(_flops(s) for s in manifest["steps"] if not s["round"] and s["verb"] == "score")
    for told in sorted(manifest["evaluations"], key=lambda e: int(e["round"])):
        if told["line"] != line:
            continue
        steps = [
            s for s in manifest["steps"]
            if s["line"] == line and 0 < s["round"] <= told["round"] and s["verb"] != "evaluate"
        ]  # fmt: skip
        spent = before + sum(_flops(s) for s in steps)
        tokens = told["trained_tokens"] - warm["facts"]["tokens"]
        points.append((float(tokens), spent, float(told["token_mean"])))
    return points


def _flops(step: Mapping[str, Any]) -> float:
    """All a step took; each of these recipes has one score a step, so nothing is shared."""
    return float(sum(step["facts"].get("flops", {}).values()))


def needed(points: Sequence[tuple[float, float, float]], goal: float) -> tuple[float, float]:
    """(tokens, FLOPs) at which the loss first falls to `goal`, linear between rounds, or inf."""
    for (t0, f0, l0), (t1, f1, l1) in itertools.pairwise(points):
        if l1 <= goal:
            share = 0.0 if l0 <= goal else (l0 - goal) / (l0 - l1)
            return t0 + share * (t1 - t0), f0 + share * (f1 - f0)
    return float("inf"), float("inf")


def measure(manifests: Manifests) -> dict[str, dict[str, Any]]:
    """Arm -> losses of each seed after each round, and what it needed of random's spending."""
    seeds = sorted({seed for _, seed in manifests})
    names = list(dict.fromkeys(name for name, _ in manifests))
    curves = {(n, s): curve(manifests[n, s]) for n, s in manifests}
    if "mates" in names:
        names.append("same_lengths")
        curves |= {("same_lengths", s): curve(manifests["mates", s], LENGTHS) for s in seeds}
    found = {}
    for name in names:
        tokens, flops = [], []
        for seed in seeds:
            random = curves["random", seed]
            start = (0.0, 0.0, warmed(manifests["random", seed]))
            used = needed([start, *curves[name, seed]], random[-1][2])
            tokens.append(used[0] / random[-1][0])
            flops.append(used[1] / random[-1][1])
        found[name] = {
            "loss": [[p[2] for p in curves[name, s]] for s in seeds],
            "tokens": tokens,
            "flops": flops,
            "overhead": [_overhead(curves[name, s], curves["random", s]) for s in seeds],
        }
    return found


def warmed(manifest: Mapping[str, Any]) -> float:
    """The loss on the held-out reference before the first round."""
    warm = next(s for s in manifest["steps"] if s["verb"] == "train" and not s["round"])
    read = [s for s in manifest["steps"] if s["verb"] == "read"][1]
    shards = Corpus(Path(read["path"])).only_holdout().shards()
    tables = (table for shard in shards for table, _ in shard.stream())
    spec = ModelSpec(init=str(Path(warm["path"]) / "checkpoint"), max_length=256)
    return float(evaluate(tables, spec)["token_mean"])


def _overhead(mine: Sequence[tuple[float, ...]], random: Sequence[tuple[float, ...]]) -> float:
    """FLOPs of asking and scoring for each FLOP of training."""
    return mine[-1][1] / mine[-1][0] * random[-1][0] / random[-1][1] - 1.0


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half width of the 95 % t-interval (None for one value, or where one is infinite)."""
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n < 2 or not np.isfinite(array).all():
        return float(array.mean()), None
    return float(array.mean()), float(stdtrit(n - 1, 0.975) * array.std(ddof=1) / n**0.5)


def told(values: Sequence[float], digits: int = 3) -> str:
    mean, half = interval(values)
    if not np.isfinite(mean):
        reached = sum(np.isfinite(values))
        return f"never ({reached} of {len(values)})" if reached else "never"
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half is not None else "")


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table, best loss first."""
    lines = [
        "| arm | final loss | tokens, of random's | FLOPs, of random's | scoring / training |",
        "|---|---|---|---|---|",
    ]
    ranked = sorted(found, key=lambda n: float(np.mean([run[-1] for run in found[n]["loss"]])))
    for name in ranked:
        arm = found[name]
        cells = [
            name, told([run[-1] for run in arm["loss"]]), told(arm["tokens"], 2),
            told(arm["flops"], 2), told(arm["overhead"], 2),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def goals(found: Mapping[str, Mapping[str, Any]], goal: float) -> list[dict[str, Any]]:
    """Half the tokens, and half the FLOPs."""
    if "mates" not in found:
        return []
    mates = found["mates"]
    pairs = (("tokens", mates["tokens"]), ("FLOPs with the selection's own", mates["flops"]))
    return [
        {
            "name": f"{name} to random's final loss, of random's", "goal": goal,
            "measured": round(float(np.mean(v)), 3), "met": bool(np.mean(v) <= goal),
        }
        for name, v in pairs
    ]  # fmt: skip


def plot(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The frontier: what asking costs (x) against FLOPs to random's final loss (y)."""
    points = [
        (name.removeprefix("price_").replace("_", " · "), float(np.mean(arm["overhead"])),
         float(np.mean(arm["flops"])), float(np.mean(arm["tokens"])))
        for name, arm in found.items() if name.startswith("price_")
    ]  # fmt: skip
    points.sort(key=lambda p: p[1])
    widest = 1.1 * max(p[1] for p in points)

    def place(x: float, y: float) -> tuple[float, float]:
        return 60 + 520 * x / widest, 300 - 270 * y

    marks: list[str] = []
    last, level, top = -1e9, 0, 0.0
    for name, cost, flops, tokens in points:
        (x, y), (_, z) = place(cost, flops), place(cost, tokens)
        level = level + 1 if x - last < 45 else 0  # labels of neighbours stand above one another
        top = min(top, y) if level else y
        last, up = x, top - 8 - 14 * level
        marks += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#2a6fb0"/>',
            f'<circle cx="{x:.1f}" cy="{z:.1f}" r="3" fill="none" stroke="#888"/>',
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x + 6:.1f}" y2="{up:.1f}" stroke="#bbb"/>',
            f'<text x="{x + 7:.1f}" y="{up:.1f}">{name}</text>',
        ]
    grid = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(0, share)
        grid += [
            f'<line x1="60" x2="590" y1="{y}" y2="{y}" stroke="#ccc"/>',
            f'<text x="28" y="{y + 4}">{share:g}</text>',
        ]
    for k in range(5):
        x, _ = place(widest * k / 4, 0)
        grid.append(f'<text x="{x - 8:.1f}" y="318">{widest * k / 4:.2f}</text>')
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 350" font-size="11" '
        'font-family="sans-serif" fill="#444"><rect width="620" height="350" fill="#fff"/>'
        + "".join(grid + marks)
        + '<text x="180" y="340">FLOPs of asking and scoring, per FLOP of training</text>'
        '<text x="64" y="20">to random\'s final loss, of random\'s: filled FLOPs, hollow training '
        "tokens</text></svg>\n"
    )
