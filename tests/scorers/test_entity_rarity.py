"""Names without a dictionary, their frequencies by hand, and contacts beside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import findings
from foresift.pipeline.tables import content_ids
from foresift.scorers._names import Name, names
from foresift.scorers.entity_rarity import EntityRarity
from foresift.scorers.pii import Pii
from tests.scorers.fitting import score

LETTER = "please ask Maria Jankowska (maria.j@example.org) about it"


def table(texts: list[str | None]) -> pa.Table:
    rows = pa.table({"text": pa.array(texts, pa.string())})
    return rows.append_column("id", content_ids(rows))


def found(text: str) -> list[str]:
    return [text[name.start : name.stop] for name in names(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("we met Maria Jankowska there", ["Maria Jankowska"]),
        ("by Ludwig van Beethoven, and J. R. R. Tolkien", ["Ludwig van Beethoven"]),
        ("signed Sean O'Neil and Jean-Luc McDonald", ["Sean O'Neil", "Jean-Luc McDonald"]),
        ("for George R. R. Martin and José Ñandú", ["George R. R. Martin", "José Ñandú"]),
        ("писала Анна Ахматова вчера, και ο Νίκος Καζαντζάκης", ["Анна Ахматова",
                                                                 "Νίκος Καζαντζάκης"]),
        ("Yesterday Paul Maier came, not yesterday evening", ["Paul Maier"]),
        ("Paul Maier came", ["Paul Maier"]),
        ("The Council met, as the council does", []),
        ("How To Win Every Single Argument In Town", []),
        ("class HttpServer uses OpenSsl and ABC Def", []),
        ("one Word alone, 東京 大阪, ALL CAPS HERE", []),
        ("x@Foo Bar and a.Foo Bar", []),
        ("", []),
    ],
)  # fmt: skip
def test_names(text: str, expected: list[str]) -> None:
    assert found(text) == expected


def test_frequencies_by_hand(tmp_path: Path) -> None:
    texts: list[str | None] = [
        LETTER,
        "then Paul Maier wrote",
        "and Paul  Maier or PAUL Maier or with Paul Maier and Eva Novak",
        "no name here, mail x@example.org",
        None,
        LETTER,
    ]
    told, facts = score(EntityRarity(), table(texts), tmp_path / "o")
    assert facts == {"documents": 5, "names": 3, "rare_names": 3}
    assert told["min_df"].tolist()[:3] == [1, 2, 1]
    assert np.isnan(told["min_df"][3:5]).all()
    assert told["rarity"][1] == pytest.approx(-math.log(2 / 5))
    assert told["names"].tolist() == [1, 1, 2, 0, 0, 1]
    assert told["beside_contact"].tolist() == [True, False, False, False, False, True]
    assert told["contact_rarity"][0] == pytest.approx(math.log(5))
    assert told["utility"].tolist()[1:5] == [0, 0, 0, 0]
    spans = list(
        findings(pa.array(told["findings"].tolist(), EntityRarity.columns["findings"].dtype))
    )
    assert [(f.reason, LETTER[f.start : f.stop], f.value) for f in spans[0]] == [
        ("rare_name", "Maria Jankowska", 1.0)
    ]
    assert spans[2] == []


def test_beside_is_within_reach_on_either_side(tmp_path: Path) -> None:
    def beside(gap: int, reach: int) -> list[bool]:
        dots = "~" * gap
        texts: list[str | None] = [
            f"call Eva Novak{dots} a@example.org",
            f"a@example.org {dots}Eva Novak",
        ]
        out = tmp_path / f"{gap}-{reach}"
        beside: list[bool] = score(EntityRarity(reach=reach), table(texts), out)[0][
            "beside_contact"
        ].tolist()
        return beside

    assert beside(9, 10) == [True, True]
    assert beside(10, 10) == [False, False]


@settings(max_examples=60, deadline=None)
@given(
    here=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=6),
    given_=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=6),
    reach=st.integers(0, 12),
)
def test_beside_is_that_of_every_pair(
    here: list[tuple[int, int]], given_: list[tuple[int, int]], reach: int
) -> None:
    found = [Name(0, start, start + size) for start, size in here]
    spans = [(start, start + size) for start, size in given_]
    expected = [
        any(a - name.stop <= reach and name.start - b <= reach for a, b in spans) for name in found
    ]
    if found:
        assert EntityRarity(reach=reach)._beside(found, spans).tolist() == expected


def test_a_common_name_beside_a_contact_is_no_finding(tmp_path: Path) -> None:
    texts: list[str | None] = [f"{k} is by Eva Novak, e@example.org" for k in range(4)]
    told, _ = score(EntityRarity(rare=3), table(texts), tmp_path / "o")
    assert told["contact_rarity"].tolist() == [0.0] * 4
    assert [len(f) for f in told["findings"]] == [0] * 4


def test_given_contacts_say_the_same_as_those_found(tmp_path: Path) -> None:
    rows = table([LETTER, "ask Eva Novak", "phone +49 30 1234567 of Ivo Novak", "", "Eva Novak"])
    given = rows.append_column("pii.findings", pa.chunked_array([Pii().score(rows)["findings"]]))
    own, _ = score(EntityRarity(), rows, tmp_path / "own")
    told, _ = score(EntityRarity(contacts="pii.findings"), given, tmp_path / "given")
    assert EntityRarity(contacts="pii.findings").needs == ("pii.findings",)
    for name in own:
        if name != "findings":
            np.testing.assert_array_equal(own[name], told[name])


def test_copies_row_order_and_cuts_change_nothing(tmp_path: Path) -> None:
    texts: list[str | None] = [f"by Eva Novak and Ivo N{'abcdefgh'[k % 7]}k" for k in range(30)]
    rows = table([*texts, LETTER, None])
    turned = rows.take(pa.array(np.random.default_rng(1).permutation(rows.num_rows)))
    one, facts = score(EntityRarity(), rows, tmp_path / "one")
    other, again = score(EntityRarity(), turned, tmp_path / "other", pieces=5)
    assert facts == again
    by_id: dict[Any, float] = dict(zip(turned["id"].to_pylist(), other["rarity"], strict=True))
    np.testing.assert_array_equal([by_id[i] for i in rows["id"].to_pylist()], one["rarity"])


def test_bad_input(tmp_path: Path) -> None:
    rows = table(["by Eva Novak"]).append_column("x", pa.array([1]))
    with pytest.raises(DataError, match="findings"):
        score(EntityRarity(contacts="x"), rows, tmp_path / "o")
    with pytest.raises(ValueError, match="reach"):
        EntityRarity(reach=-1)
