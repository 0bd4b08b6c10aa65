"""Trainings in which some tensors move, and in which the stability gap is watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from foresift.pipeline import tunable
from foresift.pipeline.errors import DataError, ModelError, RecipeError
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.gradients.directional import losses
from foresift.pipeline.lm.model import ModelSpec, load
from foresift.pipeline.nouns import Inputs, Job, Rng
from foresift.pipeline.stability import wf
from foresift.pipeline.store import Facts, StepDir, write_shard
from foresift.stages.trainers._probe import held_out
from foresift.stages.trainers.causal_lm import CausalLM
from tests.corpora import make_corpus, tree
from tests.stages.trainers.conftest import plan_of, texts

SMALL = {"length": 16, "batch_tokens": 64, "micro_tokens": 64, "threads": 1, "tokens": 384}
Model = Callable[..., ModelSpec]


def train(inputs: Inputs, out: Path, job: Job, **fields: Any) -> Facts:
    StepDir(out).open()
    return CausalLM(**{**SMALL, **fields}).run(inputs, StepDir(out), job)


def moved(inputs: Inputs, out: Path) -> set[str]:
    """Tensors that are no longer those of the model that training began with."""
    assert inputs.model is not None
    before = dict(load(inputs.model).model.named_parameters())
    after = load_file(out / "checkpoint" / "model.safetensors")
    return {n for n, value in after.items() if not torch.equal(value, before[n].detach())}


def interrupt(inputs: Inputs, out: Path, job: Job, at: int, **fields: Any) -> None:
    def stop(done: int, total: int, label: str) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(inputs, out, replace(job, progress=stop), **fields)


def test_the_best_conditioned_matrices_move_and_no_others(
    inputs: Inputs, tmp_path: Path, job: Job
) -> None:
    facts = train(inputs, tmp_path / "out", job, tune="kappa", tune_most=3)
    assert inputs.model is not None
    values = tunable.kappas(load(inputs.model).model)
    chosen = sorted(values, key=lambda n: values[n])[:3]
    assert facts["tuned"]["tensors"] == chosen
    assert moved(inputs, tmp_path / "out") == set(chosen)
    moments = load_file(tmp_path / "out" / "checkpoint" / "optimizer.safetensors")
    assert set(moments) == {f"{m}.{n}" for m in ("exp_avg", "exp_avg_sq") for n in chosen}
    assert "tuned" not in train(inputs, tmp_path / "all", job)


def test_what_moved_before_moves_again(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(inputs, first, job)
    assert inputs.model is not None
    start = inputs.model.at(first / "checkpoint")
    train(replace(inputs, model=start), second, job, learning_rate=0.01)
    now = replace(inputs, model=inputs.model.at(second / "checkpoint"))
    fields = {"tune": "fpf", "tune_most": 2, "tune_from": str(first / "checkpoint")}
    facts = train(now, tmp_path / "out", job, continue_optimizer=True, **fields)
    a, b = (load_file(p / "checkpoint" / "model.safetensors") for p in (first, second))
    moves = tunable.movement(a, b)
    modules = sorted(moves, key=lambda m: -moves[m])[:2]
    assert facts["tuned"]["movement"] == pytest.approx({m: moves[m] for m in modules})
    assert moved(now, tmp_path / "out") == {n for n in b if n.rpartition(".")[0] in modules}
    assert facts["steps_before"] == 6
    one, other = (CausalLM(**fields, tokens=t).fingerprint for t in (384, 384))
    assert one == other
    (first / "checkpoint" / "config.json").write_text("{}")
    assert CausalLM(**fields, tokens=384).fingerprint != one


def test_tuned_and_probed_training_goes_on_where_it_was(
    model: Model, tmp_path: Path, job: Job
) -> None:
    data = with_holdout(tmp_path)
    inputs = Inputs(
        data, plan_of(data, [(0, r) for r in range(20)], tmp_path / "plan"), model("gpt2")
    )
    fields = {"tune": "kappa", "tune_most": 2, "probe": 3, "checkpoint_every": 2}
    facts = train(inputs, tmp_path / "whole", job, **fields)
    for at in (1, 5):
        interrupt(inputs, tmp_path / "out", job, at, **fields)
    assert train(inputs, tmp_path / "out", job, **fields) == facts
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    train(inputs, tmp_path / "plain", job, tune="kappa", tune_most=2, checkpoint_every=2)
    bare, probed = (tree(tmp_path / n) for n in ("plain", "whole"))
    weights = "checkpoint/model.safetensors"
    assert bare[weights] == probed[weights]  # probed or not, training is the same
    assert not any("stability" in name for name in bare)


def with_holdout(tmp_path: Path) -> Any:
    """Twenty documents to train on and ten held out of two sources."""
    rows, flags = texts(30), [[False] * 20 + [True] * 4, [True] * 6]
    data = make_corpus(tmp_path / "data", [rows[:24], rows[24:]], holdout=flags)
    for shard in sorted(data.base.glob("*.parquet"))[1:]:
        table = pq.read_table(shard)
        place = table.column_names.index("source")
        other = pa.array([f"other/{k}" for k in range(table.num_rows)])
        write_shard(shard, table.set_column(place, "source", other))
    return data


def test_the_stability_gap_is_measured_at_every_step(
    model: Model, tmp_path: Path, job: Job
) -> None:
    data = with_holdout(tmp_path)
    order = [(0, r) for r in range(20)]
    inputs = Inputs(data, plan_of(data, order, tmp_path / "plan"), model())
    drawn = dict(held_out(data, 3, Rng(1)))
    assert {name: table.num_rows for name, table in drawn.items()} == {"made": 3, "other": 3}
    out = tmp_path / "out"
    facts = train(inputs, out, job, probe=3, learning_rate=0.05, warmup=0.0)
    rows = pq.read_table(out / "stability.parquet").to_pydict()
    assert rows["step"] == [step for step in range(7) for _ in range(2)]
    assert rows["source"] == ["made", "other"] * 7
    assert inputs.model is not None
    for source in ("made", "other"):
        series = [x for x, name in zip(rows["loss"], rows["source"], strict=True) if name == source]
        told = facts["stability"][source]
        assert (told["before"], told["worst"], told["last"]) == (
            series[0], max(series), series[-1]
        )  # fmt: skip
        assert told["largest_rise_10"] == wf([-x for x in series], 10)
    # the last measurement is that of the checkpoint
    final = load(inputs.model.at(out / "checkpoint"))
    spec, probe_rng = replace(inputs.model, max_length=16), job.rng.at("probe", 0)
    for source, table in held_out(data, 3, probe_rng):
        encoded = encode(table, final.tokenizer, spec)
        counts = np.add.reduceat(encoded.counts, encoded.offsets[:-1])
        mean = losses(encoded, final) @ counts / counts.sum()
        assert facts["stability"][source]["last"] == pytest.approx(mean, rel=1e-4)


def test_bad_input_is_told(inputs: Inputs, tmp_path: Path, job: Job, model: Model) -> None:
    with pytest.raises(DataError, match="probe: no document is held out"):
        train(inputs, tmp_path / "a", job, probe=2)
    train(inputs, tmp_path / "first", job)
    checkpoint = str(tmp_path / "first" / "checkpoint")
    other = replace(inputs, model=model("gpt2"))
    with pytest.raises(ModelError, match="is another model: "):
        train(other, tmp_path / "b", job, tune="fpf", tune_from=checkpoint)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tune": "fpf"}, "tune_from names the earlier checkpoint"),
        ({"tune": "kappa", "tune_from": "x"}, "and of nothing else"),
        ({"tune": "kappa", "tune_most": 0}, "tune_most is at least 1"),
        ({"tune": "some"}, "tune"),
        ({"probe": -1}, "probe is a number of documents"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        CausalLM.parse(fields, "train")
