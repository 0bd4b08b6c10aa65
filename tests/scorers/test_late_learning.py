"""Late learning: known answers, a plain loop as oracle, columns against a log, a real training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError, RecipeError
from foresift.scorers.late_learning import LateLearning, lateness, learned_at, target
from tests.scorers.fitting import ids, score

NAN = math.nan


def table(losses: Any, numbers: Any = None) -> pa.Table:
    rows = np.asarray(losses, dtype=np.float64)
    which = np.arange(len(rows)) if numbers is None else numbers
    return pa.table({"id": ids(which)} | {f"c{k}.nll": column for k, column in enumerate(rows.T)})


def part(checkpoints: int, **fields: Any) -> LateLearning:
    return LateLearning(losses=tuple(f"c{k}.nll" for k in range(checkpoints)), **fields)


def test_the_known_answers() -> None:
    with np.errstate(divide="ignore"):
        losses = -np.log(np.array([[0.0, 0.0, 1.0]]))
    losses[np.isinf(losses)] = 1e9  # p = 0
    assert target(losses, 0.5).tolist() == [0.5]
    fell = np.array([[4.0, 4.0, 4.0, 1.0], [4.0, 1.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    # weights 1/8, 1/4, 1/2 over 7/8
    expected = [3.0, (0.5 + 0.25 + 0.5) / 0.875 - 1, (0.5 + 0.75 + 1) / 0.875 - 1]
    np.testing.assert_allclose(lateness(fell, 0.5), expected)
    assert learned_at(fell).tolist() == [4, 2, 3]
    assert learned_at(fell, 1.0).tolist() == [4, 2, 4]
    assert learned_at(fell, 0.5).tolist() == [-1, -1, -1]
    back = np.array([[4.0, 1.0, 3.0, 1.0], [1.0, 1.0, 2.0, 3.0], [1.0, NAN, 2.0, NAN]])
    assert learned_at(back).tolist() == [4, -1, -1]  # unlearned in between; never fell; no end


def plain(row: list[float], beta: float) -> tuple[float, float]:
    """Target and lateness of one document, by the words of the definition."""
    seen = [x for x in row[:-1] if not math.isnan(x)]
    if not seen or math.isnan(row[-1]):
        return NAN, NAN
    t = 0.0
    for x in [*seen, row[-1]]:
        t = beta * t + (1 - beta) * math.exp(-x)
    weights = [beta**back for back in range(len(seen))][::-1]
    early = sum(w * x for w, x in zip(weights, seen, strict=True)) / sum(weights)
    return t, early - row[-1]


loss = st.one_of(st.floats(0, 20), st.just(NAN))


@given(st.lists(st.lists(loss, min_size=4, max_size=4), max_size=8), st.floats(0.01, 0.95))
def test_any_losses_agree_with_the_plain_loop(rows: list[list[float]], beta: float) -> None:
    losses = np.array(rows, dtype=np.float64).reshape(-1, 4)
    expected = np.array([plain(row, beta) for row in rows]).reshape(-1, 2)
    np.testing.assert_allclose(target(losses, beta), expected[:, 0], atol=1e-9)
    np.testing.assert_allclose(lateness(losses, beta), expected[:, 1], atol=1e-9)


def test_columns_and_a_log_say_the_same(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).uniform(0.1, 6, (20, 3))
    losses[3, 1] = losses[4, 2] = NAN
    told, facts = score(part(3, beta=0.5), table(losses), tmp_path / "columns", 2)
    assert (facts["checkpoints"], facts["documents"]) == (3, 19)
    assert facts["warnings"] == [
        "1 of 20 rows lack the last loss or all others: they are not judged"
    ]
    order = np.random.default_rng(1).permutation(60)
    rows = pa.table({
        "id": ids(np.repeat(np.arange(20), 3)), "epoch": np.tile([5, 7, 9], 20),
        "loss": losses.ravel(),
    }).take(pa.array(order))  # fmt: skip
    pq.write_table(rows, tmp_path / "log.parquet")
    log = LateLearning(log=str(tmp_path / "log.parquet"), beta=0.5)
    turned = np.random.default_rng(2).permutation(20)
    found, again = score(log, table(losses[turned], turned), tmp_path / "log", 3)
    assert again == facts
    for name in log.columns:
        np.testing.assert_allclose(found[name], told[name][turned], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(told["utility"], -told["late"])
    assert np.flatnonzero(np.isnan(told["late"])).tolist() == [4]


def test_a_network_learns_what_is_shared_before_what_is_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((240, 10)).astype(np.float32))
    y = (x[:, 0] > 0).long()
    noise = np.arange(240) % 6 == 0
    y[torch.from_numpy(noise)] ^= 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(10, 256), torch.nn.ReLU(), torch.nn.Linear(256, 2)
        )
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.01), []
    for step in range(160):
        each = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        if step % 8 == 0:
            losses.append(each.detach().numpy())
        optimizer.zero_grad()
        each.mean().backward()
        optimizer.step()
    found, _ = score(part(20), table(np.stack(losses, 1)), tmp_path / "a")
    late = found["late"]
    above = (late[noise][:, None] > late[~noise][None]).mean()
    assert above > 0.8  # chance: 0.5
    assert np.median(found["learned"][noise]) > np.median(found["learned"][~noise])


def test_bad_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"c1\.nll: losses are not negative"):
        score(part(2), table([[1.0, -0.5]]), tmp_path / "a")
    words = table([[1.0, 1.0]]).set_column(1, "c0.nll", pa.array(["x"]))
    with pytest.raises(DataError, match=r"c0\.nll: losses are numbers"):
        score(part(2), words, tmp_path / "b")
    path = tmp_path / "log.parquet"
    for name, rows, message in (
        ("c", {"epoch": [0, 1], "probabilities": [[0.5, 0.5]] * 2}, "holds probabilities"),
        ("d", {"epoch": [0, 0], "loss": [1.0, 1.0]}, "has 1 epoch; at least 2"),
        ("e", {"epoch": [0, 1], "loss": [1.0, 1.0]}, "no id of the log"),
    ):
        pq.write_table(pa.table({"id": ids([7, 8]), **rows}), path)
        with pytest.raises(DataError, match=message):
            score(LateLearning(log=str(path)), table([[1.0, 1.0]]), tmp_path / name)


def test_no_rows_are_no_trouble(tmp_path: Path) -> None:
    found, facts = score(part(2), table(np.empty((0, 2))), tmp_path / "a")
    assert {len(v) for v in found.values()} == {0}
    assert facts["documents"] == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "either losses or a log"),
        ({"losses": ["a", "b"], "log": "x"}, "either losses or a log"),
        ({"losses": ["a"]}, "two columns or more"),
        ({"losses": ["a", "a"]}, "each named once"),
        ({"losses": ["a", "b"], "beta": 1}, "beta must lie"),
        ({"losses": ["a", "b"], "learned": -1}, "must not be negative"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        LateLearning.parse(fields, "score late_learning")


def test_the_contents_of_a_log_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    found = []
    for value in (1.0, 2.0):
        rows = {"id": ids([0, 0]), "epoch": [0, 1], "loss": [3.0, value]}
        pq.write_table(pa.table(rows), path)
        found.append(LateLearning(log=str(path)).fingerprint)
    assert len(set(found)) == 2
