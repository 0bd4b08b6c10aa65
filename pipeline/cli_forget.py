"""`foresift trace` and `foresift forget`: where a document is, and how it is taken out."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

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
