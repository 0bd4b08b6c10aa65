"""Do the measures of memorisation tell members from texts that were never seen?

    python benchmarks/audit.py            about three minutes on one core
    python benchmarks/audit.py --smoke    under a minute; no goal is judged

One source (BBC news) is cut into texts of as many bytes; a random half of them are the members. A
byte-level Llama of some 0.4 million parameters is trained on the members alone; the others are
never seen, and as the split is random nothing else tells them apart. A reference model sees a
third part. Each score's AUC, members against others, with its 95 % interval (DeLong), on the
trained model and on the same model before training, where it must lie in the band of chance

    0.5 +- z sqrt((n + m + 1) / (12 n m))

with z = 1.96, or, for all scores at once, widened by Bonferroni. REMIND's nine features and their
logistic regression are judged out of fold. Recognition is a share of random pairs, with Wilson's
interval.

Goals: the lower ends of REMIND, Min-K%++ and extraction strength lie above 0.5; every score of the
untrained model lies in the band that all of them together stay in with 95 % chance.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from foresift.pipeline.audit import extraction, membership, recall, remind
from foresift.pipeline.audit.auc import Auc, auc, untrained_band
from foresift.pipeline.audit.token_stats import loss_of, token_stats

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 64
SHAPE = {
    "vocab_size": 256, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": LENGTH,
    "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
WANTED = ("REMIND", "Min-K%++ 20", "Min-K%++ 40", "extraction strength")
NAMES = {
    "loss": "LOSS", "zlib": "Zlib", "min_k_20": "Min-K% 20", "min_k_40": "Min-K% 40",
    "min_k_pp_20": "Min-K%++ 20", "min_k_pp_40": "Min-K%++ 40", "reference": "reference",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    source = args.data / "pretrain" / "bbc-news" / "bbc.jsonl.gz"
    if not source.exists():
        raise SystemExit(f"no data at {source}; name its folder with --data")
    torch.set_num_threads(1)
    sizes = {"texts": 64, "judged": 24, "epochs": 6} if args.smoke else (
        {"texts": 640, "judged": 120, "epochs": 20}
    )  # fmt: skip
    start = time.perf_counter()
    ours, theirs, third = parts(source, sizes["texts"], args.seed)
    fresh = build(args.seed)
    trained = train(build(args.seed), ours, sizes["epochs"], args.seed)
    other = train(build(args.seed + 1), third, max(1, sizes["epochs"] // 4), args.seed)
    say("trained", start)
    rows = []
    for name, model in (("trained", trained), ("untrained", fresh)):
        found = measured(
            model, other, ours[: sizes["judged"]], theirs[: sizes["judged"]], args.seed
        )
        rows += [{"model": name, "score": score, **cells(a)} for score, a in found.items()]
        say(name, start)
    report(rows, sizes, sum(p.numel() for p in trained.parameters()), args)


def parts(source: Path, count: int, seed: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Three disjoint random parts of texts of LENGTH bytes, no two alike."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        texts = [" ".join(json.loads(line)["text"].split()).encode() for line in file]
    pieces = sorted(
        {t[i : i + LENGTH] for t in texts for i in range(0, len(t) - LENGTH, 4 * LENGTH)}
    )
    order = np.random.default_rng(seed).permutation(len(pieces))[: 3 * count]
    chosen = [np.frombuffer(pieces[i], dtype=np.uint8).astype(np.int64) for i in order]
    return chosen[:count], chosen[count : 2 * count], chosen[2 * count :]


def build(seed: int) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE)).eval()


def train(model: Any, texts: list[Any], epochs: int, seed: int, batch: int = 16) -> Any:
    """AdamW with a cosine from 3e-3 down to nothing."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = np.random.default_rng(seed)
    ids = torch.from_numpy(np.stack(texts))
    orders = np.concatenate([draw.permutation(len(texts)) for _ in range(epochs)])
    steps = len(orders) // batch
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = ids[torch.from_numpy(orders[step * batch : (step + 1) * batch])]
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def measured(
    model: Any, other: Any, ours: list[Any], theirs: list[Any], seed: int
) -> dict[str, Auc]:
    """AUC of every score, members against others."""
    texts = [*ours, *theirs]
    n = len(ours)
    stats = token_stats(model, None, texts)
    words = [bytes(t.astype(np.uint8)).decode("latin-1") for t in texts]
    values = membership.scores(stats, words, token_stats(other, None, texts))
    found = {NAMES[name]: auc(v[:n], v[n:]) for name, v in values.items()}
    norms = membership.grad_norm(model, None, texts)
    found["gradient norm"] = auc(norms[:n], norms[n:])
    for name, f in (
        ("extraction strength", extraction.extraction_strength),
        ("exact memorisation", extraction.exact_memorisation),
    ):
        each = np.array([f(s.hit) for s in stats])
        found[name] = auc(each[:n], each[n:])
    found["REMIND"] = walked(model, texts, n, seed)
    losses = -values["loss"]
    right = int(recall.recognised(losses[:n], losses[n:]).sum())
    found["recognition"] = share(right, n)
    return found


