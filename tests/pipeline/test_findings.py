"""Findings: reasons and spans as a column, and how often each reason comes."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.findings import FINDINGS, Finding, Findings, findings, rows_by_reason


def example() -> pa.ListArray:
    found = Findings(4)
    found.add(2, "email", 10, 20, 0.9)
    found.add(0, "phone", 5, 8)
    found.add(2, "short", value=3)
    found.add(2, "email", 1, 4)
    return found.array()


def test_findings_of_a_row_stand_by_place_whole_ones_first():
    column = example()
    assert column.type == FINDINGS
    told = list(findings(column))
    assert [len(row) for row in told] == [1, 0, 3, 0]
    assert [f.reason for f in told[2]] == ["short", "email", "email"]
    assert told[2][0].whole
    assert told[2][0].value == 3
    assert (told[2][1].start, told[2][2].stop) == (1, 20)
    assert math.isnan(told[0][0].value)


def test_the_order_in_which_they_are_found_does_not_matter():
    told = Findings(4)
    for row, reason, *rest in reversed(
        [(2, "email", 10, 20, 0.9), (0, "phone", 5, 8), (2, "short", -1, -1, 3),
         (2, "email", 1, 4)]
    ):  # fmt: skip
        told.add(row, reason, *rest)
    assert repr(told.array().to_pylist()) == repr(example().to_pylist())


def test_a_row_counts_once_for_a_reason():
    assert rows_by_reason(example()) == {"email": 1, "phone": 1, "short": 1}
    assert rows_by_reason(pa.chunked_array([example(), example()])) == {
        "email": 2, "phone": 2, "short": 2,
    }  # fmt: skip


def test_a_slice_and_nulls_are_read_as_they_stand():
    column = pa.concat_arrays([pa.nulls(1, FINDINGS), example()])
    assert rows_by_reason(column.slice(1, 2)) == {"phone": 1}
    assert [len(row) for row in findings(column)] == [0, 1, 0, 3, 0]


def test_nothing_found_is_an_empty_list():
    assert Findings(2).array().to_pylist() == [[], []]
    assert Findings(0).array().type == FINDINGS
    assert rows_by_reason(Findings(3).array()) == {}


def test_masks_give_whole_findings():
    found = Findings(3)
    found.whole("long", np.array([False, True, True]), [1, 2, 3])
    assert list(findings(found.array()))[1] == [Finding("long", -1, -1, 2.0)]


def test_rows_and_spans_are_checked():
    with pytest.raises(AssertionError, match="row 3 of 3"):
        Findings(3).add(3, "x")
    with pytest.raises(AssertionError, match="no span"):
        Findings(3).add(0, "x", 5, 4)
