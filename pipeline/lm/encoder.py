"""A fine-tuned text encoder with a regression head: labels of some texts, extrapolated to all.

    f(text) = mean + spread (v . h + b),     h = (1 / T) sum_t h_t

h_t are the encoder's last hidden states at the T tokens of the text, its own special tokens
included. Tokens are cut after `segments` x `max_length`; each stretch of `max_length` is encoded
apart and the mean runs over all of them. Training minimises the mean square error on labels
standardised by the training part's mean and spread, with AdamW, a rate that falls linearly to 0,
gradients clipped to norm 1, no decay of biases and norms. A tenth of the documents, chosen by a
hash of the id, is held out; the state with the best Spearman there is kept. The facts give the
agreement there: that very number chose the state, so it flatters a little.

Any AutoModel that is not an encoder-decoder (tested: BERT, RoBERTa, DistilBERT, GPT-2), by folder
or hub id, safetensors only, none of its code is run. Targets in any unit and direction,
predictions in the same. Rows whose label is not finite, and texts without tokens (predicted as
NaN), are left out and counted. Errors: ModelError where it does not load, DataError for fewer than
20 distinct labelled documents. In float32 a prediction does not depend on its batch up to 1e-5
spreads. Cost: 3 x epochs forwards of the labelled texts and one of each text predicted.

Source: MATES (Yu, Das, Xiong 2024), its released code: BERT-base, two segments of 512, 5 epochs,
AdamW at 5e-5 with decay 0.01 and batches of 256, best Spearman on a held-out tenth every 20 steps.
PDS (Gu et al. 2025) does the same with a causal model of 125 M parameters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors import SafetensorError

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.dual import folds
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.regress import agreement, moments
from foresift.pipeline.lm.regressor import (
    Documents,
    EncoderSpec,
    Regressor,
    batches,
    load_regressor,
    seeded,
    tokens,
)
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts, publish, temporary

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
_HEAD = "head.safetensors"
_UNREADABLE = (OSError, SafetensorError, json.JSONDecodeError, KeyError, TypeError, RuntimeError)


def decode(encoded: Encoded, tokenizer: Any) -> list[str]:
    """The texts of documents tokenised for another model, without special tokens."""
    documents = np.split(encoded.ids, encoded.offsets[1:-1])[: len(encoded)]
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return [str(tokenizer.decode(each.tolist(), **plain)) for each in documents]


@dataclass(frozen=True)
class Encoder:
    """A fitted encoder: `fit`, `predict`, `save`, `load`, `facts`."""

    spec: EncoderSpec
    model: Regressor
    tokenizer: Any
    mean: float
    spread: float
    """Of the training labels; predictions are in their unit."""
    report: Facts

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        targets: npt.ArrayLike,
        spec: EncoderSpec,
        *,
        ids: pa.Array | pa.ChunkedArray | None = None,
        where: str = "encoder",
    ) -> Encoder:
        """Fine-tune on [n] targets. `ids` keep copies of a document on one side of the split."""
        y = np.asarray(targets, dtype=np.float64)
        if y.shape != (len(texts),):
            raise DataError(f"labels of shape {y.shape} for {len(texts)} texts", where=where)
        with seeded(spec):
            model, tokenizer = load_regressor(spec)
            documents = tokens(texts, tokenizer, spec.segments * model.width)
            usable = np.isfinite(y) & np.array([len(d) > 0 for d in documents], dtype=np.bool_)
            kept = np.flatnonzero(usable)
            new = folds(kept, ids, spec.held_out, where) == 0
            train, test = kept[~new], kept[new]
            mean, spread = (float(m[0]) for m in moments(y[train][:, None]))
            fitted = cls(spec, model, tokenizer, mean, spread, {})
            steps = _train(fitted, documents, y, train, test) if spread > 0 else {"steps": 0}
            told = agreement(y[test], fitted._predict([documents[i] for i in test]))
        counts = {"labels": len(kept), "left_out": len(y) - len(kept), "held_out": len(test)}
        report = {**counts, **steps, **told, "constant": spread == 0}
        return cls(spec, model, tokenizer, mean, spread, report)

    def predict(self, texts: Sequence[str]) -> Floats:
        """float32 [n] in the labels' unit; NaN for a text without tokens."""
        return self._predict(tokens(texts, self.tokenizer, self.spec.segments * self.model.width))

    def _predict(self, documents: Documents) -> Floats:
        found = np.full(len(documents), np.nan, dtype=np.float32)
        self.model.eval()
        with torch.inference_mode():
            for rows in batches(documents, self.spec, self.model):
                z = self.model([documents[i] for i in rows]).double().cpu().numpy()
                found[rows] = z * self.spread + self.mean
        return found

    def facts(self) -> Facts:
        """How many labels, which step was kept, and the agreement with labels held out."""
        return dict(self.report)

    def save(self, folder: Path) -> None:
        """Write encoder, tokenizer and, last, the head: it is there = all is there."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self.model.body.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        about = {"mean": self.mean, "spread": self.spread, "facts": self.report}
        about["spec"] = self.spec.settings()
        tensors = {n: t.detach().cpu() for n, t in self.model.head.state_dict().items()}
        partial = temporary(folder / _HEAD)
        save_file(tensors, partial, metadata={"encoder": json.dumps(about, sort_keys=True)})
        publish(partial, folder / _HEAD)

    @classmethod
    def load(cls, folder: Path, device: str = "auto", batch_tokens: int = 0) -> Encoder:
        """What `save` wrote."""
        from safetensors import safe_open

        path = folder / _HEAD
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["encoder"])
                head = {name: file.get_tensor(name) for name in ("weight", "bias")}
            spec = EncoderSpec(**about["spec"], device=device, batch_tokens=batch_tokens)
            with seeded(spec):
                model, tokenizer = load_regressor(replace(spec, init=str(folder), revision=""))
            model.head.load_state_dict(head)
            return cls(spec, model, tokenizer, about["mean"], about["spread"], about["facts"])
        except _UNREADABLE as error:
            message = f"no fitted encoder can be read ({type(error).__name__}); fit it again"
            raise ModelError(message, where=str(path)) from error


def _train(fitted: Encoder, documents: Documents, y: Doubles, train: Any, test: Any) -> Facts:
    """Train the model of `fitted` in place and leave it in its best state."""
    spec, model = fitted.spec, fitted.model
    z = (y - fitted.mean) / fitted.spread
    a_pass = -(-len(train) // spec.batch)
    total = a_pass * spec.epochs
    optimizer = _adamw(model, spec)
    best: tuple[float, int, dict[str, Any]] = (-np.inf, 0, {})
    for step in range(total):
        draws = Rng(spec.seed).at("encoder", step // a_pass).generator()
        order = train[draws.permutation(len(train))]
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * (1.0 - step / total)
        _step(fitted, documents, z, order[step % a_pass :: a_pass], optimizer)
        if (step + 1) % spec.evaluate_every == 0 or step + 1 == total:
            guess = fitted._predict([documents[i] for i in test])
            found = agreement(y[test], guess)["spearman"]
            if not best[2] or (found is not None and found > best[0]):
                state = {name: t.detach().clone() for name, t in model.state_dict().items()}
                best = (-np.inf if found is None else found, step + 1, state)
    model.load_state_dict(best[2])
    return {"steps": total, "best_step": best[1]}


def _adamw(model: Regressor, spec: EncoderSpec) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": spec.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=spec.learning_rate)


def _step(fitted: Encoder, documents: Documents, z: Doubles, rows: Any, optimizer: Any) -> None:
    """One optimizer step on the mean square error of some documents, in forwards that fit."""
    model = fitted.model.train()
    chosen = [documents[i] for i in rows]
    optimizer.zero_grad(set_to_none=True)
    for part in batches(chosen, fitted.spec, model):
        target = torch.from_numpy(z[rows[part]]).to(model.device, torch.float32)
        error = model([chosen[i] for i in part]) - target
        (error.square().sum() / len(rows)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
