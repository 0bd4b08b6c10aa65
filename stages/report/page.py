"""The report of a run: `<run>/report/index.html`, one file that needs no network.

    head        what was run, what came of it in one sentence, what its steps warn of
    evidence    held-out loss of every arm              funnel    where every row went
    scores      pool against chosen                     sources   shares of each
    rounds      how the preference changed, and what each round cost
    documents   what left and why, what was chosen      rejects, clusters, cost, reproduce

A section without content is left out. Text of documents is masked (`mask.py`), freed of control
characters and escaped by the template. Cost: four passes over scores, three over the plan file, and
the row groups of about a hundred documents.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from foresift.pipeline.outcome import HOLDOUT
from foresift.pipeline.run import Run
from foresift.pipeline.store import Facts, write_text
from foresift.stages.report import charts
from foresift.stages.report.clusters import clusters
from foresift.stages.report.contents import Contents
from foresift.stages.report.evidence import evidence, sentence
from foresift.stages.report.examples import examples
from foresift.stages.report.mask import clean
from foresift.stages.report.rejects import rejects
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


def write(run: Run) -> Path:
    """Write the report of a run (its manifest may still be `.manifest.json`); return its path."""
    path = run.path / "report" / "index.html"
    write_text(path, render(Contents.open(run.path)))
    return path


def render(contents: Contents) -> str:
    """The whole page."""
    manifest = contents.manifest
    found = evidence(manifest)
    template = _environment().get_template("page.html")
    return template.render(
        manifest=manifest,
        accounts=manifest["accounts"],
        written=_when(contents.path),
        evidence=found,
        result=sentence(found) if found else "",
        warnings=warnings(manifest),
        funnel=funnel(manifest["accounts"]),
        scores=distributions(contents),
        rounds=rounds(contents),
        sources=sources(contents),
        examples=examples(contents),
        rejects=rejects(contents),
        clusters=clusters(contents),
        cost=cost(manifest),
        training=training(manifest),
        recipe=(contents.path / "recipe.yaml").read_text(encoding="utf-8"),
        command=f"foresift run {contents.path / 'recipe.yaml'}",
    )


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
    environment.globals["bar"] = charts.bar
    return environment


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
