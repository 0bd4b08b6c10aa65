"""A stream of preference pairs judges both sides by themselves and chooses pairs by their fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.online import IGNORED
from foresift.pipeline.pairs import PairSource, Side
from foresift.pipeline.parts import find
from foresift.pipeline.stream import Stream
from foresift.stages.samplers.max_loss import MaxLoss
from foresift.stages.samplers.uds import UDS, UDSChooser
from tests.pipeline.streams import Hardest, Highest, model
from tests.pipeline.test_stream import side_by_side

SIDES: tuple[Side, ...] = ("mean", "chosen", "rejected", "difference")
METHODS: dict[str, dict[str, Any]] = {
    "gradient_match": {"reference": "aim.parquet"},
    "gradient_norm": {},
    "max_loss": {},
    "momentum_gain": {},
    "random": {},
    "rho_loss": {"against": "losses.parquet"},
    "uds": {"d1": 8, "d2": 4, "memory": 5},
    "uncertainty": {},
}


def pairs(n: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)

    def text(low: int, high: int) -> list[int]:
        found: list[int] = rng.integers(1, 31, rng.integers(low, high)).tolist()
        return found

    return [
        {
            "id": f"p{(i * 37) % 1009}",
            "prompt_ids": text(1, 5),
            "chosen_ids": text(1, 6),
            "rejected_ids": text(1, 6),
        }
        for i in range(n)
    ]


DATA = pairs()


def padded(lines: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """(prompt, completion) of each line, padded on the right."""
    width = max(len(a) + len(b) for a, b in lines)
    ids = torch.zeros((len(lines), width), dtype=torch.long)
    real, counts = torch.zeros_like(ids), torch.zeros_like(ids)
    for line, (prompt, completion) in enumerate(lines):
        end = len(prompt) + len(completion)
        ids[line, :end] = torch.tensor(prompt + completion)
        real[line, :end] = 1
        counts[line, len(prompt) : end] = 1
    return {"input_ids": ids, "attention_mask": real, "completion_mask": counts}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """As TRL lays pairs out; `place` follows the pairs, as reference log-probabilities do."""
    sides = [[(r["prompt_ids"], r[f"{s}_ids"]) for r in rows] for s in ("chosen", "rejected")]
    firsts = torch.tensor([r["prompt_ids"][0] for r in rows])
    return {**padded([*sides[0], *sides[1]]), "place": firsts}


def stream(net: Any = None, method: Any = None, data: Any = None, **fields: Any) -> Stream:
    given: dict[str, Any] = {"keep": 4, "of": 12, "collate": collate, "seed": 7, "side": "mean"}
    given |= fields
    data = DATA if data is None else data
    return Stream(data, method or Highest(), model() if net is None else net, **given)


def learn(net: Any, batch: dict[str, torch.Tensor], optimizer: Any) -> None:
    """A step of a preference loss without a reference model."""
    net.train()
    ids, counts = batch["input_ids"], batch["completion_mask"][:, 1:]
    log = net(input_ids=ids, attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    of_line = (log[:, :-1].gather(2, ids[:, 1:, None])[..., 0] * counts).sum(1)
    chosen, rejected = of_line.chunk(2)
    (-torch.nn.functional.logsigmoid(chosen - rejected).mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def plain_loss(net: Any, row: dict[str, Any], side: str) -> float:
    """The mean loss of a completion, by the model's own logits."""
    prompt, completion = row["prompt_ids"], row[f"{side}_ids"]
    labels = torch.tensor([[IGNORED] * len(prompt) + completion])
    with torch.no_grad():
        return float(net.eval()(input_ids=torch.tensor([prompt + completion]), labels=labels).loss)


