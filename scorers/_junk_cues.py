"""Words and signs of junk: bait, promotion, shouting, small talk. English; each is weak alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BAIT = (
    r"you won['’]?t believe|what happen(?:s|ed) next|(?:one|weird|simple) trick|blow your mind|"
    r"doctors hate|don['’]?t want you to know|jaw[- ]dropping|goes viral|"
    r"must[- ](?:see|read|watch)|shocking|"
    r"\b\d+ (?:\w+ )?(?:things|reasons|facts|ways|secrets|signs) |number \d+ will|"
    r"the truth about|exposed|wake up,? (?:people|sheeple)|you need to see|before it['’]?s too late"
)
_PROMOTION = (
    r"click here|(?:buy|order|act|call|shop|sign up|apply) now|limited (?:time )?offer|"
    r"free (?:entry|trial|gift|shipping|delivery|msg|ringtone)|100 ?% free|\btxt\b|"
    r"text \w+ to \d+|\bprize\b|"
    r"\bclaim (?:your|ur|it|now)\b|\bguaranteed\b|\d+ ?% off\b|(?:best|low(?:est)?|cheap(?:est)?) "
    r"price|\bviagra\b|\bcasino\b|you (?:have|['’]ve) (?:won|been selected)|\bwinner\b|£\d+|"
    r"reply stop|get rich|work from home|money back|add to cart|for sale|link in bio|"
    r"\bpromo(?:tion| code)|\bcall \d{5,}|\bcash\b|\bwin\b|\bt&cs?\b"
)
_CHAT = r"\b(?:lo+l|lmao|omg|wtf|(?:ha){2,}h?|rofl|bruh|yolo|tbh|smh|xo+x*o*)\b"
#: every sign begins a word: saying so makes the search four times faster
_BEGIN = r"(?<!\w)(?=[0-9a-z£])"
#: reason -> pattern, of the text in lower case
_LOWER = {
    "bait": re.compile(f"{_BEGIN}(?:{_BAIT})"),
    "promotion": re.compile(f"{_BEGIN}(?:{_PROMOTION})"),
    "small_talk": re.compile(_CHAT),
}
_SHOUTING = re.compile(r"[!?]{2,}|\b[A-Z]{3,}(?:\W+[A-Z]{2,}){2,}\b")


def cues(text: str) -> Iterator[tuple[str, int, int]]:
    """(reason, start, stop) of every sign of junk."""
    lower = text.lower()
    if len(lower) != len(text):  # a character whose small form is two, such as the dotted I
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    for reason, pattern in _LOWER.items():
        for match in pattern.finditer(lower):
            yield reason, *match.span()
    for match in _SHOUTING.finditer(text):
        yield "shouting", *match.span()
