"""Progress bars: one line a step, with what is done, what is left and how long it will take."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bars:
    """Called with (done, total, label); a new label is a new bar. Plain lines off a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, int] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int, label: str) -> None:
        """Say how far the job called `label` is."""
        if not self._live:
            self._line(done, total, label)
            return
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total)
        self._progress.update(self._tasks[label], completed=done, total=total)

    def _line(self, done: int, total: int, label: str) -> None:
        """A line at the start of a job and at every tenth of it."""
        tenth = 10 * done // max(total, 1)
        if self._told.get(label) != tenth:
            self._told[label] = tenth
            self._console.print(f"{label}: {done}/{total}", highlight=False, soft_wrap=True)
