"""Presidio as a second tier: what it finds in a text, beside what has a form of its own.

Only documents are given to it that hold a person-like word (two capitalised words in a row) within
NEAR characters of a contact (e-mail, telephone), unless `everywhere`. Its recognisers of e-mail
addresses and web addresses are left out: the first tier has the former, and both ask the network
for a list of domains. Without a spaCy model it runs on a blank pipeline: patterns and check digits
only, no names and no places.

A text is cut into pieces of PIECE characters at white space, so that a long one fits into spaCy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from foresift.pipeline.errors import DataError
from foresift.pipeline.personal import Hit

PIECE = 100_000
NEAR = 120
#: of Presidio -> ours
KINDS = {
    "EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "IP_ADDRESS": "ip", "CREDIT_CARD": "card",
    "IBAN_CODE": "iban", "US_SSN": "us_ssn",
}  # fmt: skip
#: say little of a person: left out unless they are asked for
LEFT_OUT = frozenset(["DATE_TIME", "URL", "NRP", "ORGANIZATION"])
_ASKS_NETWORK = ("EmailRecognizer", "UrlRecognizer")
_NAME = re.compile(r"[^\W\d_a-z]\w+ (?:[^\W\d_a-z]\.? )?[^\W\d_a-z]\w+")


def engine(language: str, model: str) -> Any:
    """An analyser of Presidio; DataError where it or the model is not installed."""
    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
    except ImportError as error:
        raise DataError(
            f"Presidio is not installed ({error}): pip install 'foresift[pii]'", where="pii.engine"
        ) from error
    try:
        pipeline = spacy.load(model) if model else spacy.blank(language)
    except (OSError, ImportError) as error:
        raise DataError(f"spaCy has no {model or language!r}: {error}", where="pii.model") from None
    nlp = SpacyNlpEngine(models=[{"lang_code": language, "model_name": model or "blank"}])
    nlp.nlp = {language: pipeline}
    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language], nlp_engine=nlp)
    for name in _ASKS_NETWORK:
        registry.remove_recognizer(name)
    return AnalyzerEngine(registry=registry, nlp_engine=nlp, supported_languages=[language])


def person_near_contact(text: str, hits: Sequence[Hit]) -> bool:
    """Whether a name-like pair of words stands near an address or a telephone number."""
    contacts = (hit for hit in hits if hit.kind in ("email", "phone"))
    return any(_NAME.search(text, max(0, h.start - NEAR), h.stop + NEAR) for h in contacts)


def find(analyser: Any, text: str, language: str, entities: Sequence[str]) -> list[Hit]:
    """What Presidio finds, in its order."""
    hits = []
    for start, piece in _pieces(text):
        for r in analyser.analyze(text=piece, language=language, entities=list(entities) or None):
            if entities or r.entity_type not in LEFT_OUT:
                kind = KINDS.get(r.entity_type, str(r.entity_type).lower())
                hits.append(Hit(kind, start + r.start, start + r.end, float(r.score), False))
    return hits


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    while start < len(text):
        stop = start + PIECE
        if stop < len(text):
            at = max(text.rfind(c, start + 1, stop) for c in " \n\t")
            stop = at + 1 if at > 0 else stop
        yield start, text[start:stop]
        start = stop


def merged(first: Sequence[Hit], second: Sequence[Hit]) -> list[Hit]:
    """The first tier, and of the second what overlaps neither it nor a surer one."""
    ranked = sorted(second, key=lambda h: (-h.confidence, h.start, h.start - h.stop, h.kind))
    taken = bytearray(max([h.stop for h in (*first, *second)], default=0))
    kept = list(first)
    for hit in first:
        taken[hit.start : hit.stop] = b"\x01" * (hit.stop - hit.start)
    for hit in ranked:
        if hit.start < hit.stop and taken.find(1, hit.start, hit.stop) < 0:
            taken[hit.start : hit.stop] = b"\x01" * (hit.stop - hit.start)
            kept.append(hit)
    return sorted(kept, key=lambda h: h.start)
