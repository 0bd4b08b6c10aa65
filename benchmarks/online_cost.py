"""Seconds of a step that trains on K of B candidates, against plain steps and the least possible.

    python benchmarks/online_cost.py                                   CPU: tiny and small
    python benchmarks/online_cost.py --smoke                           under a minute
    python benchmarks/online_cost.py --device cuda --dtype bfloat16 --model-size 0.5b

Random weights, random tokens, rows of one length (`--lengths mixed`: half of it to all). In each
turn every side has one step: training on K, on all B (in micro-batches of K), a forward of B alone,
and each method, with its memory of chosen rows full. Ratios are taken within a turn and their
median over the turns is shown, so that drift cancels. On a CPU it is the CPU time of one thread,
on a GPU wall time. Neither Ray, faiss nor datasets is imported.

The floor of a method is the forwards that it cannot do without, and training on K:

    random                    none
    uds                       one of B, to the final hidden states (floor); with the output layer,
                              as a plain call of the model makes it (plain floor)
    losses, uncertainty       one of B with the output layer
    momentum_gain             two of those
    gradient_match            two of those and a gradient of K reference rows

`--train all` updates every weight, so that the output matrix is another at each step and what UDS
keeps of it is made anew; `--train attention` leaves it and most else alone, as adapters do. `naive`
is UDS as its formula reads: full logits, a singular value decomposition, Fourier transforms.

Goal: UDS takes at most 1.1 times its floor; the plain one, and the strict one, which leaves out the
output layer because UDS does not need it, are both judged. `naive` has few turns of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _online_naive import Naive
from transformers import AutoConfig, AutoModelForCausalLM

from foresift.pipeline.online import BatchMethod
from foresift.pipeline.online_cost import Cost, Sizes, Trainee, build, collate, in_turns, wanted
from foresift.pipeline.stream import Stream
from foresift.stages.samplers.uds import UDS, UDSChooser

GOAL = 1.1
_QWEN = {"model_type": "qwen2", "vocab_size": 151936, "tie_word_embeddings": True}
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "llama", "vocab_size": 8192, "hidden_size": 128, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 4, "tie_word_embeddings": True,
    },
    "small": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 192, "intermediate_size": 512,
        "num_hidden_layers": 8, "num_attention_heads": 6, "tie_word_embeddings": True,
    },
    "0.5b": {
        **_QWEN, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2,
    },
    "1.5b": {
        **_QWEN, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2,
    },
}  # fmt: skip
#: method -> (forwards to the hidden states, forwards with the output layer, reference gradients)
FLOORS = {
    "random": (0, 0, 0),
    "uds": (1, 0, 0),
    "naive": (0, 1, 0),
    "momentum_gain": (0, 2, 0),
    "gradient_match": (0, 2, 1),
}


def main() -> None:
    args = arguments()
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    results = [measured(size, tuned, args) for size in args.model_size for tuned in args.train]
    barred = {"ray", "faiss", "datasets"} & set(sys.modules)
    assert not barred, f"{barred} imported"
    goals = [goal for result in results for goal in result["goals"]]
    print(json.dumps({"settings": vars(args), "results": results, "goals": goals}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="the tiny model, few turns")
    parser.add_argument("--model-size", nargs="*", choices=MODELS)
    parser.add_argument("--train", nargs="*", choices=["all", "attention"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--keep", type=int, default=4, help="K, rows trained on")
    parser.add_argument("--of", type=int, default=16, help="B, candidates")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--lengths", default="equal", choices=["equal", "mixed"])
    parser.add_argument("--at-once", type=int, default=8, help="candidates in one forward")
    parser.add_argument("--methods", default="", help="names with commas; empty: all")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--naive-turns", type=int, default=2, help="0: leave the naive one out")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.smoke:
        args.length, args.turns, args.naive_turns = 64, 3, 1
        args.model_size, args.train = args.model_size or ["tiny"], args.train or ["all"]
    args.model_size = args.model_size or ["tiny", "small"]
    args.train = args.train or ["all", "attention"]
    return args


def measured(size: str, tuned: str, args: argparse.Namespace) -> dict[str, Any]:
    """One model, one way of training: the table, and what the last line says of it."""
    trainee = setting(size, tuned, args)
    with tempfile.TemporaryDirectory() as folder:
        parts = build(wanted(args.methods), Path(folder), trainee.rows, "", args.keep)
        methods = {n: p for n, p in parts.items() if isinstance(p, BatchMethod)}
        streams = {name: opened(trainee, part) for name, part in methods.items()}
    sides = {
        "plain K": trainee.plain(args.keep),
        "plain B": trainee.plain(args.of),
        "forward": trainee.forward(False),
        "logits": trainee.forward(True),
        "gradient": trainee.plain(args.keep, update=False),
    }
    sides |= {name: trainee.chosen(stream) for name, stream in streams.items()}
    costs = in_turns(sides, args.turns)
    if args.naive_turns and "uds" in streams:
        few = {n: sides[n] for n in ("plain K", "forward", "logits", "uds")}
        few["naive"] = trainee.chosen(opened(trainee, Naive()))
        slow = in_turns(few, args.naive_turns, warm=0)
        agreement(trainee)
    else:
        slow = {}
    return report(size, tuned, costs, slow, trainee, args)


def setting(size: str, tuned: str, args: argparse.Namespace) -> Trainee:
    """A model with random weights, its optimizer and random rows."""
    torch.manual_seed(0)
    fields = dict(MODELS[size])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype))
    model.to(args.device)
    for name, weight in model.named_parameters():
        weight.requires_grad_(tuned == "all" or "q_proj" in name or "v_proj" in name)
    trained = [p for p in model.parameters() if p.requires_grad]
    rng = np.random.default_rng(0)
    shortest = args.length if args.lengths == "equal" else args.length // 2
    rows = []
    for number in range(4 * args.of):
        ids = rng.integers(0, config.vocab_size, rng.integers(shortest, args.length + 1)).tolist()
        rows.append({"id": f"row{number}", "input_ids": ids, "labels": ids})
    sizes = Sizes(args.keep, args.of, args.at_once)
    clock = time.perf_counter
    if args.device == "cpu" and args.threads == 1:
        clock = time.process_time
    return Trainee(model, torch.optim.AdamW(trained, lr=1e-5), rows, sizes, clock)


def opened(trainee: Trainee, part: BatchMethod) -> Stream:
    """The stream of a method; a memory of chosen rows is filled, as it is after a while."""
    stream = trainee.stream(part)
    chooser = stream.chooser
    if isinstance(chooser, UDSChooser):
        full = chooser.state_dict()
        full["memory"] = torch.randn(chooser.memory.shape)
        chooser.load_state_dict(full | {"cursor": 0})
    return stream


def agreement(trainee: Trainee) -> None:
    """The fast and the naive kernel give the same numbers of the same rows."""
    rows = trainee.some(0, 4)
    found = []
    for part in (UDS(), Naive()):
        stream = trainee.stream(part)
        batch = collate(rows)
        some = stream.source.candidates(batch, np.arange(4), [(r["id"], r) for r in rows])
        seen = stream.live.look(some, part.signals, part.hidden)
        found.append(stream.chooser.measure(seen))
    slack = 1e-3 if next(trainee.model.parameters()).dtype == torch.float32 else 3e-2
    for name in ("intra", "sketch"):
        one, two = (f[name].double() for f in found)
        assert torch.allclose(one, two, rtol=slack, atol=slack * float(two.abs().max())), name


def report(
    size: str,
    tuned: str,
    costs: dict[str, Cost],
    slow: dict[str, Cost],
    trainee: Trainee,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Print the table."""
    count = sum(p.numel() for p in trainee.model.parameters())
    print(
        f"\n{size} ({count / 1e6:.1f}M parameters, trained: {tuned}), {args.dtype}, {args.device}"
    )
    print(f"K {args.keep} of B {args.of}, {args.length} tokens ({args.lengths})")
    print(
        f"{'':16s}{'ms a step':>11s}{'choosing':>10s}{'x plain K':>11s}{'x plain B':>11s}", end=""
    )
    print(f"{'x floor':>9s}{'x plain floor':>15s}")
    rows = {name: line(name, cost, costs) for name, cost in costs.items()}
    if "naive" in slow:
        rows["naive"] = line("naive", slow["naive"], slow)
        rows["naive"]["over_uds"] = slow["naive"].over(slow["uds"])
        print(f"naive over uds, same turns: {rows['naive']['over_uds']:.1f}", flush=True)
    label = f"{size}, {tuned} trained"
    goals = []
    for key, name in {"over_floor": "floor", "over_plain_floor": "plain floor"}.items():
        if "uds" in rows:
            ratio = rows["uds"][key]
            met = None if args.smoke else ratio <= GOAL
            goal = {"name": f"uds over its {name}, {label}", "goal": GOAL}
            goals.append(goal | {"measured": ratio, "met": met})
    return {"model": size, "train": tuned, "rows": rows, "goals": goals}


