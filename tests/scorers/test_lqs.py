"""LQS and PDS on a small model: gamma is what it says, and a fit scores the pool."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.forward import score_table
from foresift.pipeline.lm.gradients.directional import sample
from foresift.pipeline.lm.gradients.oracle import per_sample_gradients
from foresift.pipeline.lm.gradients.reference import reference_set
from foresift.pipeline.lm.gradients.samples import Parameters, dot, norm
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.pipeline.lm.regress import agreement
from foresift.pipeline.nouns import Corpus, Job, Look, Reference, Rng
from foresift.pipeline.store import StepDir, shard_facts
from foresift.scorers import _trajectory, lqs
from foresift.scorers._trajectory import LanguageModel, Memory, Visit, backward, forward
from foresift.scorers.lqs import Lqs
from tests.corpora import Serial, make_corpus
from tests.inputs import recipe, texts, write
from tests.runs import go

Floats = npt.NDArray[np.float64]
X, A = torch.tensor([0.5, -1, 2]).double(), torch.tensor([1.0, 2, 1]).double()
RATE = 0.1
AIM = texts(6, seed=9)


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    config = {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "initializer_range": 0.1, "tie_word_embeddings": True,
    }  # fmt: skip
    path = tmp_path / "model.json"
    path.write_text(json.dumps(config))
    return ModelSpec(
        init=str(path), tokenizer="bytes", device="cpu", max_length=24, attention="eager"
    )


@pytest.fixture
def problem(spec: ModelSpec) -> LanguageModel:
    """Eight steps of three documents out of 24, and four documents to aim at, in float64."""
    cached = load.__wrapped__(spec)
    loaded = Loaded(cached.model.double(), cached.tokenizer, "cpu")
    pool = encoded(texts(24), loaded, spec)
    aim = reference_set(encoded(texts(4, seed=1), loaded, spec), "sample_mean")
    ids = pa.chunked_array([[bytes([k]) * 16 for k in range(24)]], pa.binary(16))
    inner = lqs.inner_batches(ids, 8, 3, Rng(0))
    return LanguageModel(loaded, pool, inner, [(aim, 1.0)])


def encoded(rows: list[str], loaded: Loaded, spec: ModelSpec) -> Encoded:
    return encode(pa.table({"text": rows}), loaded.tokenizer, spec)


def sweep(problem: LanguageModel, steps: int, rate: float, visit: Visit) -> None:
    store = Memory()
    forward(problem, problem.start(), steps, rate, store, lambda: None)
    backward(problem, steps, rate, store, visit, lambda: None)


def test_what_is_looked_at_is_what_per_sample_gradients_give(
    problem: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[int, list[tuple[Floats, Floats]]] = {}

    def visit(t: int, theta: Parameters, along: Parameters | None) -> None:
        if along is None:
            return
        tokens = {1: 1, 3: 72, 8: 192}
        looks = []
        for size in tokens.values():
            monkeypatch.setattr(_trajectory, "backward_tokens", lambda _, size=size: size)
            looks.append(problem.project(theta, problem.pool, along, True))
        problem.place(theta)
        gradients = []
        for row in range(24):
            alone = next(_trajectory.batches(problem.pool, np.array([row]), 1))
            whole = per_sample_gradients(problem.loaded.model, alone)
            gradients.append({n: g[0] for n, g in whole.items()})
        exact = (
            np.array([dot(g, along) for g in gradients]),
            np.array([norm(g) for g in gradients]),
        )
        found[t] = [exact, *looks]

    sweep(problem, 3, 0.05, visit)
    assert sorted(found) == [0, 1, 2]
    for (dots, norms), *looks in found.values():
        assert len(looks) == 3
        for seen_dots, seen_norms in looks:
            np.testing.assert_allclose(seen_dots, dots, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(seen_norms, norms, rtol=1e-9)


def heavier(problem: LanguageModel, row: int, weight: float, rate: float) -> float:
    """sum_{t=1..T} J(theta_t) where a document's loss is added to every step with a weight."""
    alone = replace(problem, inner=[np.array([row])])
    theta, total = problem.start(), 0.0
    for t in range(len(problem.inner)):
        mean = problem.descent(t, theta)
        one = alone.descent(0, theta)
        theta = {n: v - rate * (mean[n] + weight * one[n]) for n, v in theta.items()}
        total += problem.loss(theta)
    return total


def pds(problem: LanguageModel, rate: float) -> Floats:
    total = np.zeros(len(problem.pool))

    def visit(t: int, theta: Parameters, along: Parameters | None) -> None:
        if along is not None:
            total[:] += problem.project(theta, problem.pool, along, False)[0]

    sweep(problem, len(problem.inner), rate, visit)
    return total


def again(problem: LanguageModel, theta: Parameters) -> LanguageModel:
    problem.place(theta)
    return problem


