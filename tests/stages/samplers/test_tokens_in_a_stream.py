"""Token selectors inside a stream: every one runs, and goes on after an interruption."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.live import LiveModel
from foresift.pipeline.online import IGNORED
from foresift.pipeline.stream import Stream
from foresift.pipeline.stream_state import read_state, write_state
from foresift.stages.samplers import _history
from foresift.stages.samplers.random_tokens import RandomTokens
from foresift.stages.samplers.rho1 import Rho1
from foresift.stages.samplers.sstoken import SsToken
from foresift.stages.samplers.stability_mask import StabilityMask
from foresift.stages.samplers.token_cleaning import TokenCleaning
from tests.pipeline import streams
from tests.stages.samplers import token_rows

DATA = streams.rows(24)
CACHED = "cached.parquet"
SELECTORS: dict[str, Any] = {
    "random": RandomTokens(share=0.5),
    "sstoken, frozen": SsToken(rho=0.5),
    "sstoken, average": SsToken(rho=0.5, history="ema", ema_decay=0.5, attention_only_steps=1),
    "rho1": Rho1(reference=CACHED, share=0.5),
    "cleaning": TokenCleaning(reference=CACHED, share=0.5),
    "stability": StabilityMask(reject=0.5),
}


def steps(stream: Any, model: Any, n: int) -> list[torch.Tensor]:
    """Train on so many batches; gives their labels."""
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.5), []
    for _ in range(n):
        batch = next(stream)
        found.append(batch["labels"].clone())
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


@pytest.mark.parametrize("name", SELECTORS)
def test_a_run_that_was_interrupted_chooses_the_same_tokens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [d["input_ids"] for d in DATA]
    counts, ids = [[1] * len(row) for row in rows], tuple(d["id"] for d in DATA)
    all_rows = token_rows.candidates(10, "right", rows, counts, ids)
    _history.cache_history(LiveModel(streams.model(9)), [all_rows], Path(CACHED))

    def stream(model: Any) -> Any:
        options = {"keep": 4, "of": 8, "collate": streams.collate, "tokens": SELECTORS[name]}
        return Stream(DATA, streams.Highest(), model, **options)

    model = streams.model()
    whole = stream(model)
    first = steps(whole, model, 3)
    write_state(whole.state_dict(), tmp_path / "state")
    saved = copy.deepcopy(model.state_dict())
    rest = steps(whole, model, 3)
    again = streams.model(4)
    again.load_state_dict(saved)
    resumed = stream(again)
    resumed.load_state_dict(read_state(tmp_path / "state"))
    for one, other in zip(rest, steps(resumed, again, 3), strict=True):
        torch.testing.assert_close(one, other)
    share = np.mean([float((x != IGNORED).float().mean()) for x in (*first, *rest)])
    assert 0.1 < share < 0.6


def test_a_step_without_a_token_is_refused_before_its_loss_is_nan() -> None:
    model = streams.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def stream(tau: float) -> Any:
        options: dict[str, Any] = {"keep": 4, "of": 8, "collate": streams.collate}
        options |= {"optimizer": optimizer, "tokens": StabilityMask(tau_f=tau, tau_h=1e9)}
        return Stream(DATA, streams.Highest(), model, **options)

    with pytest.raises(DataError, match=r"tokens: StabilityMask leaves no token of step 0"):
        next(stream(1e-30))
    assert torch.isfinite(model(**next(stream(1e9))).loss)
