"""`report.json`: everything the page shows, as one JSON object, beside the page.

    schema    `foresift.report/1`; raised when a field changes its meaning or goes
    run       what was run: recipe, seed, versions, steps with their fingerprints and facts
    sections  one key each, null where the section is left out; fields as in their dataclasses

`schema.json` beside this file describes it and `docs/report.md` explains it. Charts are not in it:
what they draw is. No paths of this machine are in it, and texts are masked as on the page.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from foresift.pipeline.store import Facts, write_json
from foresift.stages.report.contents import Contents

SCHEMA = "foresift.report/1"
#: what `page.sections` has for the template alone
_PAGE = frozenset(("manifest", "accounts", "command", "measured", "written"))
#: properties that pick out what the fields hold
_AGAIN = frozenset(("last", "changes", "kinds", "languages"))


def facts(contents: Contents, sections: Mapping[str, Any]) -> Facts:
    """Everything that the page shows."""
    shown = {name: plain(value) for name, value in sections.items() if name not in _PAGE}
    return {"schema": SCHEMA, "run": about(contents), **shown}


def write(path: Path, contents: Contents, sections: Mapping[str, Any]) -> None:
    """Write `report.json`."""
    write_json(path, facts(contents, sections))


def about(contents: Contents) -> Facts:
    """What was run; directories by their names alone."""
    manifest = contents.manifest
    keys = ("label", "verb", "name", "line", "repeat", "round", "fingerprint", "cached", "seconds")
    steps = [
        {**{k: s[k] for k in keys}, "directory": Path(s["path"]).name} for s in manifest["steps"]
    ]
    return {
        "name": manifest["recipe"],
        "directory": contents.path.name,
        "fingerprint": manifest["fingerprint"],
        "seed": manifest["seed"],
        "seconds": manifest["seconds"],
        "versions": plain(manifest["versions"]),
        "accounts": plain(manifest["accounts"]),
        "steps": steps,
    }


def plain(value: Any) -> Any:
    """A value as JSON has it: fields and properties of dataclasses, no charts, no NaN.

    Fields with the metadata `plain: False` are for computing alone and are left out.
    """
    if value is None or (isinstance(value, (bool, int, str)) and not isinstance(value, Markup)):
        return value
    if isinstance(value, (np.bool_, np.integer, np.floating, float)):
        value = value.item() if isinstance(value, np.generic) else value
        return None if isinstance(value, float) and not math.isfinite(value) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in told(type(value))}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    raise TypeError(f"a report cannot tell a {type(value).__name__} in JSON")


def told(kind: type) -> list[str]:
    """Names of a dataclass's fields, then of its properties, charts and repetitions apart."""
    fields = [
        f.name
        for f in dataclasses.fields(kind)
        if f.metadata.get("plain", True) and not _drawn(f.type)
    ]
    parts = {n: p for k in reversed(kind.__mro__) for n, p in vars(k).items()}
    properties = [
        n
        for n, p in parts.items()
        if isinstance(p, property)
        and not n.startswith("_")
        and n not in _AGAIN
        and not _drawn(p.fget.__annotations__.get("return"))  # type: ignore[union-attr]
    ]
    return [*fields, *properties]


def _drawn(annotation: Any) -> bool:
    """Whether an annotation says that a value is markup."""
    return annotation is Markup or annotation == "Markup"
