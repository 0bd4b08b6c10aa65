"""Personal data that has a form of its own: where it stands in a text, and of which type.

    email           local@domain with a top-level domain of letters
    phone           +49 ..., (415) 555-2671, a leading 0, or a word such as `phone` before it
    ip              IPv4 and IPv6, public addresses only, no version numbers
    card            13 to 19 digits (12: Maestro) with an issuer's prefix and Luhn
    iban            length of the country, modulus 97
    us_ssn          ddd-dd-dddd of areas, groups and serials that exist
    ...             fourteen identity numbers of other countries with check digits: see NATIONAL

A number that could be many things (nine bare digits that pass a modulus) counts only behind a word
that names it. Names, addresses and dates of birth have no form of their own: that is Presidio's.

Look-alikes of characters are undone first: Unicode spaces, hyphens, digits and full-width signs
are read as their plain ones, and characters without width or of direction are skipped; places are
those in the text as given.

Every pattern is tried where a digit, `@` or `:` stands, and is bounded in length; each character
is looked at a bounded number of times, so a text of any size costs time in proportion to its size.

`keyed` is how a value is named without being kept: HMAC-SHA256 over type and value, 16 bytes. A
hash without a key is no protection: addresses and telephone numbers can be tried out.
"""

from __future__ import annotations

import functools
import hmac
import ipaddress
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from foresift.pipeline import personal_numbers as numbers
from foresift.pipeline.checksums import fi_hetu, iban, it_fiscal_code
from foresift.pipeline.personal_numbers import NATIONAL, PHONE, phone_confidence

#: a letter, digit or `_` of a script that puts spaces between words
_W = (
    r"[^\W\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u30ff\u3130-\u318f"
    r"\u3400-\u9fff\uac00-\ud7ff\uf900-\ufaff]"
)
_LOCAL = r"[\w.+%'-]{1,64}"
_DOMAIN = r"[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"
EMAIL = re.compile(rf"(?<![\w.+%-]){_LOCAL}@{_DOMAIN}")
_AT = re.compile(rf"@({_DOMAIN})")
_AT_SPACED = re.compile(rf"@((?:{_W}|-){{1,63}}(?:\.(?:{_W}|-){{1,63}}){{1,8}})")
_LOCAL_BACK = re.compile(_LOCAL)
_LOCAL_BACK_SPACED = re.compile(rf"(?:{_W}|[.+%'-]){{1,64}}")
_TOP = re.compile(r"(?:[^\W\d_]{2,63}|xn--[a-z0-9-]{1,59})\Z", re.IGNORECASE)
#: what stands behind `@` in names of files: photo@2x.png
_FILES = frozenset(["png", "jpg", "jpeg", "gif", "svg", "webp", "bmp", "ico", "css", "js", "json"])

_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
IPV4 = re.compile(rf"(?<![\d.]){_OCTET}(?:\.{_OCTET}){{3}}(?!\.?\d)")
_IPV6 = re.compile(r":(?:[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:.]{0,37}")
_HEX_BACK = re.compile(r"[0-9A-Fa-f]{0,4}")
_VERSION = re.compile(
    r"(?:\b(?:v|ver|version|release|build|firmware|section|sect?|chapter|clause|oid|update|rev)"
    r"[.:]?\s{0,2}|§\s{0,2}|\w[-/_]|[=<>~!^]=\s?|\w)\Z",
    re.IGNORECASE,
)
_NAMED_IP = re.compile(r"(?:\bips?\b|address|host|://|@)[^.\n]{0,12}\Z", re.IGNORECASE)

#: two letters and two digits, as in an IBAN; or six digits and a century, as in a Finnish code
_CODED = re.compile(
    r"[0-9](?:(?<=[A-Za-z]{2}[0-9])[0-9](?=[ -]?[0-9A-Za-z]{2})"
    r"|[0-9]{5}[-+A-FU-Y](?=[0-9]{3}[0-9A-Y](?![0-9A-Za-z])))"
)
_FISCAL = re.compile(r"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z](?!\w)", re.IGNORECASE)
#: a stretch of digits and what may stand between them, seven characters or more
_STRETCH = re.compile(r"[0-9][0-9 .\-/()]{5,}[0-9]")
#: how far behind a stretch a number may reach, such as one that ends in a letter
_MARGIN = 24


class Hit(NamedTuple):
    """A piece of personal data in a text."""

    kind: str
    start: int
    stop: int
    confidence: float
    """1 for strong check digits, 0.9 for the form alone, 0.5 to 0.8 by grouping or words near."""
    checked: bool
    """Check digits agree."""


