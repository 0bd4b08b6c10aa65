"""Tokens per second of the model pass, against a bare forward and against the usual loop.

    python benchmarks/lm_scoring.py                    CPU float32 and bfloat16, or the GPU
    python benchmarks/lm_scoring.py --smoke            under a minute
    python benchmarks/lm_scoring.py --model gpt2 --domain pile_cc --documents 64

What is timed, on the same documents and the same random weights, best of `--repeats`:
- five:   `score_table` with nll, entropy, top probability, margin and hidden mean, from strings,
          tokenising included, on documents with the length distribution of a pile domain;
- one:    the same with nll alone;
- bare:   `model(input_ids)`, logits in the model's precision and thrown away, over ready-made
          batches without any padding, every row as long as the model allows; its best batch size;
- usual:  batches of 8 in row order, padded to the maximum length with an attention mask, logits in
          float32, and the same five signals from a full log-softmax (usual_one: nll alone).

Rates count real tokens. Documents are random words under a word-level tokenizer as large as the
model's vocabulary; their lengths come from the quantiles below (bytes at 0, 5, ..., 100 %, at 4.2
bytes per token), so no data is needed. Neither Ray nor faiss nor datasets is imported.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from foresift.pipeline.lm.forward import cpu_threads, score_table
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.scorers.embedding import Embedding
from foresift.scorers.loss import Loss
from foresift.scorers.uncertainty import Uncertainty

DOMAINS = {
    "openwebtext2": [
        558, 804, 1031, 1222, 1425, 1651, 1841, 2086, 2339, 2612, 2931, 3285, 3618, 4039,
        4555, 4975, 5743, 6799, 8415, 12218, 100312,
    ],
    "pile_cc": [
        536, 693, 858, 981, 1121, 1250, 1455, 1681, 1886, 2117, 2407, 2690, 3155, 3489,
        3916, 4546, 5470, 6813, 8899, 16085, 100067,
    ],
    "pubmed_abstracts": [
        625, 781, 873, 969, 1042, 1090, 1146, 1211, 1269, 1341, 1396, 1469, 1525, 1598,
        1664, 1742, 1806, 1886, 1976, 2155, 4388,
    ],
    "stackexchange": [
        505, 684, 782, 870, 950, 1041, 1125, 1239, 1324, 1421, 1520, 1670, 1834, 1998,
        2205, 2427, 2688, 3155, 3827, 4906, 28071,
    ],
    "github": [
        306, 808, 925, 1016, 1104, 1190, 1274, 1363, 1451, 1559, 1697, 1882, 2279, 2733,
        3326, 3913, 5203, 6812, 10059, 18556, 85831,
    ],
}  # fmt: skip
BYTES_PER_TOKEN = 4.2
_LLAMA = {"model_type": "llama", "max_position_embeddings": 4096}
MODELS = {
    "tiny": {
        **_LLAMA, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "vocab_size": 8192,
    },
    "small": {
        **_LLAMA, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
        "num_attention_heads": 6, "vocab_size": 32000,
    },
    "gpt2": {"model_type": "gpt2", "vocab_size": 50257},
    "pythia-410m": {
        "model_type": "gpt_neox", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "vocab_size": 50304,
    },
    "llama-1b": {
        **_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
FIVE = (Loss(), Uncertainty(), Embedding())
ONE = (Loss(),)


def main() -> None:
    args = arguments()
    gpu = torch.cuda.is_available()
    dtypes = args.dtypes or (["bfloat16"] if gpu else ["float32", "bfloat16"])
    results = []
    for dtype in dtypes:
        with tempfile.TemporaryDirectory() as folder:
            spec = write_model(Path(folder), args, dtype)
            results.append(measure(spec, args))
        print_row(results[-1])
    print(json.dumps(summary(results, args)))


def arguments() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="llama-1b" if gpu else "small")
    parser.add_argument("--domain", choices=DOMAINS, default="pile_cc")
    parser.add_argument("--documents", type=int, default=1024 if gpu else 24)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch-tokens", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", nargs="*", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few documents")
    args = parser.parse_args()
    if args.smoke:
        args.model, args.documents, args.repeats = "tiny", 20, 2
    return args


def write_model(folder: Path, args: argparse.Namespace, dtype: str) -> ModelSpec:
    """A configuration and a word-level tokenizer of the same size, as files."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    config = MODELS[args.model]
    size = int(str(config["vocab_size"]))
    words = {f"w{i}": i for i in range(size - 1)} | {"<eos>": size - 1}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(folder / "t")
    (folder / "model.json").write_text(json.dumps(config))
    return ModelSpec(
        init=str(folder / "model.json"),
        tokenizer=str(folder / "t"),
        dtype=dtype,  # type: ignore[arg-type]
        max_length=args.max_length,
        batch_tokens=args.batch_tokens,
        threads=args.threads,
    )


def documents(args: argparse.Namespace) -> pa.Table:
    """Random words; lengths evenly spaced over the domain's distribution, in shuffled order."""
    rng = np.random.default_rng(0)
    shares = (np.arange(args.documents) + 0.5) / args.documents
    sizes = np.interp(shares, np.linspace(0, 1, 21), DOMAINS[args.domain]) / BYTES_PER_TOKEN
    sizes = rng.permutation(np.maximum(1, sizes).astype(int))
    size = int(str(MODELS[args.model]["vocab_size"])) - 1
    texts = [" ".join(f"w{i}" for i in rng.integers(0, size, n)) for n in sizes]
    ids = [rng.bytes(16) for _ in texts]
    return pa.table({"id": pa.array(ids, pa.binary(16)), "text": texts})


