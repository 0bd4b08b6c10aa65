"""Secrets in a text: keys and tokens of known forms, and values that a name calls secret.

    github_token, npm_token   prefix and 36 characters, the last six a CRC-32 of those before
    aws_key                   AKIA or ASIA and 16 of base 32
    slack_token, stripe_key, google_key, openai_key, ...   see TOKENS: prefix, alphabet, length
    private_key               a PEM block of a private key, to its end line, or as far as its base
                              64 goes where the end is cut off
    jwt                       three parts of base 64, the first of them JSON with `alg`
    password_in_url           scheme://user:password@host: the password
    assigned                  password, secret, token, api_key ... = value, of enough entropy
    passcode                  `access code ... is 482913`, `the password is ...`, as prose says it

A value that stands for another one is no secret: `${TOKEN}`, `%s`, `<token>`, `xxxx`, `changeme`,
`example`; nor is one that names something else (no digit in it, or one letter again and again).
Entropy is Shannon's, in bits a character, of the characters of the value. The limits for `assigned`
values without a known form: 3 bits for hexadecimal digits, 4.5 for what reads as base 64 of 40
characters or more, 2.5 for shorter ones, which could not reach more.

Every form is looked for where its prefix or name stands, and reaches a bounded number of
characters: a text of any size costs time in proportion to its size.
Sources: the issuers' pages; entropy limits of detect-secrets.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from foresift.pipeline.checksums import crc32_62
from foresift.pipeline.personal import Hit

#: a private key is no longer than this
LONGEST_KEY = 1 << 15
#: base 64 behind the first line of a key whose end was cut off; a line break may be written `\\n`
_BODY = re.compile(
    r"(?:(?:\s|\\[nr]){1,4}(?:Proc-Type|DEK-Info): [^\n\\]{0,80})*"
    r"(?:(?:\s|\\[nr]){1,4}[0-9A-Za-z+/=]{16,})*(?:(?:\s|\\[nr]){1,4}[0-9A-Za-z+/=]{1,15}\s*\Z)?"
)


@dataclass(frozen=True)
class Token:
    """A form of tokens: a prefix and what follows it."""

    kind: str
    prefix: str
    tail: re.Pattern[str]
    check: Callable[[str], bool] | None = None


def _crc(token: str) -> bool:
    return crc32_62(token[4:-6], token[-6:])


def _token(
    kind: str, prefixes: str, tail: str, check: Callable[[str], bool] | None = None
) -> list[Token]:
    found = []
    for prefix in prefixes.split():
        left = rf"(?<![0-9A-Za-z_]{re.escape(prefix)})"
        pattern = re.compile(rf"{re.escape(prefix)}{left}{tail}(?![0-9A-Za-z_])")
        found.append(Token(kind, prefix, pattern, check))
    return found


TOKENS: tuple[Token, ...] = tuple(
    token
    for some in (
        _token("github_token", "ghp_ gho_ ghu_ ghs_ ghr_", r"[0-9A-Za-z]{36}", _crc),
        _token("github_token", "github_pat_", r"[0-9A-Za-z]{22}_[0-9A-Za-z]{59}"),
        _token("npm_token", "npm_", r"[0-9A-Za-z]{36}", _crc),
        _token("gitlab_token", "glpat-", r"[\w-]{20,64}"),
        _token("aws_key", "AKIA ASIA", r"[A-Z2-7]{16}"),
        _token("slack_token", "xoxb- xoxp- xoxa- xoxr- xoxs- xapp-", r"[0-9A-Za-z-]{10,250}"),
        _token("slack_webhook", "hooks.slack.com/", r"services/T\w{6,12}/B\w{6,12}/\w{20,32}"),
        _token("stripe_key", "sk_live_ rk_live_ sk_test_ rk_test_", r"[0-9A-Za-z]{16,247}"),
        _token("google_key", "AIza", r"[\w-]{35}"),
        _token("google_key", "GOCSPX-", r"[\w-]{28}"),
        _token("anthropic_key", "sk-ant-", r"[\w-]{24,160}"),
        _token("openai_key", "sk-proj- sk-svcacct-", r"[\w-]{24,200}"),
        _token("openai_key", "sk-", r"[0-9A-Za-z]{20}T3BlbkFJ[0-9A-Za-z]{20}"),
        _token("huggingface_token", "hf_", r"[A-Za-z]{34}"),
        _token("sendgrid_key", "SG.", r"[\w-]{22}\.[\w-]{43}"),
        _token("pypi_token", "pypi-AgEIcHlwaS5vcmc", r"[\w-]{50,250}"),
        _token("docker_token", "dckr_pat_", r"[\w-]{27}"),
        _token("digitalocean_token", "dop_v1_ doo_v1_ dor_v1_", r"[0-9a-f]{64}"),
        _token("shopify_token", "shpat_ shpca_ shppa_ shpss_", r"[0-9a-fA-F]{32}"),
        _token("azure_key", "AccountKey=", r"[0-9A-Za-z+/]{86}=="),
        _token("telegram_token", ":AA", r"(?<=\d:AA)[\w-]{33}"),
    )
    for token in some
)
_JWT = re.compile(r"eyJ(?<![\w-]eyJ)[\w-]{5,4096}\.eyJ[\w-]{5,8192}\.[\w-]{10,2048}")
_URL = re.compile(r"://[^\s:/@\"'<>]{0,128}:([^\s/@\"'<>]{3,128})@(?=[\w.\[-])")

#: what must stand somewhere -> the names of secrets that hold it
_NAMES = {
    "pass": ["password", "passwd", "passphrase"],
    "secret": ["secret"],
    "token": ["token"],
    "key": [
        *("api_key", "apikey", "api-key", "access_key", "accesskey", "access-key", "auth_key"),
        *("authkey", "private_key", "client_key", "signing_key", "encryption_key"),
    ],
    "pwd": ["pwd"],
    "credential": ["credential"],
}
_ASSIGNED = re.compile(
    r"[\w-]{0,32}[\"']?\]?\s{0,4}(?:=>|:=|[:=])\s{0,4}(?:[\"'`]([^\s\"'`]{6,1024})[\"'`]"
    r"|([^\s\"'`,;<>(){}\[\]]{8,1024})(?![\w(\[.]))"
)
_PROSE = {
    "code": ["access code", "passcode", "pass code", "security code", "entry code", "door code"],
    "pass": ["password"],
    "pin ": ["pin number", "pin is"],
}
_SPOKEN = re.compile(
    r"\b[^.:;=\n]{0,48}?(?:\bis|\bwas|:)\s{0,3}[\"'`]?((?=[^\s\"'`(]{0,32}\d)[^\s\"'`,;()]{4,64})"
)
_STANDS_FOR = re.compile(
    r"^[$%]|(?-i:\$[A-Z_({])|%[(sr]|[<{]|\*\*\*|\.\.\."
    r"|x{4}|example|change_?me|placeholder|your|dummy|redacted|^(?:none|null|true"
    r"|false|undefined|test|password|passwd|pass|secret|token|foo|bar|env|self|this|os|process|http)\b",
    re.IGNORECASE,
)
#: 30.minutes, 2.5px
_NUMBER_OF = re.compile(r"[\d.]+\.?[a-z]{1,8}\Z")
_HEX = re.compile(r"[0-9a-fA-F-]+\Z")
_BASE64 = re.compile(r"[\w+/=-]+\Z")


def entropy(value: str) -> float:
    """Shannon's entropy of the characters, bits a character."""
    counts = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts) if value else 0.0


