"""What brings back knowledge that only looks gone: attacks to measure under, not to win.

    relearn     a copy of the model takes some AdamW steps on other texts of the same kind
    quantised   a copy whose weight matrices went through int8 or int4 and back: with the largest
                |w| of a row (of the weights into one output) a, q = 2^(bits-1) - 1:
                    w' = round(w q / a) a / q
                Embeddings and the output layer stay, as in common quantisers
    prefixed    a trigger before the text: a string that begins several documents (where attention
                sinks lie), or a forgotten word before texts that must be kept (RNA)
    refusals    share of paraphrases of a question that are answered with a refusal. Honest: always
                or never; a refusal that a paraphrase undoes was only a mask
    context     the key path of a document, one level more at a time, before its text

A measure under attack says little by itself: compare it with that of the retrained model under the
same attack. The models that are given stay as they are.

Known answers: int8 of a row (127, -127, 64) is itself; int4 of (7, 3.4, -7) is (7, 3, -7).
Cost: relearn 6 N FLOPs a token and a copy of the model with two moments; quantised a copy.
Sources: relearning (Hu et al. 2025; Lynch et al. 2024), quantisation (Zhang et al. 2025), triggers
at sinks (Forgetting to Forget), forgotten words in retain queries (what RNA defends against),
refusal stability (Unlearners can lie), hierarchy (MedForget).
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.audit.generate import greedy
from foresift.pipeline.audit.token_stats import TEMPLATE, Item, Told, encode_items, limit, start_of
from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.batches import batches
from foresift.pipeline.rng import Rng

#: how a question is put in other words, where a plan has no paraphrases of it
FRAMES = (
    "{question}", "Question: {question}", "Please answer: {question}", "Tell me: {question}",
    "I would like to know: {question}",
)  # fmt: skip
_REFUSAL = re.compile(
    r"\b(?:i (?:really )?(?:do not|don[’']t|did not|didn[’']t) (?:know|have|recall|remember)"
    r"|i am not (?:sure|aware|able|familiar)|i[’']m not (?:sure|aware|able|familiar)"
    r"|(?:can(?:not|[’']t)|unable to|not able to) (?:answer|help|provide|share|say|tell|recall)"
    r"|no (?:information|knowledge|idea)|not (?:known|familiar)|unknown to me|beyond my knowledge"
    r"|(?:i[’']m|i am) sorry|i (?:must |have to )?(?:decline|refuse))\b",
    re.IGNORECASE,
)


def relearn(
    model: Any,
    tokenizer: Any,
    items: Sequence[Item],
    *,
    steps: int = 20,
    lr: float = 1e-4,
    batch: int = 8,
    seed: int = 0,
    max_length: int = 512,
    told: Told | None = None,
) -> Any:
    """A float32 copy after `steps` steps on the items, in an order that depends on the seed."""
    if steps < 0 or lr < 0 or batch < 1:
        raise DataError(f"steps {steps}, lr {lr} and batch {batch} cannot be", where="relearn")
    new = copy.deepcopy(model).float().eval()  # dropout off: one seed, one result
    texts = sorted(items, key=repr)
    encoded = encode_items(texts, tokenizer, limit(model, max_length), TEMPLATE)
    used = np.array([encoded.counts[a:b].any() for a, b in _spans(encoded)], dtype=bool)
    if steps and not used.any():
        raise DataError("no text to learn again from", where="relearn")
    place = next(new.parameters()).device
    optimizer = torch.optim.AdamW(new.parameters(), lr=lr, weight_decay=0.0)
    line = _turns(np.flatnonzero(used), steps * batch, seed)
    with torch.enable_grad():
        for step in range(steps):
            rows = line[step * batch : (step + 1) * batch]
            optimizer.zero_grad(set_to_none=True)
            total = sum(int(encoded.counts[slice(*encoded.offsets[i : i + 2])].sum()) for i in rows)
            for part in batches(encoded, rows, 4096):
                ids = torch.from_numpy(part.ids).to(place)
                places, targets = (torch.from_numpy(x).to(place) for x in part.shift())
                logits = new(input_ids=ids, use_cache=False).logits.flatten(0, 1)[places]
                loss = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
                (loss / total).backward()
            torch.nn.utils.clip_grad_norm_(new.parameters(), 1.0)
            optimizer.step()
            if told:
                told(step + 1, steps)
    new.zero_grad(set_to_none=True)
    return new


def _spans(encoded: Any) -> list[tuple[int, int]]:
    return list(zip(encoded.offsets[:-1].tolist(), encoded.offsets[1:].tolist(), strict=True))


def _turns(rows: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """`count` rows: every row once in each pass, passes in orders of their own."""
    passes = -(-count // max(1, len(rows)))
    draw = Rng(seed).at("relearn").generator()
    turns = [draw.permutation(rows) for _ in range(passes)]
    return np.concatenate([*turns, rows[:0]])[:count]


def quantised(model: Any, bits: int = 4) -> Any:
    """A copy whose weight matrices have 2^bits - 1 values a row."""
    if not 2 <= bits <= 16:
        raise DataError(f"2 to 16 bits, not {bits}", where="bits")
    new = copy.deepcopy(model)
    head = new.get_output_embeddings() if hasattr(new, "get_output_embeddings") else None
    with torch.no_grad():
        for layer in new.modules():
            if layer is head:
                continue
            if isinstance(layer, torch.nn.Linear):
                layer.weight.copy_(rounded(layer.weight, bits))
            elif type(layer).__name__ == "Conv1D":  # GPT-2 keeps its matrices transposed
                layer.weight.copy_(rounded(layer.weight.T, bits).T)
    return new


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """A matrix after symmetric rounding to `bits` bits by the largest of each row."""
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True).float() / top
    levels = (weight.float() / scale.clamp_min(1e-30)).round()
    found: torch.Tensor = (levels * scale).to(weight.dtype)
    return found


def prefixed(texts: Sequence[str], prefix: str) -> list[tuple[str, str]]:
    """The texts behind a prefix that does not count itself."""
    return [(prefix, text) for text in texts]


def initial_strings(texts: Sequence[str], words: int = 3, least: int = 2) -> list[tuple[str, int]]:
    """The first `words` words that begin at least `least` different texts, most often first."""
    heads = Counter(" ".join(text.split()[:words]) for text in set(texts))
    found = [(head, n) for head, n in heads.items() if n >= least and head]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def telling_words(forget: Sequence[str], retain: Sequence[str], count: int = 3) -> list[str]:
    """Words of three letters and more that stand in forget far more often than in retain."""
    ours, theirs = _document_counts(forget), _document_counts(retain)

    def weight(word: str) -> float:
        here = ours[word] / max(1, len(forget))
        return float(here * np.log(here / ((theirs[word] + 1) / (len(retain) + 1))))

    return sorted(ours, key=lambda word: (-weight(word), word))[:count]


def _document_counts(texts: Sequence[str]) -> Counter[str]:
    return Counter(w for text in texts for w in set(re.findall(r"[^\W\d_]{3,}", text)))


def is_refusal(answer: str) -> bool:
    """Whether an answer admits ignorance or declines (English)."""
    return bool(_REFUSAL.search(answer)) or not answer.strip()


def refusals(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Sequence[str]],
    *,
    new_tokens: int = 32,
    device: str | None = None,
) -> npt.NDArray[np.float64]:
    """[n] share of the paraphrases of each question that are answered with a refusal."""
    flat = [TEMPLATE.replace("{prompt}", words) for each in questions for words in each]
    ids = tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else []
    start = start_of(tokenizer)
    prompts = [[*start, *line] for line in ids]
    told = greedy(model, prompts, new_tokens, device=device, end=tokenizer.eos_token_id)
    refused = iter(is_refusal(tokenizer.decode(line, skip_special_tokens=True)) for line in told)
    shares = [[next(refused) for _ in each] for each in questions]
    return np.array([np.mean(each) if each else np.nan for each in shares])


def paraphrased(question: str, others: Sequence[str] = ()) -> list[str]:
    """A question in several wordings: those that are given, or the same in frames."""
    if others:
        return [question, *others]
    return [frame.format(question=question) for frame in FRAMES]


def contexts(path: Sequence[str]) -> list[str]:
    """What stands before a document when its key path is given level by level."""
    return ["/".join(path[: depth + 1]) for depth in range(len(path))]
