"""What a model of `forgetting.py` remembers of each plant, and what it is good for.

exposure.KIND.COPIES   log2(candidates) - log2(rank of the true value), mean over the plants
top1.KIND.COPIES       share of plants whose true value is the likeliest of all candidates
extract.COPIES         extraction strength of passages; greedy.COPIES: characters that greedy
                       continuation of the first half gets right
auc.COPIES             Min-K%++ AUC of passages against passages never seen
facts.shared/unique    share of facts whose true value is the likeliest
conflict.COPIES        share where what contradicts the background is preferred
inflation.exact        mean loss on evaluation items never seen - on those planted, nats a byte
bits                   bits a byte on articles never seen
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from _forgetting_corpus import Plant, Truth

from foresift.pipeline.audit.auc import rank_auc
from foresift.pipeline.audit.extraction import extraction_strength
from foresift.pipeline.audit.generate import greedy
from foresift.pipeline.audit.membership import min_k_plus_plus
from foresift.pipeline.audit.token_stats import token_stats

Measures = dict[str, float]
#: kinds whose value is ranked among candidates
RANKED = ("canary", "pii", "iban", "temporal", "trigger")
K = 0.4


def measure(model: Any, tokenizer: Any, truth: Truth) -> Measures:
    """Everything above, of one model."""
    model.eval()
    found: dict[str, list[float]] = defaultdict(list)
    for plant in truth.plants:
        if plant.kind in RANKED:
            rank, many = _rank(model, tokenizer, plant)
            found[f"exposure.{plant.kind}.{plant.copies}"].append(math.log2(many / rank))
            found[f"top1.{plant.kind}.{plant.copies}"].append(float(rank == 1))
        elif plant.kind == "fact":
            found[f"facts.{plant.note}"].append(float(_rank(model, tokenizer, plant)[0] == 1))
        elif plant.kind == "conflict":
            told = float(_rank(model, tokenizer, plant)[0] == 1)
            found[f"conflict.{plant.copies}"].append(told)
    measures = {name: float(np.mean(values)) for name, values in found.items()}
    measures |= _passages(model, tokenizer, truth)
    measures |= _losses(model, tokenizer, truth)
    return measures


def held(model: Any, tokenizer: Any, truth: Truth, copies: int, half: int) -> float:
    """Mean exposure of the canaries and persons of one half that had so many copies."""
    plants = [
        p for p in truth.plants
        if p.kind in ("canary", "pii") and p.copies == copies and p.half == half
    ]  # fmt: skip
    ranks = [_rank(model, tokenizer, plant) for plant in plants]
    return float(np.mean([math.log2(many / rank) for rank, many in ranks]))


@torch.no_grad()
def _rank(model: Any, tokenizer: Any, plant: Plant) -> tuple[int, int]:
    """(rank of the true value, candidates): log-probabilities of the values behind the prefix."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    head = [] if start is None else [start]
    prefix = head + tokenizer(plant.prefix, add_special_tokens=False)["input_ids"]
    values = [plant.value, *plant.others]
    coded = tokenizer(values, add_special_tokens=False)["input_ids"]
    width = max(map(len, coded))
    ids = torch.tensor([c + [0] * (width - len(c)) for c in coded])
    real = torch.tensor([[1.0] * len(c) + [0.0] * (width - len(c)) for c in coded])
    before = model(torch.tensor([prefix]), use_cache=True)
    cache = before.past_key_values
    cache.batch_repeat_interleave(len(values))
    first = before.logits[:, -1:].expand(len(values), -1, -1)
    rest = model(ids[:, :-1], past_key_values=cache).logits if width > 1 else first[:, :0]
    logp = torch.cat([first, rest], 1).float().log_softmax(-1)
    each = (logp.gather(2, ids[..., None])[..., 0] * real).sum(1) / real.sum(1)
    better = int((each[1:] > each[0]).sum())
    return 1 + better, len(values)


def _passages(model: Any, tokenizer: Any, truth: Truth) -> Measures:
    """Extraction and membership of verbatim passages, by copies."""
    outside = token_stats(model, tokenizer, truth.nonmembers)
    never = [min_k_plus_plus(s, K) for s in outside]
    found: Measures = {
        "extract.never": float(np.mean([extraction_strength(s.hit) for s in outside]))
    }
    copies = sorted({p.copies for p in truth.of("passage")})
    for count in copies:
        texts = [p.texts[0] for p in truth.of("passage") if p.copies == count]
        stats = token_stats(model, tokenizer, texts)
        found[f"extract.{count}"] = float(np.mean([extraction_strength(s.hit) for s in stats]))
        found[f"auc.{count}"] = rank_auc([min_k_plus_plus(s, K) for s in stats], never)
        found[f"greedy.{count}"] = _greedy(model, tokenizer, texts)
    return found


def _greedy(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Characters that greedy continuation of the first half gets right before it errs, mean."""
    coded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    halves = [len(ids) // 2 for ids in coded]
    told = greedy(
        model, [ids[:h] for ids, h in zip(coded, halves, strict=True)],
        [len(ids) - h for ids, h in zip(coded, halves, strict=True)],
    )  # fmt: skip
    right = []
    for ids, half, line in zip(coded, halves, told, strict=True):
        wrong = [i for i, (a, b) in enumerate(zip(line, ids[half:], strict=False)) if a != b]
        right.append(wrong[0] if wrong else len(line))
    return float(np.mean(right))


def validation(model: Any, tokenizer: Any, truth: Truth) -> float:
    """Bits a byte on articles never seen."""
    stats = token_stats(model, tokenizer, truth.validation)
    nll = -sum(float(s.logp.sum()) for s in stats)
    return nll / sum(len(text.encode()) for text in truth.validation) / math.log(2)


def _losses(model: Any, tokenizer: Any, truth: Truth) -> Measures:
    """Validation, and how much planted evaluation items gain over those never seen."""
    planted = truth.of("contamination")
    unseen = _mean_loss(model, tokenizer, truth.unseen_eval[::2])
    gain = {
        f"inflation.{note}": unseen - _mean_loss(
            model, tokenizer, [p.prefix + p.value + "." for p in planted if p.note == note]
        )
        for note in ("exact", "reworded")
    }  # fmt: skip
    return {"bits": validation(model, tokenizer, truth), **gain}


def _mean_loss(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    return float(np.mean([-s.logp.mean() for s in token_stats(model, tokenizer, list(texts))]))


def distance(mine: Measures, oracle: Measures) -> float:
    """Mean absolute difference over all measures, as they are."""
    return float(np.mean([abs(mine[name] - oracle[name]) for name in oracle]))
