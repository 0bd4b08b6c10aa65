"""Part: the base of every plug-in, and how a part is found by its name.

A part is a frozen, keyword-only dataclass. Its fields are its configuration and nothing else: the
constructor does no work, heavy things are cached properties, and a pickle carries the fields only.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import textwrap
import types
from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pydantic
import xxhash

from foresift.pipeline.errors import RecipeError, nearest

P = TypeVar("P", bound="Part")

#: verb in a recipe -> the package whose files are its parts
VERBS = {
    "read": "foresift.stages.readers",
    "score": "foresift.scorers",
    "dedup": "foresift.stages.dedup",
    "select": "foresift.stages.selectors",
    "order": "foresift.stages.orders",
    "train": "foresift.stages.trainers",
    "export": "foresift.stages.exporters",
    "sample": "foresift.stages.samplers",
}
#: verbs whose parts choose while training, not in a step of a recipe
ONLINE = ("sample",)


def tuning(default: Any, **kw: Any) -> Any:
    """A field that changes speed, never numbers (batch size, workers): not in the fingerprint."""
    return dataclasses.field(default=default, metadata={"tuning": True}, **kw)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(ABC):  # noqa: B024 - the nouns below it are abstract
    """Base of every plug-in: fields are the configuration, `version` the meaning of its numbers."""

    #: raised by hand when the same fields and inputs begin to give other numbers
    version: ClassVar[int] = 1
    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid")

    @classmethod
    def parse(cls: type[P], fields: Mapping[str, Any], where: str) -> P:
        """Build the part from a mapping; every error names place, field, value and nearest name."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise RecipeError(f"no field {name!r}{nearest(str(name), known)}", where=where)
        try:
            part: P = _adapter(cls).validate_python(dict(fields))
            return part
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(x) for x in first["loc"]) or "fields"
            got = (
                ""
                if first["type"] == "missing" or not first["loc"]
                else f", got {first['input']!r}"
            )
            raise RecipeError(f"{place}: {first['msg']}{got}", where=where) from None

    @property
    def fingerprint(self) -> str:
        """32 hex digits of (module, class, version, fields that change numbers)."""
        kind = type(self)
        return digest([kind.__module__, kind.__qualname__, kind.version, self.settings()])

    def settings(self) -> dict[str, Any]:
        """The fields that change numbers, as plain values."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not f.metadata.get("tuning")
        }

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)


@functools.cache
def _adapter(cls: type[P]) -> pydantic.TypeAdapter[P]:
    return pydantic.TypeAdapter(cls)


def digest(value: Any) -> str:
    """32 hex digits of a plain value; one without a stable form is a TypeError, never a guess."""
    hasher = xxhash.xxh3_128()
    _feed(hasher, value)
    return str(hasher.hexdigest())


def _feed(hasher: Any, value: Any) -> None:
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        raw = value if isinstance(value, bytes) else repr(value).encode()
        hasher.update(f"{type(value).__name__}:{len(raw)}:".encode() + raw)
    elif isinstance(value, Part):
        _feed(hasher, value.fingerprint)
    elif isinstance(value, Mapping):
        hasher.update(f"map:{len(value)}:".encode())
        for key in sorted(value):
            _feed(hasher, key)
            _feed(hasher, value[key])
    elif isinstance(value, (list, tuple)):
        hasher.update(f"list:{len(value)}:".encode())
        for item in value:
            _feed(hasher, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _feed(hasher, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    else:
        raise TypeError(f"no stable form for {type(value).__name__}: {value!r}")


def names(verb: str) -> list[str]:
    """The names of the parts of a verb: the files of its folder."""
    package = importlib.import_module(VERBS[verb])
    found = (m.name for m in pkgutil.iter_modules(package.__path__))
    return sorted(n for n in found if not n.startswith("_"))


def find(verb: str, name: str, where: str = "") -> type[Part]:
    """The class of a part: a file of the verb's folder, or `their.module:Class`."""
    if not isinstance(name, str):
        raise RecipeError(f"a part is named by a string, got {name!r}", where=where)
    if ":" in name:
        return _foreign(name, where)
    if name not in names(verb):
        raise RecipeError(f"no {verb} part {name!r}{nearest(name, names(verb))}", where=where)
    module = importlib.import_module(f"{VERBS[verb]}.{name}")
    return only_part(module)


def _foreign(name: str, where: str) -> type[Part]:
    module_name, _, class_name = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise RecipeError(f"cannot load {name!r}: {error}", where=where) from error
    if not (isinstance(kind, type) and issubclass(kind, Part)):
        raise RecipeError(f"{name!r} is not a foresift Part", where=where)
    return kind


def only_part(module: Any) -> type[Part]:
    """The one public concrete part that a module defines."""
    found = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and not isinstance(kind, types.GenericAlias)  # Python 3.10 calls list[int] a type
        and issubclass(kind, Part)
        and kind.__module__ == module.__name__
        and not inspect.isabstract(kind)
        and not kind.__name__.startswith("_")
    ]
    assert len(found) == 1, f"{module.__name__} must define exactly one part, found {found}"
    return found[0]


def field_docs(kind: type[Part]) -> dict[str, str]:
    """Field name -> the string literal that stands under it in the class body."""
    docs: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if not (issubclass(cls, Part) and Path(inspect.getsourcefile(cls) or "").exists()):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                docs[field.target.id] = inspect.cleandoc(str(text.value.value))
    return docs