def find(text: str) -> list[Hit]:
    """What was found, in the order of places; nothing overlaps. `checked`: a CRC or JSON agrees."""
    hits = [*_tokens(text), *_keys(text), *_jwts(text), *_in_urls(text)]
    low = _lower(text)
    hits += _assigned(text, low)
    hits += _spoken(text, low)
    kept: list[Hit] = []
    end = 0
    for hit in sorted(hits, key=lambda h: (h.start, -h.confidence, -h.stop, h.kind)):
        if hit.start >= end:
            kept.append(hit)
            end = hit.stop
        elif hit.confidence > kept[-1].confidence:
            kept[-1] = hit
            end = hit.stop
    return kept


def _tokens(text: str) -> Iterator[Hit]:
    for token in TOKENS:
        if token.prefix not in text:
            continue
        for found in token.tail.finditer(text):
            if _STANDS_FOR.search(found[0][len(token.prefix) :]) or not _varied(found[0]):
                continue
            good = token.check(found[0]) if token.check else False
            sure = 1.0 if good else 0.5 if token.check else 0.9
            yield Hit(token.kind, found.start(), found.end(), sure, good)


def _varied(value: str) -> bool:
    return entropy(value) >= 2.5


def _keys(text: str) -> Iterator[Hit]:
    """PEM blocks; the search for an end never goes back, so it is one pass."""
    start, end = text.find("-----BEGIN "), -1
    while start >= 0:
        stop = text.find("-----", start + 11, start + 60)
        if stop >= 0 and text[start + 11 : stop].removesuffix(" BLOCK").endswith("PRIVATE KEY"):
            stop += 5
            if end < stop:
                end = text.find("-----END ", stop)
                end = len(text) if end < 0 else end
            if end - start < LONGEST_KEY and end < len(text):
                close = text.find("-----", end + 9, end + 60)
                stop = close + 5 if close >= 0 else end
            else:
                body = _BODY.match(text, stop, min(len(text), start + LONGEST_KEY))
                stop = body.end() if body else stop
            yield Hit("private_key", start, stop, 1.0, False)
        else:
            stop = start + 11
        start = text.find("-----BEGIN ", stop)


