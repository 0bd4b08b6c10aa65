"""Write `stages/report/schema.json` and the fields of `docs/report.md` from dataclasses.

python docs/generate_report.py            write both
python docs/generate_report.py --check    exit with 1 if one is not current
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from foresift.stages.report import (
    clusters,
    compare,
    correlations,
    documents,
    evidence,
    examples,
    facts,
    found,
    noise,
    overview,
    page,
    rejects,
    risk,
    rounds,
    scores,
    sources,
)

ROOT = Path(__file__).resolve().parents[1]
SCHEMA, PAGE = ROOT / "stages" / "report" / "schema.json", ROOT / "docs" / "report.md"
#: what stands below this line of the page is generated
MARK = "## Fields"
#: key of the report -> what it holds
SECTIONS: dict[str, tuple[Any, str]] = {
    "evidence": (evidence.Evidence | None, "Losses of the arms on held-out documents."),
    "result": (str, "The evidence in one sentence; empty without it."),
    "warnings": (list[tuple[str, str]], "Step, and what it warns of."),
    "overview": (overview.Overview, "What the data is."),
    "funnel": (list[page.Bar], "Where every row went; the lines after the first add up to it."),
    "scores": (list[scores.Distribution], "How each score is distributed, pool and chosen."),
    "found": (found.Found | None, "What detectors found."),
    "noise": (noise.Noise | None, "How much is wrong, as detectors estimate it."),
    "risk": (risk.Risk | None, "What would have to be forgotten, and what was decided."),
    "correlations": (correlations.Correlations | None, "Which scores say the same."),
    "compare": (compare.Comparison | None, "Another run side by side; null without one."),
    "rounds": (rounds.Rounds | None, "Rounds, what they preferred and what they cost."),
    "sources": (sources.Sources, "Sources by the first component of the key path."),
    "examples": (examples.Examples, "A few documents of each kind."),
    "documents": (documents.Documents | None, "The documents of the table and the map."),
    "rejects": (rejects.Rejects, "Rows of the input that were no documents."),
    "clusters": (list[clusters.Clusters], "Duplicates, for each dedup step that found some."),
    "cost": (list[page.Bar], "Seconds of each step; `note` says which were cached."),
    "training": (dict[str, int], "Tokens trained on, by line of work."),
    "recipe": (str, "The resolved recipe, as YAML."),
}
RUN = {
    "name": (str, "Of the recipe."),
    "directory": (str, "Name of the run's directory."),
    "fingerprint": (str, "Of the whole plan."),
    "seed": (int, "Of the recipe."),
    "seconds": (float, "Of the run."),
    "versions": (dict[str, str], "What the figures were computed with."),
    "accounts": (dict[str, Any], "Rows and tokens in, rejected, dropped by reason, kept by round."),
    "steps": (list[dict[str, Any]], "Label, verb, line, round, fingerprint, seconds, directory."),
}
#: what fields mean that are called so everywhere and need no docstring of their own
COMMON = {
    "documents": "Documents.",
    "tokens": "Tokens.",
    "n_tokens": "Tokens of the document.",
    "name": "What it is called.",
    "label": "What it is called.",
    "id": "First 12 digits of the document's id.",
    "source": "Key path that it came from.",
    "text": "Excerpt, personal data masked.",
    "share": "Of the whole.",
    "value": "The figure.",
    "count": "How many.",
    "reason": "Why.",
    "round": "Number of the round; 0: before all rounds.",
    "trouble": "Why texts could not be read; empty where they could.",
    "column": "The column, `<step>.<column>`.",
    "pool": "Of the documents that could be chosen.",
    "chosen": "Of those that were chosen.",
    "kept": "Of those that were kept.",
    "reasons": "By reason.",
    "examples": "A few of them.",
    "findings": "Findings.",
    "group": "`pool` or `kept`.",
    "holdout": "Documents held out.",
    "unit": "Unit of the values.",
    "kind": "Colour of the bar.",
    "columns": "Names of columns.",
    "ours": "Ours.",
    "theirs": "Theirs.",
    "distance": "Kolmogorov-Smirnov distance.",
    "difference": "Theirs less ours.",
    "detector": "Name of its step.",
    "better": "`higher`, `lower` or `neither`.",
    "clusters": "How many clusters.",
    "dropped": "Documents dropped.",
    "mean": "The mean.",
    "median": "The median.",
    "quantiles": "Quantiles.",
}

#: the same of single kinds whose own files say it elsewhere
MEANINGS = {
    "clusters.Cluster.size": "Documents in the cluster.",
    "clusters.Clusters.bins": "Clusters by their size.",
    "clusters.Clusters.largest": "The largest, by the document that was kept.",
    "documents.Document.excerpt": "Beginning of the text, personal data masked.",
    "documents.Document.scores": "Score by column.",
    "documents.Document.x": "Place on the map, 0 to 1; null without one.",
    "documents.Documents.docs": "The documents.",
    "documents.Documents.groups": "Groups of the map.",
    "documents.Documents.drawn": "Documents of the sample, those picked as examples apart.",
    "documents.Group.size": "Documents in the group.",
    "evidence.Difference.arm": "The baseline.",
    "evidence.Difference.interval": "The 95 % interval as the page shows it.",
    "evidence.Evidence.points": "One for each arm and round.",
    "evidence.Evidence.repeats": "How often the arms were trained.",
    "evidence.Evidence.data": "Data set that was measured on.",
    "evidence.Point.arm": "Line of work.",
    "evidence.Point.loss": "Mean over repeats, nats per token.",
    "examples.Examples.left": "Documents that left, by reason.",
    "examples.Examples.first": "The first of the order.",
    "examples.Examples.last": "The last of the order.",
    "page.Bar.note": "What is said beside it.",
    "preferences.Agreement.agreed": "Chosen, and among the best by the scores.",
    "preferences.Agreement.jaccard": "Agreed, of those in either.",
    "preferences.Change.agreement": "The choice against the scores of the round before.",
    "preferences.Change.risers": "Documents that rose most.",
    "preferences.Change.fallers": "Documents that fell most.",
    "preferences.Mover.document": "The document.",
    "preferences.Mover.before": "Share that it stood ahead of in the round before.",
    "preferences.Mover.now": "Share that it stands ahead of.",
    "preferences.Preference.change": "Against the round before; null in the first.",
    "rejects.Reject.file": "The file.",
    "rejects.Reject.line": "Line or row in it.",
    "rejects.Reject.excerpt": "Its beginning, personal data masked.",
    "rejects.Rejects.first": "The first of them.",
    "rounds.Costs.probing": "Fitting scorers.",
    "rounds.Costs.scoring": "Forwards over the pool.",
    "rounds.Costs.training": "Training.",
    "rounds.Round.number": "Its number, from 1.",
    "rounds.Round.costs": "What it cost.",
    "rounds.Rounds.rounds": "One after the other.",
    "rounds.Rounds.preferences": "Each column ranked by, in each round.",
    "rounds.Spent.seconds": "In this run; null where all was done before.",
    "rounds.Spent.flops": "Floating-point operations as steps told them.",
    "scores.Distribution.low": "Least finite value.",
    "scores.Distribution.high": "Largest finite value.",
    "scores.Distribution.edges": "Edges of the bins; null where values do not vary.",
    "scores.Distribution.log": "Whether bins are of equal ratios.",
    "scores.Group.total": "Sum of the values.",
    "scores.Group.bins": "Documents in each bin.",
    "scores.Group.shares": "Share of the documents in each bin.",
    "sources.Source.chosen_documents": "Documents chosen.",
    "sources.Source.chosen_tokens": "Tokens chosen.",
    "sources.Sources.rows": "The largest.",
    "sources.Sources.total": "All together.",
}


def schema() -> dict[str, Any]:
    """The JSON Schema of `report.json`."""
    kinds: dict[str, dict[str, Any]] = {}
    told = {name: {**_of(t, kinds), "description": d} for name, (t, d) in SECTIONS.items()}
    run = {name: {**_of(t, kinds), "description": d} for name, (t, d) in RUN.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": facts.SCHEMA,
        "title": "report.json of foresift",
        "type": "object",
        "properties": {
            "schema": {"const": facts.SCHEMA, "description": "Version of these fields."},
            "run": {**_object(run), "description": "What was run."},
            **told,
        },
        "required": ["schema", "run", *told],
        "additionalProperties": False,
        "$defs": {name: kinds[name] for name in sorted(kinds)},
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    float: {"type": ["number", "null"]},
    Any: {},
}


def _of(kind: Any, kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The schema of a type; dataclasses go to `kinds`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    if dataclasses.is_dataclass(kind):
        name = _name(kind)
        if name not in kinds:
            kinds[name] = {}
            kinds[name].update(_class(kind, kinds))
        return {"$ref": f"#/$defs/{name}"}
    if origin in (typing.Union, types.UnionType):
        some = [_of(t, kinds) for t in inner if t is not type(None)]
        return {"anyOf": [*some, {"type": "null"}]} if len(some) < len(inner) else {"anyOf": some}
    if origin in (np.ndarray, list) or (origin is tuple and inner[-1] is ...):
        return {"type": "array", "items": _of(inner[0], kinds) if origin is not np.ndarray else {}}
    if origin is tuple:
        items = [_of(t, kinds) for t in inner]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _of(inner[1], kinds)}
    if origin is Sequence:
        return {"type": "array", "items": _of(inner[0], kinds)}
    if isinstance(kind, type) and issubclass(kind, tuple):
        return {"type": "array"}
    raise TypeError(f"no schema for {kind}")


def _name(kind: type) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def _class(kind: type, kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The schema of a dataclass as `facts.plain` writes it."""
    hints, docs = typing.get_type_hints(kind), _docs(kind)
    properties = {}
    for name in facts.told(kind):
        hint = hints.get(name) or typing.get_type_hints(getattr(kind, name).fget)["return"]
        meaning = docs.get(name) or MEANINGS.get(f"{_name(kind)}.{name}") or COMMON.get(name, "")
        properties[name] = {**_of(hint, kinds), "description": meaning}
    summary = (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")
    return {**_object(properties), "description": summary}


@cache
def _docs(kind: type) -> dict[str, str]:
    """The docstrings under fields and of properties."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        body = typing.cast(ast.ClassDef, tree.body[0]).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.FunctionDef):
                found[node.name] = " ".join((ast.get_docstring(node) or "").split())
            elif (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[node.target.id] = " ".join(str(after.value.value).split())
    return found


def fields(told: Mapping[str, Any]) -> str:
    """The tables of `docs/report.md`: the keys, then each kind of object."""
    lines = [MARK, "", "This part is generated by `python docs/generate_report.py`.", ""]
    lines += _table("report.json", "Everything the page shows.", told["properties"])
    lines += _table("run", "What was run.", told["properties"]["run"]["properties"])
    for name, about in told["$defs"].items():
        lines += _table(name, about["description"], about["properties"])
    return "\n".join(lines)


def _table(name: str, about: str, properties: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| `{key}` | {_short(value)} | {value['description'].replace('|', chr(92) + '|')} |"
        for key, value in properties.items()
    ]
    return [f"### {name}", "", about, "", "| field | type | meaning |", "|---|---|---|", *rows, ""]


def _short(value: Mapping[str, Any]) -> str:
    """A type as a table names it."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.replace('.', '').lower()})"
    if "anyOf" in value:
        return " or ".join(_short(v) for v in value["anyOf"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = value.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        inner = value.get("prefixItems")
        of = ", ".join(_short(v) for v in inner) if inner else _short(value.get("items") or {})
        return f"list of {of}" if not inner else f"[{of}]"
    if kind == "object" and isinstance(value.get("additionalProperties"), dict):
        return f"object of {_short(value['additionalProperties'])}"
    return str(kind)


def written() -> dict[Path, str]:
    """Both files as they should be."""
    told = schema()
    prose = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    return {SCHEMA: text, PAGE: prose + fields(told)}


if __name__ == "__main__":
    for path, text in written().items():
        if "--check" in sys.argv:
            if path.read_text(encoding="utf-8") != text:
                sys.exit(f"{path.name} is not current: run python docs/generate_report.py")
        else:
            path.write_text(text, encoding="utf-8")
