"""The scorer of gradient similarities: references, checkpoints, warm-up, bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from foresift.pipeline.errors import DataError, ModelError, RecipeError
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.forward import score_table
from foresift.pipeline.lm.gradients import samples
from foresift.pipeline.lm.gradients.adamw import OPTIMIZER, load_moments
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.pipeline.nouns import Job, Look, Reference
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import content_ids
from foresift.scorers import _gradient_features, _warmup
from foresift.scorers._gradient_features import Adam
from foresift.scorers._warmup import Adapters, WarmUp
from foresift.scorers.gradient_similarity import GradientSimilarity
from tests.corpora import Serial, make_corpus
from tests.scorers.tiny import AIM, GPT2, LLAMA, POOL, SUMS, gradients, llama, losses, unit


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return llama(tmp_path)


def look(tmp_path: Path, spec: ModelSpec, **aims: Sequence[str]) -> Look:
    """The pool of POOL and the references named."""
    pool = make_corpus(tmp_path / "pool", [POOL[:4], POOL[4:]])
    references = tuple(
        Reference(name, make_corpus(tmp_path / name, [texts])) for name, texts in aims.items()
    )
    return Look(pool, references, spec, Job(engine=Serial(), rng=Rng(0)))


def table(texts: Sequence[str] = POOL) -> pa.Table:
    rows = pa.table({"text": list(texts)})
    return rows.append_column("id", content_ids(rows))


def scored(
    part: GradientSimilarity, seen: Look, out: Path, texts: Sequence[str] = POOL
) -> tuple[np.ndarray, np.ndarray, Facts]:
    """Utilities, values by reference (NaN where null), and the facts of the fit."""
    out.mkdir(parents=True, exist_ok=True)
    facts = part.fit(seen, out)
    found = score_table(table(texts), seen.model, [part], [out])[0]
    each = pa.array(found["by_reference"]).to_pylist()
    width = len(seen.references)
    values = np.array([[np.nan] * width if v is None else v for v in each])
    return np.asarray(found["utility"]), values, facts


def save(path: Path, spec: ModelSpec, *, moments: bool = True, shift: float = 0.0) -> str:
    """A checkpoint as `train: causal_lm` leaves it."""
    from safetensors.torch import save_file

    loaded = load.__wrapped__(spec)
    with torch.no_grad():
        for p in loaded.model.parameters():
            p.add_(shift)
    loaded.model.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    if moments:
        named = loaded.model.named_parameters()
        tensors = {f"{m}.{n}": torch.full_like(p, 0.01).detach() for n, p in named
                   for m in ("exp_avg", "exp_avg_sq")}  # fmt: skip
        save_file(tensors, path / OPTIMIZER, metadata={"step": "7"})
    return str(path)


@pytest.mark.parametrize("variant", ["tracin", "cosin", "grad_dot", "trak"])
def test_utility_is_the_best_of_the_weighted_references(
    variant: Any, tmp_path: Path, spec: ModelSpec
) -> None:
    part = GradientSimilarity(reference="aim", variant=variant, projection=32)
    seen = look(tmp_path, spec, aim=AIM, sums=SUMS)
    seen = replace(seen, references=(seen.references[0], replace(seen.references[1], weight=2.0)))
    utility, values, facts = scored(part, seen, tmp_path / "out")
    np.testing.assert_allclose(utility, (values * [1.0, 2.0]).max(axis=1), rtol=1e-6)
    assert np.isfinite(utility).all()
    assert facts["documents"] == {"aim": 2, "sums": 3}
    assert facts["flops"] > 0
    assert part.passes(tmp_path / "out") == 3
    if variant == "cosin":  # without norms short documents are the loudest
        assert np.argsort(-values, axis=0)[0].tolist() in [[0, 2], [4, 2]]
    for number, reference in enumerate(seen.references):
        alone = replace(seen, references=(reference,))
        _, single, _ = scored(part, alone, tmp_path / f"out{number}")
        np.testing.assert_allclose(values[:, number], single[:, 0], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("variant", ["cosin", "less", "trak"])
def test_rows_do_not_depend_on_the_batch(
    variant: Any, tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = look(tmp_path, spec, aim=AIM)
    seen = replace(seen, model=spec.at(Path(save(tmp_path / "c", spec))))
    part = GradientSimilarity(reference="aim", variant=variant, projection=32, rank=0)
    utility, _, _ = scored(part, seen, tmp_path / "out")
    size = float(np.abs(utility).max())
    close = {"rtol": 0, "atol": size * (1e-3 if variant == "trak" else 1e-5)}
    for texts in (POOL[::-1], POOL[2:3], POOL[:5]):
        found = score_table(table(texts), seen.model, [part], [tmp_path / "out"])[0]
        expected = utility[[POOL.index(t) for t in texts]]
        np.testing.assert_allclose(found["utility"], expected, **close)
    monkeypatch.setattr(_gradient_features, "DOCUMENTS", 2)
    monkeypatch.setitem(_gradient_features.references.BACKWARD_TOKENS, "cpu", 8)
    again = score_table(table(), seen.model, [part], [tmp_path / "out"])[0]
    np.testing.assert_allclose(again["utility"], utility, **close)


def test_checkpoints_add_up_by_their_rates(tmp_path: Path, spec: ModelSpec) -> None:
    folders = (save(tmp_path / "a", spec), save(tmp_path / "b", spec, shift=0.05))
    seen = look(tmp_path, spec, aim=AIM)
    whole, _, facts = scored(
        GradientSimilarity(
            reference="aim", variant="tracin", checkpoints=folders, rates=(0.5, 0.25)
        ),
        seen, tmp_path / "both",
    )  # fmt: skip
    assert facts["weights"] == [0.5, 0.25]
    dots = []
    for folder in folders:
        part = GradientSimilarity(reference="aim", variant="grad_dot", checkpoints=(folder,))
        dots.append(scored(part, seen, Path(f"{folder}-out"))[0])
    assert not np.allclose(dots[0], dots[1], equal_nan=True)
    np.testing.assert_allclose(whole, 0.5 * dots[0] + 0.25 * dots[1], rtol=1e-5)
    mean = GradientSimilarity(reference="aim", variant="cosin", checkpoints=folders, rates=(3, 1))
    found, _, facts = scored(mean, seen, tmp_path / "mean")
    assert facts["weights"] == [0.75, 0.25]
    assert np.nanmax(np.abs(found)) <= 1


def test_a_fit_goes_on_where_it_was_killed(tmp_path: Path, spec: ModelSpec) -> None:
    folders = (save(tmp_path / "a", spec), save(tmp_path / "b", spec, shift=0.05))
    seen, out = look(tmp_path, spec, aim=AIM), tmp_path / "out"
    part = GradientSimilarity(reference="aim", variant="cosin", checkpoints=folders)
    before = scored(part, seen, out)
    kept, lost = out / "reference-0.safetensors", out / "reference-1.safetensors"
    first, second = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    after = scored(part, seen, out)
    assert kept.stat().st_mtime_ns == first
    assert lost.read_bytes() == second
    np.testing.assert_array_equal(before[0], after[0])
    assert before[2] == after[2]


def test_another_content_of_a_checkpoint_is_another_part(tmp_path: Path, spec: ModelSpec) -> None:
    folder = save(tmp_path / "a", spec)
    part = GradientSimilarity(reference="aim", checkpoints=(folder,))
    before = part.fingerprint
    assert part.fingerprint == before
    save(tmp_path / "a", spec, shift=0.1)
    assert part.fingerprint != before


def test_less_with_a_warm_up_reads_the_adapters_and_their_moments(
    tmp_path: Path, spec: ModelSpec
) -> None:
    pytest.importorskip("peft")
    part = GradientSimilarity(
        reference="aim", rank=2, alpha=4, share=4, epochs=2, batch=2, learning_rate=0.01,
        projection=0,
    )  # fmt: skip
    seen, out = look(tmp_path, spec, aim=AIM, sums=SUMS), tmp_path / "out"
    shared = {n: p.clone() for n, p in load(spec).model.named_parameters()}
    utility, values, facts = scored(part, seen, out)
    assert all(torch.equal(p, shared[n]) for n, p in load(spec).model.named_parameters())
    assert sum(facts["weights"]) == pytest.approx(1)
    assert facts["weights"][0] > facts["weights"][1] > 0
    own = _warmup.adapted(spec, Adapters(2, 4))
    pool, aims = (encode(pa.table({"text": t}), own.tokenizer, spec) for t in (POOL, AIM))
    expected = np.zeros(len(POOL))
    for number, weight in enumerate(facts["weights"]):
        folder = _warmup.folder(out, number)
        _warmup.restore(own.model, folder)
        moments = load_moments(spec.at(folder), own.model)
        assert moments is not None
        assert moments.steps == 2 * (number + 1)
        adam = Adam.of(own.model, moments, (0.9, 0.999), True)
        features = adam(torch.from_numpy(gradients(pool, own)))
        cosines = unit(features.numpy()) @ unit(gradients(aims, own)).T
        expected += weight * cosines.mean(1)
    np.testing.assert_allclose(values[:, 0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(utility, values.max(1).astype(np.float32))
    assert part.passes(out) == 6


def test_a_killed_warm_up_ends_as_one_that_was_not(tmp_path: Path, spec: ModelSpec) -> None:
    pytest.importorskip("peft")
    own = _warmup.adapted(spec, Adapters(2, 4))
    encoded = encode(table(), own.tokenizer, spec)
    rule = WarmUp(3, 2, 0.05, seed=0)
    rates = _warmup.train(own, encoded, rule, tmp_path)
    files = [_warmup.folder(tmp_path, e) / OPTIMIZER for e in range(3)]
    before = [f.read_bytes() for f in files]
    assert len(set(before)) == 3
    for file in files[1:]:
        file.unlink()
    assert _warmup.train(own, encoded, rule, tmp_path) == rates
    assert [f.read_bytes() for f in files] == before
    _warmup.restore(own.model, files[0].parent)
    start = float(np.nanmean(losses(encoded, load(spec))))
    assert float(np.nanmean(losses(encoded, own))) < start


def test_the_mean_rates_are_those_less_prints() -> None:
    rates = np.array(_warmup.schedule(4 * 422, 2e-5)).reshape(4, 422).mean(1)
    np.testing.assert_allclose(rates, [1.6877e-5, 1.2859e-5, 7.7030e-6, 2.5616e-6], rtol=0.01)
    assert _warmup.schedule(1, 1.0) == [0.0]


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LLAMA, 8),
        (GPT2, 4),
        ({"model_type": "gpt_neox", **{k: LLAMA[k] for k in list(LLAMA)[1:5]}}, 4),
    ],
)
def test_adapters_go_to_the_attention_projections(
    config: dict[str, Any], count: int, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    path = tmp_path / "model.json"
    path.write_text(json.dumps(config))
    spec = ModelSpec(init=str(path), tokenizer="bytes", device="cpu")
    model = _warmup.adapted(spec, Adapters(2, 4)).model
    names = list(samples.trainable(model))
    assert len(names) == 2 * count
    assert all("lora_" in n and "att" in n and "mlp" not in n for n in names)
    with pytest.raises(ModelError, match="no module ends with q_projection; name the modules"):
        _warmup.targets(model, ["q_projection"])


def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = look(tmp_path, spec, aim=AIM)
    bare = save(tmp_path / "bare", spec, moments=False)

    def refused(kind: type[Exception], message: str, seen: Look = seen, **fields: Any) -> None:
        with pytest.raises(kind, match=message):
            scored(GradientSimilarity(reference="aim", **fields), seen, tmp_path / "refused")

    refused(ModelError, r"has no optimizer\.safetensors", rank=0)
    refused(ModelError, r"bare: has no optimizer\.safetensors", checkpoints=(bare,))
    refused(ModelError, "nowhere: no checkpoint folder with weights", checkpoints=("nowhere",))
    refused(ModelError, "no checkpoint folder with weights", checkpoints=(str(tmp_path),))
    refused(DataError, "learning_rate", variant="less", rank=2, share=4, learning_rate=1e30)
    monkeypatch.setitem(sys.modules, "peft", None)
    _warmup.adapted.cache_clear()
    refused(ModelError, "pip install peft")


@pytest.mark.parametrize(
    "fields",
    [
        {"variant": "trak", "projection": 0},
        {"variant": "tracin", "checkpoints": ["a", "b"], "rates": [1.0]},
        {"variant": "grad_dot", "rates": [1.0]},
        {"rates": [1.0]},
        {"variant": "cosin", "rates": [-1.0]},
        {"variant": "cos"},
        {"epochs": 0},
        {"share": "none"},
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        GradientSimilarity.parse({"reference": "aim", **fields}, "score")


def test_every_epoch_reads_every_document_once_in_an_order_of_its_own(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    own, seen = _warmup.adapted(spec, Adapters(2, 4)), list[list[int]]()
    step = _warmup._step

    def recorded(loaded: Loaded, optimizer: Any, pool: Encoded, rows: Any) -> None:
        seen.append(rows.tolist())
        step(loaded, optimizer, pool, rows)

    monkeypatch.setattr(_warmup, "_step", recorded)
    _warmup.train(own, encode(table(), own.tokenizer, spec), WarmUp(2, 3, 0.1, 0), tmp_path)
    assert [len(rows) for rows in seen] == [3, 3, 1] * 2
    first, second = ([r for rows in part for r in rows] for part in (seen[:3], seen[3:]))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(len(POOL)))