@pytest.mark.parametrize("side", SIDES)
def test_what_is_chosen_is_the_fold_by_hand(side: Side) -> None:
    net = model()
    optimizer, found = torch.optim.AdamW(net.parameters(), lr=1e-2), stream(net, side=side)
    sides = {"mean": (0.5, 0.5), "chosen": (1, 0), "rejected": (0, 1), "difference": (1, -1)}
    weights = sides[side]
    for step in range(5):
        candidates = found.order.rows(step).tolist()
        value = {
            row: weights[0] * plain_loss(net, DATA[row], "chosen")
            + weights[1] * plain_loss(net, DATA[row], "rejected")
            for row in candidates
        }
        top = sorted(candidates, key=lambda row: -value[row])[:4]
        expected = collate([DATA[row] for row in candidates if row in top])
        batch = next(found)
        assert "labels" not in batch
        for name, values in expected.items():
            assert torch.equal(batch[name], values), (step, name)
        learn(net, batch, optimizer)
    report = found.report()
    assert (report["candidates_seen"], report["rows_trained_on"]) == (60, 20)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_one_side_is_a_stream_over_its_texts(side: Any) -> None:
    def texts(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = padded([(r["prompt_ids"], r[f"{side}_ids"]) for r in rows])
        labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, IGNORED)
        return {**batch, "labels": labels}

    method = UDS(d1=8, d2=4, memory=6)
    of_pairs = stream(method=method, side=side, steps=6)
    of_texts = stream(method=method, side=None, collate=texts, steps=6)
    for pair, text in zip(of_pairs, of_texts, strict=True):
        assert len(pair["input_ids"]) == 2 * len(text["input_ids"])
        assert of_pairs.account.agreement == of_texts.account.agreement
    assert of_pairs.plan != of_texts.plan


def test_sides_that_change_places_change_no_mean() -> None:
    other = [{**r, "chosen_ids": r["rejected_ids"], "rejected_ids": r["chosen_ids"]} for r in DATA]
    for side, back in (("mean", "mean"), ("chosen", "rejected")):
        here, there = stream(side=side, steps=5), stream(data=other, side=back, steps=5)
        for one, two in zip(here, there, strict=True):
            chosen, rejected = one["input_ids"].chunk(2)
            assert torch.equal(two["input_ids"], torch.cat([rejected, chosen]))


@pytest.mark.parametrize("world", [2, 4])
def test_the_same_pairs_in_any_number_of_processes(world: int) -> None:
    nets = [model() for _ in range(world)]  # threads share one random state

    def chosen(rank: int, world: int, gather: Any) -> Any:
        fields: Any = {"keep": 8, "of": 16, "at_once": 4, "steps": 4, "check_every": 1}
        fields |= {"rank": rank, "world": world, "gather": gather}
        for batch in stream(nets[rank], Highest(memory=0.1), **fields):
            sides = batch["input_ids"].chunk(2)
            yield [[line[line > 0].tolist() for line in pair] for pair in zip(*sides, strict=True)]

    together = side_by_side(world, lambda rank, gather: chosen(rank, world, gather))
    for step, expected in enumerate(chosen(0, 1, None)):
        assert [pair for of_rank in together for pair in of_rank[step]] == expected


