"""The page of an audit: the verdict, a picture of both models, every finding, telling texts.

One file that needs no network and runs no script. Texts are masked, freed of control characters,
cut short and escaped (`stages/report/mask.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from foresift.pipeline.audit.verdict import ORDER
from foresift.pipeline.store import Facts
from foresift.stages import report
from foresift.stages.report.charts import number, svg_text
from foresift.stages.report.mask import clean, excerpt

Told = Sequence[tuple[str, str, float, float | None]]
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
WORDS = {
    "pass": "Indistinguishable from the retrained model in everything measured.",
    "fail": "Not like the retrained model: a difference is there, and may exceed its margin.",
    "inconclusive": "Neither shown to be like the retrained model nor unlike it: more items would"
    " tell.",
}
_STYLE = """<style>
svg.forest { width: 100%; min-width: 34rem; height: auto; margin: .6rem 0; }
table.findings { font-size: .85rem; } table.findings td { overflow-wrap: normal; }
td.fail { color: var(--warn); font-weight: 600; } td.pass { font-weight: 600; }
</style>"""


def failures_first(findings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Findings by outcome, those of one outcome in their order."""
    return sorted(findings, key=lambda f: ORDER.index(f["outcome"]))


def counted(findings: Sequence[Mapping[str, Any]]) -> str:
    """How many findings had which outcome, failures first."""
    told = [f["outcome"] for f in findings]
    return ", ".join(f"{told.count(outcome)} {outcome}" for outcome in ORDER if outcome in told)


def render(facts: Facts, told: Told = ()) -> str:
    """The whole page."""
    style = (Path(report.__path__[0]) / "style.html").read_text(encoding="utf-8")
    result = WORDS.get(
        facts["verdict"], "No retrained model to compare with: measured, not proved."
    )
    findings = failures_first(facts["findings"])
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>Audit: {_shown(facts['verdict'])}</title>{style}{_STYLE}</head><body><main>",
        f'<header><p class="eyebrow">foresift audit · {_shown(facts["written"])}</p>',
        f"<h1>Verdict: {_shown(facts['verdict'])}</h1>",
        f'<p class="result">{_shown(result)} Findings: {_shown(counted(findings))}.</p></header>',
        _about(facts),
        _warnings(facts["skipped"], facts["unseen"]),
        "<h2>Both models</h2>",
        '<p class="note">Each line has its own scale, from the least to the largest end of its two '
        "intervals. Circle: audited; square: retrained. Bars are 95 % intervals over items.</p>",
        f'<div class="wide">{forest(findings)}</div>',
        "<h2>Findings</h2>",
        '<p class="note">Pass: the interval of the difference lies within the margin to both '
        "sides. Fail: it excludes 0 and reaches beyond the margin. Inconclusive: neither, or fewer "
        "than 20 items. Of many intervals at 95 % one in twenty misses the truth.</p>",
        _table(findings),
        _texts(told),
        _settings(facts),
        "</main></body></html>\n",
    ]
    return "".join(str(part) for part in parts)


def forest(findings: Sequence[Mapping[str, Any]]) -> Markup:
    """Per finding the two models' intervals above each other, on a scale of its own."""
    row, left, right, width = 30, 370, 20, 800
    height = row * len(findings) + 10
    body = [_line(f, row * i + 5, left, width - right) for i, f in enumerate(findings)]
    label = "intervals of the audited and of the retrained model, a line a finding"
    return Markup(
        f'<svg class="forest" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f"<title>{label}</title>{''.join(body)}</svg>"
    )


