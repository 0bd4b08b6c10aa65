"""`foresift report`: a page about any data, made by an ordinary run of a recipe built in memory.

    data     as `any_data.look` decides; no holdout, and bad rows are told instead of refused
    sample   with `sample: n`, n documents drawn by id; all others count as over budget
    scores   those of SCORES that exist and fit the content; with a model those of MODEL
    dedup    minhash, last, so that everything is measured and copies are counted

Steps are kept by content under `--out`, so a second call reads and measures nothing. Of a run, or
an `--out`, the page is written again. With `compare`, the other side goes through the same steps.
Beside the page lie `README.md` and `croissant.json` of the data.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from foresift.pipeline.any_data import Found, Wish, look
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Progress, silent
from foresift.pipeline.parts import names
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import Run
from foresift.pipeline.store import read_json

#: score -> its fields, given what was found; None: not of this data. Cheap ones first.
SCORES: dict[str, Callable[[Found], dict[str, Any] | None]] = {
    "length": lambda found: {},
    "surface": lambda found: {},
    # rules of web pages, which nearly every turn of a chat and every answer would break
    "heuristics": lambda found: {} if found.content == "text" else None,
    "language": lambda found: {"characters": 300},
    "pii": lambda found: {},
    "secrets": lambda found: {},
    "licence": lambda found: _declared(found),
    "junk": lambda found: {},
    "arithmetic": lambda found: {} if found.content == "pairs" else None,
}
#: score -> (library that it cannot do without, what installs it)
LIBRARIES = {"language": ("py3langid", "pip install 'foresift[language]'")}
MODEL = ("loss", "uncertainty", "embedding")
#: share of bad rows from which there is nothing to report
REJECTS = 0.999
#: reasons of bad rows that are said
REASONS = 5
#: shards that a corpus is cut into at least, and their sizes in megabytes
SHARDS, LEAST_MB, MOST_MB = 16, 8, 128
#: what writes, and the file beside the run's `report` folder that it writes
BESIDE = ("foresift.stages.report.card", "foresift.stages.report.croissant")


@dataclass(frozen=True)
class Asked:
    """The command's options."""

    paths: Sequence[str]
    compare: str = ""
    model: str = ""
    sample: int = 0
    """Documents that are measured; 0: all."""
    license: str = ""
    """What card and metadata say of the licence; empty: unknown."""
    wish: Wish = field(default_factory=Wish)
    out: Path = Path("out")
    engine: str = "auto"
    workers: int = 0


@dataclass(frozen=True)
class Reported:
    """What was made."""

    run: Run
    page: Path
    beside: list[Path]
    said: list[str]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        manifest = self.run.manifest
        return {
            "run": str(self.run.path),
            "report": str(self.page),
            "beside": [str(path) for path in self.beside],
            "rows": manifest["accounts"]["rows"],
            "rejected": manifest["accounts"]["rejected"],
            "kept": manifest["accounts"]["kept"],
            "said": self.said,
            "steps": {s["label"]: s["seconds"] for s in manifest["steps"]},
            "seconds": round(self.seconds, 3),
        }


def report(
    asked: Asked, progress: Progress = silent, say: Callable[[str], None] = lambda _: None
) -> Reported:
    """Measure, and write the page and what lies beside it; `say` hears what was decided."""
    said: list[str] = []
    began = time.perf_counter()

    def tell(sentence: str) -> None:
        said.append(sentence)
        say(sentence)

    mine = _finished(asked.paths)
    other: Run | None = None
    found = None if mine else _look(asked.paths, asked.wish, tell)
    if asked.compare:
        other = _finished([asked.compare]) or _other(asked, found, tell, progress)
    if mine is None:
        assert found is not None
        mine = _run(recipe(found, asked), asked, progress)
    page = _page(mine, other, found is not None)
    beside = [page.with_name("report.json")]
    beside += [_write(name, mine, asked.license) for name in BESIDE]
    return Reported(mine, page, beside, said, time.perf_counter() - began)


def _finished(paths: Sequence[str]) -> Run | None:
    """The run that a path means: its directory, or an `--out` (its latest)."""
    path = Path(paths[0])
    if len(paths) > 1 or not path.is_dir():
        return None
    made = (path / "manifest.json").exists() or any(path.glob("runs/*/manifest.json"))
    return Run.open(path) if made else None


def _look(paths: Sequence[str], wish: Wish, tell: Callable[[str], None]) -> Found:
    found = look(paths, wish)
    for sentence in found.said:
        tell(f"{', '.join(paths)}: {sentence}")
    for name, how in _missing().items():
        tell(f"{name} is left out: {how}")
    return found


