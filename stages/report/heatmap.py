"""The lower half of a matrix of correlations as inline SVG.

A cell is the more opaque the stronger the correlation, of one colour above zero and of another
below, from the style sheet. Rows carry numbers and names, columns the numbers, so that forty of
them can be read; a cell says its two columns and its value when pointed at, and shows the value
where there is room for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from foresift.stages.report.charts import svg_text

#: characters of a name beside the chart, and of one of its words when that is too long
NAME, WORD = 30, 5
#: up to so many columns cells show their values
ROOMY = 14


def short(name: str) -> str:
    """A name that fits beside a chart: its words cut where it is too long."""
    if len(name) <= NAME:
        return name
    step, dot, column = name.partition(".")
    cut = "_".join(word[:WORD] for word in step.split("_")) + dot + column
    if len(cut) > NAME:
        cut = cut[: NAME - 1] + "…"
    return cut


def lower_half(
    names: Sequence[str], values: Sequence[Sequence[float | None]], label: str
) -> Markup:
    """[k, k] correlations of named columns; the first row and the last column stand empty."""
    k, left, top = len(names), 236.0, 22.0
    size = max(13.0, min(38.0, (760.0 - left) / k))
    parts = []
    for row in range(k):
        y = top + row * size
        parts.append(
            svg_text(left - 8, y + size / 2 + 4, f"{short(names[row])}  {row + 1}", "tick end")
        )
        for column in range(row):
            parts.append(_cell(names, values[row][column], row, column, left, y, size, k <= ROOMY))
        parts.append(
            svg_text(left + (row + 0.5) * size, y + size / 2 + 4, str(row + 1), "tick middle")
        )
    width, height = left + k * size + 8, top + k * size + 6
    title = escape(label)
    return Markup(
        f'<svg class="heat" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{title}"><title>{title}</title>{"".join(parts)}</svg>'
    )


def _cell(
    names: Sequence[str], value: float | None, row: int, column: int, left: float, y: float,
    size: float, roomy: bool,
) -> str:  # fmt: skip
    x = left + column * size
    told = "none" if value is None else f"{value:+.2f}".replace("-", "−")
    title = escape(f"{names[row]} × {names[column]}: {told}")
    kind = "void" if value is None else "minus" if value < 0 else "plus"
    opacity = 1.0 if value is None else max(0.02, min(1.0, abs(value)))
    rect = (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{size - 1:.1f}" '
        f'height="{size - 1:.1f}" fill-opacity="{opacity:.2f}"/>'
    )
    text = ""
    if roomy and value is not None:
        ink = "heat-strong" if abs(value) > 0.6 else "heat-ink"
        shown = f"{value:.2f}".replace("-", "−").replace("0.", ".")
        text = svg_text(x + size / 2, y + size / 2 + 3.5, shown, f"{ink} middle")
    return f"<g><title>{title}</title>{rect}{text}</g>"
