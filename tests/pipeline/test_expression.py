"""Conditions: what they mean, what they refuse, and what missing values do."""

from __future__ import annotations

import contextlib
import operator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import RecipeError
from foresift.pipeline.expression import Expression, columns

TABLE = pa.table(
    {
        "h.ok": [True, False, None, True, True],
        "l.nll": [1.0, float("nan"), None, 4.6, 5.0],
        "s": ["a", "b", None, "c", "a"],
        "d": pa.array(["x", "y", None, "x", "y"]).dictionary_encode(),
        "p": pa.array([0, 0, 1, None, 2], pa.uint8()),
        "z": pa.nulls(5),
        "when": pa.array([0, 1, 2, 3, 4], pa.timestamp("s")),
        "odd-name.x y": [1, 2, 3, 4, 5],
    }
)


def keeps(text: str, table: pa.Table = TABLE) -> list[int]:
    rows = np.ones(table.num_rows, dtype=bool)
    for _, holds in Expression.parse(text).clauses(table):
        rows &= holds
    return np.flatnonzero(rows).tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("h.ok", [0, 3, 4]),
        ("not h.ok", [1]),
        ("not not h.ok", [0, 3, 4]),
        ("h.ok = true", [0, 3, 4]),
        ("h.ok == 1", [0, 3, 4]),
        ("h.ok and l.nll < 4.7", [0, 3]),
        ("h.ok or p = 0", [0, 1, 3, 4]),
        ("p = 1 or h.ok and s = 'c'", [2, 3]),
        ("(p = 1 or h.ok) and s = 'c'", [3]),
        ("l.nll != 1", [3, 4]),
        ("l.nll >= 4.6", [3, 4]),
        ("l.nll <= 4.6", [0, 3]),
        ("s in ['a', \"c\"]", [0, 3, 4]),
        ("s not in ['a']", [1, 3]),
        ("p in [0, -1, 2e0]", [0, 1, 4]),
        ("s in []", []),
        ("h.ok in [false]", [1]),
        ("s > 'a'", [1, 3]),
        ("d = 'x'", [0, 3]),
        ("s = d", []),
        ("l.nll is null", [1, 2]),
        ("l.nll is not null", [0, 3, 4]),
        ("z is null", [0, 1, 2, 3, 4]),
        ("z = 'a' or z = 1 or z", []),
        ("(1 + 2) * 3 - 4 / 2 = 7", [0, 1, 2, 3, 4]),
        ("10 - 4 - 3 = 3 and 8 / 4 / 2 = 1", [0, 1, 2, 3, 4]),
        ("-p < -1", [4]),
        ("l.nll / p > 1e300", [0]),
        ("p / 0 = p / 0", [2, 4]),
        ("p - 1 < 0", [0, 1]),
        ("`odd-name.x y` > 3", [3, 4]),
        ("s = 'it\\'s'", []),
        ("1 < 2", [0, 1, 2, 3, 4]),
        ("false", []),
    ],
)
def test_answers(text: str, rows: list[int]) -> None:
    assert keeps(text) == rows


@pytest.mark.parametrize("text", ["l.nll > 3", "not (l.nll > 3)", "s in ['a']", "s not in ['a']"])
def test_a_missing_value_is_neither_true_nor_false(text: str) -> None:
    assert 2 not in keeps(text)
    assert 2 in keeps(f"{text} or true")
    assert 2 not in keeps(f"not ({text} and true)")


def test_columns_are_listed_once_in_order() -> None:
    assert columns("b.x > 1 and a in [1] or not b.x = c / `d e`") == ("b.x", "a", "c", "d e")
    assert columns("'a' = 'b'") == ()


