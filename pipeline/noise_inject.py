"""Planted noise with known truth: what detectors are measured by, in tests and benchmarks.

    noisy = inject(table, "pii", share=0.1, seed=0)

Every kind gives the table as before, content altered in some rows, and three columns more:

    noise.kind    string   the kind, null in rows that are clean
    noise.clean   string   the value that was altered, as it was; null in clean rows
    noise.mask    list<{what, start, stop}>   what was altered, in characters of the altered value;
                  start = stop where something was taken out

A row is chosen where a draw from (seed, kind, id) is below `share`, and all draws inside it come
from the same, so neither row order nor batches matter and exact copies become the same noise.
`pair` and `duplicate` also look at the other chosen rows, `label` at the labels there are. Rows
that carry noise already are left alone: kinds can be planted one after the other. An `id`,
`n_bytes` of altered content are made anew.

    token      words replaced, dropped, doubled or scrambled            rate, how
    label      another label                                            column, labels, flip
    static     digits replaced, lines dropped, after the fact           digits, lines     (TInt)
    dynamic    results of `a + b = c` replaced, later steps follow      rate              (TInt)
    insert     useless or wrong thoughts put between lines              ratio, how        (NoRa)
    pair       the answer of another chosen row                         column
    duplicate  copies behind the last row, words dropped at `edits`     edits
    truncation the end cut off                                          least, most
    junk       slogans, navigation lines, repetition, shuffled words    how
    pii        a sentence with an invented personal datum               types

`column` names what is altered (default: `response`, else `text`). Personal data are invented and
valid in form, from ranges that are nobody's (`noise_values.py`). Sources: Dahoas' TInt (2024) for
static and dynamic noise, NoRa (2024) for insertions: the rules are theirs, the words are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline import noise_values
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import CONTENT, content_bytes, content_ids, id_words

MASK = pa.list_(pa.struct([("what", pa.string()), ("start", pa.int32()), ("stop", pa.int32())]))
KIND, CLEAN, SPANS = "noise.kind", "noise.clean", "noise.mask"
Draw = np.random.Generator
Span = tuple[str, int, int]
_WORD = re.compile(r"\S+")


@dataclass
class Noisy:
    """A text as it is being altered, piece by piece."""

    text: str = ""
    spans: list[Span] = field(default_factory=list)

    def add(self, piece: str, what: str = "") -> None:
        """Put a piece behind; `what` says that it is noise."""
        if what:
            self.spans.append((what, len(self.text), len(self.text) + len(piece)))
        self.text += piece


def inject(table: pa.Table, kind: str, share: float, seed: int, **options: Any) -> pa.Table:
    """Plant one kind of noise in a share of the rows that are clean so far."""
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; there are {', '.join(KINDS)}")
    if not 0 <= share <= 1:
        raise ValueError(f"share is from 0 to 1, got {share}")
    table = _prepared(table)
    ids, rng = table["id"], Rng(seed).at("noise", kind)
    clean = np.asarray(table[KIND].is_null())
    chosen = np.flatnonzero(clean & (rng.uniform(ids) < share))
    words = id_words(ids)
    key = rng.at("rows").key
    draws = {r: np.random.default_rng([key, *words[r].tolist()]) for r in chosen.tolist()}
    return KINDS[kind](table, draws, options)


def _prepared(table: pa.Table) -> pa.Table:
    """With the columns of noise, and ids if there are none."""
    if "id" not in table.column_names:
        table = table.add_column(0, "id", content_ids(table))
    for name, dtype in {KIND: pa.string(), CLEAN: pa.string(), SPANS: MASK}.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, dtype))
    return table


def _column(table: pa.Table, options: Mapping[str, Any]) -> str:
    name = options.get("column") or ("response" if "response" in table.column_names else "text")
    if name not in table.column_names:
        raise ValueError(f"no column {name!r} to alter; there are {table.column_names}")
    return str(name)


def _only(options: Mapping[str, Any], *known: str) -> None:
    unknown = sorted(set(options) - {"column", *known})
    if unknown:
        raise ValueError(f"no option {unknown[0]!r}; there are {', '.join(('column', *known))}")


def _altered(table: pa.Table, kind: str, column: str, found: Mapping[int, Noisy]) -> pa.Table:
    """The table with these rows altered; rows that did not change stay clean."""
    values, dtype = table[column].to_pylist(), table.schema.field(column).type
    marks = {name: table[name].to_pylist() for name in (KIND, CLEAN, SPANS)}
    for row, noisy in found.items():
        was = "" if values[row] is None else str(values[row])
        if noisy.text == was:
            continue
        marks[KIND][row], marks[CLEAN][row] = kind, was
        marks[SPANS][row] = [{"what": w, "start": a, "stop": b} for w, a, b in noisy.spans]
        values[row] = _like(values[row], noisy.text)
    made = {n: pa.array(v, table.schema.field(n).type) for n, v in marks.items()}
    made[column] = pa.array(values, dtype)
    for name, array in made.items():
        table = table.set_column(table.column_names.index(name), name, array)
    return _anew(table) if column in CONTENT else table


def _like(value: Any, text: str) -> Any:
    """A value that is written so, of the type of the one before."""
    if isinstance(value, bool):
        return text == str(True)
    return text if value is None else type(value)(text)


def _anew(table: pa.Table) -> pa.Table:
    """What is made of the content, made of the new one."""
    for name, array in (("id", content_ids(table)), ("n_bytes", pa.array(content_bytes(table)))):
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, array)
    return table


Alter = Callable[[str, Draw, Mapping[str, Any]], Noisy]
Plant = Callable[[pa.Table, Mapping[int, Draw], Mapping[str, Any]], pa.Table]


def _by_row(kind: str, alter: Alter, *known: str) -> Plant:
    """A kind that alters each text on its own."""

    def plant(table: pa.Table, draws: Mapping[int, Draw], options: Mapping[str, Any]) -> pa.Table:
        _only(options, *known)
        column = _column(table, options)
        texts = table[column]
        found = {r: alter(texts[r].as_py() or "", draw, options) for r, draw in draws.items()}
        return _altered(table, kind, column, found)

    return plant


def _token(text: str, draw: Draw, options: Mapping[str, Any]) -> Noisy:
    rate, how = options.get("rate", 0.3), options.get("how", "replace")
    if how not in ("replace", "drop", "double", "scramble"):
        raise ValueError(f"how is replace, drop, double or scramble, got {how!r}")
    noisy, at = Noisy(), 0
    for match in _WORD.finditer(text):
        noisy.add(text[at : match.start()])
        word, at = match.group(), match.end()
        if draw.random() >= rate:
            noisy.add(word)
            continue
        other = {
            "replace": str(draw.choice(noise_values.WORDS)), "drop": "", "double": f"{word} {word}",
            "scramble": "".join(draw.permutation(list(word))),
        }[how]  # fmt: skip
        noisy.add(other, "token")
    noisy.add(text[at:])
    return noisy


def _static(text: str, draw: Draw, options: Mapping[str, Any]) -> Noisy:
    """Digits of purely numeric words become any digit; lines but the last are dropped."""
    digits, dropped = options.get("digits", 0.3), options.get("lines", 0.0)
    lines = text.split("\n")
    gone = draw.random(len(lines)) < dropped
    gone[-1] = False
    noisy = Noisy()
    for number, (line, drop) in enumerate(zip(lines, gone.tolist(), strict=True)):
        if drop:
            noisy.add("", "line")
            continue
        for piece in re.split(r"( )", line):
            if not piece.isnumeric():
                noisy.add(piece)
                continue
            for digit in piece:
                other = str(draw.integers(0, 10)) if draw.random() < digits else digit
                noisy.add(other, "digit" if other != digit else "")
        if number < len(lines) - 1:
            noisy.add("\n")
    return noisy


_ALONE = r"(?<![\d.])(?:\d+)(?![\d.])"
#: `a + b = c` of two operands, the first of no longer sum; or a number on its own
_SUM = re.compile(
    r"(?<![\d.])(?<![-+*/×])(?<![-+*/×] )(\d+)(\s*([-+*/×])\s*)(\d+)(\s*=\s*)(\d+)(?![\d.])|"
    + _ALONE
)
_APPLY: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: abs(a - b), "*": lambda a, b: a * b,
    "×": lambda a, b: a * b, "/": lambda a, b: a // b if b else 0,
}  # fmt: skip


def corrupt_number(digits: str, rate: float, draw: Draw) -> str:
    """Each digit from the first that is not 0 on becomes one of 0 to 8 with this probability."""
    first = len(digits) - len(digits.lstrip("0"))
    return digits[:first] + "".join(
        str(draw.integers(0, 9)) if draw.random() < rate else d for d in digits[first:]
    )


def _dynamic(text: str, draw: Draw, options: Mapping[str, Any]) -> Noisy:
    """Results are corrupted as they come up, and what is made of them later follows."""
    rate = options.get("rate", 0.2)
    now: dict[str, str] = {}
    noisy, at = Noisy(), 0
    for match in _SUM.finditer(text):
        noisy.add(text[at : match.start()])
        at = match.end()
        left, sign, kind, right, equals, was = match.groups()
        if left is None:  # a number on its own: a result that was corrupted before, or not
            whole = match.group()
            noisy.add(now.get(whole, whole), "step" if now.get(whole, whole) != whole else "")
            continue
        a, b = now.get(left, left), now.get(right, right)
        follows = was if (a, b) == (left, right) else str(_APPLY[kind](int(a), int(b)))
        result = corrupt_number(follows, rate, draw)
        now[was] = result
        for piece, before in ((a, left), (sign, sign), (b, right), (equals, equals), (result, was)):
            noisy.add(piece, "step" if piece != before else "")
    noisy.add(text[at:])
    return noisy


def _insert(text: str, draw: Draw, options: Mapping[str, Any]) -> Noisy:
    """round(n ratio) thoughts, ties to even, each behind one of the n lines but the last."""
    how = options.get("how", "irrelevant")
    if how not in noise_values.THOUGHTS:
        raise ValueError(f"how is one of {', '.join(noise_values.THOUGHTS)}, got {how!r}")
    lines = text.split("\n")
    slots = max(len(lines) - 1, 0)
    count = min(round(slots * options.get("ratio", 0.5)), slots)
    behind = set(draw.permutation(slots)[:count].tolist())
    noisy = Noisy()
    for number, line in enumerate(lines):
        noisy.add(line if number == 0 else f"\n{line}")
        if number in behind:
            noisy.add("\n")
            noisy.add(str(draw.choice(noise_values.THOUGHTS[how])), how)
    return noisy


def _truncation(text: str, draw: Draw, options: Mapping[str, Any]) -> Noisy:
    low, high = options.get("least", 0.2), options.get("most", 0.8)
    noisy = Noisy(text[: int(len(text) * draw.uniform(low, high))])
    noisy.add("", "truncation")
    return noisy


def _junk(text: str, draw: Draw, options: Mapping[str, Any]) -> Noisy:
    hows = ("clickbait", "boilerplate", "repeated", "shuffled")
    how = options.get("how") or str(draw.choice(hows))
    if how not in hows:
        raise ValueError(f"how is one of {', '.join(hows)}, got {how!r}")
    noisy, words = Noisy(), text.split() or ["nothing"]
    if how == "boilerplate":
        menu = [str(x) for x in draw.permutation(noise_values.MENU)]
        noisy.add("\n".join(menu[:9]), how)
        noisy.add(f"\n{text}\n")
        noisy.add("\n".join(menu[9:]), how)
    elif how == "repeated":
        start = int(draw.integers(0, max(len(words) - 8, 0) + 1))
        noisy.add("\n".join([" ".join(words[start : start + 8])] * int(draw.integers(8, 30))), how)
    elif how == "shuffled":
        noisy.add(" ".join(draw.permutation(words)), how)
    else:
        some = draw.permutation(noise_values.SLOGANS)[: int(draw.integers(2, 5))]
        noisy.add(" ".join(some), how)
    return noisy


def _pii(text: str, draw: Draw, options: Mapping[str, Any]) -> Noisy:
    types = options.get("types") or sorted(noise_values.PERSONAL)
    unknown = set(types) - set(noise_values.PERSONAL)
    if unknown:
        raise ValueError(f"no type {sorted(unknown)[0]!r} of personal data; there are "
                         f"{', '.join(sorted(noise_values.PERSONAL))}")  # fmt: skip
    what = str(draw.choice(sorted(types)))
    before, behind = noise_values.PERSONAL_SENTENCES[what]
    ends = [m.end() for m in re.finditer(r"[.!?](?=\s|$)", text)] or [len(text)]
    at = int(draw.choice(ends))
    noisy = Noisy()
    noisy.add(text[:at] + (" " if at else "") + before)
    noisy.add(noise_values.PERSONAL[what](draw), what)
    noisy.add(behind + text[at:])
    return noisy


def _label(table: pa.Table, draws: Mapping[int, Draw], options: Mapping[str, Any]) -> pa.Table:
    _only(options, "labels", "flip")
    column = options.get("column", "label")
    _column(table, {"column": column})
    values = table[column].to_pylist()
    labels = options.get("labels") or sorted({v for v in values if v is not None})
    flip, found = options.get("flip") or {}, {}
    for row, draw in draws.items():
        was = values[row]
        others = [flip[was]] if was in flip else [] if flip else [x for x in labels if x != was]
        if was is not None and others:
            found[row] = Noisy()
            found[row].add(str(others[int(draw.integers(len(others)))]), "label")
    return _altered(table, "label", column, found)


def _pair(table: pa.Table, draws: Mapping[int, Draw], options: Mapping[str, Any]) -> pa.Table:
    """Each chosen row gets the value of the next, in the order of their draws."""
    _only(options)
    column = _column(table, options)
    values = table[column].to_pylist()
    distinct = {table["id"][row].as_py(): row for row in sorted(draws, reverse=True)}
    ring = [row for _, row in sorted(distinct.items())]
    gets = {a: values[b] or "" for a, b in zip(ring, [*ring[1:], *ring[:1]], strict=True)}
    found = {}
    for row in draws:
        found[row] = Noisy()
        found[row].add(gets[distinct[table["id"][row].as_py()]], "pair")
    return _altered(table, "pair", column, found)


def _duplicate(table: pa.Table, draws: Mapping[int, Draw], options: Mapping[str, Any]) -> pa.Table:
    """Copies of the chosen rows behind the last row."""
    _only(options, "edits")
    column, rows = _column(table, options), sorted(draws)
    copies = table.take(pa.array(rows, pa.int64()))
    edits = {"rate": options.get("edits", 0.0), "how": "drop"}
    values = copies[column].to_pylist()
    found = {n: _token(values[n] or "", draws[row], edits) for n, row in enumerate(rows)}
    copies = _altered(copies, "duplicate", column, found)
    marks = {KIND: pa.array(["duplicate"] * len(rows), pa.string()),
             CLEAN: pa.array([v or "" for v in values], pa.string())}  # fmt: skip
    for name, array in marks.items():
        copies = copies.set_column(copies.column_names.index(name), name, array)
    return pa.concat_tables([table, copies])


#: kind -> what plants it
KINDS: dict[str, Plant] = {
    "token": _by_row("token", _token, "rate", "how"),
    "label": _label,
    "static": _by_row("static", _static, "digits", "lines"),
    "dynamic": _by_row("dynamic", _dynamic, "rate"),
    "insert": _by_row("insert", _insert, "ratio", "how"),
    "pair": _pair,
    "duplicate": _duplicate,
    "truncation": _by_row("truncation", _truncation, "least", "most"),
    "junk": _by_row("junk", _junk, "how"),
    "pii": _by_row("pii", _pii, "types"),
}