def measure(spec: ModelSpec, args: argparse.Namespace) -> dict[str, Any]:
    """Real tokens per second of every contestant, taken in turns so that a busy machine is fair."""
    loaded, table = load(spec), documents(args)
    with cpu_threads(args.threads if loaded.device == "cpu" else 0):
        ids = tokenise(table, loaded, args.max_length)
        real = sum(map(len, ids))
        sizes = (8, 64) if loaded.device != "cpu" else (1, 2, 8)
        rows = {f"bare_{size}": size for size in sizes}
        runs: dict[str, tuple[Callable[[], object], int]] = {
            "five": (lambda: score_table(table, spec, FIVE), real),
            "one": (lambda: score_table(table, spec, ONE), real),
            "usual": (lambda: usual(ids, loaded, args.max_length, every=True), real),
            "usual_one": (lambda: usual(ids, loaded, args.max_length, every=False), real),
        }
        for name, size in rows.items():
            filled = full_batches(real, size, args, loaded)
            tokens = sum(b.numel() for b in filled)
            runs[name] = (lambda filled=filled: bare(filled, loaded), tokens)  # type: ignore[misc]
        rates = race(runs, args.repeats, loaded.device)
    rates["bare"] = max(rates.pop(name) for name in rows)
    return {"dtype": spec.dtype, "device": loaded.device, "tokens": real, **rates}


def race(
    runs: dict[str, tuple[Callable[[], object], int]], repeats: int, device: str
) -> dict[str, float]:
    """Best rate of each run over rounds in which every run has its turn; one round warms up."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(repeats + 1):
        for name, (run, _) in runs.items():
            start = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return {name: tokens / best[name] for name, (_, tokens) in runs.items()}


def tokenise(table: pa.Table, loaded: Loaded, limit: int) -> list[list[int]]:
    end = loaded.tokenizer.eos_token_id
    found = loaded.tokenizer(table["text"].to_pylist())["input_ids"]
    return [[end, *ids, end][:limit] for ids in found]


def full_batches(
    real: int, rows: int, args: argparse.Namespace, loaded: Loaded
) -> list[torch.Tensor]:
    """Batches without padding, about as many tokens as the documents have."""
    count = max(1, round(real / (rows * args.max_length)))
    size = len(loaded.tokenizer)
    shape = (rows, args.max_length)
    return [torch.randint(0, size, shape, device=loaded.device) for _ in range(count)]


@torch.inference_mode()
def bare(filled: list[torch.Tensor], loaded: Loaded) -> None:
    for ids in filled:
        loaded.model(input_ids=ids, use_cache=False)


@torch.inference_mode()
def usual(ids: list[list[int]], loaded: Loaded, limit: int, *, every: bool) -> list[Any]:
    """The loop most scripts have: fixed batches, padding to the maximum, all logits in float32."""
    found = []
    for start in range(0, len(ids), 8):
        some = ids[start : start + 8]
        padded = torch.zeros(len(some), limit, dtype=torch.long)
        mask = torch.zeros(len(some), limit, dtype=torch.long)
        for row, document in enumerate(some):
            padded[row, : len(document)] = torch.tensor(document)
            mask[row, : len(document)] = 1
        padded, mask = padded.to(loaded.device), mask.to(loaded.device)
        out = loaded.model(
            input_ids=padded, attention_mask=mask, use_cache=False, output_hidden_states=every
        )
        logp = out.logits[:, :-1].float().log_softmax(-1)
        weight = mask[:, 1:] / mask[:, 1:].sum(1, keepdim=True)
        signals = [-logp.gather(2, padded[:, 1:, None])[..., 0]]
        if every:
            p = logp.exp()
            two = p.topk(2).values
            signals += [-(p * logp).sum(-1), two[..., 0], two[..., 0] - two[..., 1]]
            hidden = out.hidden_states[-1].float() * mask[..., None]
            found.append((hidden.sum(1) / mask.sum(1, keepdim=True)).cpu())
        found += [(s * weight).sum(1).cpu() for s in signals]
    return found


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    where = f"{result['device']} {result['dtype']}"
    ratios = [
        ("five signals / bare forward", 0.9, result["five"] / result["bare"]),
        ("five signals / usual loop", 3.0, result["five"] / result["usual"]),
        ("five signals / one signal", 1 / 1.25, result["five"] / result["one"]),
    ]
    return [
        {
            "name": f"{name}, {where}",
            "goal": goal,
            "measured": round(ratio, 3),
            "met": ratio >= goal,
        }
        for name, goal, ratio in ratios
    ]


def print_row(result: dict[str, Any]) -> None:
    print(f"{result['device']} {result['dtype']}: {result['tokens']} tokens, tokens per second")
    for name in ("five", "one", "bare", "usual", "usual_one"):
        ratio = result["five"] / result[name]
        print(f"  {name:10} {result[name]:12,.0f}   five / {name}: {ratio:.2f}")


def summary(results: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    return {
        "benchmark": "lm_scoring",
        "settings": vars(args),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "results": results,
        "goals": [goal for result in results for goal in goals(result)],
    }


if __name__ == "__main__":
    main()
