"""History: what a finished run read, decided, ordered, trained and exported, by its manifest.

Reads small files only; the text of documents, ledgers and plans are opened by who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import DataError, StoreError
from foresift.pipeline.ledger import Ledger
from foresift.pipeline.plan import MAIN
from foresift.pipeline.run import Run
from foresift.pipeline.store import StepDir
from foresift.pipeline.tombstones import FOLDER


@dataclass(frozen=True)
class Done:
    """One step of a run, as its manifest tells of it."""

    path: Path
    verb: str
    name: str
    label: str
    line: str
    repeat: int
    round: int
    fingerprint: str
    facts: dict[str, Any]

    @property
    def main(self) -> bool:
        """Whether it belongs to the selection, not to a baseline beside it."""
        return self.line == MAIN and not self.repeat


@dataclass(frozen=True)
class History:
    """A run and the steps it carried out, in their order."""

    run: Run
    out: Path
    steps: tuple[Done, ...]

    @classmethod
    def open(cls, path: str | Path) -> History:
        """Of a run directory, or of an `--out` (its latest run)."""
        run = Run.open(path)
        manifest = run.manifest
        try:
            steps = tuple(
                _done(step, run.path.parent.parent / "steps") for step in manifest["steps"]
            )
        except (KeyError, TypeError, ValueError) as error:
            wrote = (manifest.get("versions") or {}).get("foresift", "another version")
            raise StoreError(
                f"its manifest, written by foresift {wrote}, does not say {error} of every step;"
                " run the recipe again (done steps are not done again) and ask of the new run",
                where=str(run.path),
            ) from error
        gone = [step.label for step in steps if not StepDir(step.path).done]
        if gone:
            raise StoreError(
                f"{len(gone)} of its steps are no longer there, the first is {gone[0]!r}; run the"
                " recipe again",
                where=str(run.path),
            )
        return cls(run, run.path.parent.parent, steps)

    def of(self, *verbs: str) -> list[Done]:
        """The steps of these verbs."""
        return [step for step in self.steps if step.verb in verbs]

    @property
    def bases(self) -> list[Corpus]:
        """Every data set that was read, the one that is selected from first: all of its rows."""
        return [Corpus(step.path) for step in self.of("read")]

    @property
    def plans(self) -> list[Path]:
        """`plan.parquet` of every order step, and of the run itself."""
        orders = [step.path / "plan.parquet" for step in self.of("order")]
        return [*orders, self.run.plan]

    @property
    def trainings(self) -> list[Done]:
        """The steps that left a checkpoint (`checkpoint/`) and a ledger."""
        return self.of("train")

    def ledger(self, training: Done) -> Ledger:
        """What a training was trained on."""
        return Ledger.open(training.path)

    def score(self, column: str) -> tuple[Path, str] | None:
        """(step directory, column) of `part.column` for the main data set, the latest; or None."""
        part, _, name = column.partition(".")
        found = [s for s in self.of("score", "dedup") if s.main and s.name == part]
        return (found[-1].path, name) if found else None

    @property
    def deletions(self) -> Path:
        """Where deletion plans of this store lie."""
        return self.out / FOLDER


def _done(told: dict[str, Any], steps: Path) -> Done:
    """A step of the manifest; that of a store which was moved or copied lies beside its runs."""
    path = Path(told["path"])
    if steps.is_dir():
        path = steps / path.name
    return Done(
        path=path, verb=told["verb"], name=told["name"], label=told["label"], line=told["line"],
        repeat=int(told["repeat"]), round=int(told["round"]), fingerprint=told["fingerprint"],
        facts=dict(told["facts"]),
    )  # fmt: skip


def names(steps: Sequence[Done]) -> str:
    """Steps as a sentence lists them."""
    return ", ".join(step.label for step in steps) or "none"


def need(steps: Sequence[Done], what: str, where: Path) -> Sequence[Done]:
    """The steps; DataError where there is none."""
    if not steps:
        raise DataError(f"this run has no {what}", where=str(where))
    return steps