def _line(finding: Mapping[str, Any], top: float, left: float, right: float) -> str:
    both = [finding["audited"], finding["retrained"]]
    ends = [each[end] for each in both if each for end in ("low", "high")]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    inner = (right - left) - 110

    def place(value: float) -> float:
        return float(left + 55 + inner * (value - low) / span)

    name = f"{finding['attack']} · {finding['set']} · {finding['measure']}"
    parts = [
        f'<line class="grid" x1="0" x2="{right}" y1="{top + 28}" y2="{top + 28}"/>',
        svg_text(0, top + 17, name[:60], "legend"),
        svg_text(left + 48, top + 17, number(low), "tick end"),
        svg_text(right - 48, top + 17, number(high), "tick"),
    ]
    for each, kind, y in zip(both, ("chosen", "base1"), (top + 9, top + 19), strict=True):
        if each:
            a, b, at = (place(each[k]) for k in ("low", "high", "value"))
            parts.append(f'<path class="whisker {kind}" d="M{a:.1f} {y:.1f}H{b:.1f}"/>')
            parts.append(
                f'<circle class="mark {kind}" cx="{at:.1f}" cy="{y:.1f}" r="3.5"/>'
                if kind == "chosen"
                else f'<rect class="mark {kind}" x="{at - 3:.1f}" y="{y - 3:.1f}" width="6"'
                ' height="6"/>'
            )
    return "".join(parts)


def interval(value: Mapping[str, float] | None) -> str:
    """A figure with its ends, for people."""
    if not value:
        return "–"
    return f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]"


def _table(findings: Sequence[Mapping[str, Any]]) -> str:
    right = ("n", "audited", "retrained", "difference", "margin")
    heads = "".join(
        f'<th class="n">{name}</th>' if name in right else f"<th>{name}</th>"
        for name in ("attack", "items", "measure", "outcome", *right)
    )
    rows = []
    for f in findings:
        kind = f["outcome"] if f["outcome"] in ("pass", "fail") else ""
        figures = [interval(f[name]) for name in ("audited", "retrained", "difference")]
        cells = "".join(f"<td>{_shown(f[name])}</td>" for name in ("attack", "set", "measure"))
        cells += f'<td class="{kind}">{_shown(f["outcome"])}</td><td class="n">{f["n"]}</td>'
        cells += "".join(f'<td class="n">{each}</td>' for each in figures)
        cells += f'<td class="n">±{number(f["margin"])}</td>'
        rows.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="wide"><table class="findings"><tr>{heads}</tr>{"".join(rows)}</table></div>'
    )


def _about(facts: Facts) -> str:
    retrained = facts["retrained"]["init"] if facts["retrained"] else "none"
    lines = [("audited", facts["model"]["init"]), ("retrained", retrained), ("plan", facts["plan"])]
    lines += [
        (name, _figures(value)) for name, value in facts["summary"].items() if value is not None
    ]
    rows = "".join(f"<tr><td>{_shown(a)}</td><td>{_shown(b)}</td></tr>" for a, b in lines)
    return f"<table>{rows}</table>"


def _figures(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number(each)}" for name, each in value.items())
    return number(value)


def _warnings(skipped: Mapping[str, str], unseen: int) -> str:
    lines = "".join(
        f"<li>{_shown(a)} was not tried: {_shown(why)}</li>" for a, why in skipped.items()
    )
    if unseen:
        lines += f"<li>left out: {unseen} forgotten rows that no training read</li>"
    if not lines:
        return ""
    return f'<ul class="warnings">{lines}</ul>'


def _texts(told: Told) -> str:
    if not told:
        return ""
    items = []
    for key, text, ours, theirs in told:
        losses = f"loss {number(ours)}"
        losses += f", retrained {number(theirs)}" if theirs is not None else ""
        items.append(
            f'<li><p class="meta"><code>{_shown(key)}</code> <span>{losses}</span></p>'
            f'<p class="text" dir="auto">{escape(excerpt(text))}</p></li>'
        )
    head = "<h2>Texts that the model knows best</h2>"
    by = "against the retrained model" if told[0][3] is not None else "by its loss alone"
    note = f'<p class="note">The best predicted first, {by}; personal data masked.</p>'
    return f'{head}{note}<ul class="docs">{"".join(items)}</ul>'


def _settings(facts: Facts) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    settings = ", ".join(
        f"{name} {value}" for group in ("limits", "effort") for name, value in
        facts["settings"][group].items()
    )  # fmt: skip
    return (
        f'<h2>Settings</h2><p class="note">{_shown(settings)}, margin times'
        f' {number(facts["settings"]["margin"])}</p><p class="note">{_shown(versions)}</p>'
    )


def _shown(value: Any) -> Markup:
    return escape(clean(str(value)))
