"""Charts as inline SVG: bars, two histograms over each other, lines with error bars.

Colours come from the page's style sheet by class, so that dark mode and print can change them;
series differ in dash and marker too, not in colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

Floats = npt.NDArray[np.float64]
Scale = Callable[[float], float]


def number(value: float | int | None) -> str:
    """A figure for people: at most four significant digits, thousands separated."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−") if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:.4g}".replace("-", "−")


def compact(value: float) -> str:
    """A figure for an axis: 1.2M, 400k, 0.05."""
    size, letter = _size(abs(value))
    return f"{value / size:.3g}{letter}".replace("-", "−")


def labels(marks: Sequence[float]) -> list[str]:
    """The marks of an even axis with as many decimals as tell them apart."""
    if len(marks) < 2:
        return [compact(mark) for mark in marks]
    size, letter = _size(max(abs(mark) for mark in marks))
    step = (marks[1] - marks[0]) / size
    decimals = max(0, -math.floor(math.log10(step)))
    decimals += abs(step - round(step, decimals)) > step * 1e-6
    if decimals > 8:
        return [compact(mark) for mark in marks]
    shown = (f"{mark / size:.{decimals}f}{letter if mark else ''}" for mark in marks)
    return [each.replace("-", "−") for each in shown]


def _size(value: float) -> tuple[float, str]:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= value < size * 1000:
            return size, letter
    return 1.0, ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    raw = (high - low) / count
    if not raw > 1e-300:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def bar(share: float, kind: str = "chosen", of: float = 1.0) -> Markup:
    """A horizontal bar that fills `share / of` of the width it is given."""
    width = min(100.0, max(0.0, 100 * share / of)) if of > 0 else 0.0
    width = max(width, 0.4) if share > 0 else 0.0
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10"/>'
        '<rect class="{}" width="{:.2f}" height="10"/></svg>'
    ).format(kind, width)


def histogram(
    edges: Floats, pool: Floats, chosen: Floats, *, log: bool = False, label: str = ""
) -> Markup:
    """Share of the pool and of the chosen in each bin: a filled area and an outline over it."""
    width, height, left, right, top, base = 360, 150, 34, 8, 8, 128
    peak = float(max(pool.max(initial=0), chosen.max(initial=0))) or 1.0
    x = _scale(float(edges[0]), float(edges[-1]), left, width - right, log)
    y = _scale(0.0, peak * 1.04, base, top)
    parts = [_grid_y(ticks(0, peak, 3), y, left, width - right, "%")]
    parts.append(_steps(edges, pool, x, y, "pool area"))
    if chosen.any():
        parts.append(_steps(edges, chosen, x, y, "chosen outline"))
    marks = _log_ticks(edges) if log else ticks(float(edges[0]), float(edges[-1]), 4)
    shown = [compact(mark) for mark in marks] if log else labels(marks)
    parts.append(_axis_x(marks, shown, x, base, left, width - right))
    return _svg("".join(parts), width, height, label, "histogram")


@dataclass(frozen=True)
class Line:
    """One series of a line chart."""

    name: str
    kind: str
    """Class in the style sheet: `chosen` or `base1` to `base4`."""
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float | None]
    """Half the length of each error bar."""