def _jwts(text: str) -> Iterator[Hit]:
    if "eyJ" not in text:
        return
    for found in _JWT.finditer(text):
        head = found[0].partition(".")[0]
        try:
            said = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
        except (ValueError, binascii.Error, RecursionError):
            continue
        if isinstance(said, dict) and "alg" in said:
            yield Hit("jwt", found.start(), found.end(), 1.0, True)


def _in_urls(text: str) -> Iterator[Hit]:
    if "://" not in text or "@" not in text:
        return
    for found in _URL.finditer(text):
        if not _STANDS_FOR.search(found[1]):
            yield Hit("password_in_url", found.start(1), found.end(1), 0.9, False)


def _lower(text: str) -> str:
    """In lower case, every character in its place."""
    low = text.lower()
    return low if len(low) == len(text) else text.replace("İ", "I").lower()


def _places(low: str, names: Mapping[str, Sequence[str]]) -> Iterator[int]:
    """Where each occurrence of a name ends."""
    for hint, held in names.items():
        for name in held if hint in low else ():
            at = low.find(name)
            while at >= 0:
                yield at + len(name)
                at = low.find(name, at + len(name))


def _assigned(text: str, low: str) -> Iterator[Hit]:
    for place in _places(low, _NAMES):
        found = _ASSIGNED.match(text, place)
        if found is not None:
            group = 1 if found[1] else 2
            if _secret(found[group], quoted=group == 1):
                yield Hit("assigned", found.start(group), found.end(group), 0.7, False)


def _secret(value: str, *, quoted: bool) -> bool:
    """Whether a value behind such a name is one, and not another name or a stand-in."""
    if _STANDS_FOR.search(value) or "://" in value or not any(c.isdigit() for c in value):
        return False
    if not quoted and (_NUMBER_OF.match(value) or not any(c.isalpha() for c in value)):
        return False
    if _HEX.match(value):
        return entropy(value) >= 3.0 or (quoted and len(value) < 16 and entropy(value) >= 2.5)
    long = len(value) >= 40 and _BASE64.match(value)
    return entropy(value) >= (4.5 if long else 2.5)


def _spoken(text: str, low: str) -> Iterator[Hit]:
    for place in _places(low, _PROSE):
        found = _SPOKEN.match(text, place)
        if found and not _STANDS_FOR.search(found[1]) and not _NUMBER_OF.match(found[1]):
            stop = found.start(1) + len(found[1].rstrip(".!?"))
            if stop - found.start(1) >= 4:
                yield Hit("passcode", found.start(1), stop, 0.6, False)
