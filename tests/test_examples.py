"""The examples run as printed, and the corpus they use is small, real and made again the same."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from foresift.pipeline.run import Run
from tests.runs import ROOT

EXAMPLES = ROOT / "examples"


def call(*words: str, by: Sequence[str] = ()) -> str:
    """What a script of the folder prints, where it is said by a launcher."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *by, f"examples/{words[0]}", *words[1:]]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in text.decode().splitlines()]


def test_the_corpus_is_small_and_has_its_licence() -> None:
    files = [*EXAMPLES.glob("corpus/*.gz"), *EXAMPLES.glob("*.gz"), *EXAMPLES.glob("*.jsonl")]
    assert len(files) == 4
    assert sum(f.stat().st_size for f in files) < 400_000
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (EXAMPLES / "LICENSE.txt").read_text()


def test_the_corpus_is_made_again_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        call("make_corpus.py", str(tmp_path / name))
    names = sorted(str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*.*"))
    assert names == sorted([
        "corpus/docs-0.jsonl.gz", "corpus/docs-1.jsonl.gz", "instruct.jsonl.gz", "reference.jsonl",
    ])  # fmt: skip
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        made, committed = rows(tmp_path / "a" / name), rows(EXAMPLES / name)
        assert made[0].keys() == committed[0].keys()
        assert len(made) > 100
        assert len(committed) > 100


def test_a_few_documents_are_reported_on(tmp_path: Path) -> None:
    some = (EXAMPLES / "reference.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    (tmp_path / "some.jsonl").write_text("\n".join(some) + "\n", encoding="utf-8")
    said = call("report_data.py", str(tmp_path / "out"), str(tmp_path / "some.jsonl")).splitlines()
    assert "1 file of jsonl; text is 'text'" in said[0]
    found = {line.split(": ")[1] for line in said if " of 12 documents: " in line}
    assert {"pii", "secrets", "junk"} <= found
    names = [Path(line).name for line in said[-4:]]
    assert names == ["index.html", "report.json", "README.md", "croissant.json"]
    assert all(Path(line).is_file() for line in said[-4:])


@pytest.mark.slow
def test_offline_prints_accounts_that_add_up(tmp_path: Path) -> None:
    said = call("offline.py", str(tmp_path)).splitlines()
    total, kept = (int(word) for word in said[0].replace(",", "").split() if word.isdigit())
    dropped = {line[6:]: int(line[:6]) for line in said[1:-2]}
    assert total == kept + sum(dropped.values()) == 1220
    assert {"near duplicate", "over budget", "holdout"} <= set(dropped)
    exported = Path(said[-1].split()[1])
    assert sum(pq.read_metadata(p).num_rows for p in exported.glob("part-*.parquet")) == kept
    assert Run.open(tmp_path).manifest["accounts"]["kept"] == kept


def test_a_table_is_scored_without_recipe_files_or_ray() -> None:
    said = call("score_with_any_model.py").splitlines()
    assert said[0].split() == ["id", "utility", "nll", "perplexity", "tokens", "entropy"]
    assert len(said) == 4
    for line in said[1:]:
        assert 6 < float(line.split()[3]) < 9  # nats per token of random weights, about log 2048


def test_a_model_prefers_what_is_like_its_aim() -> None:
    said = call("ask_a_model.py").splitlines()
    assert [line.split()[1] for line in said] == ["The", "of", "Stir"]
    utilities = [float(line.split()[0]) for line in said]
    assert utilities == sorted(utilities, reverse=True)
    assert utilities[0] > 0


def test_one_scoring_serves_many_choices(tmp_path: Path) -> None:
    said = [line.split() for line in call("choose_many_ways.py", str(tmp_path)).splitlines()]
    chosen = {line[0]: line for line in said if "documents," in line}
    assert list(chosen) == [
        "random", "topk", "per_axis_top", "weighted_coreset", "facility_location", "cluster_quota",
    ]  # fmt: skip
    cached = [int(line[5]) for line in chosen.values()]
    assert cached[0] == 0
    assert len(set(cached[1:])) == 1
    assert cached[1] >= 7
    assert all(20 < int(line[1]) < 200 for line in chosen.values())


def test_a_bare_loop_trains_on_what_the_model_chooses() -> None:
    said = call("online_bare.py", "4").splitlines()
    assert [line.split()[0] for line in said] == ["Random", "UDS"]
    assert all("128 seen, 32 trained on" in line for line in said)


def test_a_trainer_trains_on_what_the_model_chooses(tmp_path: Path) -> None:
    said = call("online_trainer.py", str(tmp_path), "4").splitlines()
    assert "128 seen, 32 trained on" in said
    assert said[-1] == "weights after going on from step 2: the same"
    assert (tmp_path / "checkpoint-2" / "foresift_stream.safetensors").is_file()


def test_epochs_of_a_trainer_are_a_plan_s_and_save_steps(tmp_path: Path) -> None:
    said = call("online_epochs.py", str(tmp_path), "48").splitlines()[-4:]
    assert [line[:15].strip() for line in said] == [
        "all rows", "half by chance", "infobatch", "seta",
    ]  # fmt: skip
    steps = [[int(word) for word in line[15:].split() if word.isdigit()] for line in said]
    assert [done for _, done in steps[:2]] == [24, 12]
    assert all(12 < done < 24 for _, done in steps[2:])
    assert [planned for planned, _ in steps] == [24, 12, 18, 15]


def test_an_accelerate_loop_trains_on_what_the_model_chooses(tmp_path: Path) -> None:
    said = call("online_accelerate.py", str(tmp_path), "4").splitlines()
    assert said[0] == "1 processes, 128 seen, 32 trained on"
    assert said[-1] == "weights after going on from step 2: the same"
    assert (tmp_path / "custom_checkpoint_0.pkl").is_file()


@pytest.mark.slow
def test_an_accelerate_loop_runs_in_two_processes(tmp_path: Path) -> None:
    launched = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    said = call("online_accelerate.py", str(tmp_path), "4", by=launched).splitlines()
    assert "2 processes, 128 seen, 32 trained on" in said
    assert said[-1] == "weights after going on from step 2: the same"
    assert (tmp_path / "random_states_1.pkl").is_file()


def test_a_lightning_trainer_trains_on_what_the_model_chooses(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="needs the extra lightning")
    said = call("online_lightning.py", str(tmp_path), "4").splitlines()
    assert "128 seen, 32 trained on" in said
    assert said[-1] == "weights after going on from step 2: the same"
    assert (tmp_path / "step=2.ckpt").is_file()


def test_an_sft_trainer_with_lora_trains_on_chosen_rows_and_tokens(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs the extra trl")
    said = call("online_sft.py", str(tmp_path), "4").splitlines()
    assert "128 seen, 32 trained on" in said
    assert said[-1] == "adapters after going on from step 2: the same"
    counted = next(line.split() for line in said if line.endswith("counted"))
    assert 0.6 <= int(counted[7]) / int(counted[3]) < 0.65
    assert (tmp_path / "checkpoint-2" / "foresift_stream.safetensors").is_file()


def test_a_dpo_trainer_trains_on_chosen_pairs(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs the extra trl")
    said = call("online_dpo.py", str(tmp_path), "4").splitlines()
    assert "candidates_seen: 48" in said
    assert "rows_trained_on: 16" in said
    trained = [line for line in said if line.startswith("step ")]
    assert len(set(trained[:16])) > 8
    assert len(trained) == 16 + 8  # and those after the checkpoint once more
    assert trained[16:] == trained[8:16]
    assert said[-1] == "weights after going on from step 2: the same"
    assert (tmp_path / "checkpoint-2" / "foresift_stream.safetensors").is_file()


def test_a_document_goes_and_its_training_goes_back_no_further_than_it_must(tmp_path: Path) -> None:
    said = call("forget.py", str(tmp_path)).splitlines()
    saw = re.fullmatch(r"([0-9a-f]{32}) in step (\d+); seen by checkpoints \[(\d+)\]", said[0])
    assert saw is not None
    gone, seen, last = saw[1], int(saw[2]), int(saw[3])
    assert said[1].startswith("r-1: 1 documents")
    assert f"tainted: from step {seen} on" in said
    replayed = re.search(r"replayed (\d+) of (\d+) steps: (\S+)", said[-2])
    assert replayed is not None
    assert (int(replayed[1]), int(replayed[2])) == (last - (seen - 1) // 4 * 4, last)
    assert said[-1].endswith("verdict: no reference: measured, not proved")
    rows = pq.read_table(Path(replayed[3]) / "plan.parquet").to_pylist()
    assert [r["reason"] for r in rows if r["id"].hex() == gone] == ["forgotten"]
    (ledger,) = tmp_path.glob("steps/causal_lm-*/ledger.parquet")
    trained = {i.hex() for i in pq.read_table(ledger)["id"].to_pylist()}
    assert gone not in trained
    assert len(trained) > 50


def test_planted_noise_is_found() -> None:
    lines = call("find_noise.py").splitlines()
    assert [line.split(":")[0] for line in lines] == ["Pii", "    card", "Arithmetic", "    static"]
    for line in (lines[0], lines[2]):
        planted, _, found, others = map(int, re.findall(r"\d+", line))
        assert found >= 0.95 * planted > 20
        assert others <= 5