def lines(series: Sequence[Line], *, x_label: str, y_label: str, label: str = "") -> Markup:
    """Lines with markers and error bars; the name of each stands in a legend above."""
    width, height, left, right, top, base = 680, 300, 62, 18, 40, 248
    lows = [y - (e or 0) for s in series for y, e in zip(s.y, s.error, strict=True)]
    highs = [y + (e or 0) for s in series for y, e in zip(s.y, s.error, strict=True)]
    low, high = min(lows), max(highs)
    pad = (high - low) * 0.08 or max(abs(high) * 0.02, 1e-6)
    far = max(max(s.x) for s in series) or 1.0
    x = _scale(0.0, far * 1.03, left, width - right)
    y = _scale(low - pad, high + pad, base, top)
    wanted = ticks(low - pad, high + pad, 5)
    along = ticks(0.0, far, 5)
    parts = [_grid_y(wanted, y, left, width - right)]
    parts.append(_axis_x(along, labels(along), x, base, left, width - right))
    parts += [_series(s, x, y) for s in series]
    parts.append(_legend(series, left))
    parts.append(svg_text((left + width - right) / 2, height - 12, x_label, "axis middle"))
    middle = (top + base) / 2
    parts.append(
        f'<text class="axis middle" transform="translate(14 {middle:.1f}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    return _svg("".join(parts), width, height, label, "lines")


def _scale(low: float, high: float, start: float, end: float, log: bool = False) -> Scale:
    """From values to places; a log scale where asked for."""
    if log:
        low, high = math.log(low), math.log(high)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        value = math.log(value) if log else value
        return start + (end - start) * (value - low) / span

    return place


def _steps(edges: Floats, shares: Floats, x: Scale, y: Scale, kind: str) -> str:
    points = [f"M{x(float(edges[0])):.1f} {y(0):.1f}"]
    for left, right, share in zip(edges[:-1], edges[1:], shares, strict=True):
        points.append(f"L{x(float(left)):.1f} {y(float(share)):.1f}")
        points.append(f"L{x(float(right)):.1f} {y(float(share)):.1f}")
    points.append(f"L{x(float(edges[-1])):.1f} {y(0):.1f}Z")
    return f'<path class="{kind}" d="{"".join(points)}"/>'


def _log_ticks(edges: Floats) -> list[float]:
    low, high = math.log10(edges[0]), math.log10(edges[-1])
    steps = (1, 2, 5) if high - low < 2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    stride = max(1, len(powers) // 6)
    marks = [m * 10.0**p for p in list(powers)[::stride] for m in steps]
    return [m for m in marks if edges[0] <= m <= edges[-1]]


def _grid_y(marks: Sequence[float], y: Scale, left: float, right: float, unit: str = "") -> str:
    shown = labels([100 * v for v in marks]) if unit == "%" else labels(marks)
    return "".join(
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        + svg_text(left - 5, y(v) + 3.5, text + unit, "tick end")
        for v, text in zip(marks, shown, strict=True)
    )


def _axis_x(
    marks: Sequence[float], shown: Sequence[str], x: Scale, base: float, left: float, right: float
) -> str:
    line = f'<line class="frame" x1="{left}" x2="{right}" y1="{base}" y2="{base}"/>'
    return line + "".join(
        f'<line class="frame" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="{base}" y2="{base + 4}"/>'
        + svg_text(x(v), base + 16, text, "tick middle")
        for v, text in zip(marks, shown, strict=True)
    )


def _series(line: Line, x: Scale, y: Scale) -> str:
    points = [(x(a), y(b)) for a, b in zip(line.x, line.y, strict=True)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    parts = [f'<polyline class="line {line.kind}" points="{path}"/>']
    for (a, b), value, error in zip(points, line.y, line.error, strict=True):
        if error:
            up, down = y(value + error), y(value - error)
            parts.append(
                f'<path class="whisker {line.kind}" d="M{a:.1f} {up:.1f}V{down:.1f}'
                f'M{a - 4:.1f} {up:.1f}h8M{a - 4:.1f} {down:.1f}h8"/>'
            )
        parts.append(_marker(line.kind, a, b))
    return "".join(parts)


def _marker(kind: str, a: float, b: float) -> str:
    if kind == "chosen":
        return f'<circle class="mark {kind}" cx="{a:.1f}" cy="{b:.1f}" r="4.5"/>'
    if kind in ("base1", "base3"):
        return f'<rect class="mark {kind}" x="{a - 4:.1f}" y="{b - 4:.1f}" width="8" height="8"/>'
    return f'<path class="mark {kind}" d="M{a:.1f} {b - 5:.1f}l5 9h-10z"/>'


def _legend(series: Sequence[Line], left: float) -> str:
    parts, at = [], left + 4.0
    for line in series:
        parts.append(f'<path class="line {line.kind}" d="M{at:.1f} 16h24"/>')
        parts.append(_marker(line.kind, at + 12, 16))
        parts.append(svg_text(at + 31, 20, line.name, "legend"))
        at += 52 + 7.2 * len(line.name)
    return "".join(parts)


def svg_text(x: float, y: float, text: str, kind: str) -> str:
    """Escaped text of a class of the style sheet."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(body: str, width: int, height: int, label: str, kind: str) -> Markup:
    title = escape(label)
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{body}</svg>"
    )
