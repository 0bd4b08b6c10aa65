"""`foresift trace` and `foresift forget`: where a document is, and how it is taken out."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from foresift.pipeline.terminal import (
    err_console,
    located,
    out_console,
    quiet,
    say,
    warnings_shown,
)

app = typer.Typer(
    name="forget",
    help="Plan a deletion, apply it, train again without it, and prove it gone.",
    no_args_is_help=True,
)


@app.callback()
def _forget() -> None:
    """A group, whatever number of commands it has."""


RunPath = Annotated[
    Path, typer.Option("--run", help="A run directory, or an --out (its latest run).")
]
AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON object.")]


def _stage(name: str) -> Any:
    """A module of the forget stage: the core reaches it by name."""
    return importlib.import_module(f"foresift.stages.forget.{name}")


def trace(
    what: Annotated[str, typer.Argument(help="An id, a key path, a text, or @FILE with one.")],
    run: RunPath = Path("out"),
    how: Annotated[
        str, typer.Option("--as", help="id, text, key or entity; empty: decide by looking.")
    ] = "",
    search: Annotated[
        bool, typer.Option(help="Search the texts for near copies too: one pass over them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Where a document is, its copies, what it entered, and which checkpoints saw it.

    Of an id the answer takes a second on ten million rows: near copies are then those that a dedup
    step of the run found, as they are of a text that was read. Other texts are searched for.

    Example: foresift trace 0b5c3e8f6a1d4c2b9e7f8a6d5c4b3a29 --run out
    """
    from foresift.pipeline.progress import Bars

    with located():
        history = _stage("history").History.open(run)
        with Bars(err_console) as bars:
            found = _stage("trace").trace(what, history, how, search=search, progress=bars)
        if as_json:
            print(json.dumps(found.json()), flush=True)
        else:
            _stage("_find_shown").show(found, out_console)


PlansOrIds = Annotated[
    list[str] | None, typer.Argument(help="Folders of deletion plans, or ids of requests.")
]
StorePath = Annotated[
    Path | None, typer.Option("--run", help="A run directory, or an --out; else that of PLANS.")
]
RequestIds = Annotated[list[str] | None, typer.Argument(help="Ids of requests; none: all.")]


@app.command("apply")
def apply_(plans: PlansOrIds = None, run: StorePath = None, as_json: AsJson = False) -> None:
    """Take the documents of deletion plans out of every plan and export, all at once.

    No later step sees them. Trainings that saw one are marked; `foresift forget replay` trains
    them again. Reversible with `undo` until `purge`. Without a plan: finish what was interrupted.

    Example: foresift forget apply out/deletions/r-17 out/deletions/r-18
    """
    with located():
        where = _store(run) if run or not plans else None
        told = _stage("apply").apply(plans or [], where)
        _tell(told, _applied(told), as_json)


@app.command()
def undo(requests: RequestIds = None, run: RunPath = Path("out"), as_json: AsJson = False) -> None:
    """Undo requests: every byte returns, but for what other requests took out.

    Steps that were done since are removed; the next `foresift run` does them again.

    Example: foresift forget undo r-17 --run out
    """
    with located():
        told = _stage("undo").undo([Path(r).name for r in requests or []], _store(run))
        lines = [f"undone: {', '.join(told['undone'])}; {told['documents']:,} documents are back"]
        if told["removed"]:
            lines.append(f"done without them, to be done again: {', '.join(told['removed'])}")
        _tell(told, [*lines, *_tainted(told)], as_json)


