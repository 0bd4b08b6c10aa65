"""Personal data is found by its form and its check digits, and nothing else is."""

from __future__ import annotations

import itertools
import re
import sys
import types
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline import checksums, personal
from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import findings
from foresift.pipeline.personal_numbers import IBAN_LENGTH, card
from foresift.scorers._personal_presidio import merged
from foresift.scorers.pii import Pii

# -- check digits: the plain definitions -------------------------------------------------------


def plain_luhn(digits: str) -> bool:
    total = 0
    for place, c in enumerate(reversed(digits)):
        value = int(c) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def plain_iban(account: str) -> bool:
    rest = 0
    for c in account[4:] + account[:4]:
        value = int(c) if c.isdecimal() else ord(c) - ord("A") + 10
        rest = (rest * (10 if value < 10 else 100) + value) % 97
    return rest == 1


def plain_verhoeff(digits: str) -> bool:
    """Symmetries of a pentagon as permutations of its corners, composed one after the other."""

    def symmetry(k: int) -> tuple[int, ...]:
        turned = [(corner + k) % 5 for corner in range(5)]
        return tuple(turned if k < 5 else [(k - 5 - corner) % 5 for corner in range(5)])

    names = {symmetry(k): k for k in range(10)}
    power = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]
    check = 0
    for place, c in enumerate(reversed(digits)):
        value = int(c)
        for _ in range(place % 8):
            value = power[value]
        first, second = symmetry(check), symmetry(value)
        check = names[tuple(first[second[corner]] for corner in range(5))]
    return check == 0


def plain_cpf(digits: str) -> bool:
    for length in (9, 10):
        total = sum(int(digits[k]) * (length + 1 - k) for k in range(length))
        want = 11 - total % 11
        if int(digits[length]) != (0 if want > 9 else want):
            return False
    return True


