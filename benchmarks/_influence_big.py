"""Peak memory of influence on a model of 160M parameters, for benchmarks/influence.py --big.

The shape is Pythia-160M's (GPT-NeoX: 12 layers of 768, 12 heads, 50,304 tokens, not tied), weights
and AdamW's moments are random: 2 numbers a parameter beside each weight, so that the preconditioned
path runs. Printed after each phase: CPU seconds, and the peak resident memory of this process so
far. It runs in a process of its own.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.forward import score_table
from foresift.pipeline.lm.gradients import probes
from foresift.pipeline.lm.gradients.adamw import OPTIMIZER, AdamW, load_moments
from foresift.pipeline.lm.gradients.directional import sample
from foresift.pipeline.lm.gradients.reference import reference_set
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.scorers.influence import Influence

BIG = {
    "vocab_size": 50304, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "rotary_pct": 0.25, "use_parallel_residual": True,
    "max_position_embeddings": 2048,
}  # fmt: skip
SMALL = {
    **BIG, "vocab_size": 512, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 96,
}  # fmt: skip
GOAL = 24.0


def write_checkpoint(folder: Path, shape: dict[str, Any]) -> int:
    """A model with random weights, random moments and a word-level tokenizer; its parameters."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPTNeoXConfig(**shape))
    model.save_pretrained(folder)
    moments = {}
    for name, p in model.named_parameters():
        moments[f"exp_avg.{name}"] = torch.randn_like(p.detach()) * 1e-4
        moments[f"exp_avg_sq.{name}"] = torch.rand_like(p.detach()) * 1e-6 + 1e-8
    save_file(moments, folder / OPTIMIZER, metadata={"step": "1000"})
    size = shape["vocab_size"]
    words = {f"w{i}": i for i in range(size - 1)} | {"<eos>": size - 1}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(folder)
    return int(sum(p.numel() for p in model.parameters()))


class Phases:
    """Prints and keeps what each phase cost."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.began = time.process_time()

    def done(self, name: str) -> None:
        """Call at the end of a phase."""
        now = time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        row = {"phase": name, "seconds": round(now - self.began, 1), "peak_gb": round(peak, 2)}
        self.rows.append(row)
        print(f"  {name:34} {row['seconds']:8.1f} s  {row['peak_gb']:6.2f} GB", flush=True)
        self.began = now


def main() -> None:
    torch.set_num_threads(1)
    smoke = "--smoke" in sys.argv[1:]
    phases = Phases()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = write_checkpoint(folder / "model", SMALL if smoke else BIG)
        phases.done("written")
        measure(folder, (SMALL if smoke else BIG)["vocab_size"], phases)
    print(json.dumps({"parameters": parameters, "phases": phases.rows}))


def measure(folder: Path, words: int, phases: Phases) -> None:
    """Load, prepare, label, score."""
    spec = ModelSpec(init=str(folder / "model"), max_length=128, device="cpu", threads=1)
    loaded, rule = load(spec), AdamW()
    moments = load_moments(spec, loaded.model)
    phases.done("model and moments loaded")
    aim = reference_set(encoded(documents(32, 256, words), loaded, 256))
    table = documents(64, 126, words)
    candidates = encoded(table, loaded, 128)
    few = sample(candidates, range(16))
    probe, _ = probes.prepare([(aim, 1.0)], loaded, rule, moments, few)
    phases.done("prepared, 32 x 256 tokens")
    linear = probes.linear(probe, few, loaded)
    phases.done("16 linear labels, 128 tokens")
    exact = probes.exact([aim], sample(candidates, range(2)), loaded, rule, moments)
    phases.done("2 exact labels")
    probes.save(probe, folder / "fit")
    (folder / "fit" / "method.json").write_text('{"method": "direct", "weights": [1.0]}')
    scorer = Influence(reference="reference", method="direct")
    found = score_table(table, spec, [scorer], [folder / "fit"])[0]["utility"]
    phases.done("64 documents scored directly")
    assert np.isfinite(linear).all()
    assert np.isfinite(exact).all()
    assert np.allclose(found[:16], linear[:, 0], rtol=1e-2, atol=1e-2 * linear.std())


def documents(count: int, length: int, words: int) -> pa.Table:
    """Random words, with ids."""
    rng = np.random.default_rng(count)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, words - 1, length)) for _ in range(count)]
    return pa.table({"id": pa.array([rng.bytes(16) for _ in texts], pa.binary(16)), "text": texts})


def encoded(table: pa.Table, loaded: Loaded, length: int) -> Encoded:
    spec = ModelSpec(init="unused", max_length=length)
    return encode(table, loaded.tokenizer, spec)


if __name__ == "__main__":
    main()
