"""The report of a run: `<run>/report/index.html`, one file that needs no network.

Beside it lies `report.json`, which says all that the page shows (`facts.py`).

    head        what was run, what came of it in one sentence, what its steps warn of
    evidence    held-out loss of every arm              funnel    where every row went
    scores      pool against chosen                     sources   shares of each
    rounds      how the preference changed, and what each round cost
    overview    what the data is                         compare   another run side by side
    found       what detectors found, and where         noise     how much is wrong
    risk        what would have to be forgotten, and what was decided about it
    correlations  which scores say the same
    documents   what left and why, what was chosen      rejects, clusters, cost, reproduce

A section without content is left out. Text of documents is masked (`mask.py`), freed of control
characters and escaped by the template. Cost: six passes over scores, two over findings, some over
the plan file, and the row groups of the documents shown.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from foresift.pipeline.outcome import HOLDOUT
from foresift.pipeline.run import Run
from foresift.pipeline.store import Facts, write_text
from foresift.stages.report import charts, facts
from foresift.stages.report.clusters import clusters
from foresift.stages.report.compare import compare
from foresift.stages.report.contents import Contents
from foresift.stages.report.correlations import correlations
from foresift.stages.report.documents import SHOWN, documents
from foresift.stages.report.evidence import evidence, sentence
from foresift.stages.report.examples import examples
from foresift.stages.report.found import found
from foresift.stages.report.mask import clean
from foresift.stages.report.noise import noise
from foresift.stages.report.overview import overview
from foresift.stages.report.rejects import rejects
from foresift.stages.report.risk import risk
from foresift.stages.report.rounds import rounds
from foresift.stages.report.scores import distributions
from foresift.stages.report.sources import sources

#: reasons named in the funnel; the rest is summed up in one line
REASONS = 20


@dataclass(frozen=True)
class Bar:
    """One line of the funnel or of the cost."""

    name: str
    value: float
    share: float
    kind: str
    note: str = ""

    @property
    def chart(self) -> Markup:
        return charts.bar(self.share, self.kind)


def write(run: Run, other: Run | None = None) -> Path:
    """Write the report of a run (its manifest may still be `.manifest.json`); return its path.

    `other` is a run to compare it with.
    """
    contents = Contents.open(run.path)
    shown = sections(contents, Contents.open(other.path) if other else None)
    path = run.path / "report" / "index.html"
    facts.write(path.with_name("report.json"), contents, shown)
    write_text(path, _environment().get_template("page.html").render(shown))
    return path


def render(contents: Contents, other: Contents | None = None) -> str:
    """The whole page."""
    return _environment().get_template("page.html").render(sections(contents, other))


def sections(contents: Contents, other: Contents | None = None) -> dict[str, Any]:
    """Everything that the page shows, by the names that the template has for it."""
    manifest = contents.manifest
    told = evidence(manifest)
    return {
        "manifest": manifest,
        "accounts": manifest["accounts"],
        "written": _when(contents.path),
        "evidence": told,
        "result": sentence(told) if told else "",
        "measured": {s["verb"] for s in manifest["steps"]} <= {"read", "score", "dedup"},
        "warnings": warnings(manifest),
        "overview": overview(contents),
        "funnel": funnel(manifest["accounts"]),
        "scores": distributions(contents),
        "found": found(contents),
        "noise": noise(contents),
        "risk": risk(contents),
        "correlations": correlations(contents),
        "compare": compare(contents, other) if other else None,
        "rounds": rounds(contents),
        "sources": sources(contents),
        "examples": examples(contents),
        "documents": documents(contents),
        "rejects": rejects(contents),
        "clusters": clusters(contents),
        "cost": cost(manifest),
        "training": training(manifest),
        "recipe": (contents.path / "recipe.yaml").read_text(encoding="utf-8"),
        "command": f"foresift run {contents.path / 'recipe.yaml'}",
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters |= {"number": charts.number, "percent": percent, "seconds": seconds}
    environment.filters |= {"flops": flops}
    environment.globals |= {"bar": charts.bar, "script": _script(), "shown": SHOWN}
    return environment


def _script() -> dict[str, str]:
    """The page's own script, and the hash by which the page allows this one and no other."""
    code = (Path(__file__).parent / "script.html").read_text(encoding="utf-8")
    digest = hashlib.sha256(code.encode()).digest()
    return {"code": Markup(code), "hash": base64.b64encode(digest).decode()}


def _printable(value: Any) -> Any:
    """Whatever the template prints is free of control characters; markup of ours stays."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _when(path: Path) -> str:
    """When the run was started, as its directory's name says."""
    try:
        when = datetime.datetime.strptime(path.name.partition("-")[0], "%Y%m%dT%H%M%S")
    except ValueError:
        return ""
    return when.strftime("%-d %B %Y, %H:%M UTC")


def percent(value: float) -> str:
    """A share as people read it; what is not nothing does not look like nothing."""
    if value == 0:
        return "0 %"
    if abs(value) < 0.001:
        return "< 0.1 %"
    return f"{100 * value:.1f} %"


def seconds(value: float) -> str:
    """A duration as people read it."""
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def flops(value: float | None) -> str:
    """Floating-point operations as people read them: 3.1 TFLOP."""
    if value is None:
        return "–"
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}FLOP"
    return f"{value:.3g}"


def warnings(manifest: Facts) -> list[tuple[str, str]]:
    """(step, sentence) of what the steps warn of."""
    return [(_label(s), w) for s in manifest["steps"] for w in s["facts"].get("warnings", [])]


def funnel(accounts: Facts) -> list[Bar]:
    """Where every row went: the lines after the first add up to the first."""
    total = accounts["rows_in"]
    lines = [("rows in", total, "pool", "")]
    lines.append(("rejected while reading", accounts["rejected"], "gone", ""))
    dropped = dict(accounts["dropped_by_reason"])
    lines.append(("holdout", dropped.pop(HOLDOUT, 0), "held", "reserved to measure on"))
    lines += [(reason, count, "gone", "dropped") for reason, count in _largest(dropped)]
    rounds = accounts["kept_by_round"]
    for number, count in sorted(rounds.items(), key=lambda pair: int(pair[0])):
        name = f"kept in round {number}" if number != "0" else "kept"
        lines.append((name, count, "chosen", ""))
    if not rounds:
        lines.append(("kept", 0, "chosen", ""))
    return [Bar(n, c, c / total if total else 0.0, k, note) for n, c, k, note in lines]


def _largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = sum(n for _, n in ranked[REASONS:])
    others = [(f"{len(ranked) - REASONS:,} further reasons", rest)] if rest else []
    return ranked[:REASONS] + others


def cost(manifest: Facts) -> list[Bar]:
    """Seconds of each step; what was there already cost nothing in this run."""
    steps = manifest["steps"]
    longest = max((s["seconds"] for s in steps), default=0.0) or 1.0
    return [
        Bar(_label(s), s["seconds"], s["seconds"] / longest, _kind(s), "cached" * s["cached"])
        for s in steps
    ]


def _label(step: Facts) -> str:
    return str(step["label"]).replace("length_matched_random", "length-matched random")


def _kind(step: Facts) -> str:
    return "chosen" if step["line"] == "selected" else "held"


def training(manifest: Facts) -> dict[str, int]:
    """Tokens trained, by line."""
    found: dict[str, int] = {}
    for step in manifest["steps"]:
        if step["verb"] == "train":
            found[step["line"]] = found.get(step["line"], 0) + step["facts"].get("tokens", 0)
    return {line: n for line, n in found.items() if n}
