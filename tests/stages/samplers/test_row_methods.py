"""Methods that give each candidate one number: known answers, and the offline scorers' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.live import LiveModel
from foresift.pipeline.lm.signals import Tokens
from foresift.pipeline.nouns import ModelScorer
from foresift.pipeline.online import BatchMethod, Candidates
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import ID
from foresift.scorers.excess_loss import ExcessLoss
from foresift.scorers.gradient_norm import GradientNorm as OfflineNorm
from foresift.scorers.uncertainty import Uncertainty as OfflineUncertainty
from foresift.stages.samplers.gradient_norm import GradientNorm
from foresift.stages.samplers.max_loss import MaxLoss
from foresift.stages.samplers.random import Random
from foresift.stages.samplers.rho_loss import RhoLoss
from foresift.stages.samplers.uds import UDS
from foresift.stages.samplers.uncertainty import Uncertainty
from tests.stages.samplers.tiny import candidates, draw, look, model

ROWS = [*draw(7), [5]]  # nothing of the last counts


def table(folder: Path, **columns: Any) -> str:
    path = folder / "losses.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


def methods(folder: Path) -> list[BatchMethod]:
    losses = table(folder, id=[f"row{i}" for i in range(len(ROWS))], loss=np.arange(len(ROWS)) / 8)
    kinds: tuple[Any, ...] = ("entropy", "margin", "least_confidence")
    return [
        MaxLoss(),
        *(Uncertainty(measure=kind) for kind in kinds),
        GradientNorm(),
        Random(seed=3),
        RhoLoss(against=losses),
        UDS(d1=8, d2=2),
    ]


def utilities(method: BatchMethod, net: Any, some: Candidates, step: int = 0) -> np.ndarray:
    live = LiveModel(net)
    chooser = method.open(live)
    return chooser.utility(chooser.measure(look(method, live, some)), step)


@pytest.mark.parametrize("number", range(8))
def test_rows_are_measured_by_themselves(number: int, tmp_path: Path) -> None:
    method, net = methods(tmp_path)[number], model()
    whole = utilities(method, net, candidates(ROWS))
    assert np.isnan(whole).tolist() == [False] * 7 + [True]
    padded = utilities(method, net, candidates(ROWS, width=15, side="left"))
    np.testing.assert_allclose(padded, whole, rtol=1e-4, atol=1e-5)
    order = np.array([3, 7, 0])
    some = utilities(method, net, candidates(ROWS).take(order))
    np.testing.assert_allclose(some, whole[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", range(8))
def test_measuring_remembers_nothing(number: int, tmp_path: Path) -> None:
    method, live = methods(tmp_path)[number], LiveModel(model())
    chooser = method.open(live)
    seen = look(method, live, candidates(ROWS))
    before = {n: p.clone() for n, p in live.model.named_parameters()}
    first, again = (chooser.measure(seen) for _ in range(2))
    for name, values in first.items():
        assert len(values) == len(ROWS)
        torch.testing.assert_close(values, again[name], rtol=0, atol=0, equal_nan=True)
    assert all(torch.equal(p, before[n]) for n, p in live.model.named_parameters())


def test_the_numbers_of_the_offline_scorers(tmp_path: Path) -> None:
    live, some = LiveModel(model()), candidates(ROWS)
    names = ("nll", "entropy", "top_prob", "margin", "grad_norm")
    seen = live.look(some, names)
    irreducible = np.arange(len(ROWS), dtype=np.float32) / 8
    frame = pa.table({"irreducible": irreducible})
    n = len(ROWS)
    tokens = Tokens(frame, seen.signals.offsets, seen.lengths.numpy(), np.zeros(n, bool), None)  # type: ignore[arg-type]

    def offline(scorer: ModelScorer, name: str) -> np.ndarray:
        return np.asarray(scorer.score(tokens, seen.signals)[name])

    losses = table(tmp_path, id=list(some.ids), nll=irreducible)
    unsure = OfflineUncertainty()
    pairs: list[tuple[BatchMethod, np.ndarray]] = [
        (
            RhoLoss(against=losses, column="nll"),
            offline(ExcessLoss(against="irreducible"), "utility"),
        ),
        (MaxLoss(), offline(ExcessLoss(against="irreducible"), "nll")),
        (GradientNorm(), offline(OfflineNorm(), "utility")),
        (Uncertainty(), offline(unsure, "entropy")),
        (Uncertainty(measure="margin"), -offline(unsure, "margin")),
        (Uncertainty(measure="least_confidence"), 1 - offline(unsure, "top_prob")),
    ]
    for method, expected in pairs:
        found = utilities(method, live.model, some)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=str(method))


def test_loss_is_the_mean_over_counted_tokens() -> None:
    net, rows = model("gpt2"), draw(4, shortest=5)
    found = utilities(MaxLoss(), net, candidates(rows, prompt=3))
    for row, value in zip(rows, found, strict=True):
        ids = torch.tensor([row])
        labels = ids.clone()
        labels[:, :3] = -100
        with torch.no_grad():
            assert value == pytest.approx(float(net(input_ids=ids, labels=labels).loss), rel=1e-4)


def test_noise_and_what_is_learned_come_after_what_can_be_learned(tmp_path: Path) -> None:
    rows = draw(3, shortest=6, longest=6)
    net = model()
    nll = utilities(MaxLoss(), net, candidates(rows))
    # noise: as high under the other model; learned: lower still; learnable: 2 nats below
    losses = table(tmp_path, id=["row0", "row1", "row2"], loss=nll - np.array([0, -0.5, 2]))
    found = utilities(RhoLoss(against=losses), net, candidates(rows))
    np.testing.assert_allclose(found, [0, -0.5, 2], atol=1e-6)


def test_rows_that_the_table_lacks_are_counted(tmp_path: Path) -> None:
    losses = table(tmp_path, id=["row0", "row2", "x"], loss=[1.0, None, 2.0])
    live, method = LiveModel(model()), RhoLoss(against=losses)
    chooser = method.open(live)
    found = chooser.measure(look(method, live, candidates(draw(3))))
    assert np.isnan(chooser.utility(found, 0)).tolist() == [False, True, True]
    chooser.utility(found, 1)
    assert chooser.facts == {"in_table": 2, "candidates_missing": 4}
    other = method.open(live)
    other.load_state_dict(chooser.state_dict())
    assert other.facts == chooser.facts


def test_ids_of_bytes_are_hexadecimal(tmp_path: Path) -> None:
    losses = table(tmp_path, id=pa.array([b"\x0f" * 16], ID), loss=[1.0])
    some = candidates(draw(1), ids=["0f" * 16])
    net = model()
    expected = utilities(MaxLoss(), net, some) - 1
    np.testing.assert_allclose(utilities(RhoLoss(against=losses), net, some), expected)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", "a"], "loss": [1.0, 2.0]}, "id a has losses 1 and 2"),
        ({"id": ["a"], "los": [1.0]}, "no column 'loss'; did you mean 'los'"),
        ({"key": ["a"], "loss": [1.0]}, "no column 'id'"),
        ({"id": ["a"], "loss": ["x"]}, "cannot be read as losses"),
        ({"id": ["a"], "loss": pa.array([None], pa.float32())}, "no row has an id and a loss"),
    ],
)
def test_bad_tables_are_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        RhoLoss(against=table(tmp_path, **columns)).open(LiveModel(model()))


def test_an_absent_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.parquet"):
        RhoLoss(against=str(tmp_path / "gone.parquet")).open(LiveModel(model()))


def test_draws_belong_to_seed_step_and_id() -> None:
    net, rows = model(), draw(40)
    some = candidates(rows)
    first = utilities(Random(), net, some)
    assert len(set(first)) == 40
    assert ((first > 0) & (first < 1)).all()
    np.testing.assert_array_equal(utilities(Random(), net, some), first)
    assert (utilities(Random(), net, some, step=1) != first).all()
    assert (utilities(Random(seed=1), net, some) != first).all()
    copies = candidates(rows, ids=["same"] * 40)
    assert len(set(utilities(Random(), net, copies))) == 1


def test_draws_are_uniform() -> None:
    chooser = Random().open(LiveModel(model()))
    words = Rng(0).generator().integers(-(2**63), 2**63, (20000, 2), dtype=np.int64)
    measured = {"words": torch.from_numpy(words), "counted": torch.ones(len(words))}
    drawn = chooser.utility({**measured, "counted": measured["counted"].bool()}, 5)
    assert np.abs(np.sort(drawn) - (np.arange(20000) + 0.5) / 20000).max() < 0.015


def test_a_model_that_diverged_judges_nothing(tmp_path: Path) -> None:
    net = model()
    with torch.no_grad():
        net.model.norm.weight[0] = torch.inf
    live = LiveModel(model())
    live.model.load_state_dict(net.state_dict())  # found its head while it was well
    for method in methods(tmp_path):
        chooser = method.open(live)
        values = chooser.utility(chooser.measure(look(method, live, candidates(ROWS))), 0)
        assert np.isnan(values).all() or isinstance(method, Random), method