def find(text: str) -> list[Hit]:
    """What was found, in the order of places; nothing overlaps."""
    if text.isascii():
        return _find(text)
    shown, places = plain(text)
    hits = _find(shown)
    if places is None:
        return hits
    return [h._replace(start=int(places[h.start]), stop=int(places[h.stop - 1]) + 1) for h in hits]


def _find(text: str) -> list[Hit]:
    claims = _Claims(text)
    if "@" in text:
        for start, stop in _emails(text):
            claims.add("email", start, stop, 0.9)
    if ":" in text:
        for start, stop in _ipv6(text):
            claims.add("ip", start, stop, 0.9)
    for found in _CODED.finditer(text):
        if found.end() - found.start() == 2:
            _code(claims, found.start())
        elif not _wordy(text[found.start() - 1 : found.start()]):
            start, stop = found.start(), found.end() + 4
            if fi_hetu(text[start:stop]):
                claims.add("fi_hetu", start, stop, 0.95, True)
    for found in _STRETCH.finditer(text):
        _stretch(claims, found.start(), found.end())
    return sorted(claims.hits, key=lambda hit: hit.start)


class _Claims:
    """Hits that do not overlap: the first to claim a place has it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.hits: list[Hit] = []
        self._taken = bytearray()

    def add(
        self, kind: str, start: int, stop: int, confidence: float, checked: bool = False
    ) -> None:
        """Claim a place, unless a part of it is taken."""
        if not self._taken:
            self._taken = bytearray(len(self.text))
        if self._taken.find(1, start, stop) < 0:
            self._taken[start:stop] = b"\x01" * (stop - start)
            self.hits.append(Hit(kind, start, stop, confidence, checked))


def _emails(text: str) -> Iterator[tuple[int, int]]:
    """Addresses; where a script without spaces stands around one, only what is not of it."""
    patterns = [(_AT, _LOCAL_BACK)]
    if not text.isascii():
        patterns.insert(0, (_AT_SPACED, _LOCAL_BACK_SPACED))
    for at_domain, local_back in patterns:
        for found in at_domain.finditer(text):
            at, domain = found.start(), found[1].rstrip("-_.")
            before = local_back.match(text[max(0, at - 64) : at][::-1])
            last = domain.rpartition(".")[2]
            if not _TOP.match(last):
                domain = domain.rpartition(".")[0]
                last = domain.rpartition(".")[2]
            if before is None or "." not in domain or not _TOP.match(last):
                continue
            local = before[0][::-1].lstrip(".-%+'")
            if local and not local.endswith(".") and last.lower() not in _FILES:
                yield at - len(local), at + 1 + len(domain)


def _ipv6(text: str) -> Iterator[tuple[int, int]]:
    """Public addresses of IPv6 with three groups or more, one of them with a digit."""
    for found in _IPV6.finditer(text):
        before = _HEX_BACK.match(text[max(0, found.start() - 4) : found.start()][::-1])
        assert before is not None
        start, stop = found.start() - len(before[0]), found.end()
        while stop > start and text[stop - 1] in ":." and text[stop - 2 : stop] != "::":
            stop -= 1
        value = text[start:stop]
        groups = [g for g in value.split(":") if g]
        beside = text[start - 1 : start] + text[stop : stop + 1]
        enough = len(groups) >= 3 and any(c.isdigit() for c in value)
        if enough and not _wordy(beside) and _public(value):
            yield start, stop


def _is_ipv4(text: str, start: int, stop: int) -> bool:
    """Whether four numbers are a public address and not a version of something."""
    before, tail = text[max(0, start - 30) : start], text[stop : stop + 2]
    if not _public(text[start:stop]) or (tail[:1] in ("-", ".") and tail[1:].isalpha()):
        return False
    if _NAMED_IP.search(before):
        return True
    octets = [int(octet) for octet in text[start:stop].split(".")]
    return not (_VERSION.search(before) or max(octets) < 40 or octets[3] == 0)


def _wordy(characters: str) -> bool:
    return any(c.isalnum() or c in "_:" for c in characters)


def _public(value: str) -> bool:
    try:
        return ipaddress.ip_address(value).is_global
    except ValueError:
        return False


def _code(claims: _Claims, digit: int) -> None:
    """An IBAN or an Italian fiscal code around two letters before two digits."""
    text, start = claims.text, digit - 2
    length = numbers.IBAN_LENGTH.get(text[start:digit].upper())
    if length is not None and not text[start - 1 : start].isalnum():
        stop = _collect(text, start, length)
        if stop and iban(re.sub(r"[ -]", "", text[start:stop])):
            claims.add("iban", start, stop, 1.0, True)
            return
    start = digit - 6
    if start >= 0 and not text[start - 1 : start].isalnum():
        found = _FISCAL.match(text, start)
        if found and it_fiscal_code(found[0]):
            claims.add("it_fiscal_code", start, found.end(), 1.0, True)


def _collect(text: str, start: int, length: int) -> int:
    """Where `length` letters and digits end, single spaces or hyphens between; 0: they do not."""
    place, held = start, 0
    while held < length and place < len(text):
        c = text[place]
        if c.isascii() and c.isalnum():
            held += 1
        elif c not in " -" or not text[place - 1].isalnum():
            return 0
        place += 1
    return place if held == length and not text[place : place + 1].isalnum() else 0


def _stretch(claims: _Claims, start: int, stop: int) -> None:
    """What a stretch of digits is, the surest type first."""
    text, end = claims.text, min(len(claims.text), stop + _MARGIN)
    digits = sum(map(str.isdigit, text[start:stop])) if stop - start < 64 else 99
    if "." in text[start : min(stop, start + 16)] or digits == 99:
        for found in IPV4.finditer(text, start, end):
            if found.start() < stop and _is_ipv4(text, found.start(), found.end()):
                claims.add("ip", found.start(), found.end(), 0.9)
    if digits < 7:
        return
    for number in NATIONAL:
        if digits < number.digits:
            continue
        at = max(0, start - number.before)
        while (inside := number.pattern.search(text, at, end)) and inside.start() < stop:
            place = inside.span()
            at = place[0] + 1  # where it is none, one may begin inside: 2024 4111 1111 1111 1111
            if number.agrees(inside[0]) and number.named_before(text, place[0]):
                claims.add(number.kind, *place, number.confidence, number.checked)
                at = place[1]
    for found in PHONE.finditer(text, max(0, start - 2), end):
        if found.start() < stop:
            sure = phone_confidence(text, found.start(), found.end())
            if sure:
                claims.add("phone", found.start(), found.end(), sure)


# -- look-alikes -------------------------------------------------------------------------------

_GONE = 0xFFFFFFFF
#: characters without width, and those that turn the direction of the text
_WIDTHLESS = "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_HYPHENS = "\u2010-\u2013\u2212\ufe63\uff0d"
_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_SIGNS = {"＠": "@", "﹫": "@", "．": ".", "：": ":", "（": "(", "）": ")", "＋": "+", "／": "/"}


@functools.cache
def _plain_points() -> npt.NDArray[np.uint32]:
    """Code point -> the plain one, or _GONE."""
    points = np.arange(0x110000, dtype=np.uint32)
    for characters, plain_one in ((_HYPHENS, ord("-")), (_SPACES, 32), (_WIDTHLESS, _GONE)):
        inside = re.compile(f"[{characters}]")
        for point in range(0x80, 0x10000):
            if inside.match(chr(point)):
                points[point] = plain_one
    for point in range(0x80, 0x110000):
        value = unicodedata.decimal(chr(point), -1)
        if value >= 0:
            points[point] = 48 + value
    for sign, plain_sign in _SIGNS.items():
        points[ord(sign)] = ord(plain_sign)
    return points


def plain(text: str) -> tuple[str, npt.NDArray[np.int64] | None]:
    """The text with look-alikes undone, and where each of its characters stood (None: there)."""
    given = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    points = _plain_points()[given]
    if np.array_equal(points, given):
        return text, None
    places = np.flatnonzero(points != _GONE)
    shown = points[places].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
    return shown, places if len(places) < len(given) else None


# -- a name for a value that is not kept -------------------------------------------------------


def keyed(kind: str, value: str, key: bytes) -> bytes:
    """16 bytes that stand for a value of a type: the same for any way of writing it."""
    told = f"{kind}\0{canonical(kind, value)}".encode("utf-8", "surrogatepass")
    return hmac.digest(key, told, "sha256")[:16]


def canonical(kind: str, value: str) -> str:
    """One way of writing a value: e-mail in lower case, numbers without separators."""
    shown, _ = plain(value)
    if kind == "email":
        return unicodedata.normalize("NFKC", shown).lower()
    if kind == "ip":
        return ipaddress.ip_address(shown).compressed
    if kind == "phone":
        digits = re.sub(r"[^\d]", "", re.sub(r"(?:x|ext).*", "", shown).replace("(0)", ""))
        return digits[2:] if shown.startswith("00") else digits
    if kind in numbers.KINDS:
        return re.sub(r"[\W_]", "", shown).upper()
    return " ".join(unicodedata.normalize("NFKC", shown).casefold().split())
