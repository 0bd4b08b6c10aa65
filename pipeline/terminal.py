"""The terminal: where things are said, one line for what the user can mend, and no noise."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from foresift.pipeline.errors import ForesiftError

out_console, err_console = Console(), Console(stderr=True)


@contextmanager
def located() -> Iterator[None]:
    """One line and exit code 2 for what the user can mend; a traceback for what is ours."""
    try:
        yield
    except ForesiftError as error:
        err_console.print(f"[bold red]{type(error).__name__}[/] ", end="")
        err_console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


class _Warnings(logging.Handler):
    """Prints warnings above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        err_console.print("[bold yellow]warning[/] ", end="")
        err_console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def warnings_shown() -> Iterator[None]:
    """What a run warns of goes to its log and to the terminal."""
    handler = _Warnings(logging.WARNING)
    log = logging.getLogger("foresift")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def say(line: str, console: Console) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def quiet() -> None:
    """Libraries' advice to developers is not for people who run recipes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
