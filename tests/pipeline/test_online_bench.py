"""What a method would cost a step: the measurement, what it reads, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from foresift.pipeline.cli import app
from foresift.pipeline.errors import DataError, ForesiftError, ModelError
from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.lm.model import ModelSpec, load_tokenizer
from foresift.pipeline.online import IGNORED, BatchMethod, Chooser, Floats
from foresift.pipeline.online_bench import ROWS, bench, encoded, read
from foresift.pipeline.online_cost import (
    Cost,
    Sizes,
    Trainee,
    build,
    collate,
    in_turns,
    measure,
    wanted,
)
from foresift.pipeline.parts import Part, find, names
from foresift.pipeline.tensor_memory import Memory
from tests.pipeline.streams import model as tiny

CPU = torch.device("cpu")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while")


def pairs(n: int) -> list[dict[str, str]]:
    """n rows of an instruction and an output."""
    rng = np.random.default_rng(0)
    return [
        {"instruction": f"say {i}", "output": " ".join(rng.choice(WORDS, rng.integers(3, 12)))}
        for i in range(n)
    ]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trainee(rows: int = 12, keep: int = 2, of: int = 4) -> Trainee:
    torch.manual_seed(0)
    model = tiny()
    ids = [list(range(1, 4 + i % 5)) for i in range(rows)]
    found = [{"id": f"r{i}", "input_ids": x, "labels": x} for i, x in enumerate(ids)]
    return Trainee(model, torch.optim.AdamW(model.parameters()), found, Sizes(keep, of, 2))


@dataclass(frozen=True, kw_only=True)
class Greedy(BatchMethod):
    """Holds a known number of bytes, and takes more of them while it measures."""

    fails: bool = False
    """Whether it cannot work."""
    reads: bool = False
    """Whether it looks at the optimizer's state."""

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll",)

    def open(self, live: LiveModel) -> Chooser:
        if self.fails:
            raise ModelError("this model will not do", where="greedy")
        return _Greedy(self, live)


