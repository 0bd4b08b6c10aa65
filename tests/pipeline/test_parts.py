"""Parts: fields in, located errors out, fingerprints that mean what they should."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from functools import cached_property
from types import ModuleType
from typing import Any, Literal

import pytest

from foresift.pipeline import parts
from foresift.pipeline.errors import RecipeError
from foresift.pipeline.parts import Part, digest, tuning


@dataclasses.dataclass(frozen=True)
class Inner:
    """A nested setting."""

    depth: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Part):
    """A part for these tests."""

    threshold: float
    """Fraction above which something happens."""
    mode: Literal["fast", "slow"] = "fast"
    names: tuple[str, ...] = ()
    inner: Inner = Inner()
    batch: int = tuning(8)

    def __post_init__(self) -> None:
        if self.threshold > 1:
            raise ValueError("threshold is a fraction")

    @cached_property
    def heavy(self) -> bytes:
        return b"x" * 1_000_000


def test_parse_builds_the_part() -> None:
    part = Sample.parse({"threshold": 1, "names": ["a"], "inner": {"depth": 2}}, "steps.0")
    assert part == Sample(threshold=1.0, names=("a",), inner=Inner(2))
    assert isinstance(part.threshold, float)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"treshold": 1}, "steps.0: no field 'treshold'; did you mean 'threshold'?"),
        ({"threshold": 1, "zzz": 1}, "(known: batch, inner, mode, names, threshold)"),
        ({}, "steps.0: threshold: Field required"),
        ({"threshold": "high"}, "got 'high'"),
        ({"threshold": 2}, "threshold is a fraction"),
        ({"threshold": 0, "mode": "quick"}, "mode: Input should be 'fast' or 'slow', got 'quick'"),
        ({"threshold": 0, "inner": {"depth": "x"}}, "inner.depth: "),
        ({1: 2}, "no field 1"),
    ],
)
def test_parse_errors_name_place_field_and_value(fields: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Sample.parse(fields, "steps.0")
    assert message in str(caught.value)
    assert str(caught.value).startswith("steps.0: ")


def test_parts_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sample(threshold=0.1).threshold = 0.2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Sample(0.1)  # type: ignore[call-arg, misc]


def test_fingerprint_follows_the_fields_that_change_numbers() -> None:
    part = Sample(threshold=0.5)
    assert len(part.fingerprint) == 32
    assert part.fingerprint == Sample(threshold=0.5, batch=1000).fingerprint
    others = [
        Sample(threshold=0.25),
        Sample(threshold=0.5, mode="slow"),
        Sample(threshold=0.5, names=("a",)),
        Sample(threshold=0.5, names=("a", "b")),
        Sample(threshold=0.5, names=("ab",)),
        Sample(threshold=0.5, inner=Inner(2)),
    ]
    assert len({p.fingerprint for p in [part, *others]}) == 1 + len(others)


def test_fingerprint_is_the_same_however_a_number_was_written() -> None:
    written = Sample.parse({"threshold": 1}, "x").fingerprint
    assert written == Sample.parse({"threshold": 1.0}, "x").fingerprint


def test_fingerprint_follows_class_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Other(Sample):
        """The same fields."""

    before = Sample(threshold=0.5).fingerprint
    assert Other(threshold=0.5).fingerprint != before
    monkeypatch.setattr(Sample, "version", 2)
    assert Sample(threshold=0.5).fingerprint != before


def test_digest_tells_kinds_and_borders_apart() -> None:
    values: list[Any] = [
        None, "None", 1, 1.0, True, "1", b"1", [], {}, "", [""], [[]], ["a", "b"], ["ab"],
        [["a"], "b"],
        {"a": "b"}, ["a", "b", None], {"a": ["b"]}, {"a": {"b": None}}, [{"a": "b"}],
    ]  # fmt: skip
    assert len({digest(v) for v in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest((1, 2)) == digest([1, 2])


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 1, [object()], Inner, 1j])
def test_what_has_no_stable_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="no stable form"):
        digest(value)


def test_pickles_carry_the_fields_only() -> None:
    part = Sample(threshold=0.5)
    assert len(part.heavy) == 1_000_000
    packed = pickle.dumps(part)
    assert len(packed) < 500
    again = pickle.loads(packed)
    assert again == part
    assert "heavy" not in vars(again)
    assert again.fingerprint == part.fingerprint
    assert copy.deepcopy(part) == part


def test_find_by_file_name_and_by_module_and_class() -> None:
    assert parts.find("select", "topk").__name__ == "TopK"
    assert parts.find("select", "foresift.stages.selectors.topk:TopK") is parts.find(
        "select", "topk"
    )
    assert "_ranking" not in parts.names("select")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("topq", "steps.1: no select part 'topq'; did you mean 'topk'?"),
        ("_ranking", "no select part '_ranking'"),
        ("not.there:X", "cannot load 'not.there:X'"),
        ("foresift.stages.selectors.topk:Nothing", "cannot load"),
        ("collections:OrderedDict", "is not a foresift Part"),
        (":", "cannot load ':'"),
        (".x:Y", "cannot load '.x:Y'"),
        (3, "a part is named by a string, got 3"),
    ],
)
def test_find_errors(name: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parts.find("select", name, "steps.1")
    assert message in str(caught.value)


def test_a_module_defines_exactly_one_part() -> None:
    module = ModuleType("two_parts")
    for name in ("First", "Second"):
        kind: Any = type(name, (Part,), {"__module__": "two_parts"})
        setattr(module, name, kind)
        if name == "First":
            assert parts.only_part(module) is kind
    with pytest.raises(AssertionError, match="exactly one part"):
        parts.only_part(module)


def test_field_docs_are_the_strings_under_the_fields() -> None:
    docs = parts.field_docs(Sample)
    assert docs == {"threshold": "Fraction above which something happens."}
