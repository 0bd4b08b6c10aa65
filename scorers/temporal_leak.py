"""Temporal leakage: dates in a document that lie after a knowledge cut-off.

    latest      the latest date mentioned or, where it is later, the date of creation    (ISO)
    days_after  latest - cutoff                  days; above 0 = after; NaN where there is no date
    leak        days_after > 0                   utility = -max(days_after, 0), 0 without a date
    mentions    dates in the text that lie after the cut-off

    read as dates   2024-05-03  2024/05/03  3.5.2024  03/05/2024  May 3, 2024  3rd of May 2024
                    May 2024    and years behind a word such as in, by, since, copyright, (2024)

A month or a year counts from its first day, and 03/05/2024 as the earlier of its two readings, so
that a leak is one in every reading: with the cut-off 2024-06-30, "in 2024" is none and "in 2025"
is. Dates more than `horizon` years after the cut-off are plans or fiction and not counted. Years
before 1900 or after 2099, two-digit years and dates that no calendar has are not read; month names
are English.

What was written before the cut-off may speak of later dates (a schedule, a forecast), and what was
written after it need not name one: where documents have a date of creation, name its column. A
crawl date is not that: pages are edited later. Once a later value was seen no step repairs it
(masking names does not either), so the rule is to exclude or to quarantine.

Findings: date_after, month_after, year_after (value: days after the cut-off), created_after for the
whole document. Errors: a cut-off or a created date that is no ISO date. Rows stand alone. Cost:
some 20 MB/s. Source: Lopez-Lira et al. 2025, "The Memorization Problem"; the rule is ours.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import BeforeValidator

from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import Arrays, Scorer
from foresift.pipeline.tables import Column, content_texts

_NAMES = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|"
    r"sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_YEAR = r"((?:19|20)\d\d)(?!\d)"
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_CUES = (
    r"in|by|since|during|of|from|until|till|after|before|to|for|and|early|late|mid|spring|summer|"
    r"autumn|fall|winter|year|season|copyright|©|\(c\)|\("
)
#: kind of date -> pattern; the first that fits at a place is taken
_PATTERNS = (
    ("ymd", rf"(?<![\d.]){_YEAR}[-/.](\d\d?)[-/.](\d\d?)(?!\d)"),
    ("dmy", rf"(?<![\d.])(\d\d?)\.(\d\d?)\.{_YEAR}(?!\.\d)"),
    ("either", rf"(?<![\d.])(\d\d?)[/-](\d\d?)[/-]{_YEAR}"),
    ("name_day", rf"\b{_MONTH}\s+{_DAY},?\s+{_YEAR}"),
    ("day_name", rf"(?<!\d){_DAY}\s+(?:of\s+)?{_MONTH},?\s+{_YEAR}"),
    ("month", rf"\b{_MONTH},?\s+(?:of\s+)?{_YEAR}"),
    ("year", rf"(?<!\w)(?:{_CUES})\s?{_YEAR}(?![\d%:]|[.,]\d|-\d)"),
)
_DATE = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _PATTERNS), re.I)
_CENTURY = re.compile(r"(?:19|20)\d\d")
#: characters of a date, and of what is looked at, before and behind its year
BEFORE, BEHIND = 32, 10
_WHICH = {name: re.compile(pattern, re.I) for name, pattern in _PATTERNS}


@dataclass(frozen=True, kw_only=True)
class TemporalLeak(Scorer):
    """Dates that lie after a knowledge cut-off, in the text or in the date of creation."""

    cutoff: Annotated[str, BeforeValidator(str)]
    """The last day that may be known, as an ISO date: 2023-12-31."""
    created: str = ""
    """Column with the date (ISO, or a timestamp) at which a document was written; none if empty."""
    years: bool = True
    """Whether years alone are read as dates, behind a word such as in or since."""
    horizon: int = 20
    """Years after the cut-off beyond which a date is a plan or fiction."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "minus days after the cut-off", "higher"),
        "days_after": Column(pa.float64(), "days after the cut-off", "lower"),
        "leak": Column(pa.bool_(), "something lies after the cut-off"),
        "mentions": Column(pa.int64(), "dates after the cut-off", "lower"),
        "latest": Column(pa.string(), "ISO date"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        self.day()
        if self.horizon < 1:
            raise ValueError("horizon is at least 1 year")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.created,) if self.created else ()

    def day(self) -> dt.date:
        """The cut-off."""
        try:
            return dt.date.fromisoformat(self.cutoff)
        except ValueError:
            raise ValueError(f"cutoff is an ISO date (2023-12-31), got {self.cutoff!r}") from None

    def score(self, batch: pa.Table) -> Arrays:
        day, findings = self.day(), Findings(batch.num_rows)
        last = dt.date(min(day.year + self.horizon, 9998) + 1, 1, 1)
        made = batch[self.created].to_pylist() if self.created else [None] * batch.num_rows
        latest: list[dt.date | None] = []
        mentions = np.zeros(batch.num_rows, dtype=np.int64)
        for row, (text, value) in enumerate(zip(content_texts(batch), made, strict=True)):
            newest = as_date(value, self.created)
            if newest is not None and newest > day:
                findings.add(row, "created_after", value=float((newest - day).days))
            for unit, start, stop, found in dates(text):
                if found >= last or (unit == "year" and not self.years):
                    continue
                newest = found if newest is None else max(newest, found)
                if found > day:
                    findings.add(row, f"{unit}_after", start, stop, float((found - day).days))
                    mentions[row] += 1
            latest.append(newest)
        after = np.array([np.nan if d is None else (d - day).days for d in latest], np.float64)
        return {
            "utility": 0.0 - np.nan_to_num(np.maximum(after, 0)), "days_after": after,
            "leak": after > 0, "mentions": mentions,
            "latest": [d and d.isoformat() for d in latest], "findings": findings.array(),
        }  # fmt: skip


