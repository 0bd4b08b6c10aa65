"""Personal data is found by its form and its check digits, and nothing else is."""

from __future__ import annotations

import gzip
import itertools
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline import personal
from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import findings
from foresift.pipeline.personal_numbers import card
from foresift.scorers.pii import Pii, _keys
from tests.runs import ROOT
from tests.scorers.identity_numbers import KNOWN, plain_luhn, planted

# -- planted values -----------------------------------------------------------------------

PLACES = [
    "It is {} today.", "end of the text {}", "end of line {}\nnext", '"{}"', "'{}'", "«{}», so",
    "a\u00a0{}\u00a0b", "a\u2009{}\u202fb", "番号\u3000{}\u3000です", "({})", "x;{}, y",
    "\u200f{}\u200e",
]  # fmt: skip


ALONE = (
    "card", "iban", "in_aadhaar", "br_cpf", "fi_hetu", "se_personnummer", "cn_resident_id",
    "fr_nir", "es_nif", "it_fiscal_code",
)  # fmt: skip


@pytest.mark.parametrize("kind", ALONE)
def test_every_planted_number_with_check_digits_is_found(kind: str) -> None:
    rng = np.random.default_rng(0)
    for _, place in itertools.product(range(10), PLACES):
        value = planted(kind, rng)
        text = place.format(value)
        start = text.index(value)
        hits = [(h.kind, h.start, h.stop) for h in personal.find(text) if h.checked]
        assert hits == [(kind, start, start + len(value))], text


NAMED = {
    "uk_nhs": "My NHS number is {}", "au_tfn": "TFN: {}", "ca_sin": "his SIN is {}",
    "nl_bsn": "BSN {}", "pl_pesel": "PESEL {}", "de_tax_id": "Steuer-ID: {}",
    "br_cpf": "CPF {}", "in_aadhaar": "Aadhaar no. {}",
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMED)
def test_weak_numbers_count_behind_a_word_that_names_them(kind: str) -> None:
    number = KNOWN[kind][0]
    text = NAMED[kind].format(number)
    assert [(h.kind, h.checked) for h in personal.find(text)] == [(kind, True)]
    assert not [h for h in personal.find(f"item {number}") if h.kind == kind]


@pytest.mark.parametrize("gap", [" ", "-", "\u00a0", "\u2009", "\u202f", "\u2011", "\u2007"])
def test_numbers_in_groups(gap: str) -> None:
    for value in ("4111 1111 1111 1111", "3782 822463 10005", "GB82 WEST 1234 5698 7654 32"):
        shown = value.replace(" ", gap)
        assert [(h.start, h.stop) for h in personal.find(f"no {shown} ok")] == [(3, 3 + len(shown))]


def test_two_cards_in_a_row_are_two() -> None:
    text = "4111 1111 1111 1111 4012 8888 8888 1881, 4111111111111111"
    assert [(h.start, h.stop) for h in personal.find(text)] == [(0, 19), (20, 39), (41, 57)]


OTHERS = {
    "email": [
        "bob@example.org", "first.last+tag@mail.example.co.uk", "x_1@a-b.io", "o'hara@example.ie",
        "jürgen@müller.de", "почта@пример.рф", "a%b@example.com", "B@EXAMPLE.ORG", "q@xn--p1ai.com",
        "a@b.c.example.museum",
    ],
    "phone": [
        "+49 30 901820", "+1 (415) 555-2671", "+442079460958", "(415) 555-2671", "415-555-2671",
        "415.555.2671", "1-800-555-0199", "+41 (0)96 471 07 95", "03.93.92.16.85", "0341 8387176",
    ],
    "ip": [
        "93.184.216.34", "8.8.8.200", "203.0.114.77", "151.101.1.69", "2001:4860:4860::8888",
        "2606:2800:220:1:248:1893:25c8:1946", "64.233.160.5", "198.41.0.4", "77.88.55.66",
        "2a00:1450:4001:81b::200e",
    ],
    "us_ssn": ["123-45-6789", "001-01-0001", "514-69-0360", "853-37-1694", "665-12-3456"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), [(k, v) for k, vs in OTHERS.items() for v in vs])
def test_values_without_check_digits(kind: str, value: str) -> None:
    for place in PLACES:
        text = place.format(value)
        start = text.index(value)
        hits = [(h.kind, h.start, h.stop, h.checked) for h in personal.find(text)]
        assert hits == [(kind, start, start + len(value), False)], text


