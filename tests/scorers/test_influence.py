"""Influence through recipes: two kinds of documents, a reference of one, and what must come out.

The model is tiny but trained, so that its optimizer state means something. One kind are sums like
`3 + 4 = 7`, the other strings of words.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from foresift.pipeline.engines.local import LocalEngine
from foresift.pipeline.lm.batches import batches
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.gradients.adamw import AdamW, load_moments, preconditioned
from foresift.pipeline.lm.gradients.oracle import per_sample_gradients
from foresift.pipeline.lm.model import ModelSpec, load, load_tokenizer
from foresift.pipeline.run import Run
from tests.inputs import write
from tests.runs import files, go, stages

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "initializer_range": 0.1, "tie_word_embeddings": True,
}  # fmt: skip
TRAIN = {
    "train": "causal_lm", "tokens": 30_000, "repeat": True, "length": 96, "batch_tokens": 768,
    "learning_rate": 0.005, "threads": 1,
}  # fmt: skip
WORDS = ["bird", "stone", "green", "house", "river", "slow", "cloud", "sings", "table", "under"]
#: of the probing step where it is taken; at 1e-3 it leaps over the valley of so small a model
SMALL = 1e-4
LENGTH = 96


def sums(number: int, seed: int) -> list[str]:
    rng = np.random.default_rng([seed, 0])
    pairs = [rng.integers(0, 50, (4, 2)).tolist() for _ in range(number)]
    return [", ".join(f"{a} + {b} = {a + b}" for a, b in each) for each in pairs]


def salad(number: int, seed: int) -> list[str]:
    rng = np.random.default_rng([seed, 1])
    return [" ".join(rng.choice(WORDS, rng.integers(6, 12))) for _ in range(number)]


def mixed(number: int, seed: int) -> list[str]:
    """Documents of both kinds by turns, sums first."""
    return [t for pair in zip(sums(number, seed), salad(number, seed), strict=True) for t in pair]


@dataclass(frozen=True)
class World:
    """Files that all tests read."""

    folder: Path
    checkpoint: Path
    pool: Path
    sums: Path
    words: Path

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(init=str(self.checkpoint), device="cpu", max_length=LENGTH)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("influence")
    config = folder / "llama.json"
    config.write_text(json.dumps(LLAMA))
    model = {"init": str(config), "tokenizer": "bytes", "device": "cpu", "max_length": LENGTH}
    fields = scoring(write(folder / "train.jsonl", mixed(150, 1)), model, [TRAIN])
    done = go(fields, folder / "trained")
    return World(
        folder,
        Path(done.manifest["steps"][-1]["path"]) / "checkpoint",
        write(folder / "pool.jsonl", mixed(80, 2)),
        write(folder / "sums.jsonl", sums(16, 3)),
        write(folder / "words.jsonl", salad(16, 3)),
    )


def scoring(pool: Path, model: dict[str, Any], steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    data = {"read": "jsonl", "paths": [str(pool)], "holdout": 0.0}
    return {"name": "i", "data": data, "model": model, "steps": list(steps), "report": False}


@dataclass(frozen=True)
class Scored:
    """What a score by influence left."""

    run: Run
    path: Path
    facts: dict[str, Any]
    table: pa.Table

    @property
    def utility(self) -> np.ndarray:
        return np.asarray(self.table["utility"], dtype=np.float64)

    @property
    def labels(self) -> dict[bytes, list[float]]:
        parts = sorted((self.path / "fitted" / "labels").glob("*.parquet"))
        table = pa.concat_tables([pq.read_table(p) for p in parts])
        return dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))

    @property
    def log(self) -> str:
        return (self.run.path / "log.txt").read_text()


def score(world: World, out: Path | None = None, **fields: Any) -> Scored:
    """Score by influence; `pool` and `init` replace the world's own."""
    pool, init = fields.pop("pool", world.pool), fields.pop("init", world.checkpoint)
    model = {"init": str(init), "device": "cpu", "max_length": LENGTH}
    part = {"score": "influence", "reference": str(world.sums), **fields}
    done = go(scoring(pool, model, [part]), out or world.folder / "out")
    step = done.manifest["steps"][-1]
    path = Path(step["path"])
    table = pa.concat_tables([pq.read_table(p) for p in sorted(path.glob("part-*.parquet"))])
    return Scored(done, path, step["facts"], table)