def dates(text: str) -> Iterator[tuple[str, int, int, dt.date]]:
    """(date, month or year; its characters; the first day that it can mean) of each date."""
    for match in (m for a, b in _near_years(text) for m in _DATE.finditer(text, a, b)):
        name = str(match.lastgroup)
        groups = _groups(match, name)
        found = _READ[name](*groups)
        if found is None:
            continue
        unit = name if name in ("month", "year") else "date"
        start = match.end() - 4 if name == "year" else match.start()
        yield unit, start, match.end(), found


def _near_years(text: str) -> Iterator[tuple[int, int]]:
    """The stretches in which dates can stand: every date has a year of four digits."""
    start = stop = -1
    for match in _CENTURY.finditer(text):
        if match.start() - BEFORE > stop:
            if stop >= 0:
                yield start, stop
            start = max(match.start() - BEFORE, 0)
        stop = match.end() + BEHIND
    if stop >= 0:
        yield start, stop


def _groups(match: re.Match[str], name: str) -> list[str]:
    """The parts of a date: the groups inside the alternative that fitted."""
    first = match.re.groupindex[name]
    return list(match.groups()[first : first + _WHICH[name].groups])


def _date(year: str, month: int, day: str = "1") -> dt.date | None:
    try:
        return dt.date(int(year), month, int(day))
    except ValueError:
        return None


def _number(month: str) -> int:
    return _NAMES.index(month[:3].lower()) + 1


def _earlier(first: str, second: str, year: str) -> dt.date | None:
    """day/month or month/day: the earlier of the readings that the calendar has."""
    both = (_date(year, int(first), second), _date(year, int(second), first))
    return min((d for d in both if d is not None), default=None)


_READ: dict[str, Any] = {
    "ymd": lambda y, m, d: _date(y, int(m), d),
    "dmy": lambda d, m, y: _date(y, int(m), d),
    "either": _earlier,
    "name_day": lambda m, d, y: _date(y, _number(m), d),
    "day_name": lambda d, m, y: _date(y, _number(m), d),
    "month": lambda m, y: _date(y, _number(m)),
    "year": lambda y: _date(y, 1),
}


def as_date(value: Any, where: str) -> dt.date | None:
    """A value of a column of dates; the time of day and its zone are cut off."""
    if value is None or value == "":
        return None
    if isinstance(value, dt.datetime):
        return value.date()
    if isinstance(value, dt.date):
        return value
    try:
        return dt.date.fromisoformat(str(value)[:10])
    except ValueError:
        raise DataError(f"no ISO date: {value!r}", where=where) from None
