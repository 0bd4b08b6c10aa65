"""Does choosing online help? Rows, tokens and epochs, chosen while the model learns in a bare loop.

    python benchmarks/online_quality.py              3 seeds: about 25 minutes on an idle core
    python benchmarks/online_quality.py --part b --seeds 1
    python benchmarks/online_quality.py --smoke      under a minute; no goal is judged

A 1M-parameter model, warmed up on plain text, is tuned on short real instruction pairs (Alpaca,
GSM8K, T0) with `pipeline/stream.py` (parts a, b) or an epoch plan (c). What each part injects,
compares and reports stands in its file:

    a   rows of a step, with a fifth exact copies        _online_quality_rows.py
    b   tokens of a row, with a fifth corrupted          _online_quality_tokens.py
    c   rows of an epoch, at equal consumed rows         _online_quality_epochs.py

Mean and 95 % t-interval over seeds (pools, orders, draws); the warmed-up model, the reference model
and the held-out pairs are the same in all. Losses weigh the three kinds alike. Seconds hold for an
idle core.

Goals: UDS chooses at most 2/3 of the repeats that the nuclear norm alone chooses, and its loss is
not above random's; ssToken keeps fewer corrupted tokens than random and ends with a lower loss on
clean responses; SeTa is not above dynamic random at 50 and 70 % saved. "Not above": the interval
of the paired difference reaches 0 or below; "fewer", "lower", "at most": all of it does.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _online_quality_epochs
import _online_quality_rows
import _online_quality_setup
import _online_quality_tokens
import torch

ROOT = Path(__file__).resolve().parents[1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    parser.add_argument("--part", default="abc", help="some of a, b, c")
    parser.add_argument("--arms", default="", help="names with commas; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "out" / "online_quality")
    parser.add_argument("--warmup", type=int, default=400_000, help="tokens of plain text")
    parser.add_argument("--rows", type=int, default=900, help="pairs of a pool in a and b")
    parser.add_argument("--copies", type=int, default=1, help="copies of each row copied in a")
    parser.add_argument("--token-epochs", type=int, default=1, help="epochs in b")
    parser.add_argument(
        "--noise", choices=["vocabulary", "responses"], default="vocabulary",
        help="corrupted tokens of b: any of the vocabulary, or tokens of the pool's responses",
    )  # fmt: skip
    parser.add_argument("--plan-rows", type=int, default=280, help="pairs of a pool in c")
    parser.add_argument("--epochs", type=int, default=8, help="epochs in c")
    parser.add_argument("--trusted", type=int, default=800, help="pairs of the reference model")
    parser.add_argument("--held", type=int, default=100, help="held-out pairs of each kind")
    parser.add_argument("--characters", type=int, default=300, help="of a pair, at most")
    parser.add_argument("--rate", type=float, default=0.001, help="learning rate")
    args = parser.parse_args()
    if not args.part or set(args.part) - set("abc"):
        parser.error("--part: some of a, b, c")
    if args.smoke:
        args.work = Path(tempfile.mkdtemp(prefix="foresift-online-"))
        args.seeds, args.warmup, args.rows, args.plan_rows = 1, 16_000, 64, 32
        args.trusted, args.held, args.characters, args.epochs = 40, 8, 200, 4
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    if not args.data.exists():
        raise SystemExit(f"no data at {args.data}; name its folder with --data")
    setup = _online_quality_setup.prepare(args)
    arms = [name for name in args.arms.split(",") if name]
    jobs: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "a": (_online_quality_rows, (args.rows, args.copies)),
        "b": (_online_quality_tokens, (args.rows, args.token_epochs, args.noise)),
        "c": (_online_quality_epochs, (args.plan_rows, args.epochs)),
    }
    parts: dict[str, Any] = {}
    goals: list[dict[str, Any]] = []
    for name in sorted(set(args.part)):
        module, sizes = jobs[name]
        start = time.perf_counter()
        found = module.run(setup, *sizes, args.seeds, arms)
        print(f"part {name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        print(f"\nPart {name}\n\n{module.table(found)}\n", flush=True)
        parts[name] = found
        goals += [{"part": name, **goal} for goal in module.goals(found)]
    told = {"benchmark": "online_quality", "parts": parts, "goals": [] if args.smoke else goals}
    print(json.dumps(_finite(told)))


def _finite(value: Any) -> Any:
    """With None for what was never reached or counted: JSON has no infinity."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
