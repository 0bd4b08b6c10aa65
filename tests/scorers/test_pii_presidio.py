"""Presidio as a second tier, by a stand-in: who is asked about what, and what is kept."""

from __future__ import annotations

import re
import sys
import types
from typing import Any

import pyarrow as pa
import pytest

from foresift.pipeline import personal
from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import findings
from foresift.scorers._personal_presidio import merged
from foresift.scorers.pii import Pii


def score(texts: list[str], **fields: Any) -> dict[str, Any]:
    return dict(Pii(**fields).score(pa.table({"text": pa.array(texts, pa.string())})))


class _Analyser:
    """Finds Bob, and takes his address for a place."""

    def __init__(self, **_: Any) -> None:
        self.asked: list[str] = []

    def analyze(self, *, text: str, language: str, entities: list[str] | None) -> list[Any]:
        self.asked.append(text)
        hits = [("PERSON", m.span(), 0.85) for m in re.finditer("Bob Builder", text)]
        hits += [("LOCATION", m.span(), 0.9) for m in re.finditer(r"example\.org", text)]
        hits += [("DATE_TIME", m.span(), 0.9) for m in re.finditer("Monday", text)]
        return [
            types.SimpleNamespace(entity_type=kind, start=a, end=b, score=s)
            for kind, (a, b), s in hits
        ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Presidio and spaCy."""

    class Registry:
        def __init__(self, **_: Any) -> None: ...

        def load_predefined_recognizers(self, **_: Any) -> None: ...

        def remove_recognizer(self, name: str) -> None: ...

    class Nlp:
        def __init__(self, **_: Any) -> None: ...

    modules = {
        "spacy": {"blank": lambda language: None, "load": lambda name: None},
        "presidio_analyzer": {"AnalyzerEngine": _Analyser, "RecognizerRegistry": Registry},
        "presidio_analyzer.nlp_engine": {"SpacyNlpEngine": Nlp},
    }
    for name, held in modules.items():
        module = types.ModuleType(name)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("fake")
def test_presidio_is_asked_where_a_name_stands_near_a_contact() -> None:
    near = "On Monday Bob Builder wrote from bob@example.org"
    part = Pii(engine="presidio")
    told = part.score(pa.table({"text": [near, "Bob Builder alone", "only bob@example.org"]}))
    assert part._analyser.asked == [near]
    assert told["spans"].tolist() == [2, 0, 1]
    assert told["other"].tolist() == [1, 0, 0]
    first = next(findings(told["findings"]))
    assert [f.reason for f in first] == ["person", "email"]
    told = score([near, "Bob Builder alone", ""], engine="presidio", everywhere=True)
    assert told["spans"].tolist() == [2, 1, 0]


@pytest.mark.usefixtures("fake")
def test_long_documents_reach_presidio_in_pieces() -> None:
    text = "word " * 50_000 + "Bob Builder " + "word " * 20_000
    told = score([text], engine="presidio", everywhere=True)
    found = next(findings(told["findings"]))
    assert [(f.reason, f.start) for f in found] == [("person", 250_000)]


def test_without_presidio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(DataError, match=r"foresift\[pii\]"):
        score(["Bob Builder"], engine="presidio", everywhere=True)


def test_the_first_tier_wins_where_both_found_something() -> None:
    one = personal.Hit("email", 3, 9, 0.9, False)
    two = [personal.Hit("place", 8, 12, 1.0, False), personal.Hit("person", 20, 24, 0.6, False),
           personal.Hit("place", 22, 30, 0.5, False)]  # fmt: skip
    assert [h.kind for h in merged([one], two)] == ["email", "person"]
