"""What is forgotten is not alive; what saw it, or is half done, is not used."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline import tombstones
from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import StoreError
from foresift.pipeline.replay_cost import expected_steps, hit_probability, replay_steps
from foresift.pipeline.store import write_json
from tests.corpora import make_corpus


def test_forgotten_rows_are_not_alive(tmp_path: Path) -> None:
    base = make_corpus(tmp_path / "steps", [["a", "b"], ["c", "d"]]).base
    ids = [i for s in Corpus(base).shards() for i in s.load(["id"])["id"].to_pylist()]
    listed = pa.table({"id": pa.array([ids[1], b"x" * 16], pa.binary(16)), "request": ["r", "r"]})
    path = tombstones.path_of(base)
    path.parent.mkdir(parents=True)
    pq.write_table(listed, path)
    assert Corpus(base).table([])[0]["id"].to_pylist() == [ids[0], *ids[2:]]
    path.write_bytes(b"no parquet")
    with pytest.raises(StoreError, match="no list of forgotten documents"):
        Corpus(base).table([])


def test_a_store_in_between_and_a_model_that_saw_too_much_are_refused(tmp_path: Path) -> None:
    training = tmp_path / "steps" / "causal_lm-1"
    early, late = (training / "checkpoints" / n for n in ("step-000002", "step-000004"))
    final = training / "checkpoint"
    tombstones.ready(tmp_path, [training], [str(final), str(late), "gpt2"])
    told = {"requests": ["r-17"], "checkpoints": [{"name": "step-000004"}, {"name": "checkpoint"}]}
    training.mkdir(parents=True)
    write_json(training / tombstones.TAINTED, told)
    tombstones.ready(tmp_path, [], [str(early)])
    for trainings, models in (([training], []), ([], [str(final)]), ([], [str(late)])):
        with pytest.raises(StoreError, match=r"r-17 took out; `foresift forget replay`"):
            tombstones.ready(tmp_path, trainings, models)
    (tmp_path / tombstones.FOLDER).mkdir()
    write_json(tmp_path / tombstones.FOLDER / tombstones.JOURNAL, {"ops": []})
    with pytest.raises(StoreError, match="interrupted"):
        tombstones.ready(tmp_path, [], [])


def test_replay_costs_what_comes_after_the_first_hit() -> None:
    assert replay_steps([100] * 10, 1) == 1000
    assert replay_steps([100] * 10, 10) == 100
    assert replay_steps([100] * 10, [7, 3]) == 800
    assert replay_steps([100] * 10, []) == 0
    with pytest.raises(ValueError, match=r"1 \.\. 10"):
        replay_steps([100] * 10, 11)


def test_expected_cost_is_that_of_all_outcomes() -> None:
    intervals, p = [100, 50, 25], [0.5, 0.2, 0.1]
    total = 0.0
    for outcome in range(8):
        hits = [i + 1 for i in range(3) if outcome >> i & 1]
        chance = 1.0
        for i in range(3):
            chance *= p[i] if i + 1 in hits else 1 - p[i]
        total += chance * replay_steps(intervals, hits)
    assert expected_steps(intervals, p) == pytest.approx(total)
    late = [expected_steps([100] * 10, [float(i == k) for i in range(10)]) for k in (0, 9)]
    assert late == [1000, 100]
    assert hit_probability([0.5, 0.5]) == pytest.approx(0.75)
    assert (hit_probability([]), hit_probability([0.3, 1.0])) == (0.0, 1.0)
