"""What is planted, where, and that it follows from (seed, id) alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline import noise_values
from foresift.pipeline.noise_inject import CLEAN, KIND, KINDS, SPANS, corrupt_number, inject
from foresift.pipeline.tables import content_ids

LINES = "First 3 + 4 = 7 pears.\nThen 7 * 2 = 14 of them.\nSo 14 - 5 = 9 are left.\n#### 9"


def table(rows: int = 200) -> pa.Table:
    made = pa.table({
        "prompt": [f"Question {k}?" for k in range(rows)],
        "response": [f"Answer {k} stands here. It has lines.\n{LINES}" for k in range(rows)],
        "label": ["even" if k % 2 == 0 else "odd" for k in range(rows)],
        "good": [k % 3 == 0 for k in range(rows)],
    })  # fmt: skip
    return made.add_column(0, "id", content_ids(made))


def noisy(found: pa.Table) -> list[dict[str, Any]]:
    return [row for row in found.to_pylist() if row[KIND] is not None]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_clean_value_kind_and_mask_stand_beside_what_was_altered(kind: str) -> None:
    before, column = table(), "label" if kind == "label" else "response"
    found = inject(before, kind, 0.3, 1)
    rows = noisy(found)
    assert 30 < len(rows) < 90
    assert {r[KIND] for r in rows} == {kind}
    for row in rows:
        if kind != "duplicate":
            assert row[column] != row[CLEAN]
            assert row[SPANS]
        for span in row[SPANS] or []:
            assert 0 <= span["start"] <= span["stop"] <= len(str(row[column]))
    clean = [r for r in found.to_pylist() if r[KIND] is None]
    assert all(r[CLEAN] is None and r[SPANS] is None for r in clean)
    texts = before[column].to_pylist()
    assert all(r[column] in texts for r in clean)
    assert found["id"].to_pylist() == content_ids(found).to_pylist()
    assert inject(before, kind, 0.0, 1).select(before.column_names).equals(before)
    assert before.equals(table())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_row_order_does_not_matter_and_seeds_do(kind: str) -> None:
    before = table()
    order = pa.array(np.random.default_rng(0).permutation(before.num_rows))

    def told(found: pa.Table) -> list[Any]:
        return sorted(map(repr, found.drop_columns(["id"]).to_pylist()))

    first = told(inject(before, kind, 0.3, 1))
    assert told(inject(before.take(order), kind, 0.3, 1)) == first
    assert told(inject(before, kind, 0.3, 2)) != first


def test_copies_become_the_same_noise() -> None:
    twice = pa.concat_tables([table(50), table(50)])
    for kind in KINDS:
        found = inject(twice, kind, 0.5, 3)
        assert found.slice(0, 50)["response"].equals(found.slice(50, 50)["response"])


def test_kinds_are_planted_one_after_the_other() -> None:
    found = table()
    for kind in ("token", "truncation", "label", "pii"):
        found = inject(found, kind, 0.2, 5)
    kinds = found[KIND].to_pylist()
    assert set(kinds) == {"token", "truncation", "label", "pii", None}
    first = inject(table(), "token", 0.2, 5)
    for row, before in zip(found.to_pylist(), first.to_pylist(), strict=True):
        if before[KIND] == "token":
            assert row == before


def text_of(text: str, kind: str, **options: Any) -> str:
    found = inject(pa.table({"text": [text]}), kind, 1.0, 0, **options)
    return str(found["text"][0])


def test_static_digits_are_replaced_by_any_digit() -> None:
    digits = "".join(map(str, np.random.default_rng(0).integers(0, 10, 100_000)))
    found = text_of(digits, "static", digits=1.0)
    changed = np.mean([a != b for a, b in zip(digits, found, strict=True)])
    assert abs(changed - 0.9) < 0.01
    assert text_of("x12 3, 45", "static", digits=1.0).startswith("x12 3, ")


def test_dropping_every_line_leaves_the_answer() -> None:
    assert text_of(LINES, "static", digits=0.0, lines=1.0) == "#### 9"
    assert text_of(LINES, "static", digits=0.0, lines=0.0) == LINES


def test_dynamic_noise_follows_from_step_to_step() -> None:
    assert text_of(LINES, "dynamic", rate=0.0) == LINES
    draw = np.random.default_rng(0)
    digits = [corrupt_number("0098765432", 1.0, draw) for _ in range(500)]
    assert all(d.startswith("00") and "9" not in d for d in digits)
    assert set("".join(d[2:] for d in digits)) == set("012345678")
    wrong = 0
    for seed in range(60):
        found = inject(pa.table({"text": [LINES]}), "dynamic", 1.0, seed, rate=0.3)
        noisy = str(found["text"][0])
        three = [list(map(int, re.findall(r"\d+", line))) for line in noisy.split("\n")[:3]]
        assert three[1][0] == three[0][2]  # a result is used as it stands
        assert three[2][0] == three[1][2]
        assert int(noisy.split("#### ")[1]) == three[2][2]
        wrong += noisy != LINES
    assert 30 < wrong < 60


def test_thoughts_are_put_in_by_rounding_half_to_even() -> None:
    for ratio, count in ((0.3, 2), (0.5, 4), (0.8, 6)):
        eight = "\n".join(f"line {k}" for k in range(9))
        found = inject(pa.table({"text": [eight]}), "insert", 1.0, 0, ratio=ratio, how="inaccurate")
        lines = str(found["text"][0]).split("\n")
        assert len(lines) == 9 + count
        assert [line for line in lines if line.startswith("line")] == eight.split("\n")
        assert lines[-1] == "line 8"
        spans = found[SPANS][0].as_py()
        cut = {str(found["text"][0])[s["start"] : s["stop"]] for s in spans}
        assert cut <= set(noise_values.THOUGHTS["inaccurate"])
    assert text_of("a\nb", "insert", ratio=0.5) == "a\nb"  # round(0.5) is 0


def test_answers_are_exchanged_among_the_chosen() -> None:
    found = noisy(inject(table(), "pair", 0.4, 0))
    assert sorted(r["response"] for r in found) == sorted(r[CLEAN] for r in found)


def test_copies_stand_behind_and_may_be_near() -> None:
    before = table()
    found = inject(before, "duplicate", 0.2, 0, edits=0.2)
    assert found.slice(0, 200).select(before.column_names).equals(before)
    more = noisy(found)
    assert len(more) == found.num_rows - 200
    assert all(r[CLEAN] in before["response"].to_pylist() for r in more)
    assert sum(r["response"] != r[CLEAN] for r in more) > 0.9 * len(more)
    exact = noisy(inject(before, "duplicate", 0.2, 0))
    assert all(r["response"] == r[CLEAN] for r in exact)


def test_labels_change_their_type_never() -> None:
    found = noisy(inject(table(), "label", 0.3, 0, column="good"))
    assert all(r["good"] is not (r[CLEAN] == "True") for r in found)
    flipped = noisy(inject(table(), "label", 0.3, 0, flip={"odd": "even"}))
    assert {(r[CLEAN], r["label"]) for r in flipped} == {("odd", "even")}


@pytest.mark.parametrize("what", sorted(noise_values.PERSONAL))
def test_personal_data_are_valid_and_nobodys(what: str) -> None:
    found = noisy(inject(table(), "pii", 1.0, 0, types=[what]))
    assert len(found) == 200
    forms = {
        "email": r"[a-z]+\.[a-z]+\d+@example\.(com|org|net)",
        "phone": r".*555[- ]01\d\d", "ipv4": r"(192\.0\.2|198\.51\.100|203\.0\.113)\.\d+",
        "ipv6": r"2001:db8(:[0-9a-f]+){6}", "card": r"[\d ]+", "iban": r"DE\d\d 0000 0000 [\d ]+",
        "ssn": r"987-65-432\d", "mac": r"00:00:5E:00:53:[0-9A-F]{2}", "key": r"AKIA\w+EXAMPLE",
    }  # fmt: skip
    for row in found:
        (span,) = row[SPANS]
        value = row["response"][span["start"] : span["stop"]]
        assert span["what"] == what
        assert re.fullmatch(forms[what], value)
        assert what != "card" or noise_values.luhn(value.replace(" ", ""))
        assert what != "iban" or noise_values.mod97(value) == 1


def test_check_digits() -> None:
    assert noise_values.luhn("4111111111111111")
    assert not noise_values.luhn("4111111111111112")
    assert noise_values.mod97("GB82 WEST 1234 5698 7654 32") == 1
    assert noise_values.mod97("GB83 WEST 1234 5698 7654 32") != 1


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("nothing", {}, "no kind"), ("token", {"much": 1}, "no option 'much'"),
        ("token", {"column": "x"}, "no column 'x'"), ("token", {"how": "x"}, "how is"),
        ("pii", {"types": ["x"]}, "no type 'x'"), ("junk", {"how": "x"}, "how is"),
        ("insert", {"how": "x"}, "how is"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(kind: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        inject(table(), kind, 1.0, 0, **options)
    with pytest.raises(ValueError, match="share"):
        inject(table(), "token", 1.5, 0)
