"""Licence of a document, as declared beside it and as its text states it, and what may follow.

    licence    SPDX expression: what is declared, else what was detected, all of it joined by AND
    category   the licence's class; of several the one of largest risk (OR takes the smallest)
    p_delete   how likely its removal will be asked for: max of the rows below that apply
    utility    -p_delete

    1e-5  public_domain, permissive      CC0, Unlicense; MIT, Apache, BSD, ISC, CC BY
    1e-4  copyleft                       GPL, LGPL, AGPL, MPL, EPL, CC BY-SA, ODbL
    1e-3  unknown                        nothing declared or found
    1e-2  reserved                       all rights reserved, no reproduction, NC, ND, proprietary
    1e-2  a person stands behind it      where `identity` names a column that is true or not empty
    1e-1  a publisher of `contested`     where the column `url` contains one of these names

The numbers are priors of ours to order by, not measured. A grant beats "all rights reserved" in the
same text (BSD licences say both).
`conflict`: declared and detected licences are of different classes.

Detected are SPDX-License-Identifier lines, the first sentences of common licences, "licensed under
...", Creative Commons addresses, and notices of rights. Naming a licence in prose is none. Headers
can be removed from a text; the work keeps its licence. A detected licence is that of what the page
shows, which need not be all of the page.

Findings: spdx, licence_text, licence_notice, cc_url, rights_reserved, no_reproduction, copyright;
declared, identity, contested (whole document); value: p_delete of each. Rows stand alone. Cost:
some 10 MB/s. Source: Dolma's and the Stack's practice, in our own words and classes.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import Arrays, Scorer
from foresift.pipeline.tables import Column, content_texts

PRIOR = {
    "public_domain": 1e-5, "permissive": 1e-5, "copyleft": 1e-4, "unknown": 1e-3, "reserved": 1e-2,
}  # fmt: skip
IDENTITY, CONTESTED = 1e-2, 1e-1
#: the first that fits an identifier names its class
_CLASSES = (
    ("reserved", r"cc-by-(nc|nd)|proprietary|commercial|busl|sspl|elastic|all-rights-reserved"),
    ("public_domain", r"cc0|unlicense|pddl|0bsd|wtfpl|public-domain|cc-pddc"),
    ("copyleft", r"a?gpl|lgpl|mpl|epl|eupl|cddl|cecill|osl|cc-by-sa|odbl|gfdl"),
    ("permissive", r"mit|apache|bsd|isc|zlib|cc-by|bsl-1|odc-by|psf|python|artistic|postgresql|"
                   r"ncsa|openssl|x11|ms-pl|upl|afl|ecl|boost|unicode|blueoak"),
)  # fmt: skip
_ID = [
    (name, re.compile(rf"(?<![a-z])(?:{pattern})(?!(?!v\d)[a-z])", re.I))
    for name, pattern in _CLASSES
]
_TAG = re.compile(r"SPDX-License-Identifier:[ \t]*(\(?[\w.+-]+(?:[ \t]+(?:AND|OR|WITH)[ \t]+"
                  r"\(?[\w.+-]+\)?)*\)?)")  # fmt: skip
_CC_URL = re.compile(r"creativecommons\.org/(?:licenses/([a-z-]+)/(\d\.\d)|(publicdomain)/)", re.I)
_TEXTS = {
    "MIT": r"Permission is hereby granted, free of charge, to any person obtaining a copy",
    "ISC": r"Permission to use, copy, modify, and(?:/or)? distribute this software for any purpose",
    "BSD": r"Redistribution and use in source and binary forms, with or without",
    "Apache-2.0": r"Licensed under the Apache License, Version 2\.0",
    "GPL": r"under the terms of the GNU General Public License",
    "LGPL": r"under the terms of the GNU (?:Lesser|Library) General Public License",
    "AGPL": r"under the terms of the GNU Affero General Public License",
    "MPL-2.0": r"subject to the terms of the Mozilla Public License",
    "Unlicense": r"This is free and unencumbered software released into the public domain",
}
#: a word that stands in each text above, in lower case
_SIGNS = {
    "MIT": "hereby", "ISC": "permission to", "BSD": "redistribution", "Apache-2.0": "apache",
    "GPL": "gnu", "LGPL": "gnu", "AGPL": "gnu", "MPL-2.0": "mozilla", "Unlicense": "unencumbered",
}  # fmt: skip
_NAMED = {
    "MIT": r"MIT", "Apache-2.0": r"Apache", "BSD": r"(?:[23]-clause |new |simplified )?BSD",
    "AGPL": r"(?:GNU )?(?:AGPL|Affero)", "LGPL": r"(?:GNU )?(?:LGPL|Lesser)",
    "GPL": r"(?:GNU )?(?:GPL|General Public)", "MPL-2.0": r"(?:MPL|Mozilla)",
    "CC-BY-NC-SA": r"(?:CC[ -]BY[ -]NC[ -]SA|Creative Commons Attribution[ -]Non-?commercial"
                   r"[ -]Share-?Alike)",
    "CC-BY-NC-ND": r"(?:CC[ -]BY[ -]NC[ -]ND|Creative Commons Attribution[ -]Non-?commercial"
                   r"[ -]No-?Deriv)",
    "CC-BY-NC": r"(?:CC[ -]BY[ -]NC|Creative Commons Attribution[ -]Non-?commercial)",
    "CC-BY-ND": r"(?:CC[ -]BY[ -]ND|Creative Commons Attribution[ -]No-?Deriv)",
    "CC-BY-SA": r"(?:CC[ -]BY[ -]SA|Creative Commons Attribution[ -]Share-?Alike)",
    "CC-BY": r"(?:CC[ -]BY|Creative Commons Attribution)", "CC0-1.0": r"(?:CC0|CC Zero)",
}  # fmt: skip
_VERB = r"(?:licen[sc]ed|released|distributed|available|published|dedicated|shared|provided)"
_NOTICE = re.compile(
    rf"\b{_VERB}\s+(?:\w+\s+)?(?:under|to)\s+(?:(?:the|a|an)\s+)?(?:terms\s+of\s+the\s+)?"
    + "(?:" + "|".join(f"(?P<n{i}>{p})" for i, p in enumerate(_NAMED.values())) + r")(?!\w)",
    re.I,
)  # fmt: skip
_DOMAIN = re.compile(
    rf"\b(?:{_VERB}\s+(?:in|into|to)|(?:is|are)\s+in)\s+the\s+public\s+domain", re.I
)
_RIGHTS = {
    "rights_reserved": re.compile(r"\ball\s+rights\s+(?:are\s+)?reserved", re.I),
    "no_reproduction": re.compile(
        r"\b(?:may|must|can)\s?not\s+be\s+(?:reproduced|copied|republished|redistributed)|"
        r"\bproprietary\s+and\s+confidential|\bunauthori[sz]ed\s+(?:copying|reproduction|use)\b",
        re.I,
    ),
    "copyright": re.compile(r"(?:©|\bcopyright(?:\s*\(c\)|\s*©)?|\(c\))\s*(?:19|20)\d\d\b", re.I),
}
#: words without which none of these can be there: looking for them first is ten times faster
_RIGHTS_SIGNS = {
    "rights_reserved": ("reserved",),
    "no_reproduction": ("reproduc", "copied", "republished", "redistributed", "confidential",
                        "unauthori"),
    "copyright": ("copyright", "©", "(c)"),
}  # fmt: skip
_NOTICE_SIGNS = ("apache", "bsd", "gpl", "gnu", "mozilla", "mpl", "affero", "lesser", "general pub",
                 "creative", "cc0", "cc zero", "cc-by", "cc by", " mit")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Licence(Scorer):
    """The licence a document declares or states, its class, and a prior that it must be removed."""

    declared: str = ""
    """Column with the licence that the source declares (SPDX, or a name); none if empty."""
    identity: str = ""
    """Column that says that a person wrote it: true, or a name; none if empty."""
    url: str = ""
    """Column with the address or the publisher; none if empty."""
    contested: list[str] = field(default_factory=list)
    """Names (of domains, publishers) whose texts are often disputed."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "minus the prior of removal", "higher"),
        "p_delete": Column(pa.float64(), "prior probability of removal", "lower"),
        "licence": Column(pa.string(), "SPDX expression"),
        "category": Column(pa.string(), "class of the licence"),
        "conflict": Column(pa.bool_(), "declared and stated licences differ in class"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        if bool(self.url) != bool(self.contested):
            raise ValueError("url and contested need each other")

    @property
    def needs(self) -> tuple[str, ...]:
        named = (self.declared, self.identity, self.url)
        return tuple(dict.fromkeys(n for n in named if n))

    def score(self, batch: pa.Table) -> Arrays:
        rows, found = batch.num_rows, Findings(batch.num_rows)
        beside = {n: batch[n].to_pylist() for n in self.needs}
        none = [None] * rows
        said = beside.get(self.declared, none)
        licences, categories, conflict = list[str | None](), list[str](), np.zeros(rows, np.bool_)
        for row, text in enumerate(content_texts(batch)):
            stated = _stated(text, row, found)
            told = str(said[row] or "").strip() or None
            if told:
                found.add(row, "declared", value=PRIOR[category(told)])
            licences.append(told or stated)
            categories.append(category(told or stated))
            conflict[row] = bool(told and stated) and category(told) != category(stated)
        p = np.array([PRIOR[c] for c in categories])
        persons = beside.get(self.identity, none) if self.identity else none
        for row, (person, url) in enumerate(zip(persons, beside.get(self.url, none), strict=True)):
            if person and str(person).lower() != "false":
                found.add(row, "identity", value=IDENTITY)
                p[row] = max(p[row], IDENTITY)
            if any(name.lower() in str(url or "").lower() for name in self.contested):
                found.add(row, "contested", value=CONTESTED)
                p[row] = max(p[row], CONTESTED)
        return {
            "utility": -p, "p_delete": p, "licence": licences, "category": categories,
            "conflict": conflict, "findings": found.array(),
        }  # fmt: skip


def _stated(text: str, row: int, found: Findings) -> str | None:
    """The licences that a text states, joined; what was found is added to the findings."""
    lower = text.lower()
    grants = list(_grants(text, lower))
    for reason, name, start, stop in grants:
        found.add(row, reason, start, stop, PRIOR[category(name)])
    rights = {
        reason: [m.span() for m in pattern.finditer(text)]
        if any(sign in lower for sign in _RIGHTS_SIGNS[reason])
        else []
        for reason, pattern in _RIGHTS.items()
    }
    for reason, spans in rights.items():
        p = PRIOR["unknown" if reason == "copyright" or grants else "reserved"]
        for start, stop in spans:
            found.add(row, reason, start, stop, p)
    names = sorted({name for _, name, _, _ in grants})
    if names:
        return " AND ".join(f"({n})" if " " in n and len(names) > 1 else n for n in names)
    reserved = rights["rights_reserved"] or rights["no_reproduction"]
    return "all-rights-reserved" if reserved else None


def _grants(text: str, lower: str) -> Iterator[tuple[str, str, int, int]]:
    """(reason, identifier, start, stop) of each licence that a text grants."""
    if "spdx" in lower:
        for match in _TAG.finditer(text):
            yield "spdx", match.group(1), match.start(), match.end()
    texts = [
        (match.start(), match.end(), name)
        for name, pattern in _COMPILED.items()
        if _SIGNS[name] in lower
        for match in pattern.finditer(text)
    ]
    for start, stop, name in texts:
        yield "licence_text", name, start, stop
    taken = _Taken(texts)
    if "public" in lower:
        for match in _DOMAIN.finditer(text):
            if not taken.meets(*match.span()):
                yield "licence_notice", "public-domain", *match.span()
    if any(sign in lower for sign in _NOTICE_SIGNS):
        for match in _NOTICE.finditer(text):
            if not taken.meets(*match.span()):
                number = int(str(match.lastgroup)[1:])
                yield "licence_notice", list(_NAMED)[number], *match.span()
    if "creativecommons" in lower:
        for match in _CC_URL.finditer(text):
            kind, version, public = match.groups()
            yield "cc_url", "CC0-1.0" if public else f"CC-{kind}-{version}".upper(), *match.span()


class _Taken:
    """Stretches of a text, asked whether one of them meets another."""

    def __init__(self, spans: Sequence[tuple[int, int, str]]) -> None:
        self.starts = sorted(start for start, _, _ in spans)
        self.stops = sorted(stop for _, stop, _ in spans)

    def meets(self, start: int, stop: int) -> bool:
        """Some stretch begins before `stop` and has not ended at `start`."""
        return bisect.bisect_left(self.starts, stop) > bisect.bisect_right(self.stops, start)


_COMPILED = {n: re.compile(re.sub(" ", r"[\\s#*/;-]+", p), re.I) for n, p in _TEXTS.items()}


def category(expression: str | None) -> str:
    """The class of an SPDX expression or a name: AND is the worst of its parts, OR the best."""
    if not expression:
        return "unknown"
    tokens = re.findall(r"[()]|[^\s()]+", expression)
    if not {"AND", "OR", "WITH"} & set(tokens):
        return _of_name("-".join(t for t in tokens if t not in "()"))
    return _either(tokens)


def _either(tokens: list[str]) -> str:
    found = [_all(tokens)]
    while tokens and tokens[0] == "OR":
        tokens.pop(0)
        found.append(_all(tokens))
    return min(found, key=PRIOR.__getitem__)


def _all(tokens: list[str]) -> str:
    found = [_one(tokens)]
    while tokens and tokens[0] in ("AND", "WITH"):
        exception = tokens.pop(0) == "WITH"
        part = _one(tokens)
        found += [] if exception else [part]
    return max(found, key=PRIOR.__getitem__)


def _one(tokens: list[str]) -> str:
    token = tokens.pop(0) if tokens else ""
    if token != "(":
        return _of_name(token)
    inside = _either(tokens)
    if tokens and tokens[0] == ")":
        tokens.pop(0)
    return inside


def _of_name(name: str) -> str:
    plain = re.sub(r"[\s_]+", "-", name.strip().lower())
    return next((kind for kind, pattern in _ID if pattern.search(plain)), "unknown")