def _other(
    asked: Asked, mine: Found | None, tell: Callable[[str], None], progress: Progress
) -> Run:
    """The second set through the same steps."""
    found = _look([asked.compare], asked.wish, tell)
    fields = recipe(found, asked)
    if mine is not None:
        fields["steps"] = recipe(mine, asked)["steps"]
        wanted = [c for s in fields["steps"] for c in _columns_of(s)]
        if missing := [c for c in wanted if c not in found.fields.get("columns", [])]:
            fields["steps"] = recipe(found, asked)["steps"]
            tell(f"{asked.compare} has no column {missing[0]!r}: its own steps are taken")
    return _run(fields, asked, progress)


def _columns_of(step: dict[str, Any]) -> list[str]:
    """Columns of the data that a step of ours reads."""
    return [v["declared"] for v in step.values() if isinstance(v, dict) and "declared" in v]


def _run(fields: dict[str, Any], asked: Asked, progress: Progress) -> Run:
    """An ordinary run; the page is written afterwards, where it may compare."""
    read = Recipe.parse(fields, "foresift report")
    return read.run(asked.out, asked.engine, asked.workers, progress)


def _page(mine: Run, other: Run | None, fresh: bool) -> Path:
    """The page: a run that was just made has written its own, unless two are compared."""
    if fresh and other is None:
        return Path(mine.manifest["report"])
    return _write("foresift.stages.report.page", mine, *([other] if other else []))


def _write(module: str, *given: Any) -> Path:
    """What writes is a stage, so the core reaches it by name."""
    path: Path = importlib.import_module(module).write(*given)
    return path


def recipe(found: Found, asked: Asked) -> dict[str, Any]:
    """The recipe that measures what was found."""
    if asked.sample < 0:
        raise DataError(f"counts documents, got {asked.sample}", where="--sample")
    steps: list[dict[str, Any]] = []
    if asked.sample:
        steps.append({"select": "random", "as": "sample", "budget": f"{asked.sample} rows"})
    scores = scores_of(found)
    plain: dict[str, Any] = {"score": list(scores)}
    steps.append(plain | {name: fields for name, fields in scores.items() if fields})
    if asked.model:
        there = names("score")
        steps.append({"score": [n for n in MODEL if n in there], "model": "init"})
    steps.append({"dedup": "minhash"})
    data = {**found.fields, "holdout": 0.0, "max_rejects": REJECTS, "shard_mb": _shard(found)}
    made: dict[str, Any] = {"name": _name(found.fields["paths"]), "data": data, "steps": steps}
    made["report"] = not asked.compare
    return made | ({"model": {"init": asked.model}} if asked.model else {})


def scores_of(found: Found) -> dict[str, dict[str, Any]]:
    """The scores that exist and fit, with their fields."""
    there = set(names("score")) - set(_missing())
    each = {name: fields(found) for name, fields in SCORES.items() if name in there}
    return {name: fields for name, fields in each.items() if fields is not None}


def _missing() -> dict[str, str]:
    """Scores whose library is not installed, and what installs it."""
    return {n: how for n, (lib, how) in LIBRARIES.items() if importlib.util.find_spec(lib) is None}


def _declared(found: Found) -> dict[str, Any]:
    """The column in which the data says its licences, where it has one."""
    columns = found.fields.get("columns", [])
    return next(({"declared": c} for c in columns if c.startswith("licen")), {})


def _shard(found: Found) -> int:
    """Megabytes of a shard: small enough for all cores to have some, large enough to be few."""
    megabytes = found.bytes >> 20
    return max(LEAST_MB, min(MOST_MB, megabytes // SHARDS))


def _name(paths: Sequence[str]) -> str:
    """A word for the run: what the first path is called."""
    last = os.path.basename(os.path.normpath(paths[0]))
    word = re.sub(r"[^\w.-]+", "-", last, flags=re.ASCII).strip("-.")
    return f"report-{word or 'data'}"[:60]


def show(found: Reported, console: Console) -> None:
    """What was counted, and where to look."""
    accounts = found.run.manifest["accounts"]
    told = read_json(found.page.with_name("report.json"))
    about = "about " * told["overview"]["estimated"]
    rows, bad = accounts["rows"], accounts["rejected"]
    rejected = f", {bad:,} bad row{'s' * (bad != 1)}" * bool(bad)
    console.print(
        f"{rows:,} document{'s' * (rows != 1)}, {about}{accounts['n_tokens']:,} tokens{rejected}",
        highlight=False,
    )
    for reason, count in told["rejects"]["reasons"][:REASONS]:
        console.print(f"  {count:,} bad: {reason}", highlight=False, markup=False)
    for reason, count in accounts["dropped_by_reason"].items():
        console.print(f"  {count:,} {reason}", highlight=False, markup=False)
    for path in [found.page, *found.beside]:
        console.print(f"{path.name:<15} {path}", soft_wrap=True, highlight=False, markup=False)