def found_method(name: str, folder: Any) -> Any:
    """A method, with the files that it reads."""
    rng = np.random.default_rng(5)
    aim = [rng.integers(1, 31, 6).tolist() for _ in range(2)]
    pq.write_table(pa.table({"input_ids": aim}), folder / "aim.parquet")
    known = [row["id"] for row in DATA[1:]]
    losses = rng.uniform(2, 5, len(known)).tolist()
    pq.write_table(pa.table({"id": known, "loss": losses}), folder / "losses.parquet")
    return find("sample", name).parse(METHODS[name], name)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_measures_both_sides_and_their_mean(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net, method = model(), found_method(name, tmp_path)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    found = stream(net, method, optimizer=optimizer, of=40, at_once=40)
    learn(net, next(found), optimizer)

    def looked(side: Side) -> tuple[PairSource, Seen]:
        source = PairSource(DATA, "id", collate, side)
        rows = found.order.rows(1)
        examples = source.read(rows)
        candidates = source.candidates(collate([DATA[row] for row in rows]), rows, examples)
        return source, found.live.look(candidates, method.signals, method.hidden)

    with found.live.scoring(), torch.no_grad():
        source, seen = looked("mean")
        mean = source.folded(found.chooser.measure(seen), len(seen))
        sides = [found.chooser.measure(looked(side)[1]) for side in ("chosen", "rejected")]
    for key, values in mean.items():
        one, two = (side[key] for side in sides)
        expected = (one + two) / 2 if values.is_floating_point() else one
        torch.testing.assert_close(values, expected, equal_nan=True, rtol=1e-4, atol=1e-4)
    utility = found.chooser.utility(mean, 1)
    assert len(utility) == 40
    assert len(set(utility[np.isfinite(utility)].round(9))) > 30
    top = np.sort(np.argsort(np.where(np.isnan(utility), np.inf, -utility))[:4])
    rows = found.order.rows(1)[top]
    assert torch.equal(next(found)["input_ids"], collate([DATA[r] for r in rows])["input_ids"])


def test_a_table_by_id_names_pairs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = stream(method=found_method("rho_loss", tmp_path), of=40)
    next(found)
    report = found.report()
    assert report["method"] == {"in_table": 39, "candidates_missing": 1}
    assert report["nan_rows"] == 1


def test_the_sketch_of_a_pair_is_that_of_its_mean_logits() -> None:
    net, row = model(), DATA[3]
    live = LiveModel(net.eval())
    chooser = UDS(d1=8, d2=4).open(live)
    assert isinstance(chooser, UDSChooser)
    source = PairSource([row], "id", collate, "mean")
    rows = np.array([0])
    seen = live.look(source.candidates(collate([row]), rows, source.read(rows)), (), hidden=True)
    folded = source.folded(chooser.measure(seen), len(seen))
    lines = [row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")]
    width, vocabulary = max(map(len, lines)), 31
    logits = torch.zeros(width, vocabulary)
    norms = []
    for line in lines:
        with torch.no_grad():
            own = net(input_ids=torch.tensor([line])).logits[0].float()
        logits[: len(line)] += own / 2
        norms.append(float(torch.linalg.matrix_norm(own, "nuc")))
    masks, device = chooser.kernel.masks, torch.device("cpu")
    left, right = masks.left(width, device), masks.right(0, vocabulary, device)
    expected = (left.double() @ logits.double() @ right.double()).flatten()
    torch.testing.assert_close(folded["sketch"][0].double(), expected, rtol=1e-4, atol=1e-5)
    assert float(folded["intra"][0]) == pytest.approx(sum(norms) / 2, rel=1e-4)


def test_a_pair_with_a_side_that_cannot_be_judged_comes_last() -> None:
    empty = [{**row, "rejected_ids": []} if i % 2 else row for i, row in enumerate(DATA)]
    for side, unknown in (("mean", 20), ("chosen", 0), ("rejected", 20)):
        found = stream(data=empty, side=side, keep=20, of=40, method=MaxLoss())
        batch = next(found)
        assert found.report()["nan_rows"] == unknown
        both = batch["completion_mask"].any(1).view(2, -1).all(0)
        assert bool(both.all()) == (unknown > 0)


def test_a_state_of_another_side_is_refused() -> None:
    state = stream(side="mean").state_dict()
    stream(side="mean").load_state_dict(state)
    for side in ("chosen", None):
        with pytest.raises(DataError, match=r"mode, side .*must be those"):
            stream(side=side).load_state_dict(state)


def test_what_are_no_pairs_is_refused() -> None:
    def without(name: str, **other: Any) -> Any:
        return lambda rows: {k: v for k, v in {**collate(rows), **other}.items() if k != name}

    refusals: list[tuple[dict[str, Any], str]] = [
        ({"collate": without("completion_mask")},
         r"completion_mask: the collator gives no 'completion_mask' \(it gives: input_ids, att"),
        ({"collate": without("input_ids")}, "gives no 'input_ids'"),
        ({"collate": lambda rows: 3}, r"\(it gives: int\)"),
        ({"collate": lambda rows: {k: v[: len(rows)] for k, v in collate(rows).items()}},
         r"8 pairs were collated to input_ids \[8, \d+\].*two lines a pair"),
        ({"collate": without("", completion_mask=torch.ones(16, 1))}, r"completion_mask \[16, 1\]"),
        ({"collate": without("", attention_mask=torch.ones(16, 1))}, r"attention_mask is \[16, 1"),
        ({"side": "both"}, "side: must be 'mean', 'chosen', 'rejected', 'difference', got 'both'"),
        ({"tokens": Hardest()}, "tokens: a preference loss is of whole completions"),
    ]  # fmt: skip
    for fields, message in refusals:
        with pytest.raises(DataError, match=message):
            next(stream(**fields))
    assert len(next(stream(collate=without("attention_mask")))["input_ids"]) == 8


def test_measurements_without_a_mean_are_refused() -> None:
    source = PairSource(DATA, "id", collate, "mean")
    counts, flags = torch.tensor([1, 2, 1, 2]), torch.tensor([True, True, True, False])
    folded = source.folded({"count": counts, "flag": flags}, 4)
    assert folded["count"].tolist() == [1, 2]
    assert folded["flag"].tolist() == [True, False]
    with pytest.raises(DataError, match="count: whole numbers differ between the sides"):
        source.folded({"count": torch.tensor([1, 2, 1, 3])}, 4)
    with pytest.raises(DataError, match="loss: 3 values for the 4 sides of pairs"):
        source.folded({"loss": torch.ones(3)}, 4)
    one = PairSource(DATA, "id", collate, "chosen").folded({"count": counts}, 4)
    assert one["count"].tolist() == [1, 2, 1, 2]
