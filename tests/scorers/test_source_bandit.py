"""Rounds of the bandit over sources: pulls, shares, rewards, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.nouns import Job, Look, Reference
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import read_json
from foresift.scorers import source_bandit
from foresift.scorers.source_bandit import SourceBandit
from tests.corpora import Serial, make_corpus
from tests.scorers.tiny import AIM, SUMS, llama

ARMS = ["books", "code", "web"]
NEW: dict[str, Any] = {"round": 0, "seen": []}


def losses(**values: float) -> dict[str, Any]:
    """References with these losses, each in a direction of its own."""
    eye = np.eye(4)
    return {n: {"loss": v, "vector": eye[i].tolist()} for i, (n, v) in enumerate(values.items())}


def part(**fields: Any) -> SourceBandit:
    return SourceBandit(reference=["a", "b"], **fields)


def test_each_source_is_pulled_once_in_order_and_shares_sum_to_one() -> None:
    bandit, weights = part(floor=0.3), {"a": 1.0, "b": 3.0}
    first = bandit.decide(ARMS, losses(a=2.0, b=4.0), weights, NEW)
    assert first["pulls"] == {"a": "books", "b": "code"}
    assert first["share"] == pytest.approx(
        {"books": 0.1 + 0.7 / 4, "code": 0.1 + 0.7 * 3 / 4, "web": 0.1}
    )
    second = bandit.decide(ARMS, losses(a=1.9, b=3.0), weights, first)
    assert second["pulls"]["a"] == "web"
    assert [(e["arm"], e["context"], e["round"]) for e in second["seen"]] == [
        ("books", "a", 1), ("code", "b", 1),
    ]  # fmt: skip
    gains = [math.log(2.0 / 1.9) / math.log(2), math.log(4 / 3) / math.log(2)]
    np.testing.assert_allclose([e["gain"] for e in second["seen"]], gains)
    assert [e["reward"] for e in second["seen"]] == [0.0, 1.0]
    assert sum(second["share"].values()) == pytest.approx(1.0)
    assert second["pulls"]["b"] == "code"  # the only one known to help b


def test_bounds_by_hand() -> None:
    """One context, linear: k = (1 + 1) / 2, reward 1/2 a round ago at discount 1/2."""
    bandit = part(kernel="linear", discount=0.5, eta=2.0)
    first = bandit.decide(["x", "y"], losses(a=2.0), {"a": 1.0}, NEW)
    assert first["bounds"]["a"]["x"] == pytest.approx({"mu": 0.0, "sigma": 1.0, "ucb": 2.0})
    second = bandit.decide(["x", "y"], losses(a=1.0), {"a": 1.0}, first)
    found = second["bounds"]["a"]["x"]
    assert found["mu"] == pytest.approx(0.5 / (1 + 2))
    assert found["sigma"] == pytest.approx(math.sqrt(1 - 1 / 3))
    assert found["ucb"] == pytest.approx(found["mu"] + 2 * found["sigma"])
    assert second["ucb"]["x"] == found["ucb"]


def test_the_paper_explores_by_its_formula() -> None:
    first = part(eta=None).decide(ARMS, losses(a=2.0), {"a": 1.0}, NEW)
    assert first["ucb"]["web"] == pytest.approx(4.8364, abs=1e-4)


@pytest.mark.parametrize("trend", ["power_law", "none"])
def test_gains_of_a_power_law_are_the_same_in_every_round(trend: Any) -> None:
    bandit, state, weights = part(trend=trend), NEW, {"a": 1.0}
    for number in range(1, 6):
        state = bandit.decide(ARMS, losses(a=5.0 * number**-0.3), weights, state)
    gains = [e["gain"] for e in state["seen"]]
    if trend == "power_law":
        np.testing.assert_allclose(gains, [0.3] * 4)
    else:
        np.testing.assert_allclose(gains, 0.3 * np.log([2, 3 / 2, 4 / 3, 5 / 4]))


@pytest.mark.parametrize("seed", range(3))
def test_sources_that_help_a_reference_get_its_share(seed: int) -> None:
    """The loss of a falls three times faster on books, that of b on code, both as a power law."""
    bandit, weights, state = part(), {"a": 1.0, "b": 1.0}, NEW
    rng = np.random.default_rng(seed)
    now, history = {"a": 5.0, "b": 5.0}, []
    for number in range(1, 25):
        state = bandit.decide(ARMS, losses(**now), weights, state)
        history.append(state["pulls"])
        for name, best in (("a", "books"), ("b", "code")):
            exponent = 0.3 if state["pulls"][name] == best else 0.1
            now[name] *= (1 + 1 / number) ** -(exponent + 0.03 * rng.normal())
    late = history[-12:]
    assert np.mean([p["a"] == "books" for p in late]) > 0.6
    assert np.mean([p["b"] == "code" for p in late]) > 0.6


def test_sources_that_come_and_go() -> None:
    bandit, weights = part(), {"a": 1.0}
    first = bandit.decide(["code", "web"], losses(a=2.0), weights, NEW)
    second = bandit.decide(["aside", "web"], losses(a=1.0), weights, first)
    assert first["pulls"] == {"a": "code"}
    assert second["pulls"] == {"a": "aside"}
    assert set(second["share"]) == {"aside", "web"}
    other = bandit.decide(["aside", "web"], losses(c=1.0), {"c": 1.0}, second)
    assert len(other["seen"]) == 1  # a is gone, and with it what its last pull earned


def test_another_width_is_an_error() -> None:
    bandit = part()
    first = bandit.decide(ARMS, losses(a=2.0), {"a": 1.0}, NEW)
    with pytest.raises(DataError, match=r"^a: hidden states have another width"):
        bandit.decide(ARMS, {"a": {"loss": 1.0, "vector": [1.0]}}, {"a": 1.0}, first)


# -- with a model ------------------------------------------------------------------------------


def look(folder: Path, sources: list[list[Any]], **more: Any) -> Look:
    texts = [[f"document {i} of {s}" for i, _ in enumerate(row)] for s, row in enumerate(sources)]
    columns = {"l.v": [pa.array(row, pa.string()) for row in sources]}
    pool = make_corpus(folder / "pool", texts, columns=columns)
    aims = tuple(
        Reference(name, make_corpus(folder / name, [texts]))
        for name, texts in (("sums", SUMS), ("cows", AIM))
    )
    return Look(pool, aims, llama(folder), Job(engine=Serial(), rng=Rng(0)), **more)


def scored(bandit: SourceBandit, out: Path, column: Any) -> Any:
    window = SimpleNamespace(tokens=SimpleNamespace(table=pa.table({bandit.by: column})))
    return bandit.score(window, out)  # type: ignore[arg-type]


def test_rounds_with_a_model(tmp_path: Path) -> None:
    """The same model twice: nothing dropped, so that both pulls earned the same."""
    bandit = part(by="l.v", depth=0)
    given = look(tmp_path, [["web", None, "code"], ["books", "web"]])
    outs = [tmp_path / "one", tmp_path / "two"]
    first = bandit.fit(given, outs[0])
    assert first["arms"] == ARMS
    assert first["pulls"] == {"sums": "books", "cows": "code"}
    assert first["losses"]["sums"] > 0
    assert first["flops"] > 0
    after = Look(given.corpus, given.references, given.model, given.job, outs[0])
    second = bandit.fit(after, outs[1])
    assert second["losses"] == first["losses"]
    assert [e["gain"] for e in second["seen"]] == [0.0, 0.0]
    assert second["pulls"]["sums"] == "web"
    assert bandit.fit(after, outs[1]) == second
    found = scored(bandit, outs[1], ["code", None, "web", "never seen"])
    share = second["share"]
    np.testing.assert_array_equal(found["share"], [share["code"], np.nan, share["web"], np.nan])
    np.testing.assert_array_equal(found["utility"], found["ucb"])
    vectors = [e["vector"] for e in read_json(outs[0] / "bandit.json")["contexts"].values()]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0)


def test_paths_are_cut_to_sources(tmp_path: Path) -> None:
    bandit = part(depth=2)
    told = bandit.fit(look(tmp_path, [["x"], ["y"]]), tmp_path / "out")
    assert told["arms"] == ["made/0", "made/1"]
    found = scored(bandit, tmp_path / "out", ["made/0#7", "made/1#0"])["share"]
    np.testing.assert_allclose(found, [0.5, 0.5])


def test_one_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^source: 1 source \(made\)"):
        part().fit(look(tmp_path, [["x"], ["y"]]), tmp_path / "out")
    with pytest.raises(DataError, match=r"0 sources \(none\)"):
        part(by="l.v").fit(look(tmp_path / "b", [[None], [None]]), tmp_path / "out")


def test_a_loss_that_is_no_number_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_bandit, "means", lambda *_: {"token_mean": math.nan})
    with pytest.raises(ModelError, match=r"^sums: the loss of the model on it is nan"):
        part(depth=2).fit(look(tmp_path, [["x"], ["y"]]), tmp_path / "out")


@pytest.mark.parametrize(
    "fields",
    [{"floor": 1.1}, {"discount": 0.0}, {"delta": 1.0}, {"eta": -1.0}, {"gamma": 0.0},
     {"alpha": math.inf}, {"pulls": 0}, {"reference_documents": 0}, {"depth": -1}, {"depth": 0}],
)  # fmt: skip
def test_bad_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        part(**fields)