def auc(values: np.ndarray) -> float:
    """How often a document of the first kind (even rows) stands above one of the second."""
    first, second = values[::2], values[1::2]
    return float((first[:, None] > second).mean())


# -- the kind that was asked for comes first ---------------------------------------------------


def tokens(world: World, path: Path) -> int:
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    loaded = load(world.spec)
    return len(encode(pa.table({"text": texts}), loaded.tokenizer, world.spec).ids)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("direct", {"method": "direct"}),
        ("ridge", {"probes": "30%"}),
        ("ridge", {"probes": "30%", "labels": "exact", "learning_rate": SMALL}),
        ("ridge", {"probes": 48, "hidden": True}),
    ],
    ids=["direct", "linear", "exact", "hidden"],
)
def test_the_kind_of_the_reference_is_first(world: World, method: str, fields: Any) -> None:
    found = score(world, **fields)
    assert auc(found.utility) > 0.8
    facts = found.facts
    number = 160 if method == "direct" else 48
    assert (facts["method"], facts["probes"], facts["nan"]["utility"]) == (method, number, 0)
    assert facts["preconditioned"]
    parameters = sum(p.numel() for p in load(world.spec).model.parameters())
    r, s, t = facts["reference_tokens"], facts["sample_tokens"], facts["probe_tokens"]
    fit = 6 * r + 26 * s
    if method == "ridge":
        assert facts["model"]["labels"] == 48
        assert facts["model"]["spearman"][0] > 0.4
        # exact labels come in chunks of 4, each of which evaluates the reference at theta as well
        fit += 6 * t + 2 * r * (48 + 12) if fields.get("labels") == "exact" else 4 * t
        fit += 2 * facts["whole_tokens"] if fields.get("hidden") else 0
    whole = 2.0 * parameters * tokens(world, world.pool)
    own = whole if method == "direct" else 0.0
    shared = whole if method == "direct" or fields.get("hidden") else 0.0
    assert r == tokens(world, world.sums)
    assert facts["flops"] == {"fit": float(parameters * fit), "own": own, "shared": shared}
    assert found.table["by_reference"].null_count == 160


