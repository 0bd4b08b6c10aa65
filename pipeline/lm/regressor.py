"""The network of `encoder.py`: an encoder, the mean over a text's tokens, one linear output.

    f(text) = v . h + b,     h = (1 / T) sum_t h_t

over all T tokens of the text, its own special tokens included. A text longer than a segment is cut
into segments that are encoded apart; each lies in a row of the batch with a mask, and no padding
enters a sum. Weights are safetensors, none of a model's own code is run; a tensor that is missing
is an error (but for BERT's pooler, which has no part in h).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.batches import plan
from foresift.pipeline.lm.model import ModelSpec, load_config, load_tokenizer, local, pick_device
from foresift.pipeline.parts import Part, tuning

Integers = npt.NDArray[np.int64]
Documents = list[npt.NDArray[np.int64]]
#: characters of a text that are read for each token that is kept
_REACH = 32


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(Part):
    """Which encoder, and how it is trained."""

    init: str
    """A folder with safetensors weights and a tokenizer, or a hub id."""
    revision: str = ""
    """Branch, tag or commit of a hub id."""
    max_length: int = 512
    """Tokens of a segment, at most; never more than model and tokenizer can take."""
    segments: int = 2
    """Segments of a text; what comes after them is not read."""
    epochs: int = 5
    """Passes over the labelled texts."""
    batch: int = 32
    """Texts in one optimizer step."""
    learning_rate: float = 5e-5
    """AdamW's rate at the first step; it falls linearly to 0."""
    weight_decay: float = 0.01
    """AdamW's decay of matrices."""
    dropout: float = 0.1
    """Dropout before the head; the encoder's own is in its configuration."""
    held_out: int = 10
    """One part in so many is held out."""
    evaluate_every: int = 20
    """Optimizer steps between two looks at the part held out."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` computes in half precision: faster on a GPU; a prediction then depends on its
    batch by about a hundredth of a spread."""
    seed: int = 0
    """Of the head, the order and the dropout."""
    device: str = tuning("auto")
    """`auto` (a GPU where there is one), `cpu`, `cuda`, ..."""
    batch_tokens: int = tuning(0)
    """Tokens in one forward, padding included; 0: 2048 on a CPU, 65536 on a GPU."""

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        counts = (self.max_length, self.segments, self.epochs, self.batch, self.evaluate_every)
        if min(counts) < 1:
            raise ValueError(
                "max_length, segments, epochs, batch and evaluate_every must be at least 1"
            )
        if self.held_out < 2:
            raise ValueError("held_out must be at least 2: one part in two")


class Regressor(torch.nn.Module):
    """An encoder, the mean over a text's tokens, dropout, and one linear output."""

    def __init__(self, body: Any, spec: EncoderSpec, width: int) -> None:
        super().__init__()
        self.body = body
        self.dropout = torch.nn.Dropout(spec.dropout)
        self.head = torch.nn.Linear(body.config.hidden_size, 1)
        self.mixed = spec.dtype == "bfloat16"
        self.width = width

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def forward(self, documents: Documents) -> torch.Tensor:
        """One number a document (token ids, at least one)."""
        device, width = self.device, self.width
        pieces = [d[a : a + width] for d in documents for a in range(0, len(d), width)]
        owner = np.repeat(np.arange(len(documents)), [-(-len(d) // width) for d in documents])
        lengths = np.array([len(p) for p in pieces])
        real = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(real.shape, dtype=np.int64)
        ids[real] = np.concatenate(pieces)
        mask = torch.from_numpy(real).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.mixed):
            states = self.body(
                input_ids=torch.from_numpy(ids).to(device), attention_mask=mask.long()
            ).last_hidden_state
        sums = torch.where(mask[..., None], states.float(), 0.0).sum(dim=1)
        total = sums.new_zeros(len(documents), sums.shape[1])
        total = total.index_add(0, torch.from_numpy(owner).to(device), sums)
        sizes = torch.tensor([len(d) for d in documents], device=device)
        found: torch.Tensor = self.head(self.dropout(total / sizes[:, None]))[:, 0]
        return found


def load_regressor(spec: EncoderSpec) -> tuple[Regressor, Any]:
    """The encoder with a fresh head, on its device, and its tokenizer."""
    from safetensors import SafetensorError
    from transformers import AutoModel

    config = load_config(ModelSpec(init=spec.init, revision=spec.revision))
    if config.is_encoder_decoder:
        raise ModelError("it is an encoder-decoder; name an encoder", where=spec.init)
    tokenizer = load_tokenizer(spec.init)
    revision = {"revision": spec.revision} if spec.revision else {}
    try:
        body, info = AutoModel.from_pretrained(
            str(local(spec.init) or spec.init), use_safetensors=True, dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True, **revision,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"does not load: {reason}", where=spec.init) from error
    wrong = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
    wrong = sorted(name for name in wrong if not name.startswith("pooler."))  # which is not used
    if wrong:
        raise ModelError(
            f"{len(wrong)} tensors are missing or of another shape, such as {wrong[0]}",
            where=spec.init,
        )
    if len(tokenizer) > body.get_input_embeddings().num_embeddings:
        raise ModelError("the tokenizer has more tokens than the model", where=spec.init)
    limits = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    width = min(spec.max_length, *(int(limit) for limit in limits if limit))
    return Regressor(body, spec, width).to(pick_device(spec.device)), tokenizer


def tokens(texts: Sequence[str], tokenizer: Any, limit: int) -> Documents:
    """At most `limit` token ids of each text, special tokens included."""
    if not len(texts):
        return []
    heads = [text[: _REACH * limit] for text in texts]
    found = tokenizer(heads, truncation=True, max_length=limit)["input_ids"]
    return [np.asarray(ids, dtype=np.int64) for ids in found]


def batches(documents: Documents, spec: EncoderSpec, model: Regressor) -> Iterator[Integers]:
    """Row numbers of each forward, the longest documents first; empty ones are in none."""
    lengths = np.array([len(d) for d in documents], dtype=np.int64)
    budget = spec.batch_tokens or (2048 if model.device.type == "cpu" else 65536)
    yield from plan(lengths, budget)


@contextmanager
def seeded(spec: EncoderSpec) -> Iterator[None]:
    """Draws of this block depend on the seed alone, and change none outside it."""
    gpus = range(torch.cuda.device_count()) if pick_device(spec.device) != "cpu" else ()
    with torch.random.fork_rng(devices=list(gpus)):
        torch.manual_seed(spec.seed)
        yield