def test_clauses_are_the_top_level_ands_as_written() -> None:
    parsed = Expression.parse(" h.ok and (p = 0  or s = 'a') and not(l.nll>9) ")
    assert [text for text, _ in parsed.clauses(TABLE)] == [
        "h.ok",
        "(p = 0  or s = 'a')",
        "not(l.nll>9)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "non-empty"),
        ("  ", "non-empty"),
        ("a b", "unexpected 'b' at position 3"),
        ("f(x)", "no functions: 'f' at position 1"),
        ("a.f(x) = 1", "no functions: 'a.f' at position 1"),
        ("x.__class__", "unexpected 'x.__class__'"),
        ("__import__('os')", "unexpected '__import__'"),
        ("x.__class__.__mro__ = 1", "unexpected"),
        ("(a", "unexpected end; expected '\\)' at position 3"),
        ("a)", "unexpected '\\)' at position 2"),
        ("a =", "unexpected end"),
        ("a == = 1", "unexpected '=' at position 6"),
        ("a < b < c", "do not chain"),
        ("a in b", "expected '\\['"),
        ("a in [b]", "constants only"),
        ("a in [-'x']", "constants only"),
        ("a in [1, 'x']", "one kind"),
        ("a in [1", "expected ','"),
        ("a in [1,]", "unexpected '\\]'"),
        ("a is 3", "expected 'null'"),
        ("a and", "unexpected end"),
        ("not", "unexpected end"),
        ("lambda: 1", "unexpected ':' at position 7"),
        ("a if b else c", "unexpected 'if'"),
        ("a[0]", "unexpected '\\['"),
        ("a & b", "unexpected '&'"),
        ("a ** 2 = 1", "unexpected '\\*'"),
        ("x := 1", "unexpected ':'"),
        ("a; b", "unexpected ';'"),
        ("'abc", 'unexpected "\'"'),
        ("3x = 1", "unexpected '3'"),
        ("1.2.3 = 1", "unexpected '1'"),
        ("(" * 100 + "a" + ")" * 100, "nested more than"),
        ("-" * 100 + "1 = 1", "nested more than"),
        ("+".join(["1"] * 5000) + " = 1", "in a row"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Expression.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s < 3", "a text does not compare with a number"),
        ("s = true", "a text does not compare with a truth"),
        ("l.nll", "a condition is needed here, not a number"),
        ("h.ok and s", "a condition is needed here, not a text: 's' at position 10"),
        ("s + 1 = 2", "a number is needed here"),
        ("-s = 2", "a number is needed here"),
        ("s in [1]", "a text is not in a list of numbers"),
        ("when = 1", "cannot read a column of type timestamp"),
    ],
)
def test_kinds_are_checked(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        keeps(text)


def test_long_conditions_and_empty_tables_work() -> None:
    assert keeps(" and ".join(["h.ok"] * 3000)) == [0, 3, 4]
    empty = TABLE.slice(0, 0)
    assert keeps("h.ok and l.nll / 2 < 1 and s in ['a'] and 1 = 1", empty) == []


COMPARE = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt,
    "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
NUMBERS = st.one_of(st.none(), st.floats(-4, 4).map(round), st.just(float("nan")))


@given(
    rows=st.lists(st.tuples(NUMBERS, NUMBERS), max_size=8),
    first=st.sampled_from(sorted(COMPARE)),
    second=st.sampled_from(sorted(COMPARE)),
    joined=st.sampled_from(["and", "or"]),
    negated=st.booleans(),
)
def test_agrees_with_three_valued_logic_written_out(
    rows: list[tuple[float | None, float | None]], first: str, second: str, joined: str,
    negated: bool,
) -> None:  # fmt: skip
    def compare(name: str, x: float | None, y: float | None) -> bool | None:
        known = x is not None and y is not None and x == x and y == y
        return COMPARE[name](x, y) if known else None

    def expected(x: float | None, y: float | None) -> bool:
        answers = [compare(first, x, y), compare(second, x, 1.0)]
        if negated:
            answers[0] = None if answers[0] is None else not answers[0]
        return (all if joined == "and" else any)(a is True for a in answers)

    table = pa.table(
        {
            "x": pa.array([r[0] for r in rows], pa.float64(), from_pandas=False),
            "y": pa.array([r[1] for r in rows], pa.float64(), from_pandas=False),
        }
    )
    text = f"{'not ' if negated else ''}x {first} y {joined} x {second} 1"
    assert keeps(text, table) == [i for i, r in enumerate(rows) if expected(*r)]


@given(st.text(max_size=30))
def test_any_text_parses_or_is_a_recipe_error(text: str) -> None:
    with contextlib.suppress(RecipeError):
        assert Expression.parse(text).text == text
