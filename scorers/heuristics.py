"""The rules of Gopher, C4 and FineWeb: their numbers, their decisions, and what they found.

Rules, thresholds, words and names of reasons are those of datatrove 0.10 (`GopherQualityFilter`,
`GopherRepetitionFilter`, `C4QualityFilter`, `FineWebQualityFilter`), for English. A decision is
true where the filter with these settings keeps the document; `ok` is true where all four do.
Nothing is dropped or rewritten: C4's filter also takes lines out of what it keeps; here
`lines_removed` counts them (`lines_<reason>` by reason), and FineWeb's numbers, which come behind
C4 in its pipeline, are those of the whole text.

    Gopher quality      words, their length, marks, bullets, ellipses, letters, stop words
    Gopher repetition   copied lines and paragraphs, top and repeated rows of words, in characters
    C4                  lines dropped, sentences left, "lorem ipsum", "{"
    FineWeb             lines with terminal marks, short lines, copied characters, newlines a word

`words` counts all words, marks among them; `spoken_words` those with a character that is no mark.
Fractions are of all lines, words or characters, as each filter divides; NaN where there is nothing
to divide by, and then the rule holds. Findings: one for each rule that is broken (datatrove names
the first only), of the whole document, or at the first "lorem ipsum" or "{" in a line that counts.

A threshold of 0 (C4: -1) turns a rule off where it does in datatrove. Differences that are left:
rows of words are compared word by word, also where datatrove joins them without spaces; a piece of
more than 10 000 characters is one word; phrases that a citation interrupts are not seen, nor those
with letters outside ASCII that become ASCII in lower case. None of them decided one of 21,087 real
documents (benchmarks/heuristics.py).

Rows stand alone; any bytes will do. Cost: about 10 MB/s on one core, 45 bytes of memory a byte of
the longest document, 200 MB at least. Sources: Rae et al. 2021 (arXiv 2112.11446), Raffel et al.
2020 (JMLR 21/140), Penedo et al. 2024 (arXiv 2406.17557).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import Arrays, Scorer
from foresift.pipeline.tables import Column
from foresift.scorers import _heuristics_rules as rules
from foresift.scorers._heuristics_c4 import C4, Rules, c4
from foresift.scorers._heuristics_grams import SCANNED, TOP
from foresift.scorers._heuristics_rules import Floats
from foresift.scorers._heuristics_text import Block, Bools, blocks
from foresift.scorers._words import lexicon

_COUNTS = (
    "words", "spoken_words", "stop_words", "lines_removed", "lines_long_word", "lines_no_terminal",
    "lines_few_words", "lines_javascript", "lines_policy", "sentences",
)  # fmt: skip
_OF_LINES, _OF_WORDS, _OF_CHARACTERS = "fraction of lines", "fraction of words", "of characters"
_FRACTIONS = {
    "hash_ratio": "hash marks a word",
    "ellipsis_ratio": "ellipses a word",
    "bullet_lines": _OF_LINES,
    "ellipsis_lines": _OF_LINES,
    "alphabetic_words": _OF_WORDS,
    "duplicate_paragraphs": "fraction of paragraphs",
    "duplicate_paragraph_characters": _OF_CHARACTERS,
    "duplicate_lines": _OF_LINES,
    "duplicate_line_characters": _OF_CHARACTERS,
    **{f"top_{n}_gram": _OF_CHARACTERS for n in TOP},
    **{f"duplicated_{n}_grams": _OF_CHARACTERS for n in SCANNED},
    "terminal_lines": _OF_LINES,
    "short_lines": _OF_LINES,
    "duplicate_characters": _OF_CHARACTERS,
    "newline_ratio": "newlines a word",
}
_DECISIONS = ("gopher_quality", "gopher_repetition", "c4", "fineweb")


class _Broken(NamedTuple):
    """A rule, where it is broken, and the number that decided."""

    decision: str
    reason: str
    where: Bools
    value: Floats


@dataclass(frozen=True, kw_only=True)
class Heuristics(Scorer):
    """Gopher, C4 and FineWeb rules as numbers, as datatrove's decisions and as findings."""

    min_doc_words: int = 50
    """Gopher: fewest spoken words."""
    max_doc_words: int = 100_000
    """Gopher: most spoken words."""
    min_avg_word_length: float = 3
    """Gopher: characters of a spoken word, on average, at least."""
    max_avg_word_length: float = 10
    """Gopher: and at most."""
    max_symbol_word_ratio: float = 0.1
    """Gopher: most hash marks a word, and most ellipses a word."""
    max_bullet_lines_ratio: float = 0.9
    """Gopher: most of the lines may begin with a bullet."""
    max_ellipsis_lines_ratio: float = 0.3
    """Gopher: so many of the lines may end with an ellipsis."""
    min_alpha_words_ratio: float = 0.8
    """Gopher: fewest words with a letter (datatrove calls it max_non_alpha_words_ratio)."""
    min_stop_words: int = 2
    """Gopher: fewest different stop words; they are compared as they are written."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Gopher: the stop words."""
    dup_para_frac: float = 0.3
    """Gopher: most paragraphs that are copies."""
    dup_para_char_frac: float = 0.2
    """Gopher: most characters in such paragraphs."""
    dup_line_frac: float = 0.3
    """Gopher: most lines that are copies."""
    dup_line_char_frac: float = 0.2
    """Gopher: most characters in such lines."""
    top_n_grams: tuple[float, float, float] = (0.2, 0.18, 0.16)
    """Gopher: most characters in the top row of 2, 3 and 4 words."""
    dup_n_grams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)
    """Gopher: most characters in repeated rows of 5 to 10 words."""
    filter_no_terminal_punct: bool = True
    """C4: drop lines without terminal mark. FineWeb's own pipeline has this off."""
    min_num_sentences: int = 5
    """C4: fewest sentences in the lines that stay."""
    min_words_per_line: int = 3
    """C4: fewest words of a line that stays."""
    max_word_length: int = 1000
    """C4: most characters of a word in a line that stays."""
    filter_lorem_ipsum: bool = True
    """C4: drop documents with this phrase."""
    filter_javascript: bool = True
    """C4: drop lines that name it."""
    filter_curly_bracket: bool = True
    """C4: drop documents with an opening curly bracket."""
    filter_policy: bool = True
    """C4: drop lines about terms of use, privacy policies and cookies."""
    line_punct_thr: float = 0.12
    """FineWeb: fewest lines that end in a terminal mark."""
    line_punct_exclude_zero: bool = False
    """FineWeb: let documents pass that have no such line at all."""
    short_line_thr: float = 0.67
    """FineWeb: most lines that are short."""
    short_line_length: int = 30
    """FineWeb: characters of a short line at most."""
    char_duplicates_ratio: float = 0.01
    """FineWeb: most characters in lines that are copies."""
    new_line_ratio: float = 0.3
    """FineWeb: most newlines a word."""
    words: Literal["english", "whitespace"] = "english"
    """What a word is: spaCy's words for English, as datatrove has them, or what white space leaves.
    The latter is for languages that the English rules do not fit, and nearly twice as fast; marks
    are then part of words, so sentences are not told apart (a line counts as one), and on English
    its decisions are other ones."""

    columns: ClassVar[Mapping[str, Column]] = {
        **{name: Column(pa.int32(), "count") for name in _COUNTS},
        "mean_word_length": Column(pa.float32(), "characters of a spoken word"),
        **{name: Column(pa.float32(), unit) for name, unit in _FRACTIONS.items()},
        **{name: Column(pa.bool_(), "the filter keeps it") for name in _DECISIONS},
        "ok": Column(pa.bool_(), "all four filters keep it"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        for name, size in (("top_n_grams", len(TOP)), ("dup_n_grams", len(SCANNED))):
            if len(getattr(self, name)) != size:
                raise ValueError(f"{name} takes {size} numbers, got {getattr(self, name)!r}")
        if not 0 <= len(self.stop_words) < 256:
            raise ValueError(f"stop_words takes at most 255 words, got {len(self.stop_words)}")
        for word in self.stop_words:
            if not word or any(c.isspace() for c in word):
                raise ValueError(f"stop_words: a stop word is one word, got {word!r}")

    def score(self, batch: pa.Table) -> Arrays:
        found = Findings(batch.num_rows)
        parts: dict[str, list[Floats]] = {name: [] for name in self.columns if name != "findings"}
        row = 0
        for block in blocks(batch):
            numbers, lines = self._measured(block)
            broken = list(self._broken(block, numbers, lines))
            for name in _DECISIONS:
                hits = [rule.where for rule in broken if rule.decision == name]
                numbers[name] = ~np.logical_or.reduce(hits)
            numbers["ok"] = np.logical_and.reduce([numbers[name] for name in _DECISIONS])
            _add(found, row, block, broken, lines)
            row += len(block.starts)
            for name, values in parts.items():
                values.append(numbers[name])
        joined = {name: np.concatenate([*v, np.zeros(0)]) for name, v in parts.items()}
        arrays: dict[str, object] = {
            name: values.astype(self.columns[name].dtype.to_pandas_dtype())
            for name, values in joined.items()
        }
        return {**arrays, "findings": found.array()}

    def _measured(self, block: Block) -> tuple[dict[str, Floats], C4]:
        """All numbers of a block, and where C4 found what drops a document."""
        english = self.words == "english"
        words = lexicon(self.stop_words, english).words(block.text, *block.pieces)
        again = rules.line_copies(block)
        asked = Rules(
            no_terminal=self.filter_no_terminal_punct,
            max_word_length=self.max_word_length,
            min_words=self.min_words_per_line,
            javascript=self.filter_javascript,
            policy=self.filter_policy,
            lorem_ipsum=self.filter_lorem_ipsum,
            curly_bracket=self.filter_curly_bracket,
            english=english,
        )
        lines = c4(block, words, asked)
        return {
            **rules.gopher_quality(block, words, len(self.stop_words)),
            **rules.gopher_repetition(block, words, again),
            **lines.numbers,
            **rules.fineweb(block, words, again, self.short_line_length),
        }, lines

    def _broken(self, block: Block, of: Mapping[str, Floats], lines: C4) -> Iterator[_Broken]:
        """Every rule, in datatrove's order; a comparison with NaN is false."""
        empty = block.starts == block.stops
        blank = np.diff(block.piece_offsets) == 0
        nothing = np.full(len(empty), np.nan)

        def above(decision: str, reason: str, name: str, limit: float, off: bool) -> _Broken:
            return _Broken(decision, reason, (of[name] > limit) & (not off), of[name])

        def below(decision: str, reason: str, name: str, limit: float, off: bool) -> _Broken:
            return _Broken(decision, reason, (of[name] < limit) & (not off), of[name])

        for kind, reason, name, limit in (
            (below, "gopher_short_doc", "spoken_words", self.min_doc_words),
            (above, "gopher_long_doc", "spoken_words", self.max_doc_words),
            (below, "gopher_below_avg_threshold", "mean_word_length", self.min_avg_word_length),
            (above, "gopher_above_avg_threshold", "mean_word_length", self.max_avg_word_length),
            (above, "gopher_too_many_hashes", "hash_ratio", self.max_symbol_word_ratio),
            (above, "gopher_too_many_ellipsis", "ellipsis_ratio", self.max_symbol_word_ratio),
            (above, "gopher_too_many_bullets", "bullet_lines", self.max_bullet_lines_ratio),
            (above, "gopher_too_many_end_ellipsis", "ellipsis_lines",
             self.max_ellipsis_lines_ratio),
            (below, "gopher_below_alpha_threshold", "alphabetic_words",
             self.min_alpha_words_ratio),
            (below, "gopher_enough_stop_words", "stop_words", self.min_stop_words),
        ):  # fmt: skip
            yield kind("gopher_quality", reason, name, limit, not limit)
        yield _Broken("gopher_repetition", "empty", empty, nothing)
        for reason, name, limit in (
            ("dup_para_frac", "duplicate_paragraphs", self.dup_para_frac),
            ("dup_para_char_frac", "duplicate_paragraph_characters", self.dup_para_char_frac),
            ("dup_line_frac", "duplicate_lines", self.dup_line_frac),
            ("dup_line_char_frac", "duplicate_line_characters", self.dup_line_char_frac),
        ):
            yield above("gopher_repetition", reason, name, limit, not limit)
        for names, sizes, limits in (
            ("top_{}_gram", TOP, self.top_n_grams),
            ("duplicated_{}_n_grams", SCANNED, self.dup_n_grams),
        ):
            for size, limit in zip(sizes, limits, strict=True):
                reason = names.format(size)
                column = reason.replace("_n_grams", "_grams")
                yield above("gopher_repetition", reason, column, limit, False)
        yield _Broken("c4", "lorem_ipsum", lines.lorem_ipsum >= 0, nothing)
        yield _Broken("c4", "curly_bracket", lines.curly_bracket >= 0, nothing)
        yield below("c4", "too_few_sentences", "sentences", self.min_num_sentences, False)
        yield _Broken("fineweb", "empty", blank, nothing)
        spared = (of["terminal_lines"] == 0) & self.line_punct_exclude_zero
        few = (of["terminal_lines"] < self.line_punct_thr) & ~spared
        yield _Broken("fineweb", "line_punct_ratio", few, of["terminal_lines"])
        for reason, name, limit in (
            ("short_line_ratio", "short_lines", self.short_line_thr),
            ("char_dup_ratio", "duplicate_characters", self.char_duplicates_ratio),
            ("list_ratio", "newline_ratio", self.new_line_ratio),
        ):
            yield above("fineweb", reason, name, limit, False)


def _add(found: Findings, row: int, block: Block, broken: list[_Broken], lines: C4) -> None:
    """Add what is broken in a block whose first document is row `row`."""
    spans = {
        "lorem_ipsum": (lines.lorem_ipsum, len("lorem ipsum")),
        "curly_bracket": (lines.curly_bracket, 1),
    }
    for rule in broken:
        for document in np.flatnonzero(rule.where).tolist():
            if rule.reason not in spans:
                found.add(row + document, rule.reason, value=float(rule.value[document]))
                continue
            places, size = spans[rule.reason]
            at = int(block.characters(block.starts[document], places[document]))
            found.add(row + document, rule.reason, at, at + size)
