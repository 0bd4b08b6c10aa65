"""Text as a report may show it: personal data masked, control characters made visible, cut short.

Masked is what `pipeline/personal.py` and `pipeline/credentials.py` find, and, with their patterns
in the widest sense, e-mail addresses, addresses of machines, runs of seven digits or more, and what
looks like a telephone, card or identity number: groups of digits, seven or more in all. A report
errs on the side of masking; dates and spans of years are left alone.
"""

from __future__ import annotations

import ipaddress
import re

from foresift.pipeline import credentials, personal
from foresift.pipeline.personal import EMAIL, IPV4
from foresift.pipeline.personal_numbers import DATE, DECIMAL, LONG, PHONE

MASK = "▮▮▮"
#: characters looked at for one of an excerpt; so that nothing is cut in two before it is masked
LOOK = 8
#: what may be an address of IPv6, whole groups of it
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
#: control characters but for line and tab, what turns the direction of text, no characters at all
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def mask(text: str) -> str:
    """The text with personal data and secrets replaced by `▮▮▮`."""
    text = _without(text, [*personal.find(text), *credentials.find(text)])
    text = EMAIL.sub(MASK, text)
    text = IPV4.sub(MASK, text)
    text = _IPV6.sub(_address, text)
    text = PHONE.sub(_number, text)
    return LONG.sub(MASK, text)


def _without(text: str, hits: list[personal.Hit]) -> str:
    """The text with every piece masked, those that overlap as one."""
    pieces, end = [], 0
    for hit in sorted(hits, key=lambda h: (h.start, -h.stop)):
        if hit.start >= end:
            pieces += [text[end : hit.start], MASK]
        end = max(end, hit.stop)
    return "".join([*pieces, text[end:]])


def _number(match: re.Match[str]) -> str:
    found = match[0]
    digits = sum(c.isdigit() for c in found)
    if digits < 7 or DATE.fullmatch(found) or DECIMAL.fullmatch(found):
        return found
    return MASK


def _address(match: re.Match[str]) -> str:
    """Addresses of IPv6, of a network at home and of examples too; not times, nor `a::b`."""
    found = match[0]
    groups = [g for g in found.split(":") if g]
    try:
        ipaddress.IPv6Address(found)
    except ValueError:
        return found
    return MASK if len(groups) >= 3 and any(map(str.isdigit, found)) else found


def origin(source: str | None) -> str:
    """Where a document is from, as a report may show it: key paths hold addresses of people."""
    return clean(mask(source)) if source else "(no source)"


def clean(text: str) -> str:
    """The text without characters that HTML forbids or that change what lies around them."""
    return _UNFIT.sub("\ufffd", text.encode("utf-8", "replace").decode("utf-8"))


def excerpt(text: str, length: int = 280) -> str:
    """The first `length` characters as a report may show them, white space run together."""
    head = text[: length * LOOK]
    shown = " ".join(clean(mask(head)).split())
    whole = len(text) == len(head) and len(shown) <= length
    return shown if whole else shown[:length].rstrip() + " …"
