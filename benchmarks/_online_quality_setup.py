"""What benchmarks/online_quality.py trains and measures: pairs, a warmed-up model, a bare loop.

    model     configs/models/tiny, warmed up by `foresift run` on plain text; every arm tunes a copy
    kinds     alpaca and t0 (`instructions.pairs`), gsm8k (question, worked solution without marks)
    held      pairs of each kind that nothing else holds, the same for all seeds
    trusted   pairs on which a reference model is tuned (two epochs), the same for all seeds
    pool      other pairs, drawn by the seed

Pairs are short (at most `--characters`), so that a run fits one core. AdamW at a constant rate
after ten rising steps: a curve can be read at any number of tokens, and runs of different lengths
agree where they overlap. Seconds are CPU seconds of the one thread, without what measuring takes.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _mixed_pool
import _recipes
import instructions
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.online import IGNORED
from foresift.pipeline.tables import content_ids

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "configs" / "models" / "tiny"
SHARES = {"alpaca": 0.5, "gsm8k": 0.3, "t0": 0.2}
MARKS = "<<"
Pair = tuple[str, str]
Row = dict[str, Any]
Ints = npt.NDArray[np.int64]
#: what the collator adds for the benchmark and the model does not take
EXTRA = ("row", "noise")


@dataclass(frozen=True, eq=False)
class Setup:
    """The warmed-up model, and pairs by kind, each in an order of its own."""

    model: Any
    tokenizer: Any
    held: Mapping[str, list[Row]]
    trusted: list[Row]
    rest: Mapping[str, list[Pair]]
    """Pairs of which the pools are drawn."""
    work: Path
    rate: float

    def pool(self, seed: int, size: int) -> list[Row]:
        """Rows of a seed, the kinds mixed."""
        rng = np.random.default_rng([seed, 1])
        some: list[Pair] = []
        for kind, share in SHARES.items():
            known = self.rest[kind]
            count = min(len(known), round(share * size))
            some += [known[i] for i in rng.permutation(len(known))[:count]]
        return rows(self.tokenizer, [some[i] for i in rng.permutation(len(some))])

    def tuner(self, model: Any = None) -> Tuner:
        """A fresh copy of the warmed-up model with its optimizer."""
        return Tuner(copy.deepcopy(self.model if model is None else model), self.held, self.rate)

    def reference(self) -> Path:
        """The folder of the model that was tuned on the trusted pairs."""
        out = self.work / f"reference-{len(self.trusted)}-{self.rate:g}"
        if not (out / "config.json").exists():
            tuner = self.tuner()
            for rows_ in plain(self.trusted, 8, 2, 0):
                tuner.step(rows_)
            tuner.model.save_pretrained(out)
            self.tokenizer.save_pretrained(out)
        return out


class Tuner:
    """A bare loop's model and optimizer; what it has trained on, and its held-out losses."""

    def __init__(self, model: Any, held: Mapping[str, list[Row]], rate: float) -> None:
        self.model, self.held, self.rate = model, held, rate
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
        self.steps = self.tokens = self.rows = 0
        self.curve: list[tuple[float, float, float]] = []
        self.began, self.aside = time.process_time(), 0.0

    def step(self, batch: Mapping[str, Any], weights: torch.Tensor | None = None) -> torch.Tensor:
        """One optimizer step; the mean loss of each row, before it.

        Every counted token weighs the same; with weights, every row by its weight.
        """
        self.model.train()
        given = {k: v for k, v in batch.items() if k not in EXTRA}
        labels = given.pop("labels")
        each, counts = losses(self.model(**given).logits, labels)
        means = each / counts.clamp_min(1)
        loss = (
            each.sum() / counts.sum().clamp_min(1) if weights is None else (means * weights).mean()
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, (self.steps + 1) / 10)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.tokens += int(batch["attention_mask"].sum())
        self.rows += len(labels)
        return means.detach()

    @property
    def seconds(self) -> float:
        """CPU seconds since the beginning, without measuring."""
        return time.process_time() - self.began - self.aside

    def measure(self, at: float | None = None) -> float:
        """Append (tokens or `at`, seconds, held-out loss) to the curve; the loss."""
        seconds, start = self.seconds, time.process_time()
        loss = float(np.mean([held_loss(self.model, rows_) for rows_ in self.held.values()]))
        self.curve.append((float(self.tokens) if at is None else at, seconds, loss))
        self.aside += time.process_time() - start
        return loss

    def until(self, tokens: float) -> float:
        """The held-out loss at so many tokens, linear between measurements."""
        xs, _, ys = zip(*self.curve, strict=True)
        return float(np.interp(tokens, xs, ys))


def losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B] summed loss of each row in nats, [B] its counted tokens."""
    targets = labels[:, 1:]
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return each.sum(1), (targets != IGNORED).sum(1)


def row_losses(model: Any, some: Sequence[Row]) -> npt.NDArray[np.float64]:
    """[n, 2] summed loss and counted tokens of each row, rows of like length together."""
    found = np.zeros((len(some), 2))
    order = np.argsort([len(r["input_ids"]) for r in some], kind="stable")
    model.eval()
    with torch.no_grad():
        for start in range(0, len(order), 16):
            places = order[start : start + 16]
            batch = collate([some[i] for i in places])
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            sums, counts = losses(logits, batch["labels"])
            found[places, 0], found[places, 1] = sums.numpy(), counts.numpy()
    return found


def held_loss(model: Any, some: Sequence[Row]) -> float:
    """Nats per response token."""
    sums, counts = row_losses(model, some).sum(0)
    return float(sums / counts)


def rows(tokenizer: Any, pairs: Sequence[Pair]) -> list[Row]:
    """Encoded pairs with the ids of their contents; `noise` marks tokens made wrong (none yet)."""
    table = pa.table({"prompt": [p for p, _ in pairs], "response": [r for _, r in pairs]})
    coded = encode(table, tokenizer, ModelSpec(init=str(TINY), max_length=256))
    names = [name.hex() for name in content_ids(table).to_pylist()]
    found = []
    for i, name in enumerate(names):
        part = slice(coded.offsets[i], coded.offsets[i + 1])
        ids = coded.ids[part].astype(np.int64)
        counts = coded.counts[part].copy()
        found.append(
            {"id": name, "row": i, "input_ids": ids, "counts": counts,
             "noise": np.zeros(len(ids), dtype=np.bool_)}
        )  # fmt: skip
    return found


def collate(some: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Padded on the right; tokens of the response and its end count."""
    shape = (len(some), max(len(r["input_ids"]) for r in some))
    ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    labels, noise = np.full(shape, IGNORED, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    for line, row in enumerate(some):
        n = len(row["input_ids"])
        ids[line, :n], mask[line, :n], noise[line, :n] = row["input_ids"], 1, row["noise"]
        labels[line, :n] = np.where(row["counts"], row["input_ids"], IGNORED)
    found = {"input_ids": ids, "attention_mask": mask, "labels": labels, "noise": noise}
    tensors = {name: torch.from_numpy(values) for name, values in found.items()}
    return {**tensors, "row": torch.tensor([r["row"] for r in some])}


def plain(some: Sequence[Row], size: int, epochs: int, seed: int) -> Iterable[dict[str, Any]]:
    """Batches of shuffled epochs."""
    rng = np.random.default_rng([seed, 2])
    for _ in range(epochs):
        order = rng.permutation(len(some))
        for start in range(0, len(order), size):
            yield collate([some[i] for i in order[start : start + size]])


def prepare(args: argparse.Namespace) -> Setup:
    """Pairs apart, the warmed-up model; both are kept under `work`."""
    args.work.mkdir(parents=True, exist_ok=True)
    text = args.work / "text"
    if not (text / "pool.jsonl").exists():
        _mixed_pool.write(args.data, text, 3_000_000)
    model = AutoModelForCausalLM.from_pretrained(_warm(text / "pool.jsonl", args))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    rng = np.random.default_rng(0)
    held, rest, trusted = {}, {}, []
    for kind, known in _pairs(args.data, args.characters).items():
        mixed = [known[i] for i in rng.permutation(len(known))]
        trust = args.held + round(SHARES[kind] * args.trusted)
        held[kind] = rows(tokenizer, mixed[: args.held])
        trusted += mixed[args.held : trust]
        rest[kind] = mixed[trust:]
    return Setup(model, tokenizer, held, rows(tokenizer, trusted), rest, args.work, args.rate)


def _pairs(data: Path, characters: int) -> dict[str, list[Pair]]:
    found = instructions.pairs(data)
    with gzip.open(data / "reasoning" / "gsm8k" / "train.jsonl.gz", "rt") as file:
        sums = [json.loads(line) for line in file]
    found["gsm8k"] = [(r["question"], _unmarked(r["answer"])) for r in sums]
    return {k: [p for p in found[k] if len(p[0]) + len(p[1]) <= characters] for k in SHARES}


def _unmarked(answer: str) -> str:
    """Without the calculator's marks, <<2+3=5>>."""
    first, *others = answer.split(MARKS)
    return first + "".join(part.split(">>", 1)[-1] for part in others)


def _warm(text: Path, args: argparse.Namespace) -> Path:
    """The checkpoint of the warm-up; `foresift run` finds it again in its store."""
    recipe = {
        "name": "warm", "seed": 0, "report": False,
        "data": {"read": "jsonl", "paths": [str(text)], "text": "text", "holdout": 0,
                 "tokenizer": "configs/models/tiny"},
        "model": {"init": "configs/models/tiny", "max_length": 256, "seed": 0},
        "steps": [{"train": "causal_lm", "length": 256, "batch_tokens": 2048, "threads": 1,
                   "tokens": args.warmup, "learning_rate": 0.002}],
    }  # fmt: skip
    manifest = _recipes.run(recipe, args.work / f"warm-{args.warmup}.yaml", args.work / "out")
    return Path(_recipes.step(manifest, "train")["path"]) / "checkpoint"
