"""Lines that recur, against a plain count; menus around an article; places of what was found."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.findings import findings
from foresift.pipeline.tables import content_ids
from foresift.scorers._junk_lines import Lines
from foresift.scorers.boilerplate import Boilerplate
from tests.scorers.fitting import score

ARTICLE = [
    "The council met on Tuesday to decide whether the old bridge should be repaired or replaced, "
    "and after four hours of talk it voted for a repair.",
    "Engineers had warned in the spring that the pillars on the northern side could not carry "
    "heavy lorries for more than two further winters.",
    "The work will begin in March and is expected to take about nine months, during which time a "
    "ferry will carry people and bicycles across the river.",
]
MENU = ["Home", "About us", "Log in", "Subscribe to our newsletter", "Privacy Policy", "Contact"]
PAGE = "\n".join([*MENU, "", *ARTICLE, "", "Share this on Facebook", "© 2019 All rights reserved"])


def table(texts: list[str | None], **columns: list[Any]) -> pa.Table:
    rows = pa.table({"text": pa.array(texts, pa.string()), **columns})
    return rows.append_column("id", content_ids(rows))


def test_menus_around_an_article_are_found_at_their_places(tmp_path: Path) -> None:
    found, facts = score(Boilerplate(), table([PAGE, "\n".join(ARTICLE), "", None]), tmp_path / "o")
    menu = sum(map(len, MENU)) + len("Share this on Facebook") + len("© 2019 All rights reserved")
    share = menu / (menu + sum(map(len, ARTICLE)))
    assert found["navigation"][0] == pytest.approx(share)
    assert found["utility"][0] == pytest.approx(1 - share)
    assert found["boilerplate"][1] == 0
    assert found["content"][1] > 0.9
    assert np.isnan(found["utility"][2:]).all()
    first, *rest = findings(
        pa.array(found["findings"].tolist(), Boilerplate.columns["findings"].dtype)
    )
    assert [(f.reason, PAGE[f.start : f.stop]) for f in first] == [
        ("navigation_line", "\n".join(MENU)),
        ("navigation_line", "Share this on Facebook\n© 2019 All rights reserved"),
    ]
    assert rest == [[], [], []]
    assert facts["recurring"] == 0


def test_a_line_recurs_from_three_documents_on_whatever_its_case_and_numbers(
    tmp_path: Path,
) -> None:
    texts = [
        f"{ARTICLE[0]} {k}\nOur {k} offices are open on all days of the week!" for k in range(3)
    ]
    texts[1] = texts[1].upper()
    copies = ["This is one document.\nIt is there five times."] * 5
    found, facts = score(Boilerplate(least=0.0), table([*texts, *copies]), tmp_path / "o")
    assert found["recurring"][:3].tolist() == [1, 1, 1]  # the numbers do not tell them apart
    assert found["recurring"][3:].tolist() == [0] * 5
    assert facts == {"documents": 4, "lines": 4, "recurring": 2}
    two, _ = score(Boilerplate(least=0.0), table(texts[:2]), tmp_path / "two")
    assert two["recurring"].tolist() == [0, 0]


def test_lines_recur_within_a_site(tmp_path: Path) -> None:
    texts = [f"Great deals at our shop\nText number {'abcdef'[k]}" for k in range(6)]
    sites = ["one/a", "one/b", "one/c", "two/a", "two/b", None]
    part = Boilerplate(by="site", depth=1, least=0.0)
    found, _ = score(part, table(texts, site=sites), tmp_path / "o")
    assert (found["recurring"] > 0).tolist() == [True] * 3 + [False] * 3


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a b", "B!", "b", "7", "x 9", "", "x 10"]), max_size=5),
                min_size=1, max_size=8), st.integers(2, 4))  # fmt: skip
def test_it_is_a_plain_count(
    tmp_path_factory: pytest.TempPathFactory, pages: list[list[str]], recurs: int
) -> None:
    texts = ["\n".join(page) for page in pages]

    def plain(line: str) -> str:
        return re.sub(r"[\W_]+", " ", re.sub(r"\d+", "0", line.lower())).strip()

    count = Counter(
        line for text in set(texts) for line in {plain(part) for part in text.split("\n")}
    )
    part = Boilerplate(recurs=recurs, least=0.0)
    found, _ = score(part, table(texts), tmp_path_factory.mktemp("x") / "o", pieces=3)
    for text, share in zip(texts, found["recurring"].tolist(), strict=True):
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        again = [
            len(x) for x in lines if count[plain(x)] >= recurs and re.search("[a-z]", x.lower())
        ]
        if lines:
            assert share == pytest.approx(sum(again) / sum(map(len, lines)))


def test_lines_know_their_places() -> None:
    text = "  one \n\n\ttwo\r\nthree"
    lines = Lines.of(text)
    assert lines.texts == ["one", "two", "three"]
    assert [text[a:b] for a, b in lines.spans] == lines.texts
    assert lines.features().shape == (3, 8)
    assert Lines.of("").content().shape == (0,)


@pytest.mark.parametrize("fields", [{"recurs": 1}, {"depth": -1}, {"least": 1.5}])
def test_fields_without_meaning_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Boilerplate(**fields)