def test_an_encoder_learns_the_labels(world: World, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    tokenizer = load_tokenizer("bytes")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    encoder = {"init": str(tmp_path / "bert"), "device": "cpu", "learning_rate": 3e-3, "epochs": 10}
    found = score(world, tmp_path / "out", method="encoder", probes=80, encoder=encoder)
    assert auc(found.utility) > 0.8
    assert found.facts["method"] == "encoder"
    assert (found.path / "fitted" / "encoder" / "head.safetensors").exists()
    assert found.facts["model"]["labels"] == 80
    assert found.facts["flops"]["shared"] == 0.0


# -- labels ------------------------------------------------------------------------------------


def products(world: World, texts: Sequence[str]) -> np.ndarray:
    """[n] <P grad J, grad l_x> by the definition: one explicit gradient a document."""
    loaded = load(world.spec)

    def gradients(texts: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        encoded = encode(pa.table({"text": list(texts)}), loaded.tokenizer, world.spec)
        [batch] = batches(encoded, np.arange(len(texts)), 10**6)
        rows = per_sample_gradients(loaded.model, batch)
        place = np.argsort(batch.documents)
        return encoded.lengths - 1, {n: g.double().numpy()[place] for n, g in rows.items()}

    counts, found = gradients([json.loads(x)["text"] for x in world.sums.read_text().splitlines()])
    share = counts / counts.sum()
    aim = {n: torch.from_numpy(np.einsum("i,i...->...", share, g)) for n, g in found.items()}
    direction = preconditioned(aim, load_moments(world.spec, loaded.model), AdamW())
    mine = gradients(texts)[1]
    return sum(
        (g * direction[n].numpy()).reshape(len(texts), -1).sum(1) for n, g in mine.items()
    )  # fmt: skip


def test_direct_scores_are_products_of_explicit_gradients(world: World) -> None:
    found = score(world, method="direct", clip=0.0).utility[:40]
    expected = products(world, mixed(80, 2)[:40])
    assert np.corrcoef(found, expected)[0, 1] > 0.999
    assert np.polyfit(expected, found, 1)[0] == pytest.approx(1.0, abs=0.05)


def test_labels_of_the_probes_are_what_direct_gives_them(world: World) -> None:
    pairs = {}
    for clip in (0.0, 1.0):
        direct = score(world, method="direct", clip=clip)
        labels = score(world, probes="30%", probe_tokens=0, clip=clip).labels
        known = dict(zip(direct.table["id"].to_pylist(), direct.utility, strict=True))
        pairs[clip] = np.array([(known[key], label[0]) for key, label in labels.items()])
    assert pairs[0.0].shape == (48, 2)
    assert np.abs(np.diff(pairs[0.0])).max() < 0.02 * pairs[0.0].std()
    # the formula of the norm is fitted on the sample, which is another one
    assert spearmanr(*pairs[1.0].T)[0] > 0.95


def test_linear_and_exact_labels_agree(world: World) -> None:
    same = {"probes": "30%", "learning_rate": SMALL}
    linear, exact = score(world, **same).labels, score(world, labels="exact", **same).labels
    assert list(linear) == list(exact)
    assert spearmanr(list(linear.values()), list(exact.values()))[0] > 0.9


@pytest.mark.parametrize("labels", ["linear", "exact"])
def test_a_near_copy_of_the_reference_is_the_best_document(
    world: World, tmp_path: Path, labels: str
) -> None:
    star = "the river sings 1 + 1 = 2 under a stone"
    aim = write(tmp_path / "aim.jsonl", [f"{star} {mark}" for mark in ".!?;"])
    pool = write(tmp_path / "pool.jsonl", [*salad(12, 9), f"{star} ,", *sums(12, 9)])
    fields = {"labels": labels, "learning_rate": SMALL, "probes": 25, "reference": str(aim)}
    found = score(world, tmp_path / "out", pool=pool, **fields)
    values = found.utility
    if labels == "exact":
        values = np.array([found.labels[key][0] for key in found.table["id"].to_pylist()])
    assert np.argmax(values) == 12
    assert values[12] > 0


def test_probes_of_the_whole_pool_turn_ridge_into_direct(world: World) -> None:
    whole, direct = score(world, probes="100%"), score(world, method="direct")
    assert json.loads((whole.path / "fitted" / "method.json").read_text())["method"] == "direct"
    assert whole.facts["method"] == "direct"
    np.testing.assert_array_equal(whole.utility, direct.utility)
    assert score(world, probes=100_000).facts["probes"] == 160


def test_exact_labels_of_the_whole_pool_are_the_scores(world: World) -> None:
    found = score(world, method="ridge", labels="exact", probes="100%", learning_rate=1e-4)
    assert found.facts["method"] == "labels"
    assert auc(found.utility) > 0.8


def test_utilities_scale_with_the_learning_rate_and_rank_the_same(world: World) -> None:
    one, ten = (score(world, method="direct", learning_rate=r).utility for r in (1e-4, 1e-3))
    np.testing.assert_allclose(10 * one, ten, rtol=1e-4, atol=1e-4 * ten.std())


# -- references --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["direct", "ridge"])
def test_each_reference_has_utilities_and_their_weighted_sum_is_the_utility(
    world: World, method: str
) -> None:
    aims = [{"data": str(world.sums), "weight": 2}, str(world.words)]
    fields = {"reference": aims, "method": method, "probes": "50%"}
    found = score(world, each=True, **fields)
    apart = np.array(found.table["by_reference"].to_pylist())
    np.testing.assert_allclose(apart @ [2, 1], found.utility, rtol=1e-5, atol=1e-7)
    assert auc(apart[:, 0]) > 0.8
    assert auc(apart[:, 1]) < 0.2
    assert len(found.facts["reference_loss"]) == 2
    joined = score(world, **fields)
    least = 0.99 if method == "direct" else 0.95  # a ridge of each has an alpha of its own
    assert np.corrcoef(joined.utility, found.utility)[0, 1] > least
    assert joined.table["by_reference"].null_count == 160


def test_the_loss_on_a_reference_counts_its_responses_only(world: World, tmp_path: Path) -> None:
    rows = [(f"{k} + {k} = ", f"{2 * k}, {k}") for k in range(20, 30)]
    lines = [json.dumps({"q": q, "a": a}) for q, a in rows]
    (tmp_path / "aim.jsonl").write_text("\n".join(lines) + "\n")
    aim = {"read": "jsonl", "paths": [str(tmp_path / "aim.jsonl")], "prompt": "q", "response": "a"}
    found = score(world, tmp_path / "out", method="direct", reference=aim | {"holdout": 0.0})
    counted, everything = [], []
    loaded = load(world.spec)
    end = [loaded.tokenizer.eos_token_id]
    for q, a in rows:
        head, tail = (loaded.tokenizer(t)["input_ids"] for t in (f"{q}\n", a))
        ids = torch.tensor([[*end, *head, *tail, *end]])
        with torch.no_grad():
            lost = torch.log_softmax(loaded.model(ids).logits[0, :-1].double(), -1)
        lost = -lost[torch.arange(ids.shape[1] - 1), ids[0, 1:]].numpy()
        counted.append(lost[len(head) :])
        everything.append(lost)
    assert found.facts["reference_loss"][0] == pytest.approx(np.concatenate(counted).mean(), 1e-4)
    whole = np.concatenate(everything).mean()
    assert abs(found.facts["reference_loss"][0] - whole) > 0.1


def test_labels_that_are_not_foretold_are_warned_of(world: World) -> None:
    calm, strict = score(world, probes="30%"), score(world, probes="30%", floor=0.999)
    assert "below the floor" not in calm.log
    assert "below the floor of 1.00" in strict.log
    np.testing.assert_array_equal(calm.utility, strict.utility)


def test_without_optimizer_state_gradients_are_compared_and_it_says_so(
    world: World, tmp_path: Path
) -> None:
    assert "no optimizer state" not in score(world, tmp_path / "a", method="direct").log
    bare = shutil.copytree(world.checkpoint, tmp_path / "bare")
    (bare / "optimizer.safetensors").unlink()
    found = score(world, tmp_path / "a", method="direct", init=bare)
    assert "no optimizer state" in found.log
    assert not found.facts["preconditioned"]
    assert auc(found.utility) > 0.8
    chosen = score(world, tmp_path / "a", method="direct", precondition=False)
    assert "no optimizer state" not in chosen.log
    np.testing.assert_array_equal(chosen.utility, found.utility)


def test_a_change_recomputes_influence_and_what_depends_on_it(world: World, tmp_path: Path) -> None:
    aim = write(tmp_path / "aim.jsonl", sums(8, 3))

    def redone(probes: int) -> set[str]:
        steps = [
            {"score": "length"},
            {"score": "influence", "reference": str(aim), "probes": probes},
            {"select": "topk", "by": "influence.utility", "budget": "20%"},
            {"order": "shuffle"},
        ]
        model = {"init": str(world.checkpoint), "device": "cpu", "max_length": LENGTH}
        old, before = stages(tmp_path / "out"), files(tmp_path / "out")
        go(scoring(world.pool, model, steps), tmp_path / "out")
        now = files(tmp_path / "out")
        assert {name: now[name] for name in before} == before
        return {name.rpartition("-")[0] for name in stages(tmp_path / "out") - old}

    assert redone(40) == {"jsonl", "length", "influence", "topk", "shuffle"}
    assert redone(40) == set()
    assert redone(41) == {"influence", "topk", "shuffle"}
    write(aim, sums(8, 4))
    assert redone(41) == {"jsonl", "influence", "topk", "shuffle"}


@pytest.mark.slow
def test_workers_do_not_change_a_byte(world: World, tmp_path: Path) -> None:
    part = {"score": "influence", "reference": str(world.words)}
    steps = [part | {"probes": 130}, part | {"as": "direct", "method": "direct"}]
    fields = scoring(world.pool, {"init": str(world.checkpoint), "device": "cpu"}, steps)
    fields["data"] = {"read": "tests.parts:Texts"}
    found = []
    for workers in (1, 2):
        engine = LocalEngine(workers)
        try:
            go(fields, tmp_path / str(workers), engine)
        finally:
            engine.close()
        found.append(files(tmp_path / str(workers)))
    assert found[0] == found[1]
    assert sum("labels/part" in name for name in found[0]) == 3
