"""Greedy continuations of prompts of any lengths, without padding.

Prompts of one length are decoded together, with the model's cache where it has one. The first token
among equals is taken, as in `token_stats`. Cost: 2 N FLOPs a token that is read or written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from foresift.pipeline.audit.token_stats import evaluated, limit
from foresift.pipeline.errors import DataError

#: prompts decoded together, on a CPU and on a GPU
TOGETHER = {"cpu": 16, "cuda": 128}


def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int | Sequence[int],
    *,
    device: str | None = None,
    end: int | None = None,
) -> list[list[int]]:
    """The continuation of each prompt; `new_tokens` of all, or of each.

    It stops before the token `end` where one is given, and at the last position the model has.
    """
    wanted = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else list(new_tokens)
    if any(len(prompt) == 0 for prompt in prompts):
        raise DataError("a prompt needs a token to go on from", where="prompts")
    alike: dict[int, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        alike[len(prompt)].append(number)
    found: list[list[int]] = [[] for _ in prompts]
    with evaluated(model, device) as place, torch.inference_mode():
        model.eval()
        size = TOGETHER["cpu" if place == "cpu" else "cuda"]
        for length, rows in sorted(alike.items()):
            room = max(0, limit(model, length + max(wanted)) - length)
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                ids = torch.tensor([list(prompts[i]) for i in some], device=place)
                told = _decode(model, ids, min(room, max(wanted[i] for i in some)))
                for i, line in zip(some, told, strict=True):
                    found[i] = _until(line[: wanted[i]], end)
    return found


def _until(line: list[int], end: int | None) -> list[int]:
    return line[: line.index(end)] if end is not None and end in line else line


def _decode(model: Any, ids: torch.Tensor, count: int) -> list[list[int]]:
    cache, read, written = None, ids, []
    for _ in range(count):
        out = model(input_ids=read, past_key_values=cache, use_cache=True)
        cache = getattr(out, "past_key_values", None)
        logits = out.logits[:, -1].float()
        token = (logits == logits.amax(1, keepdim=True)).int().argmax(1, keepdim=True)
        written.append(token)
        ids = torch.cat([ids, token], dim=1)
        read = ids if cache is None else token
    done = torch.cat(written, dim=1) if written else ids[:, :0]
    lines: list[list[int]] = np.asarray(done.cpu()).tolist()
    return lines