def test_pds_predicts_what_a_heavier_document_does_to_the_run(problem: LanguageModel) -> None:
    rate, start = 0.1, problem.start()
    gamma = pds(problem, rate)
    plain, effect = heavier(again(problem, start), 0, 0.0, rate), np.empty(24)
    for row in range(24):
        effect[row] = plain - heavier(again(problem, start), row, 0.1, rate)
    assert float(agreement(effect, gamma)["spearman"]) > 0.95
    for row in (0, 5):
        ends = [heavier(again(problem, start), row, w, rate) for w in (1e-2, -1e-2)]
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(-rate * gamma[row], rel=0.01)


def test_documents_without_tokens_weigh_nothing(problem: LanguageModel, spec: ModelSpec) -> None:
    pool = encoded(["", "some words", "other words"], problem.loaded, spec)
    bare = sample(pool, [1, 2])
    both = replace(problem, pool=pool, inner=[np.array([0, 1, 2])])
    alone = replace(problem, pool=bare, inner=[np.array([0, 1])])
    assert np.flatnonzero(pool.counts)[0] > 0
    theta = problem.start()
    assert norm(both.descent(0, theta)) > 0
    # an empty text still has an end to predict; without that it has nothing
    pool.counts[: pool.offsets[1]] = False
    expected = alone.descent(0, theta)
    for name, found in both.descent(0, theta).items():
        torch.testing.assert_close(found, expected[name])
    dots, norms = problem.project(theta, pool, theta, True)
    assert (dots[0], norms[0]) == (0, 0)
    assert (norms[1:] > 0).all()


def test_inner_batches_follow_ids_and_pass_over_the_pool_in_turn() -> None:
    ids = pa.chunked_array([[bytes([k]) * 16 for k in range(10)]], pa.binary(16))
    order = np.random.default_rng(0).permutation(10)
    plain = lqs.inner_batches(ids, 5, 4, Rng(0))
    turned = lqs.inner_batches(ids.take(pa.array(order)), 5, 4, Rng(0))
    assert [b.tolist() for b in plain] == [order[b].tolist() for b in turned]
    rows = np.concatenate(plain)
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert [b.tolist() for b in lqs.inner_batches(ids, 5, 4, Rng(1))] != [b.tolist() for b in plain]


# the scorer


Fit = Callable[..., tuple[Lqs, Look, Path, dict[str, Any]]]


@pytest.fixture
def fit(tmp_path: Path, spec: ModelSpec) -> Fit:
    """Fit on two shards of 30 documents, one of them empty, and aim at 6 others."""

    def run(
        out: str = "out",
        aim: Sequence[str] = AIM,
        **fields: Any,
    ) -> tuple[Lqs, Look, Path, dict[str, Any]]:
        settings = {"reference": "aim", "steps": 6, "interval": 2, "batch": 4, "proxies": 40}
        part = Lqs(**settings | {"learning_rate": 0.05} | fields)
        pool = make_corpus(tmp_path / "pool", [[*texts(29), ""], texts(30, seed=1)])
        aims = (Reference("aim", make_corpus(tmp_path / "aim", [aim])),)
        look = Look(pool, aims, spec, Job(engine=Serial(), rng=Rng(0)))
        folder = tmp_path / out
        folder.mkdir(exist_ok=True)
        return part, look, folder, part.fit(look, folder)

    return run


def pool_table(pool: Corpus) -> pa.Table:
    return pa.concat_tables([t for s in pool.shards() for t, _ in s.stream()])


@pytest.mark.parametrize("variant", ["lqs", "pds"])
@pytest.mark.parametrize("compat", [False, True])
def test_a_fit_scores_the_pool_and_labels_its_proxies(
    fit: Fit, spec: ModelSpec, variant: str, compat: bool
) -> None:
    part, look, out, facts = fit(variant=variant, compat=compat)
    before = {n: p.clone() for n, p in load(spec).model.named_parameters()}
    table = pool_table(look.corpus)
    (found,) = score_table(table, spec, [part], [out])
    assert set(found) == set(part.columns)
    assert found["utility"].dtype == np.float32
    assert np.isfinite(found["utility"]).sum() == 60
    assert np.isfinite(found["label"]).sum() == 40
    order = np.random.default_rng(0).permutation(60)
    (turned,) = score_table(table.take(pa.array(order)), spec, [part], [out])
    for name, values in found.items():
        np.testing.assert_array_equal(turned[name], values[order])
    assert facts["documents"] == 40
    assert facts["model"]["labels"] == 40
    assert facts["reference_loss"]["after"] < facts["reference_loss"]["before"]
    assert {f.suffix for f in out.iterdir()} == {".parquet", ""}  # the trajectory is gone
    for name, p in load(spec).model.named_parameters():
        assert torch.equal(p, before[name])


