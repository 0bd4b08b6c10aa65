"""What the command line prints: plans, parts, runs."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foresift.pipeline.errors import DataError, RecipeError, nearest
from foresift.pipeline.estimate import costs, scaled, selection_ratio
from foresift.pipeline.parts import VERBS, Part, field_docs, find, names
from foresift.pipeline.plan import MAIN, Plan
from foresift.pipeline.run import Run


def plan(resolved: Plan, console: Console) -> None:
    """One line a step: what it reads and gives, its directory, whether it is there already."""
    table = Table(
        title=f"{resolved.recipe.name}: {len(resolved.steps)} steps", title_justify="left"
    )
    for name in ("step", "reads", "gives", "directory", "state", "cost, at most"):
        table.add_column(name, overflow="fold")
    estimated = costs(resolved)
    for step in resolved.steps:
        table.add_row(
            escape(step.label + (f" {step.budget}" if step.budget else "")),
            ", ".join(step.reads),
            _gathered(step.gives),
            step.path.name,
            "[green]cached[/]" if step.done else "to do",
            "" if step.done else str(estimated[step.path]),
        )
    console.print(table)
    found = selection_ratio(resolved)
    if found:
        scoring, training = found
        console.print(
            f"the rounds of the selection: {scaled(scoring)}FLOP to score, {scaled(training)}FLOP "
            f"to train; selecting costs {scoring / training:.2g} of the training"
        )
    todo = sum(not s.done for s in resolved.steps)
    console.print(f"{todo} to do, {len(resolved.steps) - todo} cached, under {resolved.out}")


def _gathered(columns: Sequence[str]) -> str:
    """`a.x, a.y` as `a.{x, y}`."""
    groups: dict[str, list[str]] = {}
    for column in columns:
        prefix, _, name = column.rpartition(".")
        groups.setdefault(prefix, []).append(name)
    words = (f"{p}.{n[0]}" if len(n) == 1 else f"{p}.{{{', '.join(n)}}}" for p, n in groups.items())
    return ", ".join(words)


def parts(name: str, console: Console) -> None:
    """All parts by verb, or one of them whole."""
    found = {(verb, n): find(verb, n) for verb in VERBS for n in names(verb)}
    if not name:
        table = Table(title="parts", title_justify="left")
        for column in ("verb", "part", "what it does"):
            table.add_column(column, overflow="fold")
        for (verb, n), kind in found.items():
            table.add_row(verb, n, escape(_summary(kind)))
        console.print(table)
        console.print("foresift parts NAME shows definition, columns and fields")
        return
    wanted = [(verb, kind) for (verb, n), kind in found.items() if n == name]
    if not wanted:
        raise RecipeError(f"no part {name!r}{nearest(name, {n for _, n in found})}")
    for verb, kind in wanted:
        _part(verb, name, kind, console)


def _part(verb: str, name: str, kind: type[Part], console: Console) -> None:
    definition = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or _summary(kind))
    console.print(f"[bold]{verb}: {name}[/] (version {kind.version})")
    console.print(definition, markup=False, highlight=False)
    columns = getattr(kind, "columns", None)
    if isinstance(columns, dict):
        for column, about in columns.items():
            text = f"  {name}.{column}  {about.dtype}, {about.unit}, better: {about.better}"
            console.print(text, markup=False, highlight=False)
    table = Table()
    for column in ("field", "default", "meaning"):
        table.add_column(column, overflow="fold")
    docs = field_docs(kind)
    for f in dataclasses.fields(kind):
        table.add_row(f.name, escape(_default(f)), escape(docs.get(f.name, "")))
    console.print(table)


def _default(f: dataclasses.Field[Any]) -> str:
    if f.default is not dataclasses.MISSING:
        return repr(f.default)
    return repr(f.default_factory()) if f.default_factory is not dataclasses.MISSING else "required"


def _summary(kind: type[Part]) -> str:
    return (inspect.getdoc(kind) or "").split("\n")[0]


def run(done: Run, console: Console) -> None:
    """Steps with their seconds, the accounts, the losses of all arms, and the report."""
    manifest = done.manifest
    table = Table(title=done.path.name, title_justify="left")
    for name in ("step", "rows", "kept", "seconds"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for step in manifest["steps"]:
        facts = step["facts"]
        seconds = "cached" if step["cached"] else f"{step['seconds']:.1f}"
        table.add_row(
            escape(step["label"]), _count(facts.get("rows")), _count(facts.get("kept")), seconds
        )
    console.print(table)
    accounts = manifest["accounts"]
    console.print(
        f"{accounts['rows_in']:,} rows in = {accounts['kept']:,} kept + "
        f"{accounts['dropped']:,} dropped + {accounts['rejected']:,} rejected; "
        f"{accounts['kept_tokens']:,} of "
        f"{accounts['n_tokens']:,} tokens kept",
        highlight=False,
    )
    if manifest["evaluations"]:
        _losses(manifest, console)
    for step in manifest["steps"]:
        if step["verb"] == "export":
            console.print(f"export  {step['path']}", soft_wrap=True, highlight=False)
    console.print(f"plan    {done.plan}", soft_wrap=True, highlight=False)
    if "report" in manifest:
        console.print(f"report  {manifest['report']}", soft_wrap=True, highlight=False)


def _losses(manifest: dict[str, Any], console: Console) -> None:
    table = Table(title="held-out loss at equal training tokens", title_justify="left")
    for name in ("arm", "round", "tokens trained", "nats/token", "± s.e."):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm in arms(manifest):
        table.add_row(
            arm["arm"],
            str(arm["round"]),
            f"{arm['tokens']:,}",
            f"{arm['loss']:.4f}",
            "-" if arm["stderr"] is None else f"{arm['stderr']:.4f}",
        )
    console.print(table)


def arms(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The loss of each arm after each round, with the tokens trained until then."""
    return [
        {
            "arm": each["line"],
            "repeat": each["repeat"],
            "round": each["round"],
            "tokens": each["trained_tokens"],
            "loss": each["token_mean"],
            "stderr": each["token_mean_se"],
        }
        for each in manifest["evaluations"]
    ]


def summary(done: Run) -> dict[str, Any]:
    """One JSON object: the last loss of each arm, tokens, seconds, and where to look."""
    manifest = done.manifest
    table = arms(manifest)
    last = max((a["round"] for a in table), default=0)
    return {
        "run": str(done.path),
        "losses": {a["arm"]: a["loss"] for a in table if a["round"] == last and not a["repeat"]},
        "tokens": {a["arm"]: a["tokens"] for a in table if a["round"] == last and not a["repeat"]},
        "selected": MAIN,
        "rows": manifest["accounts"]["rows"],
        "kept": manifest["accounts"]["kept"],
        "seconds": manifest["seconds"],
        "report": manifest.get("report"),
    }


def document(done: Run, identity: str, console: Console) -> None:
    """Every line of the plan about one document (an id, or the beginning of one)."""
    table = pq.read_table(done.plan)
    hexes = [i.as_py().hex() for i in table["id"]]
    rows = [n for n, h in enumerate(hexes) if h.startswith(identity.lower())]
    if not rows:
        raise DataError(f"no document {identity!r} in this plan", where=str(done.plan))
    for row in table.take(rows).drop_columns(["id"]).to_pylist():
        console.print(row)
    kept = pc.sum(table.take(rows)["kept"]).as_py() or 0
    console.print(f"{len(rows)} copies, {kept} kept")


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""
