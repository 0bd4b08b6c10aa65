"""What a wrong reference, model or number of probes gets from `influence`: an error, no score.

As in `test_bad_input.py`: exit code 2 and one line that names the place, before any work where it
can be known then, else before the step has a score. Documents that cannot be scored are counted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from foresift.pipeline.lm.gradients.adamw import OPTIMIZER
from tests.inputs import nothing_done, recipe, refused, run, texts, write
from tests.runs import go

MODEL = {"init": "configs/models/tiny", "device": "cpu", "max_length": 64}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write(tmp_path / "pool.jsonl", texts(40))


@pytest.fixture
def aim(tmp_path: Path) -> Path:
    return write(tmp_path / "aim.jsonl", texts(6, seed=1))


def scoring(pool: Path, reference: Any, model: Any = MODEL, **fields: Any) -> dict[str, Any]:
    datasets = fields.pop("datasets", {})
    part = {"score": "influence", "reference": reference, "probes": 25, **fields}
    choice = {"select": "topk", "by": "influence.utility", "budget": "100%"}
    more = {"datasets": datasets} if datasets else {}
    return recipe(pool, steps=[part, choice], model=dict(model), **more)


def unscored(tmp_path: Path) -> bool:
    """Whether no document has a score: no sidecar, and the step is not done."""
    steps = list((tmp_path / "out" / "steps").glob("influence-*"))
    return not any(list(s.glob("part-*")) or (s / "stage.json").exists() for s in steps)


# -- what can be known before any work ---------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probes": 0}, "a number of documents or a share"),
        ({"probes": "0%"}, "a number of documents or a share"),
        ({"probes": "200%"}, "'200%'"),
        ({"probes": "-5"}, "got '-5'"),
        ({"probes": "30 bytes"}, "a number of documents or a share"),
        ({"method": "direct", "labels": "exact"}, "direct scores are linear"),
        ({"method": "encoder", "each": True}, "an encoder predicts one number"),
        ({"learning_rate": 0}, "learning_rate must be positive"),
        ({"probe_tokens": 1}, "probe_tokens is 0 or at least 2"),
        ({"method": "rigde"}, "method"),
    ],
    ids=lambda x: json.dumps(x) if isinstance(x, dict) else "",
)
def test_a_wrong_field_is_refused_before_any_work(
    tmp_path: Path, pool: Path, aim: Path, fields: dict[str, Any], message: str
) -> None:
    said = refused(tmp_path, scoring(pool, str(aim), **fields))
    assert said.startswith("RecipeError steps[0] (score influence)")
    assert message in said
    assert len(said.splitlines()) == 1
    assert nothing_done(tmp_path)


def test_a_reference_that_is_not_there_is_refused_before_any_work(
    tmp_path: Path, pool: Path, aim: Path
) -> None:
    news = {"read": "jsonl", "paths": [str(aim)]}
    said = refused(tmp_path, scoring(pool, "nevs", datasets={"news": news}))
    assert said.startswith("RecipeError steps[0] (score influence): no data set 'nevs'")
    assert "'news'" in said
    said = refused(tmp_path, scoring(pool, str(tmp_path / "none.jsonl")))
    assert said == f"DataError {tmp_path}/none.jsonl: matches no file"
    said = refused(tmp_path, scoring(pool, None))
    assert said.startswith("RecipeError steps[0] (score influence)")
    assert nothing_done(tmp_path)


@pytest.mark.parametrize("weights", [(0, 0), (-1, -2), (1, 0), (1, "2"), (1, True)], ids=str)
def test_a_weight_that_is_not_positive_is_refused_before_any_work(
    tmp_path: Path, pool: Path, aim: Path, weights: tuple[Any, Any]
) -> None:
    other = write(tmp_path / "other.jsonl", texts(6, seed=2))
    aims = [{"data": str(p), "weight": w} for p, w in zip((aim, other), weights, strict=True)]
    said = refused(tmp_path, scoring(pool, aims))
    assert said.startswith("RecipeError steps[0] (score influence)")
    assert "the weight of a reference is positive" in said
    assert nothing_done(tmp_path)


def test_a_reference_that_is_named_twice_is_refused(tmp_path: Path, pool: Path, aim: Path) -> None:
    said = refused(tmp_path, scoring(pool, [str(aim), str(aim)]))
    assert "a reference is named twice" in said
    assert nothing_done(tmp_path)


# -- references that cannot be aimed at --------------------------------------------------------


def test_documents_shared_with_the_pool_are_listed(tmp_path: Path, pool: Path) -> None:
    shared = write(tmp_path / "aim.jsonl", [*texts(3, seed=1), *texts(40)[:7]])
    reader = {"read": "jsonl", "paths": [str(shared)], "holdout": 0.0}
    said = refused(tmp_path, scoring(pool, reader)).splitlines()[-1]
    assert said.startswith(f"DataError {shared}: 7 of its documents lie in the pool as well: ")
    assert said.count("(pool.jsonl#") == 5
    assert "and 2 more" in said
    assert unscored(tmp_path)


def test_documents_held_out_of_the_reference_must_not_lie_in_the_pool(
    tmp_path: Path, pool: Path
) -> None:
    alive = [f"{t} other" for t in texts(60, seed=1)]
    path = write(tmp_path / "aim.jsonl", [*alive, texts(40)[0]])
    held = {"read": "jsonl", "paths": [str(path)]}
    for share in (0.0, 0.9):  # the copy is one of those that are held out, or it is not
        said = refused(tmp_path, scoring(pool, held | {"holdout": share})).splitlines()[-1]
        assert said.startswith(f"DataError {path}: 1 of its documents lie")
    assert unscored(tmp_path)


def test_the_pool_is_no_reference_for_itself(tmp_path: Path, pool: Path) -> None:
    said = refused(tmp_path, scoring(pool, "data")).splitlines()[-1]
    assert said.startswith("DataError data: 40 of its documents lie in the pool as well")
    assert unscored(tmp_path)


@pytest.mark.parametrize(
    ("documents", "holdout", "message"),
    [
        ([], 0.0, "holds no document"),
        (["only one"], 0.0, "the reference has 1 document that are not held out"),
        (texts(6, seed=1), 0.999999999, "the reference has 0 documents that are not held out"),
    ],
    ids=["empty", "one", "all held out"],
)
def test_a_reference_of_fewer_than_two_documents_is_refused(
    tmp_path: Path, pool: Path, documents: list[str], holdout: float, message: str
) -> None:
    path = write(tmp_path / "aim.jsonl", documents)
    reader = {"read": "jsonl", "paths": [str(path)], "holdout": holdout}
    said = refused(tmp_path, scoring(pool, reader)).splitlines()[-1]
    assert said.startswith(f"DataError {path}: ")
    assert message in said
    assert unscored(tmp_path)


def test_a_reference_without_a_token_that_counts_is_refused(tmp_path: Path, pool: Path) -> None:
    path = tmp_path / "aim.jsonl"
    rows = [{"q": f"{k} very long question " * 40, "a": "short"} for k in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = {"read": "jsonl", "paths": [str(path)], "prompt": "q", "response": "a", "holdout": 0.0}
    said = refused(tmp_path, scoring(pool, reader)).splitlines()[-1]
    assert said.startswith(f"DataError {path}: 0 of its 5 documents have a token to predict")
    assert unscored(tmp_path)


# -- models that cannot be asked ---------------------------------------------------------------

Tensors = dict[str, torch.Tensor]
FIRST = "model.layers.0.mlp.up_proj.weight"


def _zeroed(weights: Tensors) -> None:
    for value in weights.values():
        value.zero_()


def _not_a_number(weights: Tensors) -> None:
    weights[FIRST][0, 0] = float("nan")


def _infinite(weights: Tensors) -> None:
    weights["model.norm.weight"][3] = float("inf")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_zeroed, "DataError {aim}: the gradient of the loss on it is zero"),
        (_not_a_number, f"ModelError {{model}}: the weights of {FIRST} are not all finite"),
        (_infinite, "ModelError {model}: the weights of model.norm.weight are not all finite"),
    ],
)
def test_weights_that_say_nothing_are_refused(
    tmp_path: Path, pool: Path, aim: Path, checkpoint: Path,
    damage: Callable[[Tensors], None], message: str,
) -> None:  # fmt: skip
    weights = load_file(checkpoint / "model.safetensors")
    damage(weights)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    model = MODEL | {"init": str(checkpoint)}
    said = refused(tmp_path, scoring(pool, str(aim), model, method="direct")).splitlines()[-1]
    assert said.startswith(message.format(aim=aim, model=checkpoint))
    assert unscored(tmp_path)


def _moments(checkpoint: Path) -> Tensors:
    """Second moments of one for each weight; the tied output layer is the embedding."""
    weights = load_file(checkpoint / "model.safetensors")
    shapes = {n: w.float() for n, w in weights.items() if n != "lm_head.weight"}
    first = {f"exp_avg.{n}": torch.zeros_like(w) for n, w in shapes.items()}
    return first | {f"exp_avg_sq.{n}": torch.ones_like(w) for n, w in shapes.items()}


def _other_shape(state: Tensors) -> str:
    state[f"exp_avg_sq.{FIRST}"] = torch.ones(3, 3)
    return f"exp_avg_sq.{FIRST} has shape (3, 3), the parameter (352, 128)"


def _missing(state: Tensors) -> str:
    del state[f"exp_avg.{FIRST}"]
    return f"has no exp_avg.{FIRST}"


def _nan_moment(state: Tensors) -> str:
    state[f"exp_avg.{FIRST}"][0, 0] = float("nan")
    return f"the moments of {FIRST} are not finite"


@pytest.mark.parametrize("damage", [_other_shape, _missing, _nan_moment])
def test_an_optimizer_state_that_does_not_fit_is_refused(
    tmp_path: Path, pool: Path, aim: Path, checkpoint: Path, damage: Callable[[Tensors], str]
) -> None:
    state = _moments(checkpoint)
    message = damage(state)
    save_file(state, checkpoint / OPTIMIZER, {"step": "9"})
    fields = scoring(pool, str(aim), MODEL | {"init": str(checkpoint)})
    said = refused(tmp_path, fields).splitlines()[-1]
    assert said.startswith(f"ModelError {checkpoint / OPTIMIZER}: ")
    assert message in said
    assert unscored(tmp_path)
    code, said = run(tmp_path, scoring(pool, str(aim), MODEL | {"init": str(checkpoint)},
                                       precondition=False, method="direct"))  # fmt: skip
    assert code == 0, said


def test_an_optimizer_state_without_its_number_of_steps_is_refused(
    tmp_path: Path, pool: Path, aim: Path, checkpoint: Path
) -> None:
    save_file(_moments(checkpoint), checkpoint / OPTIMIZER)
    said = refused(tmp_path, scoring(pool, str(aim), MODEL | {"init": str(checkpoint)}))
    last = said.splitlines()[-1]
    assert last.startswith(f"ModelError {checkpoint / OPTIMIZER}: does not say after how many")
    assert unscored(tmp_path)


def test_an_encoder_that_does_not_load_is_found_before_labels_are_taken(
    tmp_path: Path, pool: Path, aim: Path
) -> None:
    nothing = tmp_path / "bert"
    fields = scoring(pool, str(aim), method="encoder", encoder={"init": str(nothing)})
    said = refused(tmp_path, fields).splitlines()[-1]
    assert said.startswith(f"ModelError {nothing}: no such file or folder")
    assert not list((tmp_path / "out").rglob("labels"))


# -- pools -------------------------------------------------------------------------------------


def test_fewer_than_twenty_probes_are_refused(tmp_path: Path, pool: Path, aim: Path) -> None:
    said = refused(tmp_path, scoring(pool, str(aim), probes=16)).splitlines()[-1]
    assert said.startswith("DataError influence.probes: 16 probes of 40 documents")
    assert unscored(tmp_path)


def test_a_share_of_a_small_pool_is_all_of_it(tmp_path: Path, pool: Path, aim: Path) -> None:
    done = go(scoring(pool, str(aim), probes="5%"), tmp_path / "out")
    facts = next(s for s in done.manifest["steps"] if s["name"] == "influence")["facts"]
    assert (facts["method"], facts["probes"]) == ("direct", 40)


def test_a_small_pool_is_scored_directly(tmp_path: Path, aim: Path) -> None:
    small = write(tmp_path / "small.jsonl", texts(5))
    done = go(scoring(small, str(aim)), tmp_path / "out")
    facts = next(s for s in done.manifest["steps"] if s["name"] == "influence")["facts"]
    assert (facts["method"], facts["probes"], facts["nan"]["utility"]) == ("direct", 5, 0)


def test_a_pool_that_is_used_up_is_one_located_error(tmp_path: Path, pool: Path, aim: Path) -> None:
    fields = scoring(pool, str(aim), method="direct")
    influence, choice = fields.pop("steps")
    train = {
        "train": "causal_lm", "tokens": 256, "length": 64, "batch_tokens": 128, "threads": 1,
        "repeat": True,
    }  # fmt: skip
    fields |= {"steps": [], "rounds": {"count": 2, "steps": [influence, choice, train]}}
    said = refused(tmp_path, fields).splitlines()[-1]
    assert said == "DataError influence: the pool is empty: nothing is left to score"
    assert len(list((tmp_path / "out" / "steps").glob("influence-*/stage.json"))) == 1


@pytest.fixture
def few_letters(tmp_path: Path) -> Path:
    """A tokenizer that knows the letters of `word` alone: other text has no token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate("word")}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(
    "fields",
    [{"method": "direct"}, {"probes": 30}, {"labels": "exact", "probes": "100%"}],
    ids=["direct", "ridge", "all labelled"],
)
def test_a_document_without_a_label_has_no_utility_and_is_never_selected(
    tmp_path: Path, few_letters: Path, fields: dict[str, Any]
) -> None:
    rows = [("word" * n)[: n + 3] + " " + "row" * (n % 3) for n in range(1, 38)]
    strange = (4, 9)
    for place in strange:
        rows[place] = "\u65e5\u672c" * place
    pool = write(tmp_path / "pool.jsonl", rows)
    aim = write(tmp_path / "aim.jsonl", ["rowdrow dorow", "wordrow doword", "drow row"])
    reader = {"read": "jsonl", "paths": [str(aim)], "holdout": 0.0}
    model = MODEL | {"tokenizer": str(few_letters)}
    done = go(scoring(pool, reader, model, **fields), tmp_path / "out")
    facts = next(s for s in done.manifest["steps"] if s["name"] == "influence")["facts"]
    assert facts["nan"]["utility"] == len(strange)
    plan = pq.read_table(done.plan).to_pylist()
    assert [k for k, row in enumerate(plan) if not row["kept"]] == list(strange)
    assert {plan[k]["reason"] for k in strange} == {"no score"}
    if "labels" in fields:
        assert facts["method"] == "labels"


def test_a_pool_that_cannot_be_labelled_within_its_first_tokens_is_one_located_error(
    tmp_path: Path, aim: Path
) -> None:
    path = tmp_path / "long.jsonl"
    rows = [{"q": f"{k} a question, " * 30, "a": f"an answer {k}"} for k in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = scoring(path, str(aim), MODEL | {"max_length": 1024}, probe_tokens=16)
    fields["data"] |= {"prompt": "q", "response": "a"}
    said = refused(tmp_path, fields).splitlines()[-1]
    assert said.startswith("DataError influence.probe_tokens: none of 25 documents drawn has")
    shutil.rmtree(tmp_path / "out")
    fields["steps"][0] |= {"method": "direct"}  # which reads the whole of them
    code, said = run(tmp_path, fields)
    assert code == 0, said