@pytest.mark.parametrize(
    "text",
    [
        "ISBN 978-0-306-40615-7", "ISBN 0-306-40615-2", "ISBN-13: 9780306406157", "0-306-40615-2",
        "978-3-16-148410-0", "ISSN 2049-3630", "doi:10.1038/s41586-020-2649-2", "10.1000/182",
        "10.1109/5.771073", "https://doi.org/10.1016/j.cell.2020.12.0123456", "version 1.2.3.4",
        "v2.13.0", "Chrome/91.0.4472.124", "10.0.19041.1", "numpy==1.26.4", "kernel 5.10.147.0",
        "release 12.1.0.2", "in 2020-12-31 23:59:59", "2003-08-28", "31.12.1999", "1914-1918",
        "pi is 3.14159265358979", "123,456,789 rows", "02110-1301", "sha 4e07408562bedb8b60ce05c1",
        "std::vector", "face::bad", "12:34:56", "00:1A:2B", "127.0.0.1", "192.168.1.17", "::1",
        "550e8400-e29b-41d4-a716-446655440000", "x@y", "a @ b", "photo@2x.png", "@handle", "user@",
        "4111111111111112", "GB83WEST12345698765432", "000-12-3456", "666-12-3456", "900-12-3456",
        "0000000000000000", "123-00-4567", "1.2.3.4.5.6", "9.9.9", "arXiv:2510.18909",
        "1 656 560 1442 2000 13 26", "(2001).2000-2001", "status/1415926535897932384",
        "§ 1.2.3.4", "EC 3.4.21.26",
    ],
)  # fmt: skip
def test_nothing_else_is_found(text: str) -> None:
    for place in ("{}", "See {} for it.", "“{}”", "\u00a0{}\u00a0"):
        assert personal.find(place.format(text)) == []


SYNTH = ROOT.parent / "shared" / "data" / "pii" / "presidio-synth" / "synth_dataset_v2.json.gz"


@pytest.mark.skipif(not SYNTH.exists(), reason=f"{SYNTH.name} is not here")
def test_sentences_of_others() -> None:
    """The templates that rules were written with; the others are for the benchmark."""
    with gzip.open(SYNTH, "rt", encoding="utf-8") as file:
        rows = [row for row in json.load(file) if row["template_id"] % 2 == 0]
    kinds = {"CREDIT_CARD": "card", "IBAN_CODE": "iban", "EMAIL_ADDRESS": "email"}
    wanted = [
        {(kinds[s["entity_type"]], s["start_position"], s["end_position"])
         for s in row["spans"] if s["entity_type"] in kinds}
        for row in rows
    ]  # fmt: skip
    found = [{tuple(h[:3]) for h in personal.find(row["full_text"])} for row in rows]
    assert sum(map(len, wanted)) == 126
    assert all(want <= have for want, have in zip(wanted, found, strict=True))


# -- awkward text ------------------------------------------------------------------------------


def test_characters_without_width_do_not_hide_a_value() -> None:
    text = (
        "at bob\u200b@exam\u00adple.org, 4111\u2060 1111 11\u200d11 1111, \u202b+49 30 901820\u202c"
    )
    shown = [(h.kind, text[h.start : h.stop]) for h in personal.find(text)]
    assert [kind for kind, _ in shown] == ["email", "card", "phone"]
    assert shown[0][1] == "bob\u200b@exam\u00adple.org"
    assert shown[2][1] == "+49 30 901820"


def test_digits_and_signs_of_other_scripts() -> None:
    arabic, wide = "٤" + 15 * "١", "＋４９ ３０ ９０１８２０"
    text = f"הטלפון: \u200e+972 3 123 4567\u200e، {arabic} {wide} 请联系bob＠example.org谢谢"
    hits = [(h.kind, text[h.start : h.stop]) for h in personal.find(text)]
    assert hits == [
        ("phone", "+972 3 123 4567"), ("card", arabic), ("phone", wide),
        ("email", "bob＠example.org"),
    ]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("a1@.:- +(4\u200b\u00a0é三\n0x"), max_size=60))
def test_hits_are_in_order_apart_and_inside(text: str) -> None:
    end = 0
    for hit in personal.find(text):
        assert end <= hit.start < hit.stop <= len(text)
        end = hit.stop


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([v for vs in OTHERS.values() for v in vs]), st.integers(0, 3))
def test_what_stands_far_away_changes_nothing(value: str, lines: int) -> None:
    alone = [(h.kind, h.start, h.stop) for h in personal.find(value)]
    moved = personal.find("some words\n" * lines + value + "\nand more")
    assert [(h.kind, h.start - 11 * lines, h.stop - 11 * lines) for h in moved] == alone