KNOWN = {
    "card": ("4111111111111111", plain_luhn),
    "iban": ("GB82WEST12345698765432", plain_iban),
    "in_aadhaar": ("234123412346", plain_verhoeff),
    "br_cpf": ("52998224725", plain_cpf),
    "uk_nhs": ("9434765919", checksums.uk_nhs),
    "au_tfn": ("123456782", checksums.au_tfn),
    "ca_sin": ("046454286", plain_luhn),
    "fr_nir": ("255081416802538", checksums.fr_nir),
    "de_tax_id": ("86095742719", checksums.de_tax_id),
    "es_nif": ("12345678Z", checksums.es_nif),
    "it_fiscal_code": ("RSSMRA85T10A562S", checksums.it_fiscal_code),
    "nl_bsn": ("111222333", checksums.nl_bsn),
    "pl_pesel": ("44051401359", checksums.pl_pesel),
    "se_personnummer": ("8112189876", checksums.se_personnummer),
    "fi_hetu": ("131052-308T", checksums.fi_hetu),
    "cn_resident_id": ("11010519491231002X", checksums.cn_resident_id),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_known_numbers_pass_and_one_wrong_digit_is_seen(kind: str) -> None:
    number, check = KNOWN[kind]
    assert check(number)
    for place, digit in itertools.product(range(len(number)), "0123456789"):
        if number[place].isdecimal() and number[place] != digit:
            assert not check(number[:place] + digit + number[place + 1 :])


@given(st.text("0123456789", min_size=2, max_size=24))
def test_fast_checks_agree_with_the_plain_ones(digits: str) -> None:
    assert checksums.luhn(digits) == plain_luhn(digits)
    assert checksums.verhoeff(digits) == plain_verhoeff(digits)
    if len(digits) > 10 and len(set(digits[:11])) > 1:
        assert checksums.br_cpf(digits[:11]) == plain_cpf(digits[:11])
    assert checksums.iban("GB" + digits) == plain_iban("GB" + digits)


def test_an_iban_without_its_check_digits_is_completed_by_one_pair_of_97() -> None:
    good = [k for k in range(2, 99) if checksums.iban(f"DE{k:02d}370400440532013000")]
    assert good == [89]


# -- planted values (forgetting.md C.4) --------------------------------------------------------

PLACES = [
    "It is {} today.", "end of the text {}", "end of line {}\nnext", '"{}"', "'{}'", "«{}», so",
    "a\u00a0{}\u00a0b", "a\u2009{}\u202fb", "番号\u3000{}\u3000です", "({})", "x;{}, y",
    "\u200f{}\u200e",
]  # fmt: skip


def planted(kind: str, rng: np.random.Generator) -> str:
    """A random valid number of a type, as it is written; found by trying check digits out."""

    def complete(body: str, tails: Any, check: Any) -> str:
        return next((body + t for t in tails if check(body + t)), "") or planted(kind, rng)

    def digits(n: int) -> str:
        return "".join(map(str, rng.integers(0, 10, n)))

    one, two = "0123456789", [f"{k:02d}" for k in range(100)]
    if kind == "card":
        prefix, length = [("4", 16), ("51", 16), ("37", 15), ("6011", 16), ("4", 13), ("36", 14)][
            rng.integers(6)
        ]
        return complete(prefix + digits(length - len(prefix) - 1), one, plain_luhn)
    if kind == "iban":
        country = sorted(IBAN_LENGTH)[rng.integers(len(IBAN_LENGTH))]
        body = digits(IBAN_LENGTH[country] - 4)
        return next(v for k in two if plain_iban(v := f"{country}{k}{body}"))
    if kind == "in_aadhaar":
        v = complete(str(rng.integers(2, 10)) + digits(10), one, plain_verhoeff)
        return v if " " in v else f"{v[:4]} {v[4:8]} {v[8:]}"
    if kind == "br_cpf":
        v = re.sub(r"\D", "", complete(digits(9), two, plain_cpf))
        return f"{v[:3]}.{v[3:6]}.{v[6:9]}-{v[9:]}"
    born = f"{rng.integers(1, 29):02d}", f"{rng.integers(1, 13):02d}", f"{rng.integers(50, 99)}"
    if kind == "fi_hetu":
        return complete("".join(born) + "-" + digits(3), checksums._HETU, checksums.fi_hetu)
    if kind == "se_personnummer":
        v = complete("".join(born[::-1]) + digits(3), one, checksums.se_personnummer)
        return v if "-" in v else f"{v[:6]}-{v[6:]}"
    if kind == "cn_resident_id":
        body = "110105" + "19" + "".join(born[::-1]) + digits(3)
        return complete(body, one + "X", checksums.cn_resident_id)
    if kind == "fr_nir":
        return complete("1" + born[2] + born[1] + digits(8), two, checksums.fr_nir)
    if kind == "es_nif":
        return complete(digits(8), checksums._NIF, checksums.es_nif)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return complete(f"RSSMRA{born[2]}T{born[0]}A{digits(3)}", letters, checksums.it_fiscal_code)


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
    """Bounded by construction: no pattern reaches further than 400 characters from its start."""
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


# -- Presidio ----------------------------------------------------------------------------------


class _Analyser:
    """Finds Bob, and takes his address for a place."""

    def __init__(self, **_: Any) -> None:
        self.asked: list[str] = []

    def analyze(self, *, text: str, language: str, entities: list[str] | None) -> list[Any]:
        self.asked.append(text)
        hits = [("PERSON", m.span(), 0.85) for m in re.finditer("Bob Builder", text)]
        hits += [("LOCATION", m.span(), 0.9) for m in re.finditer(r"example\.org", text)]
        hits += [("DATE_TIME", m.span(), 0.9) for m in re.finditer("Monday", text)]
        return [
            types.SimpleNamespace(entity_type=kind, start=a, end=b, score=s)
            for kind, (a, b), s in hits
        ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Presidio and spaCy."""

    class Registry:
        def __init__(self, **_: Any) -> None: ...

        def load_predefined_recognizers(self, **_: Any) -> None: ...

        def remove_recognizer(self, name: str) -> None: ...

    class Nlp:
        def __init__(self, **_: Any) -> None: ...

    modules = {
        "spacy": {"blank": lambda language: None, "load": lambda name: None},
        "presidio_analyzer": {"AnalyzerEngine": _Analyser, "RecognizerRegistry": Registry},
        "presidio_analyzer.nlp_engine": {"SpacyNlpEngine": Nlp},
    }
    for name, held in modules.items():
        module = types.ModuleType(name)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("fake")
def test_presidio_is_asked_where_a_name_stands_near_a_contact() -> None:
    near = "On Monday Bob Builder wrote from bob@example.org"
    part = Pii(engine="presidio")
    told = part.score(pa.table({"text": [near, "Bob Builder alone", "only bob@example.org"]}))
    assert part._analyser.asked == [near]
    assert told["spans"].tolist() == [2, 0, 1]
    assert told["other"].tolist() == [1, 0, 0]
    first = next(findings(told["findings"]))
    assert [f.reason for f in first] == ["person", "email"]
    told = score([near, "Bob Builder alone", ""], engine="presidio", everywhere=True)
    assert told["spans"].tolist() == [2, 1, 0]


@pytest.mark.usefixtures("fake")
def test_long_documents_reach_presidio_in_pieces() -> None:
    text = "word " * 50_000 + "Bob Builder " + "word " * 20_000
    told = score([text], engine="presidio", everywhere=True)
    found = next(findings(told["findings"]))
    assert [(f.reason, f.start) for f in found] == [("person", 250_000)]


def test_without_presidio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(DataError, match=r"foresift\[pii\]"):
        score(["Bob Builder"], engine="presidio", everywhere=True)


def test_the_first_tier_wins_where_both_found_something() -> None:
    one = personal.Hit("email", 3, 9, 0.9, False)
    two = [personal.Hit("place", 8, 12, 1.0, False), personal.Hit("person", 20, 24, 0.6, False),
           personal.Hit("place", 22, 30, 0.5, False)]  # fmt: skip
    assert [h.kind for h in merged([one], two)] == ["email", "person"]