def test_labels_are_those_of_the_recursion(fit: Fit, spec: ModelSpec) -> None:
    part, _, out, _ = fit(interval=1)
    told = pq.read_table(out / "labels.parquet")
    looks = [pq.read_table(out / f"visit-{t:04d}.parquet") for t in range(1, 7)]
    assert not (out / "visit-0000.parquet").exists()
    dots, norms = (np.stack([np.asarray(t[k]) for t in looks]) for k in ("dot", "norm"))
    assert (dots[-1] == 0).all()
    np.testing.assert_allclose(np.asarray(told["label"]), (dots[:-1] / norms[1:]).sum(0))
    assert part.variant == "lqs"


def test_a_killed_fit_goes_on_and_gives_the_same(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit("whole")[2]
    calls, stop_at = [0], [5]
    for name in ("descent", "curvature", "project"):
        real = getattr(LanguageModel, name)

        def counted(self: Any, *args: Any, real: Any = real) -> Any:
            calls[0] += 1
            if calls[0] == stop_at[0]:
                raise KeyboardInterrupt
            return real(self, *args)

        monkeypatch.setattr(LanguageModel, name, counted)
    for stop_at[0] in (5, 11, 4):
        calls[0] = 0
        with pytest.raises(KeyboardInterrupt):
            fit("broken")
    calls[0], stop_at[0] = 0, 0
    broken = fit("broken")[2]
    assert calls[0] == 5  # of 10 steps, 6 products and 3 looks: 2 steps and 3 products are left
    for name in ("labels.parquet", "ridge/ridge.safetensors"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    calls[0] = 0
    fit("broken")
    assert calls[0] == 0


def test_work_is_counted_in_tokens(fit: Fit, spec: ModelSpec) -> None:
    part, look, out, facts = fit()
    assert facts["flops"] == shard_facts(out / "labels.parquet")["flops"]
    size = sum(p.numel() for p in load(spec).model.parameters())
    proxies, aimed, inner = 40 * 24, 6 * 24, 24 * 24  # documents are cut at 24 tokens; one is empty
    gradients = aimed * 7 + inner * (2 - 2 / 6) + proxies * 3  # steps 2 and 4, and the last norms
    assert facts["flops"] == pytest.approx(size * (6 * gradients + 24 * inner), rel=0.05)
    work, forwards = part.estimate(size, 10**6, aimed)
    assert work > facts["flops"]
    assert forwards == part.passes(out) == 0
    assert part.signals(out) == ()
    assert part.aims == "aim"
    assert len(look.references) == 1


def test_a_fit_that_does_not_generalise_warns(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "foresift"):
        fit(floor=1.0)
    assert "below the floor of 1.00" in caplog.text
    caplog.clear()
    fit("other", floor=-1.0)
    assert not caplog.text


@pytest.mark.parametrize(
    ("fields", "kind", "says"),
    [
        ({"learning_rate": 1e30}, DataError, r"lqs: .*lower its `learning_rate`"),
        ({"proxies": 10}, DataError, "lqs: 10 proxies of 60 documents; at least 20"),
        ({"aim": [""]}, DataError, "aim: .*at least 2"),
        ({"aim": []}, DataError, "aim: .*0 documents"),
    ],
)
def test_bad_input_is_told(fit: Fit, fields: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        fit(**fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"reference": "a", "steps": 10}, "steps must be more than interval"),
        ({"reference": "a", "learning_rate": 0}, "learning_rate must be positive"),
        ({"reference": "a", "proxies": "-3"}, "proxies"),
        ({}, "reference: Field required"),
    ],
)
def test_bad_fields_are_refused(fields: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Lqs.parse(fields, "score lqs")


def test_one_step_is_enough_for_pds_and_for_compat() -> None:
    assert Lqs(reference="a", steps=1, variant="pds").steps == 1
    assert Lqs(reference="a", steps=1, compat=True).steps == 1


def test_a_recipe_selects_by_it(tmp_path: Path, spec: ModelSpec) -> None:
    pool, aim = write(tmp_path / "pool.jsonl", texts(40)), write(tmp_path / "aim.jsonl", AIM)
    fields = {"reference": str(aim), "steps": 4, "interval": 2, "batch": 4, "proxies": "60%"}
    steps = [{"score": "lqs", **fields}, {"select": "topk", "by": "lqs.utility", "budget": "50%"}]
    model = {"init": spec.init, "tokenizer": "bytes", "device": "cpu", "max_length": 24}
    go(recipe(pool, steps=steps, model=model), tmp_path / "out")
    (done,) = (tmp_path / "out" / "steps").glob("lqs-*")
    facts = StepDir(done).facts()["facts"]
    assert facts["documents"] == 24
    assert facts["flops"]["fit"] > 0
    assert facts["flops"]["own"] == facts["flops"]["shared"] == 0
