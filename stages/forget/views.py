"""The sets of a deletion plan as OpenUnlearning, TOFU, MUSE, RWKU and DUSK read them.

    openunlearning/<set>.jsonl, <set>_qa.jsonl, forget_verbmem.jsonl    id, and what is read
        FORESIFT_<set>_{pretraining,completion,qa}.yaml    one for configs/data/datasets each
    tofu/{forget,retain,holdout}.json                      question, answer
        {forget,retain}_perturbed.json                     where paraphrases were read along
    muse/raw/{forget,retain1,retain2,holdout}.jsonl        text; retain1 is given to the method,
        privleak/{forget,retain,holdout}.jsonl             retain2 is for evaluation only: no row is
        verbmem/forget.jsonl                               in both. prompt, gt
        knowmem/{forget_qa,retain_qa}.jsonl                question, answer: probes
    rwku/forget_target.json                                target
        {forget_level1..3,neighbor_level1..2}.json         subject, query, answer, level, type
        mia_{forget,retain}.json                           subject, text
    dusk/{forget,retain}.txt, eval/holdout.txt             documents
        eval/verbatim.json                                 prompt, gt
        eval/{GeneralQA,SpecificForgetQA,SpecificRetainQA}.jsonl    question, answer
    views.json                                             file -> set, rows, columns, ids

`pretraining` joins all rows and cuts them anew (OpenUnlearning's PretrainingDataset): no row has a
loss of its own there; in `completion` each has. All are loaded as `json`: read as plain text, the
lines of a .jsonl would be trained on with their braces. The YAML names the files by absolute paths:
write the plan again after it was moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from foresift.pipeline.store import write_json, write_text
from foresift.stages.forget._rows import BESIDE
from foresift.stages.forget._views_rows import (
    JsonRow,
    View,
    as_asked,
    as_probe,
    as_qa,
    as_text,
    as_verbatim,
    view,
)
from foresift.stages.forget.folder import NEIGHBOURS, RELEARN
from foresift.stages.forget.probes import ATTACK, CLOZE, QA

#: sets whose rows are documents
DOCUMENTS = ("forget", "retain", "holdout", *NEIGHBOURS, "coreset", "worst_case", *RELEARN)
MAX_LENGTH = {"pretraining": 2048, "completion": 2048, "qa": 512}
Sets = Mapping[str, Sequence[JsonRow]]


def write_views(folder: Path, final: Path, sets: Sets) -> dict[str, JsonRow]:
    """Write every view under `folder`, which will be called `final`; returns what is in them.

    `sets` has those of `folder.SETS`, the probes of neighbours and retain under `asked_near` and
    `asked_retain`, and forget and retain with a `subject` under `about_forget`, `about_retain`.
    """
    every = [*_openunlearning(sets), *_tofu(sets), *_muse(sets), *_rwku(sets), *_dusk(sets)]
    told = {}
    for one in every:
        one.write(folder)
        told[one.path] = one.told()
    for name, config in _configs(every, final):
        write_text(folder / "openunlearning" / f"{name}.yaml", yaml.safe_dump({name: config}))
    write_json(folder / "views.json", told)
    return told


def _openunlearning(sets: Sets) -> Iterator[View]:
    for name in DOCUMENTS:
        rows, place = sets[name], f"openunlearning/{name}"
        yield view(f"{place}.jsonl", name, rows, lambda r: {"id": r["id"], **as_text(r)})
        yield view(f"{place}_qa.jsonl", name, rows, lambda r: {"id": r["id"], **as_qa(r)})
    verbatim = view(
        "openunlearning/forget_verbmem.jsonl", "forget", sets["forget"],
        lambda r: {"id": r["id"], **as_verbatim(r)},
    )  # fmt: skip
    yield verbatim


def _configs(views: Sequence[View], final: Path) -> Iterator[tuple[str, JsonRow]]:
    """(name, configuration) of each data set that OpenUnlearning can be pointed at."""
    for one in views:
        place = Path(one.path)
        if place.parts[0] != "openunlearning" or not one.rows:
            continue
        stem = place.stem
        kinds = ["qa"] if stem.endswith("_qa") else ["completion"]
        kinds += ["pretraining"] if stem == one.of else []
        for kind in kinds:
            name = f"FORESIFT_{stem.removesuffix('_qa')}_{kind}"
            yield name, _config(kind, one, stem.endswith("_verbmem"), final)


def _config(kind: str, one: View, verbatim: bool, final: Path) -> JsonRow:
    handler = {"pretraining": "PretrainingDataset", "completion": "CompletionDataset"}
    files = str((final / one.path).resolve())
    args: JsonRow = {"hf_args": {"path": "json", "data_files": files, "split": "train"}}
    if kind == "qa":
        args |= {"question_key": "question", "answer_key": "answer"}
    elif verbatim:
        args |= {"prefix_key": "prompt", "text_key": "gt", "insert_space": True}
    else:
        args |= {"text_key": "text"}
    args["max_length"] = MAX_LENGTH[kind]
    return {"handler": handler.get(kind, "QADataset"), "access_key": one.of, "args": args}


def _tofu(sets: Sets) -> Iterator[View]:
    for name in ("forget", "retain", "holdout"):
        yield view(f"tofu/{name}.json", name, sets[name], as_qa, "lines")
    for name in ("forget", "retain"):
        known = [row for row in sets[name] if all(row.get(n) is not None for n in BESIDE)]
        yield view(f"tofu/{name}_perturbed.json", name, known, _perturbed, "lines")


def _perturbed(row: Mapping[str, Any]) -> JsonRow:
    return {**as_qa(row), **{name: row[name] for name in BESIDE}}


def _muse(sets: Sets) -> Iterator[View]:
    half = (len(sets["retain"]) + 1) // 2
    given, kept = sets["retain"][:half], sets["retain"][half:]
    yield view("muse/raw/forget.jsonl", "forget", sets["forget"], as_text)
    yield view("muse/raw/retain1.jsonl", "retain", given, as_text)
    yield view("muse/raw/retain2.jsonl", "retain", kept, as_text)
    yield view("muse/raw/holdout.jsonl", "holdout", sets["holdout"], as_text)
    yield view("muse/privleak/forget.jsonl", "forget", sets["forget"], as_text)
    yield view("muse/privleak/retain.jsonl", "retain", kept, as_text)
    yield view("muse/privleak/holdout.jsonl", "holdout", sets["holdout"], as_text)
    yield view("muse/verbmem/forget.jsonl", "forget", sets["forget"], as_verbatim)
    plain = _levels(sets["probes"], CLOZE, QA)
    yield view("muse/knowmem/forget_qa.jsonl", "probes", plain, as_asked)
    yield view("muse/knowmem/retain_qa.jsonl", "retain", sets["asked_retain"], as_asked)


def _rwku(sets: Sets) -> Iterator[View]:
    targets = {p["subject"]: p for p in reversed(_levels(sets["probes"], CLOZE, QA))}
    rows = [targets[name] for name in sorted(targets)]
    yield view("rwku/forget_target.json", "probes", rows, _target, "json")
    for level in (CLOZE, QA, ATTACK):
        asked = _levels(sets["probes"], level)
        yield view(f"rwku/forget_level{level}.json", "probes", asked, as_probe, "json")
    for level in (CLOZE, QA):
        near = _levels(sets["asked_near"], level)
        yield view(f"rwku/neighbor_level{level}.json", "neighbors_direct", near, as_probe, "json")
    for name in ("forget", "retain"):
        about = sets[f"about_{name}"]
        yield view(f"rwku/mia_{name}.json", name, about, _about, "json")


def _target(probe: Mapping[str, Any]) -> JsonRow:
    return {"target": probe["subject"]}


def _about(row: Mapping[str, Any]) -> JsonRow:
    return {"subject": row["subject"], **as_text(row)}


def _dusk(sets: Sets) -> Iterator[View]:
    for name, path in (("forget", "forget"), ("retain", "retain"), ("holdout", "eval/holdout")):
        yield view(f"dusk/{path}.txt", name, sets[name], as_text, "txt")
    yield view("dusk/eval/verbatim.json", "forget", sets["forget"], as_verbatim, "json")
    shared = [row for row in sets["shared"] if row["fact_question"] is not None]
    known = {row["fact_question"] for row in shared}
    own = [p for p in _levels(sets["probes"], CLOZE, QA) if p["query"] not in known]
    yield view("dusk/eval/GeneralQA.jsonl", "shared", shared, _fact)
    yield view("dusk/eval/SpecificForgetQA.jsonl", "probes", own, as_asked)
    yield view("dusk/eval/SpecificRetainQA.jsonl", "retain", sets["asked_retain"], as_asked)


def _fact(row: Mapping[str, Any]) -> JsonRow:
    return {"question": row["fact_question"], "answer": row["fact_answer"]}


def _levels(probes: Sequence[JsonRow], *levels: str) -> list[JsonRow]:
    return [probe for probe in probes if probe["level"] in levels]
