"""Numbers that name a person or an account: their forms, check digits and the words before them.

PHONE, DATE, DECIMAL and LONG are wide forms, shared by the detector and by the masks of a report.
NATIONAL lists cards and identity numbers, the surest first; where `named` is given, the form or
the check alone is too weak, and a word of it must stand within CONTEXT characters before.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from foresift.pipeline import checksums

#: characters before a number in which a word may say what it is
CONTEXT = 40
#: not glued to what stands before or behind: no part of a word, a decimal, a version or a path
_LEFT = r"(?<![0-9A-Za-z_./-])"
_RIGHT = r"(?![0-9A-Za-z_])(?![-.][0-9])"
_SEP = r"[ .-]{1,2}"

PHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,4}(?:[ .\u00a0/-]{1,2}(?:\(\d{1,5}\)[ .-]{0,2})?\d{1,12}){1,7}"
    r"|\+?(?:\(\d{1,5}\)[ .-]{0,2})?\d{1,15}"
    r"(?:(?:[ .-]{0,2}\(\d{1,5}\)[ .-]{0,2}|[ .\u00a0/-]{1,2})\d{2,12}){0,6})"
    r"(?:[ ]?(?:x|ext\.?[ ]?)\d{1,6})?(?!\w)"
)
DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}|(?:1\d|20)\d\d[-/ ](?:1\d|20)\d\d"
)
DECIMAL = re.compile(r"\d+\.\d+")
LONG = re.compile(r"(?<!\d\.)(?<!\d)\+?\d{7,}")
_TIMED = re.compile(
    r"(?:19|20)\d\d[-/. ]?(?:0\d|1[0-2])[-/. ]?[0-3]\d(?:[ .-]|\Z)"
    r"|\d{1,2}[-/.]\d{1,2}[-/.](?:19|20)\d\d\b|\((?:19|20)\d\d\)|\d{5}-\d{4}\Z"
)
_NANP = re.compile(
    r"(?:(?:\+?1|001)[ .-])?(?:\([2-9]\d\d\)[ .-]{0,2}|[2-9]\d\d[.-]|[2-9]\d\d[ ](?=\d{3}[ .-]))"
    r"[2-9]\d\d[ .-]\d{4}(?:[ ]?(?:x|ext).*)?"
)
_CALL = re.compile(
    r"\b(?:tele)?phone|\b(?:tele)?fon\b|\b(?:tel|fax|mobile?|mobil|cell(?:ular)?|desk|whats ?app"
    r"|hotline|landline|pager|voicemail|sms|t[eé]l[eé]fono|t[eé]l[eé]phone|handy)\b"
    r"|\b(?:call(?:ed|ing)?|dial(?:ed|ing)?|texts?|reach(?:ed)?|answer(?:ing|ed)?|ring|contact"
    r"|messages?)\b[^.;:\n]{0,30}\b(?:at|to|on|me|us|him|her|them|number|with)\b",
    re.IGNORECASE,
)
_OTHER = re.compile(
    r"(?:\b(?:isbn|issn|doi|version|ver|arxiv|pmid|ean|upc|gtin|oclc|lccn|serial|order|invoice|"
    r"account|licen[cs]e|id|sku|ticket|case|patent|art(?:icle)?|pages?|pp|port)"
    r"(?:[-\s]?1[03])?(?:\s?(?:no\b|nr\b|number|is\b|#)){0,3}\W{0,3}|\b10\.\d{4,9}/\S{0,30}|[#§])\Z",
    re.IGNORECASE,
)


def phone_confidence(text: str, start: int, stop: int) -> float:
    """How sure a match of PHONE is a telephone number; 0: it is none."""
    found = text[start:stop]
    digits = sum(map(str.isdigit, re.sub(r"(?:x|ext).*", "", found)))
    if not 7 <= digits <= 15 or DATE.fullmatch(found) or DECIMAL.fullmatch(found):
        return 0.0
    before = text[max(0, start - CONTEXT) : start]
    if re.match(r"[-./]\d|/\w", text[stop : stop + 2]) or re.search(r"[\w.][-/]\Z", before):
        return 0.0
    if _TIMED.match(found) or _OTHER.search(before):
        return 0.0
    if found[0] == "+":
        return 0.9 if digits >= 8 else 0.0
    called = _CALL.search(before) is not None
    if re.search(r"\d \Z", before) and " " in found and not called:
        return 0.0  # inside a table
    if _NANP.fullmatch(found):
        return 0.8
    return 0.7 if called else _unnamed(found, digits)


def _unnamed(found: str, digits: int) -> float:
    """How sure the grouping alone makes."""
    groups = re.findall(r"\d+", found)
    if len(groups) < 2 or digits > 12 or "/" in found.removeprefix(groups[0] + "/"):
        return 0.0
    if found[0] == "(" and digits >= 8:
        return 0.6
    trunk = re.fullmatch(r"0[1-9]\d{0,3}", groups[0])
    return 0.5 if trunk and 9 <= digits <= 13 and len(set(found)) > 5 else 0.0


@dataclass(frozen=True)
class Number:
    """A type of number."""

    kind: str
    pattern: re.Pattern[str]
    digits: int
    """Fewest digits, letters not counted."""
    check: Callable[[str], bool]
    confidence: float
    named: re.Pattern[str] | None = None
    checked: bool = True
    before: int = 0
    """Letters in front of the digits."""

    def agrees(self, found: str) -> bool:
        """Whether the check digits of a match are right."""
        return self.check(re.sub(r"[ ./()-]", "", found))

    def named_before(self, text: str, start: int) -> bool:
        """Whether a word before it says what it is, where one must."""
        named = self.named
        return named is None or named.search(text, max(0, start - CONTEXT), start) is not None


def _number(
    kind: str, form: str, digits: int, check: Callable[[str], bool], confidence: float = 0.95,
    named: str = "", checked: bool = True, before: int = 0,
) -> Number:  # fmt: skip
    words = re.compile(rf"\b(?:{named})\b", re.IGNORECASE) if named else None
    pattern = re.compile(_LEFT + form + _RIGHT)
    return Number(kind, pattern, digits, check, confidence, words, checked, before)


#: prefixes of issuers and the numbers of digits that they use
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"
    r"|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|3(?:09|[689]\d)\d{12,15}|3[05-9]\d{14}"
    r"|(?:2131|1800)\d{11}|(?:6011|64[4-9]\d|65\d\d)\d{12,15}|62\d{14,17}"
    r"|(?:50[0-9]\d|5[6-9]\d\d|6[0-9]\d\d)\d{8,15}|220[0-4]\d{12}"
)


def card(digits: str) -> bool:
    """An issuer's prefix with a length that it uses, Luhn, and not one digit again and again,
    nor a round number."""
    known = _ISSUERS.fullmatch(digits) is not None
    round_ = len(set(digits)) == 1 or digits.endswith("00000")
    return known and not round_ and checksums.luhn(digits)


_CARD = (
    rf"[1-6](?:\d{{11,18}}|\d{{3}}{_SEP}\d{{4}}{_SEP}\d{{4}}{_SEP}\d{{4}}(?:{_SEP}\d{{1,3}})?"
    rf"|\d{{3}}{_SEP}\d{{6}}{_SEP}\d{{4,5}}|\d{{3}}{_SEP}\d{{4}}{_SEP}\d{{5}})"
)
NATIONAL: tuple[Number, ...] = (
    _number("card", _CARD, 12, card),
    # what stands behind is a date or a code: 4111 1111 1111 1111 12/25
    _number("card", rf"[1-6]\d{{3}}(?:{_SEP}\d{{4}}){{3}}", 16, card),
    _number("fr_nir", r"[12][ ]?\d\d[ ]?\d\d[ ]?(?:\d\d|2[AB])[ ]?\d{3}[ ]?\d{3}[ ]?\d\d", 6,
            checksums.fr_nir, 1.0),
    _number("cn_resident_id", r"[1-9]\d{16}[\dXx]", 17, checksums.cn_resident_id, 1.0),
    _number("br_cpf", r"\d{3}\.\d{3}\.\d{3}-\d\d", 11, checksums.br_cpf),
    _number("br_cpf", r"\d{11}", 11, checksums.br_cpf, 0.9, "cpf"),
    _number("es_nif", r"(?:\d{8}|[XYZ][- ]?\d{7})[- ]?[A-HJ-NP-TV-Z]", 7, checksums.es_nif, 0.9,
            before=2),
    _number("se_personnummer", r"(?:19|20)?\d{6}[-+]\d{4}", 10, checksums.se_personnummer, 0.9),
    _number("in_aadhaar", r"(?<!\d )[2-9]\d{3}[ -]\d{4}[ -]\d{4}(?! \d)", 12,
            checksums.in_aadhaar, 0.8),
    _number("in_aadhaar", r"[2-9]\d{11}", 12, checksums.in_aadhaar, 0.8, "aadhaar|aadhar|uidai?"),
    _number("pl_pesel", r"\d{11}", 11, checksums.pl_pesel, 0.9, "pesel"),
    _number("de_tax_id", r"\d\d[ ]?\d{3}[ ]?\d{3}[ ]?\d{3}", 11, checksums.de_tax_id, 0.9,
            r"steuer-?\s?(?:id|ident\w*|nummer)|idnr|tax id\w*|tin"),
    _number("nl_bsn", r"\d{9}|\d{4}[. ]\d\d[. ]\d{3}", 9, checksums.nl_bsn, 0.8,
            r"bsn|burgerservicenummer|sofi\w*|citizen service number"),
    _number("uk_nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", 10, checksums.uk_nhs, 0.9,
            r"nhs|national health service"),
    _number("au_tfn", r"\d{3}[ -]?\d{3}[ -]?\d{3}", 9, checksums.au_tfn, 0.8,
            r"tfn|tax file number"),
    _number("ca_sin", r"\d{3}[ -]?\d{3}[ -]?\d{3}", 9, checksums.luhn, 0.8,
            r"sin|social insurance(?: number)?"),
    _number("us_ssn", r"\d{3}-\d\d-\d{4}", 9, checksums.us_ssn, 0.8, checked=False),
    _number("us_ssn", r"\d{3}[ ]?\d\d[ ]?\d{4}", 9, checksums.us_ssn, 0.7,
            r"ssn|social security(?: (?:number|no|#))?", checked=False),
)  # fmt: skip
#: types of numbers whose way of writing does not matter
KINDS = frozenset({n.kind for n in NATIONAL} | {"iban", "it_fiscal_code", "fi_hetu"})

_IBANS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
    "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
    "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
    "MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
    "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
#: characters of an IBAN by country
IBAN_LENGTH = {entry[:2]: int(entry[2:]) for entry in _IBANS.split()}
