"""dattri's TracIn on our model and candidates, for benchmarks/influence.py.

    score_x = sum_r <grad l_x, grad l_r> c_r / sum c_r      the plain gradient product with the
                                                            reference's token mean (c_r its tokens)

by `TracInAttributor` with one checkpoint and weight 1 (GradDot). It is given its best case: full
gradients without projection (which it would apply by default, at the price of a random matrix for
each batch), all candidates in one batch (every further batch would take all gradients of the
reference again), rows sorted by length and padded within their batch, eager attention, which its
vectorisation needs. Memory is P numbers for each candidate of the batch.

dattri is installed without what it depends on into `.venv-peers/dattri-lib`; torch is ours.
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from _influence_setup import ROOT, Setup
from torch.func import functional_call
from torch.utils.data import DataLoader

from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.model import load

Floats = npt.NDArray[np.float64]
FOLDER = ROOT / ".venv-peers" / "dattri-lib"
REQUIREMENT = "dattri==0.3.*"
#: reference items whose gradients dattri takes at a time
BATCH = 32


def available(how: str) -> bool:
    """Whether dattri can be imported; with `install` it is fetched if it is not there."""
    if how == "none":
        return False
    if not (FOLDER / "dattri").is_dir() and how == "install":
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(FOLDER)]
        done = subprocess.run([*pip, REQUIREMENT], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"dattri cannot be installed: skipped\n{done.stderr[-1500:]}")
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    try:
        import dattri.algorithm.tracin  # noqa: F401
    except ImportError as error:
        print(f"dattri is not there ({error}): skipped")
        return False
    return True


def tracin(setup: Setup, rows: npt.NDArray[np.int64]) -> tuple[Floats, float]:
    """dattri's scores of these candidates, and the CPU seconds they took."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    model = load(replace(setup.spec, attention="eager")).model
    state = {n: p.detach().clone() for n, p in model.state_dict().items()}
    task = AttributionTask(loss_func=_loss(model), model=model, checkpoints=state)
    attributor = TracInAttributor(task, torch.ones(1), normalized_grad=False, device="cpu")
    attributor.projector_kwargs = None  # full gradients
    sorting = np.argsort(-setup.candidates.lengths[rows], kind="stable")
    aims = np.argsort(-setup.aim.encoded.lengths, kind="stable")
    candidates = _loader(setup.candidates, rows[sorting], len(rows))
    references = _loader(setup.aim.encoded, aims, BATCH)
    start = time.process_time()
    with warnings.catch_warnings():  # torch's and transformers' own
        warnings.simplefilter("ignore")
        found = attributor.attribute(candidates, references).double().numpy()
    seconds = time.process_time() - start
    tokens = np.maximum(0, setup.aim.encoded.lengths[aims] - 1)
    scores = np.empty(len(rows))
    scores[sorting] = found @ (tokens / tokens.sum())
    return scores, seconds


def _loss(model: Any) -> Any:
    """Mean NLL of one document, as dattri wants it: of parameters and (ids, counted)."""

    def loss(parameters: Any, data: Any) -> torch.Tensor:
        ids, counted = data
        inputs = {"input_ids": ids[None], "use_cache": False}
        logits = functional_call(model, parameters, (), inputs).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        return (nll * counted[1:]).sum() / counted.sum().clamp_min(1)

    return loss


def _loader(encoded: Encoded, rows: npt.NDArray[np.int64], size: int) -> Any:
    documents = []
    for row in rows:
        piece = slice(int(encoded.offsets[row]), int(encoded.offsets[row + 1]))
        documents.append((encoded.ids[piece].astype(np.int64), encoded.counts[piece]))
    return DataLoader(documents, batch_size=size, shuffle=False, collate_fn=_padded)  # type: ignore


def _padded(documents: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in documents)
    out = np.zeros((2, len(documents), width), dtype=np.int64)
    for row, (ids, counted) in enumerate(documents):
        out[0, row, : len(ids)], out[1, row, : len(ids)] = ids, counted
    return torch.from_numpy(out[0]), torch.from_numpy(out[1])
