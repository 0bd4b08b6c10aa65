"""The arms of `forgetting.py` that train: each is two recipes, one that curates, one that trains.

    none      everything, as it comes
    curated   what `forget_risk` decides from copies, personal data, secrets, licences, dates behind
              the cut-off, evaluation items, names beside contacts and junk: kept or redacted is
              trained on, dropped, capped or quarantined is not; and junk as below
    dedup     exact and near copies only               pii    personal data and secrets only
    junk      junk only                                oracle none, without what must be forgotten

Every arm trains the same model with the same seed on the same number of tokens in the same steps;
a smaller corpus comes again. What curates writes an export (redacted where it says so), what trains
reads it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _recipes
from _forgetting_corpus import CUTOFF, Truth, write

#: part -> columns that findings of personal data are redacted from
REDACT = ["pii.findings", "secrets.findings"]
COPIES: list[dict[str, Any]] = [
    {"dedup": "exact", "normalise": True},
    {"dedup": "minhash", "threshold": 0.8},
]
#: what loops, and what has no word that binds
CLEAN = "heuristics.duplicated_5_grams < 0.3 and surface.stop_word_share > 0.05"
FEATURES = [
    "licence", "personal", "secrets", "names", "temporal", "contamination", "junk", "copies",
]  # fmt: skip
PERSONAL: list[dict[str, Any]] = [
    {"score": ["pii", "secrets"]},
    {"select": "where", "as": "personal", "keep": "pii.spans <= 5 and secrets.count <= 5"},
]


@dataclass(frozen=True)
class Tier:
    """How much of everything."""

    items: int
    background: int
    tokens: int
    width: int
    layers: int
    heads: int = 4
    length: int = 128
    batch_rows: int = 6
    learning_rate: float = 2e-3
    checkpoint_every: int = 0


SMOKE = Tier(items=2, background=24_000, tokens=30_000, width=64, layers=2, learning_rate=4e-3)
STANDARD = Tier(items=12, background=200_000, tokens=1_600_000, width=96, layers=3)


@dataclass(frozen=True)
class Arm:
    """A trained arm: where its model is, and what it took."""

    name: str
    checkpoint: Path
    train: dict[str, Any]
    """The manifest of its training."""
    curate: dict[str, Any] | None
    """The manifest of its curation."""

    @property
    def flops(self) -> float:
        """Of the training, and of what scored with a model."""
        told = [self.train, *([self.curate] if self.curate else [])]
        parts = [step["facts"].get("flops") or {} for m in told for step in m["steps"]]
        return float(sum(value for part in parts for value in part.values() if value))

    @property
    def seconds(self) -> tuple[float, float]:
        """(curating, training)."""
        training = _recipes.step(self.train, "train")["seconds"]
        return (self.curate["seconds"] if self.curate else 0.0), training


def model_config(tier: Tier, folder: Path) -> Path:
    """A Llama of this tier over bytes."""
    path = folder / "model.json"
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 257,
        "hidden_size": tier.width, "intermediate_size": 4 * tier.width,
        "num_hidden_layers": tier.layers, "num_attention_heads": tier.heads,
        "num_key_value_heads": tier.heads, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    path.write_text(json.dumps(config))
    return path


def train(name: str, data: Path, folder: Path, tier: Tier, seed: int) -> dict[str, Any]:
    """Train on a file; the manifest."""
    recipe = {
        "name": name, "seed": seed,
        "data": {"read": "jsonl", "paths": [str(data)], "source": "source", "holdout": 0.0},
        "model": {
            "init": str(model_config(tier, folder)), "tokenizer": "bytes", "max_length": 512,
            "seed": seed,
        },
        "steps": [training(tier)],
        "report": False,
    }  # fmt: skip
    return _recipes.run(recipe, folder / f"{name}.yaml", folder / name)


def training(tier: Tier) -> dict[str, Any]:
    """The training step of every arm."""
    batch = tier.batch_rows * tier.length
    return {
        "train": "causal_lm", "tokens": tier.tokens, "repeat": True, "length": tier.length,
        "batch_tokens": batch, "micro_tokens": batch, "learning_rate": tier.learning_rate,
        "threads": 1,
        **({"checkpoint_every": tier.checkpoint_every} if tier.checkpoint_every else {}),
    }  # fmt: skip


def curation(name: str, exam: Path) -> tuple[list[dict[str, Any]], bool]:
    """(the steps of an arm that curates, whether its export is redacted)."""
    if name == "dedup":
        return COPIES, False
    if name == "pii":
        return PERSONAL, True
    junk = {"score": ["heuristics", "surface"]}
    if name == "junk":
        return [junk, {"select": "where", "as": "clean", "keep": CLEAN}], False
    risk: list[dict[str, Any]] = [
        {"score": ["pii", "secrets", "entity_rarity", "copies"]},
        {"score": "junk", "brief": 0},
        {"score": "licence", "declared": "license", "url": "source", "contested": ["wire/"]},
        {"score": "temporal_leak", "cutoff": CUTOFF},
        {"score": "contamination", "reference": {"read": "jsonl", "paths": [str(exam)]}},
        junk,
        {"score": "forget_risk", "features": FEATURES},
        {
            "select": "where", "as": "risk",
            "keep": f"forget_risk.decision in ['keep', 'redact'] and {CLEAN}",
        },
    ]  # fmt: skip
    return [*risk, *COPIES], True


def curate(name: str, data: Path, exam: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Curate a file; the manifest. The export is `exported(manifest)`."""
    steps, redacted = curation(name, exam)
    recipe = {
        "name": f"curate-{name}", "seed": seed,
        "data": {
            "read": "jsonl", "paths": [str(data)], "source": "source", "columns": ["license"],
            "holdout": 0.0,
        },
        "steps": [*steps, {"export": "jsonl", "redact": REDACT if redacted else []}],
        "report": False,
    }  # fmt: skip
    return _recipes.run(recipe, folder / f"curate-{name}.yaml", folder / f"curate-{name}")


def exported(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that a curation wrote."""
    folder = Path(_recipes.step(manifest, "export")["path"])
    rows = []
    for path in sorted(folder.glob("part-*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
    return rows


def run(
    name: str, rows: Sequence[dict[str, str]], truth: Truth, folder: Path, tier: Tier, seed: int
) -> Arm:
    """Curate (if the arm does) and train."""
    everything = folder / "corpus.jsonl.gz"
    if not everything.exists():
        write(rows, everything)
        exam = [{"text": p.prefix + p.value + "."} for p in truth.of("contamination")]
        write(exam, folder / "exam.jsonl.gz")
    told, data = None, everything
    if name == "oracle":
        data = folder / "oracle.jsonl.gz"
        gone = truth.deletion
        write([row for row in rows if row["text"] not in gone], data)
    elif name != "none":
        told = curate(name, everything, folder / "exam.jsonl.gz", folder, seed)
        data = folder / f"{name}.jsonl.gz"
        write([{k: row[k] for k in ("text", "source")} for row in exported(told)], data)
    trained = train(name, data, folder, tier, seed)
    return Arm(name, Path(_recipes.step(trained, "train")["path"]) / "checkpoint", trained, told)
