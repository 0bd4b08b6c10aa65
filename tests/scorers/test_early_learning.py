"""Targets of early learning: ELR's known answers, logs on disk, a network that memorises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from foresift.pipeline.errors import DataError
from foresift.scorers._label_log import clamped, regulariser, updated
from foresift.scorers.early_learning import EarlyLearning
from tests.scorers.fitting import ids, score
from tests.scorers.labelled import LABEL, planted, table


def write(path: Path, epochs: Sequence[npt.NDArray[Any]], numbers: Any = None, **fixed: Any) -> str:
    """A log with one file an epoch; rows of one number are losses."""
    path.mkdir()
    for epoch, p in enumerate(epochs):
        which = np.arange(len(p)) if numbers is None else np.asarray(numbers)
        kind = "loss" if p.ndim == 1 else "probabilities"
        rows = {"id": ids(which), "epoch": [epoch] * len(p), kind: p.tolist(), **fixed}
        pq.write_table(pa.table(rows), path / f"{epoch:03}.parquet")
    return str(path)


def test_the_known_answer() -> None:
    p = np.array([[0.9, 0.1]])
    target = updated(np.zeros((1, 2)), p, 0.7)
    assert target[0] == pytest.approx([0.27, 0.03])
    assert (target * p).sum() == pytest.approx(0.246)
    assert regulariser(target, p, 3) == pytest.approx(-0.847089, abs=1e-6)
    cross_entropy = -np.log(p[0, 1])
    assert cross_entropy + regulariser(target, p, 3) == pytest.approx(1.455496, abs=1e-6)
    sure = np.array([[1.0, 0.0]])
    assert np.isfinite(regulariser(sure, sure))  # p is kept from 0 and 1
    assert clamped(sure).tolist() == [[1 - 1e-4, 1e-4]]


def test_the_gradient_of_the_regulariser_pushes_towards_the_target() -> None:
    target, step = np.array([[0.27, 0.03]]), 1e-5

    def at(z: float) -> float:
        powers = np.exp([[z, 0.0]])
        return regulariser(target, powers / powers.sum(), 3)

    for z in (-1.0, 0.0, np.log(9)):
        assert (at(z + step) - at(z - step)) / (2 * step) < 0  # descending raises class 0


def test_targets_follow_the_epochs_in_their_order(tmp_path: Path) -> None:
    first, second = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.4, 0.6], [0.1, 0.9]])
    log = write(tmp_path / "log", [first, second])
    part = EarlyLearning(label=LABEL, log=log, beta=0.7)
    found, facts = score(part, table([1, 0]), tmp_path / "a")
    t = 0.7 * 0.3 * first + 0.3 * second
    share = t / t.sum(axis=1, keepdims=True)
    assert found["noise"] == pytest.approx([1 - share[0, 1], 1 - share[1, 0]], abs=1e-6)
    assert found["quality"] == pytest.approx(
        [(share[0, 1] - share[0, 0] + 1) / 2, (share[1, 0] - share[1, 1] + 1) / 2], abs=1e-6
    )
    assert found["drift"] == pytest.approx([0.6 - share[0, 1], 0.1 - share[1, 0]], abs=1e-6)
    assert found["suggested"].tolist() == ["0", "1"]
    assert found["proposal"].tolist() == ["eliminate", "re_annotate"]
    assert facts["disagree"] == [1.0, 0.5]
    early, _ = score(EarlyLearning(label=LABEL, log=log, until=0), table([1, 0]), tmp_path / "b")
    assert early["noise"] == pytest.approx([0.9, 0.8], abs=1e-6)


def test_rows_in_any_order_and_several_of_an_epoch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), (4, 30))
    given = np.append([0, 1, 2], rng.integers(0, 3, 27))
    part = EarlyLearning(label=LABEL, log=write(tmp_path / "log", list(p)))
    once, _ = score(part, table(given), tmp_path / "a")
    hexed, epoch, both = [], [], []
    for e, i in rng.permutation([(e, i) for e in range(4) for i in range(30)]).tolist():
        shift = np.array([0.01, -0.01, 0]) * (p[e, i].min() > 0.02)
        for sign in (1, -1):  # two rows, whose mean is the one
            hexed.append(ids([i])[0].as_py().hex())
            epoch.append(10 + e)
            both.append((p[e, i] + sign * shift).tolist())
    rows = pa.table({"id": hexed, "epoch": epoch, "probabilities": both})
    pq.write_table(rows, tmp_path / "one.parquet", row_group_size=7)
    again = EarlyLearning(label=LABEL, log=str(tmp_path / "one.parquet"))
    order = np.random.default_rng(1).permutation(np.append(np.arange(30), [4, 4]))
    found, _ = score(again, table(given[order], order), tmp_path / "b", 3)
    assert found["noise"] == pytest.approx(once["noise"][order], abs=1e-6)
    assert found["proposal"].tolist() == once["proposal"][order].tolist()


def test_a_log_of_losses_judges_the_given_label_alone(tmp_path: Path) -> None:
    p = np.array([[0.9, 0.2, 0.5], [0.95, 0.3, 0.5]])
    log = write(tmp_path / "log", list(-np.log(p)))
    part = EarlyLearning(label=LABEL, log=log, beta=0.5)
    found, facts = score(part, table(["a", "b", "a"]), tmp_path / "a")
    target = (0.25 * p[0] + 0.5 * p[1]) / 0.75
    assert found["noise"] == pytest.approx(1 - target, abs=1e-6)
    assert found["drift"] == pytest.approx(p[1] - target, abs=1e-6)
    assert found["proposal"].tolist() == ["keep", "eliminate", "eliminate"]
    assert found["suggested"].tolist() == [None] * 3
    assert facts["regulariser"] is None


def memorised(folder: Path, epochs: int) -> tuple[str, npt.NDArray[np.bool_], pa.Table]:
    """The log of a network that learns 40 % wrong labels by heart."""
    vectors, given, true = planted(300, 3, 0.4)
    x, y = torch.from_numpy(vectors), torch.from_numpy(given)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(12, 256), torch.nn.ReLU(), torch.nn.Linear(256, 3)
        )
    optimizer, seen = torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(epochs):
        for rows in torch.arange(300).split(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        seen.append(model(x).softmax(1).detach().numpy())
    return write(folder, seen), given != true, table(given)


def test_the_target_read_early_finds_what_is_memorised_later(tmp_path: Path) -> None:
    log, bad, rows = memorised(tmp_path / "log", 150)

    def f1(until: int | None, name: str) -> tuple[float, Any]:
        found, facts = score(
            EarlyLearning(label=LABEL, log=log, until=until), rows, tmp_path / name
        )
        told = found["proposal"] != "keep"
        return 2 * (told & bad).sum() / (told.sum() + bad.sum()), facts

    early, facts = f1(4, "a")
    late, after = f1(None, "b")
    assert early > 0.8  # as the paper's detector at this noise
    assert late < early - 0.2
    assert facts["disagree"][0] > 0.3 > 0.1 > after["disagree"][-1]


def test_memorising_is_said(tmp_path: Path) -> None:
    right, wrong = np.array([0.9, 0.1]), np.array([0.02, 0.98])
    first = np.array([right] * 10)
    last = np.array([right] * 5 + [wrong] * 5)
    log = write(tmp_path / "log", [first, first, first, last])
    part = EarlyLearning(label=LABEL, log=log, beta=0.9)
    _, facts = score(part, table([0] * 5 + [1] * 5), tmp_path / "a")
    assert any("read the target earlier with `until`" in said for said in facts["warnings"])
    _, facts = score(
        EarlyLearning(label=LABEL, log=log, until=2), table([0] * 5 + [1] * 5), tmp_path / "b"
    )
    assert not facts["warnings"]


def test_the_contents_of_a_log_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    log = write(tmp_path / "log", [np.array([[0.5, 0.5]])])
    part = EarlyLearning(label=LABEL, log=log)
    before = part.fingerprint
    assert part.fingerprint == before
    extra = pa.table({"id": ids([0]), "epoch": [1], "probabilities": [[0.1, 0.9]]})
    pq.write_table(extra, tmp_path / "log" / "001.parquet")
    assert part.fingerprint != before
    assert EarlyLearning(label=LABEL, log=str(tmp_path / "none")).fingerprint


def test_documents_that_the_log_does_not_have(tmp_path: Path) -> None:
    p = np.array([[0.1, 0.9], [np.nan, 0.5], [0.9, 0.1], [0.5, 0.5]])
    log = write(tmp_path / "log", [p], numbers=[0, 1, 2, 77])
    rows = table([0, 1, None, 0])
    found, facts = score(EarlyLearning(label=LABEL, log=log), rows, tmp_path / "a")
    assert found["noise"][0] == pytest.approx(0.9)
    assert np.isnan(found["noise"][1:]).all()
    assert found["proposal"].tolist() == ["re_annotate", "keep", None, "keep"]
    assert any("2 of 3 labels are not judged" in said for said in facts["warnings"])


def test_classes_name_the_places(tmp_path: Path) -> None:
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    log = write(tmp_path / "log", [p])
    with pytest.raises(DataError, match="3 probabilities a row for 2 labels; name the label"):
        score(EarlyLearning(label=LABEL, log=log), table(["x", "z"]), tmp_path / "a")
    part = EarlyLearning(label=LABEL, log=log, classes=("z", "y", "x"))
    found, _ = score(part, table(["x", "z"]), tmp_path / "b")
    assert found["suggested"].tolist() == ["z", "x"]
    with pytest.raises(DataError, match="does not name: 'w'"):
        score(part, table(["x", "w"]), tmp_path / "c")


def test_logs_that_are_none(tmp_path: Path) -> None:
    def refused(log: str, message: str, **fields: Any) -> None:
        with pytest.raises(DataError, match=message):
            score(EarlyLearning(label=LABEL, log=log, **fields), table([0, 1]), tmp_path / message)

    refused(str(tmp_path / "nowhere"), "cannot be read as a log")
    (tmp_path / "text.parquet").write_text("no")
    refused(str(tmp_path / "text.parquet"), "cannot be read")
    two = np.array([[0.5, 0.5], [0.5, 0.5]])
    good = write(tmp_path / "good", [two])
    refused(good, "no epoch up to -1", until=-1)
    refused(write(tmp_path / "far", [two], numbers=[8, 9]), "no id of the log")
    for number, (drop, message) in enumerate(
        {"id": "no column 'id'", "epoch": "no column 'epoch'", "probabilities": "neither"}.items()
    ):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pq.read_table(good).drop_columns([drop]), path)
        refused(str(path), message)
    pq.write_table(pa.table({"id": ["zz"], "epoch": [0], "loss": [1.0]}), tmp_path / "hex.parquet")
    refused(str(tmp_path / "hex.parquet"), "is no id of a document")
    with pytest.raises(DataError, match="have the one label"):
        score(EarlyLearning(label=LABEL, log=good), table([1, 1]), tmp_path / "single")
    for fields in ({"beta": 1.0}, {"flag_at": 3.0}, {"classes": ("a", "a")}):
        with pytest.raises(ValueError, match="must"):
            EarlyLearning(label=LABEL, log=good, **fields)