@pytest.mark.parametrize(
    "piece",
    ["a", "1", "1 ", "12-", "(1", "+1 ", "a@", "a@b.", "@", ":", "0:", "1.", "GB82", "4111 ", "é1"],
)
def test_a_long_line_of_one_thing_is_read_to_its_end(piece: str) -> None:
    """Bounded by construction: each character is looked at a bounded number of times."""
    text = piece * (400_000 // len(piece)) + " bob@example.org"
    assert personal.find(text)[-1].kind == "email"


def test_fifty_megabytes_in_one_line() -> None:
    text = "lorem ipsum dolor " * 2_900_000 + "bob@example.org"
    assert [(h.kind, h.stop) for h in personal.find(text)] == [("email", len(text))]


# -- the part ----------------------------------------------------------------------------------


def score(texts: list[str | None], **fields: Any) -> dict[str, Any]:
    return dict(Pii(**fields).score(pa.table({"text": pa.array(texts, pa.string())})))


def test_columns() -> None:
    text = "bob@example.org 4111111111111111 and 52998224725"
    told = score([text, None, "PESEL 44051401359", "plain words"])
    assert told["spans"].tolist() == [2, 0, 1, 0]
    assert told["verified"].tolist() == [1, 0, 1, 0]
    assert told["email"].tolist() == [1, 0, 0, 0]
    assert told["card"].tolist() == [1, 0, 0, 0]
    assert told["national_id"].tolist() == [0, 0, 1, 0]
    assert told["share"].tolist() == pytest.approx([31 / len(text), 0, 11 / 17, 0])
    first = next(findings(told["findings"]))
    assert [(f.reason, f.start, f.stop) for f in first] == [("email", 0, 15), ("card", 16, 32)]
    assert told["keys"].to_pylist() == [[]] * 4


def test_what_is_less_sure_can_be_left_out() -> None:
    text = "0341 8387176 or +49 30 901820"
    assert score([text])["phone"].tolist() == [2]
    assert score([text], min_confidence=0.9)["phone"].tolist() == [1]


def test_a_person_is_found_by_a_keyed_hash_of_any_way_of_writing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = "sixteen bytes or more"
    monkeypatch.setenv("PII_KEY", key)
    texts: list[str | None] = [
        "Bob@Example.org", "call 4111-1111-1111-1111", "tel +49 (0)30 901820", "none",
    ]  # fmt: skip
    keys = score(texts, key_env="PII_KEY")["keys"].to_pylist()
    asked = [
        ("email", "bob@example.org"),
        ("card", "4111 1111 1111 1111"),
        ("phone", "004930901820"),
    ]
    for row, (kind, value) in enumerate(asked):
        assert keys[row] == [personal.keyed(kind, value, key.encode())]
    assert keys[3] == []
    assert keys[0] != [personal.keyed("email", "bob@example.org", b"another key of length")]
    assert personal.keyed("card", "1", b"k" * 16) != personal.keyed("iban", "1", b"k" * 16)


@pytest.mark.parametrize("value", ["", "short"])
def test_without_a_key_there_is_no_hash(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PII_KEY", value)
    with pytest.raises(DataError, match="no key of 16 bytes"):
        score(["bob@example.org"], key_env="PII_KEY")


@pytest.mark.parametrize(
    "fields", [{"min_confidence": 2}, {"everywhere": True}, {"entities": ["PERSON"]}]
)
def test_fields_that_do_not_fit(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"between|presidio"):
        Pii(**fields)


def test_a_card_needs_an_issuer() -> None:
    assert plain_luhn("9999999999999995")
    assert not card("9999999999999995")
    assert not card("4000000000000000")


def test_what_is_no_address_after_all_has_a_hash_too() -> None:
    """Presidio calls a network or an address with a zone an IP_ADDRESS."""
    text = "see 10.0.0.0/8 and fe80::1%eth0/64"
    hits = [personal.Hit("ip", 4, 14, 0.6, False), personal.Hit("ip", 19, 34, 0.6, False)]
    found = _keys(text, hits, b"0123456789abcdef")
    assert [len(key) for key in found] == [16, 16]
    assert len(set(found)) == 2
    assert _keys(text, hits, b"") == []


@pytest.mark.parametrize(
    ("before", "behind"),
    [("", " 12/25"), ("", " 123"), ("order 2024 ", ""), ("1234 5678 ", " 99"), ("", " 2024")],
)
def test_a_card_is_found_beside_other_numbers(before: str, behind: str) -> None:
    value = "4111 1111 1111 1111"
    found = personal.find(f"{before}{value}{behind}.")
    assert ("card", len(before), len(before) + len(value)) in [h[:3] for h in found]
