"""Personal data with a form of its own: spans by type, check digits, keyed hashes of values.

    spans        pieces of personal data, which do not overlap
    verified     those of them whose check digits agree (cards, IBANs, most identity numbers)
    share        characters in them / characters
    email, phone, ip, card, iban, us_ssn    pieces of the type
    national_id  identity numbers of other countries; `other`: what only Presidio knows
    findings     reason = type, first and last character, value = confidence
    keys         distinct HMAC-SHA256 of (type, value), 16 bytes each, sorted; empty without a key

Types, and what each must look like: pipeline/personal.py. Measured on ordinary web text (Pile):
50 to 60 MB/s on one core, 40 for code, 10 where a text is nothing but numbers.

**A value is never stored.** So that a request of a person can be answered all the same, `keys`
holds a keyed hash of each: `pipeline.personal.keyed(type, value, key)` of what the person gives is
looked for in the column. A hash without a key would be no protection, since addresses and telephone
numbers can be tried out one by one; hence without `key_env` there are no hashes at all. The key
is no field: scores are not computed anew when it changes, so give it another variable then.
DataError where the variable is empty or shorter than 16 bytes.

`engine: presidio` asks Presidio (extra `pii`) about documents in which a name-like pair of words
stands near a contact, or about all. Its types besides ours come under their own lower-case names
and count as `other`. It is far slower. Names and postal addresses are found by it alone, and only
with a spaCy model.

What fails: numbers written as words, addresses spelled `bob at example dot org`, telephone numbers
without grouping, `+` or a word before them; versions with four parts above 39 look like addresses.
A usual policy: drop documents with more than five spans (`where`), replace the
others' (`redact` of an export).
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from foresift.pipeline import personal
from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import Arrays, Scorer
from foresift.pipeline.personal import Hit
from foresift.pipeline.personal_numbers import KINDS
from foresift.pipeline.tables import Column, content_texts
from foresift.scorers import _personal_presidio as presidio

TYPES = ("email", "phone", "ip", "card", "iban", "us_ssn")
NATIONAL = KINDS - set(TYPES)
#: fewest bytes of a key
KEY_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Pii(Scorer):
    """Personal data: spans by type, checked by their check digits; values only as keyed hashes."""

    engine: Literal["regex", "presidio"] = "regex"
    """`regex`: forms and check digits; `presidio`: these, and then Presidio (extra `pii`)."""
    min_confidence: float = 0.5
    """Least confidence of what counts, 0 to 1."""
    key_env: str = ""
    """Environment variable with the key of `keys`, 16 bytes or more; empty: no hashes."""
    language: str = "en"
    """Of Presidio's recognisers."""
    model: str = ""
    """Installed spaCy model for Presidio; empty: a blank one, which knows no names."""
    entities: list[str] = field(default_factory=list)
    """Types that Presidio is asked for; empty: all but dates, web addresses and groups."""
    everywhere: bool = False
    """Ask Presidio about every document, not only where a name stands near a contact."""

    columns: ClassVar[Mapping[str, Column]] = {
        "spans": Column(pa.int32(), "pieces of personal data", "lower"),
        "verified": Column(pa.int32(), "pieces whose check digits agree", "lower"),
        "share": Column(pa.float32(), "fraction of characters, 0 to 1", "lower"),
        **{name: Column(pa.int32(), "pieces", "lower") for name in TYPES},
        "national_id": Column(pa.int32(), "pieces", "lower"),
        "other": Column(pa.int32(), "pieces that only Presidio knows", "lower"),
        "findings": FOUND,
        "keys": Column(pa.list_(pa.binary(16)), "keyed hashes of the values"),
    }

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise ValueError("min_confidence is between 0 and 1")
        if self.engine == "regex" and (self.model or self.entities or self.everywhere):
            raise ValueError("model, entities and everywhere are for engine: presidio")

    def score(self, batch: pa.Table) -> Arrays:
        key = self._key()
        texts = content_texts(batch)
        found = Findings(len(texts))
        counts = {name: np.zeros(len(texts), dtype=np.int32) for name in self._counted()}
        share = np.zeros(len(texts), dtype=np.float32)
        keys: list[list[bytes]] = []
        for row, text in enumerate(texts):
            hits = self._hits(text)
            for name, count in Counter(map(_column, hits)).items():
                counts[name][row] = count
            counts["spans"][row] = len(hits)
            counts["verified"][row] = sum(hit.checked for hit in hits)
            share[row] = sum(h.stop - h.start for h in hits) / max(len(text), 1)
            for hit in hits:
                found.add(row, hit.kind, hit.start, hit.stop, hit.confidence)
            keys.append(_keys(text, hits, key))
        packed = pa.array(keys, self.columns["keys"].dtype)
        return {**counts, "share": share, "findings": found.array(), "keys": packed}

    def _counted(self) -> list[str]:
        return ["spans", "verified", *TYPES, "national_id", "other"]

    def _hits(self, text: str) -> list[Hit]:
        hits = personal.find(text)
        if self.engine == "presidio" and (
            self.everywhere or presidio.person_near_contact(text, hits)
        ):
            more = presidio.find(self._analyser, text, self.language, self.entities)
            more = [hit for hit in more if hit.confidence >= self.min_confidence]
            hits = presidio.merged(hits, more)
        return [hit for hit in hits if hit.confidence >= self.min_confidence]

    @functools.cached_property
    def _analyser(self) -> Any:
        return presidio.engine(self.language, self.model)

    def _key(self) -> bytes:
        if not self.key_env:
            return b""
        key = os.environ.get(self.key_env, "").encode("utf-8", "surrogateescape")
        if len(key) < KEY_BYTES:
            raise DataError(
                f"the environment variable holds no key of {KEY_BYTES} bytes", where=self.key_env
            )
        return key


def _column(hit: Hit) -> str:
    """The column that counts a piece."""
    return hit.kind if hit.kind in TYPES else "national_id" if hit.kind in NATIONAL else "other"


def _keys(text: str, hits: list[Hit], key: bytes) -> list[bytes]:
    return sorted({_keyed(h.kind, text[h.start : h.stop], key) for h in hits}) if key else []


def _keyed(kind: str, value: str, key: bytes) -> bytes:
    try:
        return personal.keyed(kind, value, key)
    except ValueError:  # what Presidio takes for an address may be a network: 10.0.0.0/8
        return personal.keyed("", value, key)
