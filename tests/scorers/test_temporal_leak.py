"""Dates as people write them, readings that decide, planted events after a cut-off."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.findings import findings
from foresift.scorers.temporal_leak import TemporalLeak, dates

CUTOFF = "2021-06-30"


def run(texts: list[str], created: list[Any] | None = None, **fields: Any) -> dict[str, Any]:
    table = pa.table({"text": texts, **({} if created is None else {"made": created})})
    more = {} if created is None else {"created": "made"}
    return dict(TemporalLeak(cutoff=CUTOFF, **more, **fields).score(table))


@pytest.mark.parametrize(
    ("text", "unit", "day"),
    [
        ("on 2024-05-03 we", "date", "2024-05-03"), ("a/2024/5/3/b", "date", "2024-05-03"),
        ("3.5.2024", "date", "2024-05-03"), ("13/05/2024", "date", "2024-05-13"),
        ("05/13/2024", "date", "2024-05-13"), ("05/03/2024", "date", "2024-03-05"),
        ("May 3, 2024", "date", "2024-05-03"), ("MAY 3rd 2024", "date", "2024-05-03"),
        ("3 May 2024", "date", "2024-05-03"), ("the 3rd of May, 2024", "date", "2024-05-03"),
        ("Sept. 2024", "month", "2024-09-01"), ("in 2024", "year", "2024-01-01"),
        ("(2024)", "year", "2024-01-01"), ("© 2024 Us", "year", "2024-01-01"),
    ],
)  # fmt: skip
def test_dates_are_read_as_people_write_them(text: str, unit: str, day: str) -> None:
    ((kind, start, stop, found),) = dates(text)
    assert (kind, found.isoformat()) == (unit, day)
    assert "2024" in text[start:stop]


@pytest.mark.parametrize(
    "text",
    ["2048 bytes", "in 2024.5 ways", "in 2024-25", "31/31/2024", "30.02.2024", "1.2.2024.3",
     "120245", "in 20245", "for 2024% more", "version 3.2024", "$2024", "may be 2024 of them",
     "in 3024"],
)  # fmt: skip
def test_numbers_that_are_no_dates_are_not_read(text: str) -> None:
    assert not list(dates(text))


@given(st.dates(dt.date(1900, 1, 1), dt.date(2099, 12, 31)))
def test_every_day_is_read_in_every_form(day: dt.date) -> None:
    forms = ["%Y-%m-%d", "%B %d, %Y", "%d %b %Y", "%d.%m.%Y", "%Y/%m/%d"]
    for form in forms:
        text = f"It was {day.strftime(form)}, they say."
        ((_, start, stop, found),) = dates(text)
        assert found == day
        assert text[start:stop] == day.strftime(form)


def test_a_leak_is_one_in_every_reading() -> None:
    texts = ["in 2021", "in 2022", "June 2021", "July 2021", "2021-06-30", "2021-07-01",
             "01/07/2021", "12/07/2021", "no date"]  # fmt: skip
    found = run(texts)
    assert found["leak"].tolist() == [
        False, True, False, True, False, True, False, True, False,
    ]  # fmt: skip
    assert found["days_after"][5] == 1
    assert np.isnan(found["days_after"][8])
    assert found["utility"].tolist()[4:6] == [0, -1]
    assert found["utility"][8] == 0
    assert found["latest"][6] == "2021-01-07"
    assert found["latest"][8] is None


def test_every_planted_event_after_the_cut_off_is_found_and_none_before() -> None:
    rng, day = np.random.default_rng(0), dt.date.fromisoformat(CUTOFF)
    after = [day + dt.timedelta(int(d)) for d in rng.integers(1, 2000, 200)]
    before = [day - dt.timedelta(int(d)) for d in rng.integers(0, 2000, 200)]
    texts = [f"The price of it on {d:%B %d, %Y} was {k}.5 dollars." for k, d in enumerate(after)]
    texts += [f"The price of it on {d:%Y-%m-%d} was {k}.5 dollars." for k, d in enumerate(before)]
    found = run(texts)
    assert found["leak"].tolist() == [True] * 200 + [False] * 200
    assert found["mentions"].tolist() == [1] * 200 + [0] * 200


def test_creation_counts_as_a_date_and_comes_in_several_types() -> None:
    made = ["2021-07-02T10:00:00Z", None, "2020-01-01"]
    found = run(["a", "b", "on 1 July 2021"], made)
    assert found["leak"].tolist() == [True, False, True]
    assert found["days_after"][0] == 2
    told = [[f.reason for f in row] for row in findings(found["findings"])]
    assert told == [["created_after"], [], ["date_after"]]
    stamp = run(["a"], [dt.datetime(2021, 7, 2, 1)])
    assert stamp["latest"] == ["2021-07-02"]
    with pytest.raises(DataError, match="made: no ISO date: 'soon'"):
        run(["a"], ["soon"])


def test_spans_years_and_horizon() -> None:
    text = "By 2100? In 2030 and since 2022-01-05, May 2023."
    found = run([text])
    (row,) = findings(found["findings"])
    assert [(f.reason, text[f.start : f.stop]) for f in row] == [
        ("year_after", "2030"), ("date_after", "2022-01-05"), ("month_after", "May 2023"),
    ]  # fmt: skip
    assert run([text], years=False)["mentions"].tolist() == [2]
    assert run([text], horizon=5)["mentions"].tolist() == [2]


def test_the_cut_off_is_a_date() -> None:
    with pytest.raises(ValueError, match="cutoff is an ISO date"):
        TemporalLeak(cutoff="2021")
    with pytest.raises(ValueError, match="horizon"):
        TemporalLeak(cutoff=CUTOFF, horizon=0)
    part = TemporalLeak.parse({"cutoff": dt.date(2021, 6, 30)}, "here")  # as YAML reads it
    assert part.cutoff == CUTOFF
    with pytest.raises(RecipeError, match=r"here: .*ISO date"):
        TemporalLeak.parse({"cutoff": "soon"}, "here")
