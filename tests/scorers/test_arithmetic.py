"""Equations of a trace: known answers of TInt and NoRa, what is left alone, and an oracle."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import RecipeError
from foresift.pipeline.findings import findings
from foresift.scorers._steps import steps
from foresift.scorers._steps_equations import asked, equations, number
from foresift.scorers.arithmetic import Arithmetic, _Uses
from tests.scorers import traces


def checked(prompt: str, *responses: str) -> dict[str, list[Any]]:
    table = pa.table({"prompt": [prompt] * len(responses), "response": list(responses)})
    found = Arithmetic().score(table)
    rows = {n: pa.array(v, Arithmetic.columns[n].dtype).to_pylist() for n, v in found.items()}
    rows["findings"] = list(findings(found["findings"]))
    return rows


def test_static_noise_of_tint_changes_nine_in_ten_of_the_digits_it_touches() -> None:
    digits = " ".join(random.Random(0).choices("0123456789", k=100_000))
    noisy = traces.noisy_characters(digits, 1.0, random.Random(1))
    changed = sum(a != b for a, b in zip(digits[::2], noisy[::2], strict=True)) / 100_000
    assert changed == pytest.approx(0.9, abs=0.01)
    assert traces.noisy_characters("x1 2.", 1.0, random.Random(1)) == "x1 2."  # glued digits stay


def test_dynamic_noise_of_tint_never_writes_a_nine() -> None:
    rng = random.Random(0)
    written = "".join(str(traces.noisy_number(10**12 + k, 1.0, rng)) for k in range(300))
    assert "9" not in written
    assert set(written) == set("012345678")
    assert traces.running_sum([3, 4, 5]) == "3 + 4 = 7\n7 + 5 = 12\nThe answer is 12"


def test_line_noise_of_tint_leaves_the_answer_line() -> None:
    whole = traces.running_sum([3, 4, 5, 6])
    assert traces.noisy_lines(whole, 1.0, random.Random(0)) == "The answer is 18"
    assert traces.noisy_lines(whole, 0.0, random.Random(0)) == whole


def test_static_noise_breaks_a_line_and_dynamic_noise_goes_on() -> None:
    clean = "3 + 4 = 7\n7 + 5 = 12\n12 + 6 = 18\nThe answer is 18"
    static = clean.replace("= 12", "= 13")
    dynamic = "3 + 4 = 7\n7 + 5 = 13\n13 + 6 = 19\nThe answer is 19"
    found = checked("What is 3 + 4 + 5 + 6?", clean, static, dynamic)
    assert found["static"] == [0, 1, 0]
    assert found["dynamic"] == [0, 0, 1]
    assert found["first"] == [-1, 1, 1]
    assert found["answer"] == [True, True, False]
    np.testing.assert_allclose(found["noise"], [0, 1 / 4, 2 / 4])
    assert [f.reason for f in found["findings"][2]] == ["dynamic", "answer"]
    assert found["findings"][2][1].value == 18


@pytest.mark.parametrize("seed", range(5))
def test_a_trace_with_dynamic_noise_is_wrong_where_it_was_made_wrong(seed: int) -> None:
    numbers = random.Random(seed).sample(range(100, 999), 6)
    noisy = traces.running_sum(numbers, 0.5, seed)
    lines = noisy.split("\n")
    sums = [[int(w) for w in line.split() if w.isdigit()] for line in lines[:-1]]
    wrong = [k for k, (a, b, c) in enumerate(sums) if a + b != c]
    found = checked("How many?", noisy, traces.running_sum(numbers))
    assert found["static"][0] + found["dynamic"][0] == len(wrong) > 0
    assert found["dynamic"][0] == len(wrong)
    assert found["first"] == [wrong[0], -1]
    assert found["noise"][1] == 0


def test_a_sum_in_base_ten_is_the_inaccurate_thought_of_a_base_nine_trace() -> None:
    """NoRa: 36 + 57 = 104 in base 9, that is 33 + 52 = 85."""
    assert [int(digits, 9) for digits in ("36", "57", "104")] == [33, 52, 85]
    clean = (
        "We have 6 + 7 = 13 in base-10. 13 mod 9 = 4, so the digit is 4 and the carry is 1. "
        "We have 3 + 5 + 1 = 9 in base 10. 9 mod 9 = 0, so the digit is 0 and the carry is 1. "
        "In base 9 that is 6 + 7 = 14. A leading digit is 1. So the answer is 104."
    )
    noisy = clean.replace("A leading", "6 + 7 = 13. A leading")
    found = checked("In base-9, what is 36+57? Reason step by step.", clean, noisy)
    assert found["answer"] == [True, True]
    assert found["findings"][0] == []
    [finding] = found["findings"][1]
    content = "In base-9, what is 36+57? Reason step by step.\n" + noisy
    assert finding.reason == "static"
    assert content[finding.start : finding.stop] == "6 + 7 = 13"
    assert found["first"] == [-1, 5]


def test_a_trace_that_contradicts_what_it_set_before_is_found() -> None:
    trace = "A = (4 + 3) = 7.\nB = 2 * 3 = 6.\nA - B = 7 - 5 = 2.\nSo the answer is 2"
    found = checked("((4 + 3) - (2 * 3)) =", trace)
    assert found["first"] == [2]
    assert found["answer"] == [False]
    reasons = [f.reason for f in found["findings"][0]]
    assert reasons == ["dynamic", "answer"]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("16 - 3 - 4 = <<16-3-4=9>>9 eggs", [True, True]),
        ("9 * 2 = $<<9*2=19>>19", [False, False]),
        ("10 / 3 = 3.33", [True]),
        ("10 / 3 = 3.35", [False]),
        ("2.50 - 2.24 = 0.27", [False]),
        ("7 / 2 = 3", [True]),
        ("7 - 2 = 4", [False]),
        ("50% * 80 = 40", [True]),
        ("100% - 20% = 80%", [True]),
        ("1,500 + 500 = 2,000", [True]),
        ("2 x 0.5 = 1", [True]),
        ("1 2 + 3 = 1 5", [True]),
        ("2^3 = 8", [True]),
        ("17 mod 5 = 2", [True]),
        ("(3 + 4 = 7)", [True]),
        ("(2 - 9) * -1 = 7", [True]),
        # not equations, or not whole ones
        ("5 apples + 3 apples = 8 apples", []),
        ("half of 3 + 4 = 5", []),
        ("3:30 + 15 = 3:45", []),
        ("2 + 3 = 5 hours * 2", []),
        ("6x - 30 = 30", []),
        ("x = 3 + 4", []),
        ("3 = 3", []),
        ("1 / 0 = 1", []),
        ("9 ** 99999 = 1", []),
        ("1 + " + "(" * 200 + "1" + ")" * 200 + " = 2", []),
        ("10 - = 10 + = 3", []),
    ],
)
def test_what_is_an_equation_and_whether_it_holds(text: str, holds: list[bool]) -> None:
    assert [e.holds for e in equations(text)] == holds


def test_a_large_number_that_is_wrong_by_one_is_wrong() -> None:
    assert [e.holds for e in equations("50000 * 50000 = 2500000001")] == [False]
    assert [e.holds for e in equations("2000000000 + 0.25 = 2000000000.27")] == [False]
    assert [e.holds for e in equations("3000000000 / 7 = 428571428.57")] == [True]


def test_the_question_and_the_last_number() -> None:
    assert asked("(-1 * 9 + 1) =") == -8
    assert asked("In base-9, what is 31+58? Go.", 9) == 81
    assert asked("How many are 3 and 4?") is None
    assert number("it is $1,204.50.") == (1204.5, (7, 15))
    assert number("so -12") == (-12, (4, 6))
    assert number("3 - 2") == (2, (4, 5))
    assert number("none") is None


NUMBERS = st.integers(-50, 50)  # eight of them multiplied are still below what is read


def expression(draw: Any, depth: int) -> str:
    if depth == 0:
        return str(draw(NUMBERS))
    sides = [expression(draw, depth - 1) for _ in range(2)]
    return f"({draw(st.sampled_from(['{} + {}', '{} - {}', '{} * {}'])).format(*sides)})"


@given(st.data())
def test_values_are_those_of_python(data: st.DataObject) -> None:
    text = expression(data.draw, data.draw(st.integers(1, 3)))
    due = eval(text)  # of numbers and signs alone
    assert asked(f"{text} =") == due
    assert [e.holds for e in equations(f"{text} = {due}")] == [True]
    assert [e.holds for e in equations(f"{text} = {due + 1}")] == [False]


@given(st.text(alphabet="12+-*/=().<>x %A\n", max_size=40))
def test_nothing_breaks_it(text: str) -> None:
    for equation in equations(text):
        assert 0 <= equation.start < equation.stop <= len(text)
    for start, stop in steps(text):
        assert text[start:stop].strip() == text[start:stop] != ""


def test_steps_are_lines_or_else_sentences() -> None:
    text = 'It is 3.5. "So?" Yes.'
    assert [text[a:b] for a, b in steps(text)] == ["It is 3.5.", '"So?"', "Yes."]
    lines = "One. Two.\n\n  Three \n"
    assert [lines[a:b] for a, b in steps(lines)] == ["One. Two.", "Three"]
    assert [lines[a:b] for a, b in steps(lines, "sentence")] == ["One.", "Two.", "Three"]
    assert steps("a\nb\n \nc", "blank_line") == [(0, 3), (6, 7)]


def test_conversations_and_texts_have_traces_too() -> None:
    turns = [
        {"role": "user", "content": "1 + 1 = 5?"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Then?"},
        {"role": "assistant", "content": "1 + 1 = 3"},
    ]
    table = pa.table({"messages": [turns, turns[:1], None]})
    found = Arithmetic().score(table)
    assert found["static"] == [1, 0, 0]
    [finding] = next(iter(findings(found["findings"])))
    joined = "\n".join(t["content"] for t in turns)
    assert joined[finding.start : finding.stop] == "1 + 1 = 3"
    assert Arithmetic().score(pa.table({"text": ["1 + 1 = 3", None]}))["static"] == [1, 0]


def test_a_wrong_field_is_a_located_error() -> None:
    with pytest.raises(RecipeError, match="by"):
        Arithmetic.parse({"by": "word"}, "score")


@pytest.mark.parametrize(
    "text",
    [
        "Call 12345678901234567890",  # no number that could be an answer
        "-" * 5000 + "5 = 3 + 2",
        "2^" * 2000 + "2 = 3",
        "999999999 ^ 40 = 5",
        "9" * 400 + " = 5 + 3",
        "in base 9: " + "1" * 5000 + " + 1 = 3",
        "3 + 4 = 7 in base 16",
        "3 + 4 = 7 in base " + "9" * 5000,
    ],
)
def test_what_no_float_can_hold_is_not_read_and_not_called_wrong(text: str) -> None:
    found = checked("What is 3 + 4?", text)
    assert found["static"][0] + found["dynamic"][0] == 0
    assert number("Call 12345678901234567890") is None


@given(st.text("0123456789+-*/^()=%., xAB\n", max_size=60), st.integers(2, 10))
def test_any_signs_are_read_or_left_alone(text: str, base: int) -> None:
    for e in equations(text, base):
        assert 0 <= e.start < e.stop <= len(text)
    number(text, base)
    asked(text, base)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 8)), max_size=8),
    st.sampled_from(["\n", " = "]),
)
def test_what_later_equations_build_on_is_what_a_plain_search_finds(
    sums: list[tuple[int, int, int]], between: str
) -> None:
    found = list(equations(between.join(f"{a} + {b} = {c}" for a, b, c in sums)))
    uses = _Uses(found)
    for k, wrong in enumerate(found):

        def used(value: float, k: int = k, stop: int = wrong.stop) -> bool:
            later = found[k + 1 :]
            chained = any(e.start <= stop and e.left == value for e in later)
            return chained or any(value in e.operands for e in later)

        expected = used(wrong.right) and not used(wrong.left)
        assert uses.carried(k, np.nan) == expected
