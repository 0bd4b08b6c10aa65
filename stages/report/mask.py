"""Text as a report may show it: personal data masked, control characters made visible, cut short.

Masked are e-mail addresses, IPv4 addresses, runs of seven digits or more, and what looks like a
telephone, card or identity number: groups of digits, seven or more in all. A report errs on the
side of masking; dates and spans of years are left alone.
"""

from __future__ import annotations

import re
import unicodedata

MASK = "▮▮▮"
#: characters looked at for one of an excerpt; so that nothing is cut in two before it is masked
LOOK = 8
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IPV4 = re.compile(rf"(?<![\d.]){_OCTET}(?:\.{_OCTET}){{3}}(?!\.?\d)")
_NUMBER = re.compile(
    r"(?<![\w.])\+?(?:\(\d{1,5}\)[ .-]?)?\d{1,12}(?:[ .\u00a0/-]\(?\d{2,12}\)?){1,6}(?!\w)"
)
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}|(?:1\d|20)\d\d[-/ ](?:1\d|20)\d\d"
)
_DECIMAL = re.compile(r"\d+\.\d+")
_DIGITS = re.compile(r"(?<!\d\.)(?<!\d)\+?\d{7,}")
#: turn the direction of the text around them
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def mask(text: str) -> str:
    """The text with personal data replaced by `▮▮▮`."""
    text = _EMAIL.sub(MASK, text)
    text = _IPV4.sub(MASK, text)
    text = _NUMBER.sub(_number, text)
    return _DIGITS.sub(MASK, text)


def _number(match: re.Match[str]) -> str:
    found = match[0]
    digits = sum(c.isdigit() for c in found)
    if digits < 7 or _DATE.fullmatch(found) or _DECIMAL.fullmatch(found):
        return found
    return MASK


def clean(text: str) -> str:
    """The text without characters that HTML forbids or that change what lies around them."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _fit(c) else "\ufffd" for c in text)


def _fit(c: str) -> bool:
    return c in "\n\t" or (
        c not in _BIDI and c not in "\ufffe\uffff" and unicodedata.category(c) != "Cc"
    )


def excerpt(text: str, length: int = 280) -> str:
    """The first `length` characters as a report may show them, white space run together."""
    head = text[: length * LOOK]
    shown = " ".join(clean(mask(head)).split())
    whole = len(text) == len(head) and len(shown) <= length
    return shown if whole else shown[:length].rstrip() + " …"