@app.command()
def purge(
    requests: RequestIds = None,
    run: RunPath = Path("out"),
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Remove tainted checkpoints too.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also while a training is tainted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Leave nothing of requests in the store but ids, hashes and counts. Not to be undone.

    Originals are removed, rows blanked, reports and whatever quotes the texts removed. Your own
    files are not touched; the answer names those that hold the rows.

    Example: foresift forget purge r-17 --run out
    """
    with located():
        names = [Path(r).name for r in requests or []]
        told = _stage("purge").purge(names, _store(run), checkpoints=checkpoints, force=force)
        _tell(told, _purged(told), as_json)


@app.command()
def replay(
    run: RunPath = Path("out"),
    request: Annotated[str, typer.Option(help="Trainings that this request tainted.")] = "",
    selections: Annotated[
        str, typer.Option(help="What tainted models chose in later rounds: keep, or redo.")
    ] = "keep",
    engine: Annotated[str, typer.Option(help="local or ray; auto as in `foresift run`.")] = "auto",
    workers: Annotated[int, typer.Option(help="Worker processes; 0: one for each core.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train again, without what was forgotten, from the last clean checkpoint: exact deletion.

    The recipe of RUN is planned again and must be the same. Models that began with a tainted one
    are trained from their beginning, measurements made again. A new run directory tells of it.

    Example: foresift forget replay --run out
    """
    from foresift.pipeline.progress import Bars

    quiet()
    with located():
        with warnings_shown(), Bars(err_console) as bars:
            told = _stage("replay").replay(
                run, request, selections, engine=engine, workers=workers, progress=bars
            )
        _tell(told, _replayed(told), as_json)


@app.command("list")
def list_(run: RunPath = Path("out"), as_json: AsJson = False) -> None:
    """The requests of a store: how far each is, its documents, the trainings that saw them."""
    with located():
        told = _stage("apply").listed(_store(run))
        lines = [
            f"{one['id']}: {one['status']}, {one['documents']:,} documents"
            + (f", tainted: {', '.join(one['tainted'])}" if one["tainted"] else "")
            + (f", being replayed: {', '.join(one['replaying'])}" if one["replaying"] else "")
            for one in told
        ]
        _tell({"requests": told}, lines or ["no request here"], as_json)


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="The model to audit: a folder or a hub id.")],
    plan: Annotated[Path, typer.Option(help="The folder of a deletion plan.")],
    retrained: Annotated[
        str, typer.Option(help="The same training without the forgotten rows; empty: no proof.")
    ] = "",
    attacks: Annotated[
        str,
        typer.Option(
            help="With commas: relearn, quantise, trigger, rna, refusal, hierarchy; all; none."
        ),
    ] = "all",
    out: Annotated[Path | None, typer.Option(help="A folder; by default the plan's.")] = None,
    tokenizer: Annotated[str, typer.Option(help="Where MODEL brings none; bytes is one.")] = "",
    items: Annotated[int, typer.Option(help="Rows of each set at most.")] = 256,
    relearn_steps: Annotated[int, typer.Option(help="Steps of the relearning attack.")] = 20,
    relearn_lr: Annotated[float, typer.Option(help="Its learning rate.")] = 1e-4,
    margin: Annotated[float, typer.Option(help="Times the margins within which all is alike.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """Measure whether a model still knows what was to go, plain and under attack.

    Passed is what cannot be told from --retrained under the same attack, by intervals. Without
    it all is measured and nothing proved. Writes verdict.json and audit.html. Exit code: 0 pass,
    1 fail, 3 neither shown, 2 errors.

    Example: foresift forget audit out/model --plan out/deletions/r-17 --retrained out/clean
    """
    from foresift.pipeline.progress import Bars

    quiet()
    with located():
        stage = _stage("audit")
        asked = stage.asked(
            model=model, plan=plan, retrained=retrained, attacks=attacks, out=out, items=items,
            tokenizer=tokenizer, steps=relearn_steps, lr=relearn_lr, margin=margin, device=device,
            dtype=dtype,
        )  # fmt: skip
        with warnings_shown(), Bars(err_console) as bars:
            told = stage.audit(asked, bars)
        lines = [*stage.lines(told), f"see {(out or plan) / 'audit.html'}"]
        _tell(told, lines, as_json)
        raise typer.Exit(stage.exit_code(told))


@app.command()
def drill(
    run: RunPath = Path("out"),
    model: Annotated[str, typer.Option(help="A checkpoint; by default the run's newest.")] = "",
    per_decile: Annotated[int, typer.Option(help="Clusters of each decile of risk.")] = 20,
    method: Annotated[
        str, typer.Option(help="npo, graddiff, simnpo, ... as in unlearning.")
    ] = "npo",
    steps: Annotated[int, typer.Option(help="Steps of unlearning.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="The table; a .json lies beside it.")] = Path(
        "drill.parquet"
    ),
    by: Annotated[str, typer.Option(help="The column of risk.")] = "forget_risk.risk",
    lr: Annotated[float | None, typer.Option(help="Of unlearning; none: the method's.")] = None,
    relearn_steps: Annotated[int, typer.Option(help="Steps of relearning.")] = 20,
    relearn_lr: Annotated[float, typer.Option(help="Learning rate of relearning.")] = 1e-4,
    tokenizer: Annotated[str, typer.Option(help="Where MODEL brings none; bytes is one.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Unlearn a sample of every risk decile from a copy of the model, and record what stays.

    The table that it writes is what `drill:` of forget_risk learns the residual from. The run and
    its checkpoints stay as they are.

    Example: foresift forget drill --run out --out drill.parquet
    """
    from foresift.pipeline.progress import Bars

    quiet()
    with located():
        stage = _stage("drill")
        asked = stage.Asked(
            run=run, out=out, model=model, tokenizer=tokenizer, by=by, per_decile=per_decile,
            method=method, steps=steps, lr=lr, relearn_steps=relearn_steps, relearn_lr=relearn_lr,
            seed=seed, device=device,
        )  # fmt: skip
        with warnings_shown(), Bars(err_console) as bars:
            told = stage.drill(asked, bars)
        _tell(told, stage.lines(told), as_json)


def _store(run: Path | None) -> Path:
    """The --out of a run, or an --out itself."""
    path = run or Path("out")
    return path.parent.parent if (path / "manifest.json").exists() else path


def _tell(told: dict[str, Any], lines: list[str], as_json: bool) -> None:
    for line in lines:
        say(line, out_console)
    if as_json:
        print(json.dumps(told), flush=True)


def _applied(told: dict[str, Any]) -> list[str]:
    lines = [f"applied already: {', '.join(told['already'])}"] if told["already"] else []
    if told["applied"]:
        lines.append(
            f"applied: {', '.join(told['applied'])}; {told['documents']:,} documents are gone,"
            f" {len(told['rewritten'])} plans and exports rewritten, {told['rows_read']:,} rows"
            " read"
        )
    if told["removed"]:
        lines.append(f"to be made again by the next run: {', '.join(told['removed'])}")
    return [*lines, *_tainted(told)] or ["nothing to do"]


def _tainted(told: dict[str, Any]) -> list[str]:
    return [
        f"tainted: {name} from step {about['first_step'] or 'unknown'} on"
        f" ({about['documents']:,} documents); `foresift forget replay` trains it again"
        for name, about in told["tainted"].items()
    ]


@app.command()
def plan(
    request: Annotated[Path, typer.Option("--request", help="Requests, one JSON object a line.")],
    run: RunPath = Path("out"),
    out: Annotated[
        Path | None, typer.Option("--out", help="Write <out>/deletions/; default: the run's --out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is chosen by chance.")] = 0,
    allow_all: Annotated[
        bool, typer.Option("--allow-all", help="A request may mean more than half of all rows.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Plan the deletion of what requests ask for: every set, view and cost, in a folder for each.

    Example: foresift forget plan --request requests.jsonl --run out
    """
    from foresift.pipeline.progress import Bars

    quiet()
    stage = _stage("plan_requests")
    with located(), warnings_shown(), Bars(err_console) as bars:
        told = stage.plan_requests(request, run, out, seed, allow_all, bars)
    _tell({"plans": told}, [line for one in told for line in stage.lines(one)], as_json)


def _replayed(told: dict[str, Any]) -> list[str]:
    lines = [
        f"{one['label']}: from step {one['from_step']:,} to {one['steps']:,} ({one['name']})"
        + _schedule(one)
        for one in told["trainings"]
    ]
    lines.append(
        f"{told['steps']:,} of {told['steps_of_all']:,} steps in {told['seconds']:,.1f} s;"
        f" {told['flops']:.3g} FLOPs, training all again {told['flops_retraining']:.3g}"
    )
    if told["kept_selections"]:
        lines.append(
            "kept, though a tainted model had a say in it (--selections redo chooses again): "
            + ", ".join(told["kept_selections"])
        )
    return [*lines, f"run: {told['run']}"]


def _schedule(one: dict[str, Any]) -> str:
    if one["steps"] == one["steps_planned"]:
        return ""
    return f"; the learning rate is that of the {one['steps_planned']:,} steps it was planned for"


def _purged(told: dict[str, Any]) -> list[str]:
    lines = [f"purged: {', '.join(told['purged'])}; {told['documents']:,} documents"]
    if told["removed"]:
        lines.append(f"removed or cut: {', '.join(told['removed'])}")
    if told["left"]:
        lines.append(f"words of theirs are left in: {', '.join(told['left'])}")
    for one in told["yours"]:
        where = ", ".join(one["in_place"] or one["paths"] or [one["step"]])
        lines.append(f"yours to remove: {one['rows']:,} rows of {where}")
    return lines
