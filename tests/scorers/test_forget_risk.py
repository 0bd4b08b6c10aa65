"""Priors, residuals and decisions by hand; the drill is monotone; facts add up to the rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import findings
from foresift.scorers import _risk_residual as residuals
from foresift.scorers.forget_risk import ForgetRisk
from tests.scorers.fitting import ids, score

ALL = ["licence", "personal", "secrets", "names", "temporal", "contamination", "junk", "copies"]
NOTHING: dict[str, Any] = {
    "licence.p_delete": 1e-5, "pii.spans": 0, "pii.verified": 0, "secrets.count": 0,
    "secrets.verified": 0, "entity_rarity.contact_rarity": 0.0, "temporal_leak.leak": False,
    "contamination.contaminated": False, "junk.junk": 0.0, "copies.near": 0, "copies.first": True,
    "copies.cluster": None, "n_tokens": 100,
}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> pa.Table:
    told = pa.Table.from_pylist([NOTHING | row for row in rows])
    return told.append_column("id", ids(range(len(rows))))


def judged(rows: list[dict[str, Any]], out: Path, **fields: Any) -> dict[str, Any]:
    found, _ = score(ForgetRisk(features=ALL, **fields), table(rows), out)
    return found


def test_priors_by_hand(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"licence.p_delete": None},
        {"pii.spans": 3, "pii.verified": 1},
        {"secrets.count": 1, "secrets.verified": 1},
        {"entity_rarity.contact_rarity": math.log(8)},
        {"temporal_leak.leak": True, "contamination.contaminated": True},
        {"junk.junk": 0.5, "licence.p_delete": 0.1},
        {"pii.spans": None, "temporal_leak.leak": None, "copies.near": None},
    ]
    found = judged(rows, tmp_path / "o")
    plain = 1 - 1e-5
    expected = [
        plain, 1 - 1e-3, plain * 0.99**2 * 0.95, plain * 0.8, plain * 0.99, plain * 0.9**2,
        0.9 * 0.995, plain,
    ]  # fmt: skip
    np.testing.assert_allclose(found["p_delete"], 1 - np.array(expected), rtol=1e-9)
    np.testing.assert_allclose(found["risk"], found["p_delete"] * found["residual"])
    np.testing.assert_allclose(found["utility"], -found["risk"])


def test_the_line_through_the_pilot() -> None:
    copies = np.array(list(residuals.PILOT), dtype=float)
    share = np.array(list(residuals.PILOT.values())) - residuals.CHANCE
    share /= residuals.CEILING - residuals.CHANCE
    slope, intercept = np.polyfit(np.log2(copies), np.log(share / (1 - share)), 1)
    assert slope == pytest.approx(residuals.SLOPE, abs=0.002)
    assert intercept == pytest.approx(residuals.INTERCEPT, abs=0.002)
    found = residuals.by_copies(copies - 1)
    bits = residuals.CHANCE + (residuals.CEILING - residuals.CHANCE) * found
    np.testing.assert_allclose(bits, list(residuals.PILOT.values()), atol=0.3)


def test_decisions_by_hand(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"pii.spans": 2},
        {"secrets.count": 1, "pii.spans": 1},
        {"pii.spans": 4, "secrets.count": 2},
        {"licence.p_delete": 0.02},
        {"licence.p_delete": 0.1, "junk.junk": 1.0},
        {"copies.near": 3, "copies.first": False},
        {"copies.near": 3},
        {"copies.near": 3, "copies.first": False, "pii.spans": 9},
        {"contamination.contaminated": True, "pii.spans": 1},
        {"temporal_leak.leak": True},
    ]
    found = judged(rows, tmp_path / "o")
    both = [f"{d} {r}" for d, r in zip(found["decision"], found["reason"], strict=True)]
    assert both == [
        "keep low", "redact personal", "redact secrets", "drop spans", "quarantine licence",
        "drop licence", "cap copies", "keep low", "drop spans", "drop contamination",
        "drop temporal",
    ]  # fmt: skip
    single = residuals.by_copies(np.zeros(1))[0]
    gone = [3, 5, 6, 8, 9, 10]
    assert found["left"][gone].tolist() == [0] * 6
    np.testing.assert_allclose(found["left"][[1, 2]], 1e-5 * single, rtol=1e-6)
    np.testing.assert_allclose(found["left"][7], 1e-5 * single, rtol=1e-6)  # its copies are capped
    assert found["risk"][7] > 5 * found["left"][7]
    kinds = list(
        findings(pa.array(found["findings"].tolist(), ForgetRisk.columns["findings"].dtype))
    )
    assert [f[0].reason if f else "" for f in kinds[:4]] == [
        "", "redact_personal", "redact_secrets", "drop_spans",
    ]  # fmt: skip


def test_the_tail_keeps_what_is_worth_more_than_its_deletion(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"licence.p_delete": 0.1}, {"licence.p_delete": 0.1}, {}]
    dear = judged(rows, tmp_path / "dear")
    assert dear["decision"].tolist() == ["drop", "drop", "keep"]
    cheap = judged(rows, tmp_path / "cheap", penalty=1, cost_unlearn=0.1)
    assert cheap["decision"].tolist() == ["keep"] * 3
    assert cheap["reason"].tolist() == ["tail", "tail", "low"]
    single = residuals.by_copies(np.zeros(1))[0]
    edge = cheap["benefit"][0] / 0.1 / single  # the penalty at which it is worth its cost exactly
    costs = {"cost_plan": 0, "cost_unlearn": 0, "drop_at": 0.09}
    below = judged(rows, tmp_path / "below", penalty=edge * 0.999, **costs)
    above = judged(rows, tmp_path / "above", penalty=edge * 1.001, **costs)
    assert (below["reason"][0], above["decision"][0]) == ("tail", "drop")


def test_a_long_text_with_some_addresses_is_redacted_and_a_list_of_them_is_dropped(
    tmp_path: Path,
) -> None:
    sizes = [(6, 121), (6, 120), (5, 10), (40, 5000), (40, 800)]
    rows = [{"pii.spans": spans, "n_tokens": tokens} for spans, tokens in sizes]
    told = judged([*rows, {"pii.spans": 6, "n_tokens": None}], tmp_path / "o")
    assert told["decision"].tolist() == ["redact", "drop", "redact", "redact", "drop", "drop"]
    told = judged([*rows], tmp_path / "any", dense=0)
    assert told["decision"].tolist() == ["drop", "drop", "redact", "drop", "drop"]


def test_a_name_is_no_risk_once_the_contact_beside_it_is_replaced(tmp_path: Path) -> None:
    rare: dict[str, Any] = {"entity_rarity.contact_rarity": math.log(3), "junk.junk": 1.0}
    rows = [rare, rare | {"pii.spans": 1}, {}]
    told = judged(rows, tmp_path / "o", penalty=1e9)
    assert told["decision"].tolist() == ["quarantine", "redact", "keep"]
    assert told["left"][1] < told["left"][0]


@pytest.mark.parametrize("why", ["contamination", "licence"])
def test_copies_do_not_make_a_document_worth_keeping(why: str, tmp_path: Path) -> None:
    found = {"contamination": {"contamination.contaminated": True}}
    bad = found.get(why, {"licence.p_delete": 0.1})
    rows: list[dict[str, Any]] = [{} for _ in range(50)]
    rows += [{**bad, "copies.near": 39, "copies.first": k == 0} for k in range(40)]
    told = judged(rows, tmp_path / "o")
    assert told["benefit"][50] > 15  # told as lost, and no reason to keep it
    assert set(told["decision"][50:]) == {"drop"}
    assert set(told["reason"][50:]) == {why}


def test_benefit_is_that_of_the_tail_and_of_the_value(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"copies.near": 2, "copies.first": k == 0, "v": float(k)} for k in range(3)
    ]
    rows += [{"v": v} for v in (9.0, -1.0, None)]
    plain = judged(rows, tmp_path / "plain")["benefit"]
    assert (plain[1:3] == 0).all()
    assert plain[0] > plain[3] == plain[4] == plain[5] > 0
    valued = judged(rows, tmp_path / "valued", value="v")["benefit"]
    # ranks of 0, 1, 2, 9 and -1 in the middle of their fifths; twice that; without a score 1
    np.testing.assert_allclose(valued[3:], plain[3] * np.array([1.8, 0.2, 1.0]))
    np.testing.assert_allclose(valued[0], plain[0] * 0.6)


def test_facts_add_up(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"pii.spans": k % 8, "licence.p_delete": [1e-5, 0.1][k % 2], "copies.near": 1,
         "copies.first": k % 3 > 0} for k in range(40)
    ]  # fmt: skip
    found, facts = score(ForgetRisk(features=ALL), table(rows), tmp_path / "o")
    groups = [g for each in facts["decisions"].values() for g in each.values()]
    assert sum(g["documents"] for g in groups) == 40
    assert sum(g["tokens"] for g in groups) == 4000
    assert sum(g["removed"] for g in groups) == pytest.approx(facts["removed"])
    assert facts["removed"] == pytest.approx((found["risk"] - found["left"]).sum())
    assert facts["benefit_lost"] == pytest.approx(
        found["benefit"][found["decision"] == "drop"].sum()
    )
    assert 0 < facts["removed"] <= facts["risk"]
    assert facts["warnings"] == []


def test_rows_of_one_id_are_told_of(tmp_path: Path) -> None:
    rows = table([{}, {"copies.near": 1}])
    twice = pa.concat_tables([rows, rows.slice(1)])
    found, facts = score(ForgetRisk(features=ALL), twice, tmp_path / "o")
    assert "1 rows" in facts["warnings"][0]
    assert facts["documents"] == 3
    assert facts["clusters"] == 2
    assert found["risk"][1] == found["risk"][2]


def test_where_the_first_of_a_cluster_is_gone_another_stands_for_it(tmp_path: Path) -> None:
    some = [(False, "a"), (False, "b"), (True, "b"), (False, "a"), (False, None), (False, "c")]
    rows = table([{"copies.near": 4, "copies.first": f, "copies.cluster": c} for f, c in some])
    rows = pa.concat_tables([rows, rows.slice(5)])
    found, facts = score(ForgetRisk(features=ALL), rows, tmp_path / "o")
    expected = ["keep", "cap", "keep", "cap", "cap", "keep", "keep"]
    assert found["decision"].tolist() == expected
    assert (found["benefit"] > 0).tolist() == [d == "keep" for d in expected]
    assert facts["clusters"] == 3
    order = np.random.default_rng(0).permutation(7)
    again, _ = score(ForgetRisk(features=ALL), rows.take(pa.array(order)), tmp_path / "p", pieces=3)
    assert again["decision"].tolist() == [expected[k] for k in order]


def test_a_feature_without_a_value_is_told_of(tmp_path: Path) -> None:
    rows = table([{"entanglement.by_cluster": None, "junk.junk": None}, {"junk.junk": 0.1}])
    part = ForgetRisk(features=["entanglement", "junk", "licence"])
    rows = rows.set_column(
        rows.column_names.index("entanglement.by_cluster"), "entanglement.by_cluster",
        pa.array([math.nan, None], pa.float32()),
    )  # fmt: skip
    _, facts = score(part, rows, tmp_path / "o")
    assert facts["warnings"][0].startswith("no row has a value in entanglement.by_cluster, which")
    assert "`cluster`" in facts["warnings"][0]


def test_only_listed_features_are_needed(tmp_path: Path) -> None:
    part = ForgetRisk(features=["licence", "copies"], columns_of={"copies": ["n"]}, value="u")
    assert part.needs == ("licence.p_delete", "n", "u", "n_tokens")
    assert ForgetRisk(features=[]).needs == ("n_tokens",)
    found, _ = score(ForgetRisk(features=[]), table([{}, {}]), tmp_path / "o")
    assert found["p_delete"].tolist() == pytest.approx([1e-3, 1e-3])
    assert found["decision"].tolist() == ["keep", "keep"]


def drill(path: Path, n: int = 80) -> Path:
    rng = np.random.default_rng(0)
    copies, sharp = rng.integers(0, 17, n), rng.random(n)
    left = np.clip(0.05 + 0.04 * copies - 0.3 * sharp + 0.05 * rng.standard_normal(n), 0, 1)
    columns = {"copies.near": copies, "sharpness": sharp, "residual": left}
    pq.write_table(pa.table(columns), path)
    return path


def test_a_drill_is_monotone_and_better_than_copies_alone(tmp_path: Path) -> None:
    path = drill(tmp_path / "drill.parquet")
    part = ForgetRisk(
        features=["copies", "sharpness"], columns_of={"sharpness": ["s"]}, drill=str(path)
    )
    rows = table([{"copies.near": c, "s": s} for s in (0.1, 0.5, 0.9) for c in range(17)])
    found, facts = score(part, rows, tmp_path / "o")
    grid = found["residual"].reshape(3, 17)
    assert (np.diff(grid, axis=1) >= 0).all()
    assert (np.diff(grid, axis=0) <= 0).all()
    assert grid[0, -1] > grid[0, 0] + 0.2
    assert ((grid > 0) & (grid < 1)).all()
    told = facts["drill"]
    assert told["features"] == ["copies", "sharpness"]
    assert told["documents"] == 80
    assert told["r2"] > max(0.5, told["by_copies"]["r2"])
    assert facts["warnings"] == []


def test_a_drill_as_json_lines_in_another_row_order_is_the_same(tmp_path: Path) -> None:
    path = drill(tmp_path / "drill.parquet")
    rows = pq.read_table(path).to_pylist()[::-1]
    other = tmp_path / "drill.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = [ForgetRisk(features=["copies"], drill=str(p)) for p in (path, other)]
    one, two = (
        score(p, table([{"copies.near": 5}, {}]), tmp_path / str(k))[0] for k, p in enumerate(parts)
    )
    np.testing.assert_array_equal(one["residual"], two["residual"])
    assert parts[0].fingerprint != ForgetRisk(features=["copies"]).fingerprint
    before = parts[0].fingerprint
    drill(path, 60)
    assert parts[0].fingerprint != before


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"copies": [1] * 30}, "residual"),
        ({"copies": [1] * 30, "residual": [1.5] * 30}, "0 to 1"),
        ({"copies": [1] * 30, "residual": [None] * 30}, "0 to 1|rank"),
        ({"copies": [1] * 9, "residual": [0.5] * 9}, "too few"),
        ({"other": [1] * 30, "residual": [0.5] * 30}, "none of"),
    ],
)
def test_bad_drills(columns: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=said):
        score(ForgetRisk(features=["copies"], drill=str(path)), table([{}]), tmp_path / "o")


def test_bad_fields_and_columns(tmp_path: Path) -> None:
    for fields in (
        {"features": ["nothing"]}, {"columns_of": {"copies": []}}, {"priors": {"personal": 1.0}},
        {"priors": {"nobody": 0.1}}, {"drop_at": 0.001}, {"penalty": -1.0}, {"max_spans": -1},
        {"dense": -0.1}, {"dense": math.nan},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"\w"):
            ForgetRisk(**fields)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="probabilities"):
        judged([{"licence.p_delete": 2.0}], tmp_path / "p")
    with pytest.raises(DataError, match="drill"):
        score(ForgetRisk(features=["copies"], drill="none.jsonl"), table([{}]), tmp_path / "d")
    missing = ForgetRisk(features=["copies", "sharpness"], columns_of={"sharpness": ["junk.junk"]})
    _, facts = score(missing, table([{}]), tmp_path / "s")
    assert "sharpness" in facts["warnings"][0]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "licence.p_delete": st.sampled_from([1e-5, 1e-3, 1e-2, 1e-1]),
                "pii.spans": st.integers(0, 9),
                "secrets.count": st.integers(0, 3),
                "junk.junk": st.floats(0, 1),
                "copies.near": st.integers(0, 20),
                "copies.first": st.booleans(),
            }
        ),
        min_size=1,
        max_size=12,
    )
)
def test_what_always_holds(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    found, facts = score(ForgetRisk(features=ALL), table(rows), tmp_path_factory.mktemp("o") / "o")
    assert ((found["p_delete"] > 0) & (found["p_delete"] < 1)).all()
    assert (found["left"] <= found["risk"] + 1e-15).all()
    assert (found["benefit"] >= 0).all()
    spans = np.array([r["pii.spans"] + r["secrets.count"] for r in rows])
    assert set(found["decision"][spans > 5]) <= {"drop"}
    assert not ((spans > 0) & (found["decision"] == "keep")).any()
    first = np.array([r["copies.first"] for r in rows])
    assert set(found["decision"][~first]) <= {"drop", "cap"}
    assert facts["benefit_lost"] <= facts["benefit"] + 1e-12