def line(name: str, cost: Cost, costs: dict[str, Cost]) -> dict[str, float]:
    """One side: printed, and as numbers."""
    row = {
        "seconds": cost.seconds,
        "choosing": statistics.median(cost.choosing),
        "over_k": cost.over(costs["plain K"]),
    }
    if "plain B" in costs:
        row["over_b"] = cost.over(costs["plain B"])
    shown = [f"{1e3 * row['seconds']:11.1f}", f"{1e3 * row['choosing']:10.1f}"]
    shown += [f"{row['over_k']:11.2f}", f"{row['over_b']:11.2f}" if "over_b" in row else " " * 11]
    if name not in ("plain K", "plain B", "forward", "logits", "gradient"):
        hidden, logits, gradients = FLOORS.get(name, (0, 1, 0))
        needed = [costs["forward"]] * hidden + [costs["logits"]] * logits
        needed += [costs["gradient"]] * gradients if gradients else []
        row["over_floor"] = cost.over_floor(*needed) if needed else cost.over(costs["plain K"])
        shown.append(f"{row['over_floor']:9.3f}")
        if hidden:
            row["over_plain_floor"] = cost.over_floor(costs["logits"])
            shown.append(f"{row['over_plain_floor']:15.3f}")
    print(f"{name:16s}{''.join(shown)}", flush=True)
    return {n: round(v, 4) for n, v in row.items()}


if __name__ == "__main__":
    main()