def walked(model: Any, texts: list[Any], n: int, seed: int) -> Auc:
    table = model.get_input_embeddings().weight.detach().numpy()
    nearest = remind.nearest_tokens(table, np.unique(np.concatenate(texts)).tolist())
    features = remind.measure(loss_of(model, batch_tokens=8192), texts, nearest, seed=seed)
    labels = ["member"] * n + ["other"] * (len(texts) - n)
    return remind.aucs(features, labels, seed=seed)["member"]


def share(count: int, n: int) -> Auc:
    """A share of pairs with Wilson's interval, in the shape of an AUC."""
    p, z2 = count / n, 1.96**2 / n
    half = 1.96 * math.sqrt(p * (1 - p) / n + z2 / (4 * n))
    return Auc(p, (p + z2 / 2 - half) / (1 + z2), (p + z2 / 2 + half) / (1 + z2), n, n)


def cells(found: Auc) -> dict[str, float]:
    return {"auc": found.value, "low": found.low, "high": found.high}


def say(what: str, start: float) -> None:
    print(f"{what}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def report(rows: list[dict[str, Any]], sizes: dict[str, int], size: int, args: Any) -> None:
    n = sizes["judged"]
    names = list(dict.fromkeys(row["score"] for row in rows))
    wide = NormalDist().inv_cdf(1 - 0.025 / len(names))
    single, joint = untrained_band(n, n), untrained_band(n, n, wide)
    pairs = (0.5 - wide * 0.5 / math.sqrt(n), 0.5 + wide * 0.5 / math.sqrt(n))
    by = {(row["model"], row["score"]): row for row in rows}
    about = f"{sizes['texts']} members of {LENGTH} bytes, {sizes['epochs']} epochs"
    print(f"\n{size:,} parameters, {about}")
    print(f"band of chance, {n} against {n}: {single[0]:.3f} to {single[1]:.3f}", end="")
    print(f", of all scores at once {joint[0]:.3f} to {joint[1]:.3f}\n")
    print("| score | trained | 95 % | untrained | 95 % |\n|---|---|---|---|---|")
    for name in names:
        line = [by[m, name] for m in ("trained", "untrained")]
        told = [f"{r['auc']:.3f} | {r['low']:.3f} to {r['high']:.3f}" for r in line]
        print(f"| {name} | {' | '.join(told)} |")
    goals = [
        {"goal": f"{name}: lower end above 0.5", "value": by["trained", name]["low"],
         "met": by["trained", name]["low"] > 0.5} for name in WANTED
    ]  # fmt: skip
    for name in names:
        low, high = pairs if name == "recognition" else joint
        value = by["untrained", name]["auc"]
        goals.append({"goal": f"{name}: untrained in the band", "value": value,
                      "met": low <= value <= high})  # fmt: skip
    told = {"benchmark": "audit", "seed": args.seed, "sizes": sizes, "parameters": size}
    told |= {"band": single, "band_of_all": joint, "rows": rows}
    print(json.dumps({**told, "goals": [] if args.smoke else goals}))


if __name__ == "__main__":
    main()
