"""Write `docs/parts.md` from the docstrings of the parts: definitions, columns, fields.

python docs/generate.py            write the page
python docs/generate.py --check    exit with 1 if the page is not current
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foresift.pipeline.corpus import DECISION
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.parts import VERBS, Part, field_docs, find, names

PAGE = Path(__file__).resolve().parent / "parts.md"
HEAD = """# Parts

This page is generated from the docstrings by `python docs/generate.py`; edit those. The same is
shown by `foresift parts` and `foresift parts NAME`. A part is named in a recipe by its file.

A column `c` of a step called `s` has the public name `s.c`. *Better* says which end of a column is
the good one; columns called `utility` are always "higher = keep first". Fields marked *tuning*
change speed, never numbers: they are not part of the fingerprint.
"""
DECIDES = f"Gives: {', '.join(f'`{name}`' for name in DECISION)} (see [the files of a step]" \
    "(offline-curation.md#what-lies-on-disk))."  # fmt: skip


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for verb in VERBS:
        known = names(verb)
        links = ", ".join(f"[{name}](#{verb}-{name})" for name in known)
        lines += [f"- **{verb}**: {links}"]
    lines += ["- **model**: [fields of `model:`](#model)", ""]
    for verb in VERBS:
        for name in names(verb):
            lines += section(verb, name, find(verb, name))
    lines += ["## model", "", "The fields of `model:` and of each entry of `models:`.", ""]
    lines += [*fields(ModelSpec), ""]
    return "\n".join(lines)


def section(verb: str, name: str, kind: type[Part]) -> Iterator[str]:
    """One part: summary, definition, columns, fields."""
    yield f"## {verb}: {name}"
    yield ""
    yield f"{(inspect.getdoc(kind) or '').splitlines()[0]} Version {kind.version}."
    yield ""
    definition = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")
    yield from ["```text", definition, "```", ""]
    if verb in ("dedup", "select"):
        yield from [DECIDES, ""]
    columns: Any = getattr(kind, "columns", None)
    if isinstance(columns, dict) and columns:
        yield from ["| column | type | unit | better |", "|---|---|---|---|"]
        for column, about in columns.items():
            yield f"| `{name}.{column}` | {about.dtype} | {_cell(about.unit)} | {about.better} |"
        yield ""
    if dataclasses.fields(kind):
        yield from fields(kind)
        yield ""


def fields(kind: type[Part]) -> Iterator[str]:
    """A table of the fields of a part."""
    docs = field_docs(kind)
    yield from ["| field | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        mark = " *Tuning.*" if field.metadata.get("tuning") else ""
        yield f"| `{field.name}` | {_default(field)} | {_cell(docs[field.name])}{mark} |"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    text = repr(value)
    return f"`{text}`" if len(text) <= 60 else f"{len(value)} entries, see the source"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    if "--check" in sys.argv[1:]:
        sys.exit(
            0 if PAGE.read_text(encoding="utf-8") == page() else "docs/parts.md is not current"
        )
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
