"""Rho-1 and token cleaning: excess losses, their share of a batch, thresholds of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.live import LiveModel
from foresift.stages.samplers import _history
from foresift.stages.samplers.rho1 import Rho1
from foresift.stages.samplers.token_cleaning import TokenCleaning, global_threshold
from tests.stages.samplers import token_rows

NLL = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3], dtype=np.float32)
REFERENCE = np.array([1, 1, 1, 1, 9, 1, 1, 9, 1, 2.5], dtype=np.float32)
EXCESS = [2, 0, 3, 0, -4, 8, 1, -3, 4, 0.5]
LENGTHS = [8, 3, 6, 2]


def table(path: Path, losses: Any) -> str:
    _history.write_history(path, list("abcd"), np.split(losses, [4, 4, 9]), LENGTHS)
    return str(path)


@pytest.fixture
def reference(tmp_path: Path) -> str:
    return table(tmp_path / "reference.parquet", REFERENCE)


def kept(part: Any, side: str = "right", order: Any = (0, 1, 2, 3), nll: Any = NLL) -> list[bool]:
    masker = part.open(LiveModel(token_rows.model()))
    rows = token_rows.candidates(9, side).take(np.array(order))
    pieces = np.split(nll, [4, 4, 9])
    seen = token_rows.seen(rows, np.concatenate([pieces[i] for i in order]))
    return token_rows.flat(masker.labels(seen, 0), rows)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rho1_takes_its_share_of_the_batch_or_of_samples(reference: str, side: str) -> None:
    batch = Rho1(reference=reference, share=0.5)
    assert kept(batch, side) == token_rows.top(EXCESS, 0.5)
    turned = kept(batch, side, (2, 0, 3, 1))
    whole = token_rows.top(EXCESS, 0.5)
    assert turned == [*whole[4:9], *whole[:4], *whole[9:]]
    sample = Rho1(reference=reference, share=0.5, scope="sample")
    parts = (EXCESS[:4], EXCESS[4:9], EXCESS[9:])
    assert kept(sample, side) == [k for part in parts for k in token_rows.top(part, 0.5)]


def test_token_cleaning_compares_two_models_whatever_the_live_one_says(tmp_path: Path) -> None:
    reference = table(tmp_path / "reference.parquet", REFERENCE)
    base = table(tmp_path / "base.parquet", NLL)
    part = TokenCleaning(reference=reference, base=base, share=0.5)
    assert part.signals == ()
    assert kept(part, nll=np.zeros(10)) == token_rows.top(EXCESS, 0.5)
    alone = TokenCleaning(reference=reference, share=0.5)
    assert kept(alone) == token_rows.top(EXCESS, 0.5)


def test_a_threshold_is_that_of_the_corpus(tmp_path: Path) -> None:
    reference = table(tmp_path / "reference.parquet", REFERENCE)
    base = table(tmp_path / "base.parquet", NLL)
    for share in (0.05, 0.3, 0.6, 1.0):
        threshold = global_threshold(Path(base), Path(reference), share)
        assert threshold == sorted(EXCESS)[-sum(token_rows.top(EXCESS, share))]
        part = TokenCleaning(reference=reference, base=base, threshold=threshold)
        expected = [x >= threshold for x in EXCESS]
        assert kept(part) == expected
        for row, (start, stop) in enumerate([(0, 4), (4, 4), (4, 9), (9, 10)]):
            assert kept(part, order=(row,)) == expected[start:stop]  # in any batch


def test_tables_that_do_not_belong_together(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.parquet" for name in "xyz"]
    _history.write_history(paths[0], ["a", "b"], [NLL[:2], NLL[:3]], [4, 4])
    _history.write_history(paths[1], ["a", "c"], [NLL[:2], NLL[:3]], [4, 4])
    _history.write_history(paths[2], ["a", "b"], [NLL[:2], NLL[:2]], [4, 4])
    with pytest.raises(DataError, match=r"y.parquet: other rows than"):
        global_threshold(paths[0], paths[1])
    with pytest.raises(DataError, match=r"z.parquet: row b has other tokens"):
        global_threshold(paths[0], paths[2])


@pytest.mark.parametrize("kind", [Rho1, TokenCleaning])
def test_bad_input(kind: Any, reference: str) -> None:
    with pytest.raises(DataError, match=r"(loss|base): 1 of 10 are not finite.* row c"):
        kept(kind(reference=reference), nll=np.where(NLL == 9, np.inf, NLL))
    with pytest.raises(ValueError, match="reference must name"):
        kind(reference="")
    with pytest.raises(ValueError, match="share must be above 0"):
        kind(reference=reference, share=2)
    with pytest.raises(ValueError, match="threshold must be"):
        TokenCleaning(reference=reference, threshold=float("nan"))
