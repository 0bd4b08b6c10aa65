"""The language of each document, by the statistics of its bytes; the model comes with the library.

    language      ISO 639 code of the most probable language, `en`; `zxx` for what is no language
                  (figures, markup, identifiers), `und` below `min_probability` and for no text
    probability   of that language among the 139 that are known, 0 to 1; NaN for no text
    findings      `other_language` with the probability, where `expected` names languages and the
                  document is in another one; not where it is `und`

The model is that of py3langid (naive Bayes over selected byte n-grams, with a temperature that
keeps probabilities of long and short texts comparable); it is loaded from the installed package,
never from the network. The first `characters` of a document are read, so the cost is bounded.

A detector drops nothing: write `where` with `language.language == 'en'`. Rows stand alone.
Cost: 2 MB/s on one core; 2 s to load. Source: Lui and Baldwin 2012 (langid.py); py3langid 0.4
(Barbaresi). Measured: see tests/scorers/test_language.py. Short texts, closely related languages
(Bosnian, Croatian, Serbian) and languages that the model does not know are where it fails.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import Arrays, Scorer
from foresift.pipeline.tables import Column, content_texts

UNKNOWN = "und"


@dataclass(frozen=True, kw_only=True)
class Language(Scorer):
    """The most probable language of each document and how probable it is; works offline."""

    expected: tuple[str, ...] = ()
    """ISO 639 codes of the languages a document should be in; none: nothing is a finding."""
    min_probability: float = 0.2
    """Below it the language is `und`."""
    characters: int = 10_000
    """How much of a document is read, from its beginning."""

    columns: ClassVar[Mapping[str, Column]] = {
        "language": Column(pa.string(), "ISO 639 code"),
        "probability": Column(pa.float32(), "probability"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        if not 0 <= self.min_probability <= 1:
            raise ValueError(f"min_probability is from 0 to 1, got {self.min_probability}")
        if self.characters < 1:
            raise ValueError(f"characters is at least 1, got {self.characters}")
        for code in self.expected:
            if not (code.isascii() and code.islower() and 2 <= len(code) <= 3):
                raise ValueError(f"expected takes ISO 639 codes such as 'en', got {code!r}")

    def score(self, batch: pa.Table) -> Arrays:
        identifier = _identifier()
        found = Findings(batch.num_rows)
        languages, probabilities = [], np.full(batch.num_rows, np.nan, dtype=np.float32)
        for row, text in enumerate(content_texts(batch)):
            text = text[: self.characters]
            language = UNKNOWN
            if text and not text.isspace():
                likely, probability = identifier.classify(text)
                probabilities[row] = probability
                if probability >= self.min_probability:
                    language = likely
            languages.append(language)
            if self.expected and language not in (UNKNOWN, *self.expected):
                found.add(row, "other_language", value=float(probabilities[row]))
        return {
            "language": languages,
            "probability": probabilities,
            "findings": found.array(),
        }


@functools.cache
def _identifier() -> Any:
    """The model; loaded once in a process."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise DataError(
            f"py3langid is not installed ({error}): pip install 'foresift[language]'",
            where="language",
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
