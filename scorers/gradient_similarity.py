"""How much the gradient of a document agrees with that of a reference: LESS, TracIn, CosIn, TRAK.

With g_c(x) the gradient of the document's mean NLL at checkpoint c, z the documents of reference r
and w_c a checkpoint's weight:

    tracin     s_r(x) = sum_c eta_c <g_c(x), mean_z g_c(z)>               eta_c: its learning rate
    grad_dot   s_r(x) = sum_c <g_c(x), mean_z g_c(z)>
    cosin      s_r(x) = sum_c w_c mean_z cos(g_c(x), g_c(z))
    less       s_r(x) = sum_c w_c mean_z cos(S a_c(x), S g_c(z))          a: Adam's step on x
    trak       s_r(x) = sum_c w_c Q(x) phi(x)' K^-1 mean_z phi(z),        K = Phi' Phi / n + l I
               phi = S grad log(p / (1 - p)) = -S g / (1 - p)             Q = 1 - p, p = exp(-nll)

    utility = max_r weight_r s_r(x)        larger = keep first; the weights w_c add up to 1

Every reference is one of LESS's subtasks. S is a projection on random signs (`_projection.py`),
a is in `_gradient_features.py`, and Phi has the phi of n documents of the pool. A document counts
as one prediction of probability p, its tokens' geometric mean. For trak Q phi and phi' are of the
same checkpoint (the paper multiplies their means over checkpoints), and l is `ridge` times the mean
eigenvalue of Phi' Phi / n.

Checkpoints are the folders named, or the step's own model. LESS without folders trains adapters
first (`_warmup.py`): gradients are then those of the adapters alone. As only means over z are kept
and features of the pool never, less without projection (`projection: 0`) is exact and cheaper; with
it, it is the released code's estimate, within 1 / sqrt(k). cosin, tracin and grad_dot are exact.

NaN: documents without counted tokens, or whose gradient is zero (of a cosine) or not finite.
Errors: ModelError for a checkpoint that is not there, is of another vocabulary, or (less) has no
moments; DataError for a reference whose gradient is zero or not finite.
Cost, in forwards of the pool: 3 a checkpoint, one document at a time for less and trak, whose
projections take 2 k P operations a document more (P trainable parameters). Memory: one vector of P
(or k) a reference and checkpoint. In the other variants documents of like length share a forward.
Sources: TracIn (Pruthi et al. 2020, eq. 1 and section 3), TRAK (Park et al. 2023, eq. 17), LESS
(Xia et al. 2024, sections 3 and 4).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from foresift.pipeline import references, sampling
from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.estimate import count_parameters
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.forward import cpu_threads
from foresift.pipeline.lm.gradients.adamw import load_moments
from foresift.pipeline.lm.model import Loaded, ModelSpec, load, local
from foresift.pipeline.lm.signals import Window
from foresift.pipeline.nouns import Arrays, FittedModelScorer, Look
from foresift.pipeline.parts import digest
from foresift.pipeline.references import Aims
from foresift.pipeline.store import Facts, publish, read_json, temporary, write_json
from foresift.pipeline.tables import Column
from foresift.scorers import _warmup
from foresift.scorers._gradient_features import Adam, Similarity, Variant, counted
from foresift.scorers._projection import Projection
from foresift.scorers._warmup import Adapters, WarmUp

_ABOUT = "checkpoints.json"


@dataclass(frozen=True, kw_only=True)
class GradientSimilarity(FittedModelScorer):
    """Agreement of a document's gradient with a reference's (LESS, TracIn, CosIn, TRAK)."""

    reference: Aims
    """What to aim at, as in `influence`; each reference is a subtask, the best one counts."""
    variant: Variant = "less"
    """The similarity, as above."""
    checkpoints: tuple[str, ...] = ()
    """Folders with weights; empty: the step's model, or for less those of its warm-up."""
    rates: tuple[float, ...] = ()
    """Learning rate (tracin) or weight of each checkpoint; empty: 1 each, or the warm-up's own."""
    projection: int = 0
    """Dimensions that less and trak project gradients on; 0: none, which is exact and cheaper for
    less, as no features are kept (its released code: 8192). trak needs one, such as 2048."""
    seed: int = 0
    """Of the projection's signs and of the adapters."""
    betas: tuple[float, float] = (0.9, 0.999)
    """less: of the AdamW that made the moments beside `checkpoints`."""
    compat: bool = True
    """less: Adam's feature as in the released code; false: as Adam's own step."""
    rank: int = 128
    """Of the warm-up's adapters; 0: no warm-up, but the model's own moments and all parameters."""
    alpha: int = 512
    """Of the adapters: their output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Ends of the names of the modules with adapters; empty: the attention projections."""
    share: str | int = "5%"
    """Documents of the pool in the warm-up: a number, or a share of it."""
    epochs: int = 4
    """Of the warm-up; each leaves a checkpoint."""
    batch: int = 32
    """Documents in an update of the warm-up."""
    learning_rate: float = 2e-5
    """Peak of the warm-up's linear schedule."""
    kernel_documents: int = 2000
    """trak: documents of the pool in its kernel."""
    ridge: float = 0.01
    """trak: regularisation, in mean eigenvalues of the kernel."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "similarity of gradients, by variant", "higher"),
        "by_reference": Column(pa.list_(pa.float32()), "the same with each reference"),
    }

    def __post_init__(self) -> None:
        sampling.share(self.share, "share")
        for name in ("alpha", "epochs", "batch", "learning_rate", "kernel_documents", "ridge"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.projection < 0 or self.rank < 0 or (self.variant == "trak" and not self.projection):
            raise ValueError("projection and rank are not negative; trak needs a projection")
        if self.rates and len(self.rates) != max(1, len(self.checkpoints)):
            raise ValueError(f"{len(self.rates)} rates for {len(self.checkpoints)} checkpoints")
        if self.rates and (self.variant == "grad_dot" or self.warms or min(self.rates) <= 0):
            raise ValueError("rates are positive; grad_dot and the warm-up have their own")

    @property
    def fingerprint(self) -> str:
        """What every part has, and the contents of the checkpoints."""
        return digest([super().fingerprint, [_contents(c) for c in self.checkpoints]])

    @property
    def aims(self) -> Any:
        return self.reference

    @property
    def warms(self) -> bool:
        """Whether there is a warm-up."""
        return self.variant == "less" and not self.checkpoints and self.rank > 0

    def fit(self, look: Look, out: Path) -> Facts:
        loaded = load(look.model)
        with cpu_threads(look.model.threads if loaded.device == "cpu" else 0):
            aims = {r.name: _encoded(references.load(r, 1), loaded, look) for r in look.references}
            for name, encoded in aims.items():
                if not len(counted(encoded)):
                    raise DataError("none of its documents has a token to predict", where=name)
            weights, read = self._weights(look, loaded, out)
            for number in range(len(weights)):
                if not _features(out, number).exists():
                    self._look(look, aims, number, out)
        about = {"weights": weights, "aims": [r.weight for r in look.references]}
        write_json(out / _ABOUT, about)
        if self.variant == "trak":
            read += _tokens(self._kernel(look, loaded)) * len(weights)
        read += sum(len(e.ids) for e in aims.values()) * len(weights)
        documents = {name: len(counted(e)) for name, e in aims.items()}
        return {
            "variant": self.variant, "weights": weights, "documents": documents,
            "flops": 6.0 * count_parameters(look.model) * read,
        }  # fmt: skip

    def signals(self, out: Path) -> tuple[str, ...]:
        return ()

    def passes(self, out: Path) -> float:
        return 3.0 * len(read_json(out / _ABOUT)["weights"])

    def estimate(self, parameters: int, pool: int, references: int) -> tuple[float, float]:
        number = self.epochs if self.warms else max(1, len(self.checkpoints))
        budget = sampling.share(self.share, "share")
        drawn = pool * budget.amount if budget.relative else min(pool, 300 * budget.amount)
        read = references * number + (drawn * self.epochs if self.warms else 0)
        if self.variant == "trak":
            read += min(pool, 300 * self.kernel_documents) * number
        return 6.0 * parameters * read, 3.0 * number

    def score(self, window: Window, out: Path) -> Arrays:
        about = read_json(out / _ABOUT)
        total = np.zeros((len(window.encoded), len(about["aims"])))
        for number, weight in enumerate(about["weights"]):
            loaded, adam = self._at(number, window.spec, window.loaded, out)
            total += weight * self._kind.values(window.encoded, loaded, adam, _read(out, number))
        values = np.where(np.isfinite(total), total, np.nan).astype(np.float32)
        utility = (values * np.asarray(about["aims"], dtype=np.float32)).max(axis=1)
        rows = [None if np.isnan(u) else v for u, v in zip(utility, values, strict=True)]
        return {"utility": utility, "by_reference": pa.array(rows, pa.list_(pa.float32()))}

    def _weights(self, look: Look, loaded: Loaded, out: Path) -> tuple[list[float], int]:
        """The weight of each checkpoint, and the tokens that a warm-up read."""
        found, read = list(self.rates) or [1.0] * max(1, len(self.checkpoints)), 0
        if self.warms:
            number = max(1, sampling.count(self.share, sampling.alive(look.corpus)))
            drawn = sampling.draw(look.corpus, number, look.job.rng.at("warmup"))
            encoded = _encoded(drawn, loaded, look)
            own = _warmup.adapted(look.model, self._adapters)
            rule = WarmUp(self.epochs, self.batch, self.learning_rate, self.seed)
            found, read = _warmup.train(own, encoded, rule, out), self.epochs * _tokens(encoded)
        if self.variant in ("tracin", "grad_dot"):
            return found, read
        if not sum(found):
            raise DataError(
                "the warm-up has one update, at rate 0; raise `share` or `epochs`, lower `batch`",
                where="gradient_similarity",
            )
        return [w / sum(found) for w in found], read

    @property
    def _adapters(self) -> Adapters:
        return Adapters(self.rank, self.alpha, self.targets)

    def _kernel(self, look: Look, loaded: Loaded) -> Encoded:
        drawn = sampling.draw(look.corpus, self.kernel_documents, look.job.rng.at("kernel"))
        return _encoded(drawn, loaded, look)

    def _at(
        self, number: int, spec: ModelSpec, model: Loaded, out: Path
    ) -> tuple[Loaded, Adam | None]:
        """The model of a checkpoint and, for less, Adam as it stood there."""
        at, betas = spec, self.betas
        if self.checkpoints:
            at = spec.at(_folder(self.checkpoints[number]))
            model = load(at)
        elif self.warms:
            at, betas = spec.at(_warmup.folder(out, number)), _warmup.BETAS
            model = _warmup.adapted(spec, self._adapters)
            _warmup.restore(model.model, Path(at.init))
        if self.variant != "less":
            return model, None
        moments = load_moments(at, model.model)
        if moments is None:
            raise ModelError(
                "has no optimizer.safetensors, AdamW's moments, which LESS reads; name checkpoints "
                "of `train: causal_lm`, let LESS warm up (rank above 0), or take variant: cosin",
                where=at.init,
            )
        return model, Adam.of(model.model, moments, betas, self.compat)

    @property
    def _kind(self) -> Similarity:
        project = Projection(self.projection, self.seed) if self.projection else None
        return Similarity(self.variant, project, self.ridge)

    def _look(self, look: Look, aims: Mapping[str, Encoded], number: int, out: Path) -> None:
        """Write what features are multiplied with at one checkpoint: [R, P], or [R, k]."""
        from safetensors.torch import save_file

        base = load(look.model)
        loaded, _ = self._at(number, look.model, base, out)
        if loaded.tokenizer.get_vocab() != base.tokenizer.get_vocab():
            raise ModelError(
                "its vocabulary is not that of the step's model", where=self.checkpoints[number]
            )
        rows = torch.stack([self._kind.aim(e, loaded, name) for name, e in aims.items()])
        if self.variant == "trak":
            rows = self._kind.whiten(rows, self._kernel(look, loaded), loaded)
        path = _features(out, number)
        save_file({"features": rows.cpu().contiguous()}, temporary(path))
        publish(temporary(path), path)


def _encoded(table: pa.Table, loaded: Loaded, look: Look) -> Encoded:
    return encode(table, loaded.tokenizer, look.model)


def _tokens(encoded: Encoded) -> int:
    return len(encoded.ids)


def _features(out: Path, number: int) -> Path:
    return out / f"reference-{number}.safetensors"


@functools.lru_cache(maxsize=4)
def _read(out: Path, number: int) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(_features(out, number))["features"]


def _folder(name: str) -> Path:
    """A checkpoint's folder, once it is seen to have weights."""
    found = local(name)
    if found is None or not any(found.glob("*.safetensors")):
        raise ModelError("no checkpoint folder with weights (safetensors)", where=name)
    return found


def _contents(name: str) -> str:
    """A digest of a checkpoint, read again where a file of it changed."""
    folder = _folder(name)
    stamps = tuple(sorted((f.name, f.stat().st_mtime_ns) for f in folder.iterdir()))
    return _digest(folder, stamps)


@functools.lru_cache(maxsize=64)
def _digest(folder: Path, stamps: Any) -> str:
    return ModelSpec(init=str(folder)).digest()
