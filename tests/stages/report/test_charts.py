"""Charts: scales, ticks, figures, and markup that holds together."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.stages.report import charts

finite = st.floats(-1e12, 1e12, allow_nan=False, allow_subnormal=False)


@given(finite, finite)
def test_ticks_are_round_even_and_inside(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    marks = charts.ticks(low, high)
    slack = 1e-6 * max(high - low, abs(low), abs(high))
    assert all(low - slack <= mark <= high + slack for mark in marks)
    if high - low > max(1e-6 * max(abs(low), abs(high)), 1e-290):
        assert 2 <= len(marks) <= 7


def test_ticks_by_hand() -> None:
    assert charts.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert charts.ticks(3.1, 3.6) == pytest.approx([3.1, 3.2, 3.3, 3.4, 3.5, 3.6])
    assert charts.ticks(5, 5) == [5]


@pytest.mark.parametrize(
    ("marks", "shown"),
    [
        ([0, 25_000, 50_000], ["0", "25k", "50k"]),
        ([7.4665, 7.467, 7.4675], ["7.4665", "7.4670", "7.4675"]),
        ([0, 0.25, 0.5], ["0.00", "0.25", "0.50"]),
        ([-2, 0, 2], ["−2", "0", "2"]),
        ([500_000, 1_000_000], ["0.5M", "1.0M"]),
        ([7], ["7"]),
    ],
)
def test_labels_tell_marks_apart(marks: list[float], shown: list[str]) -> None:
    assert charts.labels(marks) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (float("nan"), "–"), (float("inf"), "∞"), (0, "0"), (1234567, "1,234,567"),
        (-3, "−3"), (0.123456, "0.1235"), (12345.6, "12,346"), (1e300, "1e+300"), (2e-9, "2e−09"),
    ],
)  # fmt: skip
def test_numbers_for_people(value: float | None, shown: str) -> None:
    assert charts.number(value) == shown


def test_a_bar_is_as_long_as_its_share() -> None:
    widths = [re.findall(r'width="([\d.]+)"', charts.bar(s))[-1] for s in (0, 0.25, 1, 7)]
    assert [float(w) for w in widths] == [0, 25, 100, 100]
    assert float(re.findall(r'width="([\d.]+)"', charts.bar(1e-9))[-1]) > 0


def test_a_histogram_has_heights_in_proportion() -> None:
    pool, chosen = np.array([0.5, 0.25, 0.25]), np.array([0.0, 0.0, 1.0])
    svg = ET.fromstring(charts.histogram(np.array([0.0, 1.0, 2.0, 3.0]), pool, chosen, label="<&"))
    paths = [p.attrib["d"] for p in svg.iter("path")]
    heights = [
        [128 - float(y) for _, y in re.findall(r"L([\d.]+) ([\d.]+)", path)][:-1] for path in paths
    ]
    full = heights[1][-1]
    assert full > 100
    assert heights[0][0] == pytest.approx(full / 2, abs=0.2)
    assert heights[0][2] == pytest.approx(full / 4, abs=0.2)
    assert heights[1][0] == 0


def test_a_log_histogram_marks_powers() -> None:
    edges = np.geomspace(1, 1e6, 31)
    svg = charts.histogram(edges, np.full(30, 1 / 30), np.zeros(30), log=True)
    texts = [t.text for t in ET.fromstring(svg).iter("text")]
    assert {"1", "100", "1k", "1M"} <= set(texts)
    assert "outline" not in svg


@given(st.lists(st.tuples(finite, st.floats(0, 10)), min_size=1, max_size=5))
def test_lines_of_any_values_are_well_formed(points: list[tuple[float, float]]) -> None:
    y, error = [p[0] for p in points], [p[1] for p in points]
    line = charts.Line("a<b", "chosen", list(range(len(y))), y, error)
    svg = charts.lines([line], x_label="x", y_label="y", label="l")
    ET.fromstring(svg)
    assert "nan" not in svg
    assert "inf" not in svg