class _Greedy(Chooser):
    def __init__(self, part: Greedy, live: LiveModel) -> None:
        self.part, self.live, self.kept = part, live, torch.zeros(1 << 18)  # 1 MB

    def measure(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        if self.part.reads:
            assert self.live.optimizer.param_groups
        passing = torch.ones(3 << 18)  # 3 MB
        return {"u": torch.arange(len(seen)) + 0 * passing.sum()}

    def utility(self, measured: Mapping[str, torch.Tensor], step: int) -> Floats:
        return np.asarray(measured["u"].double().numpy())


@dataclass(frozen=True, kw_only=True)
class Wants(Greedy):
    """Needs a file that nobody knows."""

    oracle: str
    """A file."""


def test_medians_and_ratios_are_taken_turn_by_turn() -> None:
    a = Cost("a", choosing=[1.0, 2.0, 40.0], training=[1.0, 2.0, 40.0])
    b = Cost("b", choosing=[0.0, 0.0, 0.0], training=[1.0, 2.0, 40.0])  # a machine ever slower
    f = Cost("f", choosing=[0.5, 1.0, 20.0], training=[0.0, 0.0, 0.0])
    assert a.seconds == 4.0
    assert a.over(b) == 2.0
    assert a.over(b, f) == pytest.approx(4 / 3)
    assert a.over_floor(f) == pytest.approx(4 / 3)  # (1 + 1) / (0.5 + 1): its own training
    assert a.over_floor(f, f) == 1.0


def test_sides_take_turns_and_the_first_is_not_kept() -> None:
    order: list[tuple[str, int]] = []

    def side(name: str) -> Any:
        return lambda turn: order.append((name, turn)) or (float(turn), 0.0)

    costs = in_turns({"a": side("a"), "b": side("b")}, turns=2)
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert costs["a"].choosing == [1.0, 2.0]


def test_memory_counts_what_passes_and_what_stays() -> None:
    before = torch.zeros(1000)
    with Memory(CPU) as memory:
        kept = before + 1
        kept.add_(before.view(10, 100).flatten())  # views and changes in place are no memory
        for _ in range(3):
            torch.zeros(5000).sum()
    assert memory.held == 4000
    assert 4000 + 20000 <= memory.peak <= 4000 + 20000 + 64
    assert len(kept) == 1000


def test_the_gradient_of_micro_batches_is_that_of_the_whole() -> None:
    setting = trainee(rows=4)
    rows = [{"input_ids": ids, "labels": ids} for ids in ([1, 2, 3], [4, 5, 6])]
    found = []
    for cut in (1, 2):
        setting.optimizer.zero_grad()
        setting.gradient([collate(rows[i : i + 2 // cut]) for i in range(0, 2, 2 // cut)])
        found.append([p.grad.clone() for p in setting.model.parameters()])
    for whole, cut_up in zip(*found, strict=True):
        torch.testing.assert_close(whole, cut_up)


def test_a_part_is_measured_and_what_it_needs_and_holds_is_told() -> None:
    baselines, methods = measure(trainee(), {"g": Greedy(), "r": Greedy(reads=True)}, turns=2)
    assert list(baselines) == ["plain K", "plain B", "forward", "logits"]
    for cost in (*baselines.values(), *methods.values()):
        assert len(cost.choosing) == len(cost.training) == 2
        assert cost.seconds > 0
    assert all(c == 0 for c in baselines["plain K"].choosing)
    assert all(t == 0 for t in baselines["logits"].training)
    assert all(min(c.choosing) > 0 and min(c.training) > 0 for c in methods.values())
    got = methods["g"]
    assert 1 << 20 <= got.held < 1.1 * (1 << 20)
    assert 4 << 20 <= got.peak < 4.2 * (1 << 20)
    assert (got.needs, methods["r"].needs) == ("nll", "nll, optimizer")


def test_one_that_cannot_work_is_refused_and_the_others_are_measured() -> None:
    said = "because"
    _, methods = measure(trainee(), {"bad": Greedy(fails=True), "no": said, "g": Greedy()}, turns=1)
    assert methods["bad"].refused == "greedy: this model will not do"
    assert methods["no"].refused == said
    assert not methods["bad"].choosing
    assert methods["g"].seconds > 0


def test_measuring_alters_no_configuration_of_training() -> None:
    setting = trainee()
    measure(setting, {"u": Greedy()}, turns=1)
    assert all(p.requires_grad and p.grad is None for p in setting.model.parameters())
    assert setting.model.training


def test_every_part_on_disk_is_measured_or_refused_with_a_reason(tmp_path: Path) -> None:
    setting = trainee()
    found = build(names("sample"), tmp_path, setting.rows, "configs/models/tiny", 2)
    assert list(found) == names("sample")
    for name, part in found.items():
        kind = find("sample", name)
        if issubclass(kind, BatchMethod):
            assert isinstance(part, kind), (name, part)
        assert part
    methods = {n: p for n, p in found.items() if isinstance(p, BatchMethod)}
    _, costs = measure(setting, methods, turns=1)
    assert {n: c.refused for n, c in costs.items() if c.refused} == {}
    for name, cost in costs.items():
        required = [
            f for f in dataclasses.fields(methods[name]) if f.default is dataclasses.MISSING
        ]
        assert all(f"{f.name}: FILE" in cost.needs for f in required)


def test_a_file_that_nothing_can_stand_in_for_is_told(tmp_path: Path) -> None:
    name = f"{__name__}:Wants"
    found: dict[str, Part | str] = build([name], tmp_path, [], "", 2)
    assert found[name] == "Wants: needs oracle, for which nothing can stand in"


def test_a_wrong_name_is_told_with_the_nearest() -> None:
    assert wanted("uds, max_loss,uds") == ["uds", "max_loss"]
    assert wanted("") == names("sample")
    with pytest.raises(ForesiftError, match=r"max_los'.*max_loss"):
        wanted("max_los")


def test_fields_are_found_and_may_be_named(tmp_path: Path) -> None:
    rows = pairs(3)
    path = written(tmp_path / "a.jsonl", rows)
    assert read(path, 9).to_pylist() == [
        {"prompt": r["instruction"], "response": r["output"]} for r in rows
    ]
    assert read(path, 2).num_rows == 2
    assert read(path, 9, "output").column_names == ["text"]
    turned = read(path, 9, "output, instruction")
    assert turned["prompt"].to_pylist() == [r["output"] for r in rows]
    pq.write_table(pa.Table.from_pylist([{"text": "b"}]), tmp_path / "b.parquet")
    assert read(str(tmp_path / "b.parquet"), 9).to_pylist() == [{"text": "b"}]
    chat = [{"messages": [{"role": "user", "content": "x"}]}]
    assert read(written(tmp_path / "c.jsonl", chat), 9).column_names == ["messages"]


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(pairs(4)).save_to_disk(tmp_path / "d")
    assert read(str(tmp_path / "d"), 9).num_rows == 4


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"body": "x"}\n', "name the fields with --fields"),
        ("a.bin", "x", "is no JSON lines"),
        ("none.jsonl", None, "none.jsonl"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str, text: str, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read(str(tmp_path / name), 9)


def test_prompts_do_not_count_and_rows_without_a_token_that_counts_are_left_out(
    tmp_path: Path,
) -> None:
    spec = ModelSpec(init="configs/models/tiny", tokenizer="bytes", max_length=8)
    rows = [{"prompt": "ab", "response": "cd"}, {"prompt": "a prompt too long", "response": "x"}]
    found = encoded(read(written(tmp_path / "a.jsonl", rows), 9), load_tokenizer("bytes"), spec)
    assert [row["id"] for row in found] == ["row0"]
    labels = found[0]["labels"]
    assert (labels != IGNORED).tolist() == [False] * 4 + [
        True
    ] * 3  # start, a, b, newline | c, d, end
    assert (labels[4:] == found[0]["input_ids"][4:]).all()


def test_too_few_rows_or_a_step_of_no_size_are_told(tmp_path: Path) -> None:
    spec = ModelSpec(init="configs/models/tiny", max_length=16, device="cpu")
    path = written(tmp_path / "a.jsonl", pairs(3))
    with pytest.raises(DataError, match="3 rows, 4 candidates are wanted"):
        bench(spec, path, Sizes(2, 4))
    for keep, of, steps in ((0, 4, 1), (5, 4, 1), (2, 4, 0)):
        with pytest.raises(DataError, match=r"keep 1 \.\. of"):
            bench(spec, path, Sizes(keep, of), steps=steps)


def test_the_command_ends_with_a_table_and_json(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", pairs(ROWS + 50))
    sizes = ["--keep", "1", "--of", "2", "--length", "16", "--steps", "1", "--device", "cpu"]
    arguments = ["configs/models/tiny", path, *sizes, "--methods", "uds,max_loss,seta", "--json"]
    result = CliRunner().invoke(app, ["bench-online", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for shown in ("train on 1", "forward of 2", "uds", "max_loss", "seta: plans epochs"):
        assert shown in result.output
    told = json.loads(result.output.strip().splitlines()[-1])
    assert told["rows"] == ROWS
    assert told["sides"]["plain K"]["over_plain_keep"] == 1
    assert told["sides"]["uds"]["held_bytes"] >= 4 << 20  # a memory of 1024 sketches of 1024
    assert set(told["sides"]["seta"]) == {"refused"}


def test_a_wrong_model_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", pairs(3))
    result = CliRunner().invoke(app, ["bench-online", "./nowhere", path])
    assert result.exit_code == 2
    help_text = CliRunner().invoke(app, ["bench-online", "--help"]).output
    assert "How to read it" in help_text
