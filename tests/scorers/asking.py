"""Parts that ask the model by document, fitted and read as the pipeline does, and plain losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from foresift.pipeline.lm.forward import score_window
from foresift.pipeline.lm.model import ModelSpec, load
from foresift.pipeline.nouns import FittedModelScorer, Job, Look, Rng
from foresift.pipeline.tables import content_ids
from tests.corpora import Serial, make_corpus


def score(
    part: FittedModelScorer, table: pa.Table, spec: ModelSpec, tmp: Path, **beside: Any
) -> dict[str, Any]:
    """The columns of a table that is the whole pool."""
    columns = {f"s.{name}": [values] for name, values in beside.items()}
    corpus = make_corpus(tmp, [table], columns=columns)
    look = Look(corpus, (), spec, Job(engine=Serial(), rng=Rng(0)))
    out = tmp / "fitted"
    out.mkdir()
    part.fit(look, out)
    return window(part, table, spec, out)


def window(part: FittedModelScorer, table: pa.Table, spec: ModelSpec, out: Path) -> dict[str, Any]:
    """The columns of some rows of the pool."""
    rows = table.add_column(0, "id", content_ids(table))
    found = score_window(rows, spec, [part], [out])[0][0]
    return {n: pa.array(v) if not isinstance(v, pa.Array) else v for n, v in found.items()}


def plain(spec: ModelSpec, before: str, answer: str) -> float:
    """Mean NLL of an answer and its end behind a prompt, by the definition, over bytes."""
    loaded = load(spec)
    code = lambda text: loaded.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    end = loaded.tokenizer.eos_token_id
    head = [end, *code(spec.template.replace("{prompt}", before))]
    ids = torch.tensor([*head, *code(answer), end])
    with torch.inference_mode():
        logits = loaded.model(input_ids=ids[None].to(loaded.device)).logits[0].double().cpu()
    nll = -logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    return float(np.mean(nll[len(head) - 1 :].numpy()))
