"""The command line: run, report, plan, parts, show, diff, bench-online, and `cli_forget.py`.

Exit codes: 0 done, 2 something in the recipe, the data or a model is the user's to mend.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foresift.pipeline import cli_forget
from foresift.pipeline.terminal import (
    err_console,
    located,
    out_console,
    quiet,
    say,
    warnings_shown,
)

app = typer.Typer(
    name="foresift",
    help="Data selection and curation for language models, with the model in the loop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(cli_forget.trace)
app.add_typer(cli_forget.app)
RecipePath = Annotated[Path, typer.Argument(help="A recipe in YAML.", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Overrides such as rounds.count=1 or steps.0.threshold=0.7.", metavar="[KEY=VALUE]..."
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where steps and runs are written.")]
EngineName = Annotated[
    str, typer.Option(help="local or ray; auto is ray where RAY_ADDRESS is set, else local.")
]
Workers = Annotated[int, typer.Option(help="Worker processes; 0: one for each core.")]


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = Path("out"),
    engine: EngineName = "auto",
    workers: Workers = 0,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """Carry out RECIPE: read, score, select, train; what is done already is not done again.

    Example: foresift run configs/own-files.yaml data.paths='["corpus/*.jsonl.gz"]' --out out
    """
    from foresift.pipeline import show as view
    from foresift.pipeline.progress import Bars
    from foresift.pipeline.recipe import Recipe

    quiet()
    with located():
        with warnings_shown(), Bars(err_console) as bars:
            done = Recipe.read(recipe, overrides or []).run(out, engine, workers, bars)
        view.run(done, out_console)
        if as_json:
            print(json.dumps(view.summary(done)), flush=True)


@app.command()
def report(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Data (files, folders, globs), or a run directory.", metavar="PATH|RUN"
        ),
    ],
    compare: Annotated[str, typer.Option(help="A second set or run, shown beside it.")] = "",
    model: Annotated[
        str, typer.Option(help="Adds loss, uncertainty and embedding: a folder or hub id.")
    ] = "",
    text: Annotated[
        str, typer.Option(help="The column of the text, or prompt,response as PATH calls them.")
    ] = "",
    sample: Annotated[int, typer.Option(help="Measure so many documents; 0: all.")] = 0,
    read: Annotated[str, typer.Option(help="jsonl, parquet, text or hf; empty: decide.")] = "",
    split: Annotated[
        str, typer.Option(help="A document of text is a file, paragraph or line.")
    ] = "",
    license: Annotated[str, typer.Option(help="The data's licence (SPDX), for the card.")] = "",
    out: Out = Path("out"),
    engine: EngineName = "auto",
    workers: Workers = 0,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """Write one page about any data: what it is, what is wrong with it, what it repeats.

    Reads JSON lines (.gz, .zst), parquet, text and code, and data sets saved to disk; says how it
    read them. Without a model it measures length, surface, language, personal data, secrets,
    licences, junk and copies, as far as these scores are installed. The page needs no network;
    beside it lie report.json, a data set card (README.md) and Croissant metadata (croissant.json).

    Everything is kept under --out, so a second call is quick, and recipe.yaml in the run says what
    was done. Of a RUN the page is written again. Excerpts are masked; the files stay as they are.

    Example: foresift report my/*.jsonl.gz --compare older/ --model Qwen/Qwen2.5-0.5B
    """
    from foresift.pipeline import reporting
    from foresift.pipeline.any_data import Wish
    from foresift.pipeline.progress import Bars

    quiet()
    wish = Wish(read, text, split)
    asked = reporting.Asked(paths, compare, model, sample, license, wish, out, engine, workers)
    with located():
        with warnings_shown(), Bars(err_console) as bars:
            found = reporting.report(asked, bars, lambda line: say(line, err_console))
        reporting.show(found, out_console)
        if as_json:
            print(json.dumps(found.summary()), flush=True)


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = Path("out"),
) -> None:
    """Resolve RECIPE and print one line a step: columns, fingerprint, cached or to do, cost.

    Nothing is read, nothing is computed; a recipe that does not plan does not run.
    """
    from foresift.pipeline import show as view
    from foresift.pipeline.recipe import Recipe

    quiet()
    with located():
        view.plan(Recipe.read(recipe, overrides or []).plan(out), out_console)


@app.command()
def parts(
    name: Annotated[str, typer.Argument(help="A part, for its fields and its definition.")] = "",
) -> None:
    """List every part by verb; with NAME, its definition, columns and fields."""
    from foresift.pipeline import show as view

    quiet()
    with located():
        view.parts(name, out_console)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A run directory, or an --out (its latest run).")],
    document: Annotated[str, typer.Option("--id", help="What happened to one document.")] = "",
) -> None:
    """Show a finished run: steps, accounts, losses, and where the report is."""
    from foresift.pipeline import show as view
    from foresift.pipeline.run import Run

    with located():
        done = Run.open(path)
        if document:
            view.document(done, document, out_console)
        else:
            view.run(done, out_console)


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="A run directory.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
    limit: Annotated[int, typer.Option(help="Documents to name in each group.")] = 10,
) -> None:
    """Compare two plans: what entered, what left, what moved, and why."""
    from foresift.pipeline import diff as compare
    from foresift.pipeline.run import Run

    with located():
        compare.show(Run.open(before), Run.open(after), out_console, limit)


@app.command("bench-online")
def bench_online(
    model: Annotated[
        str, typer.Argument(help="A folder, a configuration (random weights) or a hub id.")
    ],
    data: Annotated[
        str, typer.Argument(help="JSON lines, parquet, or a Hugging Face data set (folder or id).")
    ],
    keep: Annotated[int, typer.Option(help="Rows that a step trains on.")] = 4,
    of: Annotated[int, typer.Option(help="Candidates that they are chosen from.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens after which a row is cut.")] = 512,
    methods: Annotated[
        str, typer.Option(help="Names with commas, or module:Class; empty: all that there are.")
    ] = "",
    steps: Annotated[int, typer.Option(help="Steps of each; the median counts.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    tokenizer: Annotated[str, typer.Option(help="Where MODEL brings none; bytes is one.")] = "",
    fields: Annotated[
        str, typer.Option(help="text, messages, or prompt,response as DATA calls them.")
    ] = "",
    at_once: Annotated[int, typer.Option(help="Candidates in one forward.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """Tell, before training, what a step costs here if the model chooses its rows.

    Takes real training steps with MODEL on the first rows of DATA (nothing
    is saved): plain ones on KEEP rows and on all OF candidates, a forward of
    the candidates alone, and each method's choice of KEEP out of OF with a
    step on what it chose. All take turns, so a busy machine is unjust to none.

    How to read it: a method at 2.0 x plain KEEP must reach the same loss in
    half the steps to be worth its time. Below 1.0 x plain OF it is cheaper
    than training on all candidates. Token selectors (rho1, sstoken, ...) choose
    tokens within KEEP rows: compare them with plain KEEP.

    Example: foresift bench-online Qwen/Qwen2.5-0.5B chats.jsonl --of 32
    """
    quiet()
    with located():
        from foresift.pipeline import online_bench as online
        from foresift.pipeline.lm.model import ModelSpec
        from foresift.pipeline.online_cost import Sizes

        fields_of_model = {"init": model, "tokenizer": tokenizer, "dtype": dtype}
        spec = ModelSpec.parse(
            {**fields_of_model, "device": device, "max_length": length}, "bench-online"
        )
        found = online.bench(spec, data, Sizes(keep, of, at_once), methods, steps, fields)
        online.show(found, out_console)
        if as_json:
            print(json.dumps(found.summary()), flush=True)


if __name__ == "__main__":
    app()
