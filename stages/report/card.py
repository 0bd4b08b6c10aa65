"""`README.md` beside the page: a data set card with the Hub's front matter, from `report.json`.

    front matter   configs, license, language, size_categories, task_categories, tags
    sections       what it is, how it was made, composition, quality, duplicates, personal data,
                   limits, how to do it again

The card is of the exported documents where the run exports, and else of those that were read. A
sentence stands there only if a figure of the report says so: what nobody measured is said to be
unknown. The licence is `unknown` unless it is given, and languages are those of a column that tells
them. Names from the data are masked and escaped. To publish, put the card beside the files.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from foresift.pipeline.run import Run
from foresift.pipeline.store import Facts, read_json, write_text
from foresift.stages.report.contents import Contents
from foresift.stages.report.data_files import DataFiles, data_files
from foresift.stages.report.mask import excerpt
from foresift.stages.report.sources import TOP as SOURCES

#: detectors of what belongs to persons; their reasons are types
PERSONAL = ("pii", "secrets")
#: lines of a table, and files named one by one
TOP, NAMED = 10, 20
SIZES = (
    ("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6),
    ("1M<n<10M", 10**7), ("10M<n<100M", 10**8), ("100M<n<1B", 10**9), ("1B<n<10B", 10**10),
    ("10B<n<100B", 10**11), ("100B<n<1T", 10**12),
)  # fmt: skip
#: least share of the documents that makes a language one of the data set's
LANGUAGE = 0.01
#: what patterns alone cannot find
UNNAMED = "names and postal addresses were not looked for"
_CODE = re.compile(r"[a-z]{2,3}")
Lines = Iterator[str]


def write(run: Run, license: str = "") -> Path:
    """Write `README.md` beside the page that is there already; return its path."""
    path = run.path / "report" / "README.md"
    contents = Contents.open(run.path)
    told = read_json(path.with_name("report.json"))
    write_text(path, card(told, data_files(contents), license))
    return path


def card(told: Facts, files: DataFiles, license: str = "") -> str:
    """The whole card, from `report.json` and the list of files."""
    front = yaml.safe_dump(
        front_matter(told, files, license), sort_keys=False, allow_unicode=True, width=100
    )
    sections = (
        _what(told, files), _made(told, files), _composition(told, files), _quality(told, files),
        _duplicates(told), _personal(told, files), _limits(told, files), _again(told, files),
    )  # fmt: skip
    body = "\n".join(line for section in sections for line in section)
    return f"---\n{front}---\n\n# {plain(_name(told))}\n\n{body}\n"


def front_matter(told: Facts, files: DataFiles, license: str = "") -> Facts:
    """What the Hub reads."""
    documents, _ = _counts(told, files)
    found: Facts = {"pretty_name": _name(told), "license": license.lower() or "unknown"}
    if codes := languages(told, files):
        found["language"] = codes
    found["size_categories"] = [next((n for n, most in SIZES if documents < most), "n>1T")]
    found["task_categories"] = ["text-generation"]
    kinds = [k["name"] for k in told["overview"]["kinds"]]
    found["tags"] = ["foresift", *sorted(k.replace(" ", "-") for k in kinds if k != "other")]
    if files.files:
        paths = _paths(files)
        found["configs"] = [
            {"config_name": "default", "data_files": [{"split": "train", "path": paths}]}
        ]
    return found


def languages(told: Facts, files: DataFiles) -> list[str]:
    """Codes of the languages that make up a hundredth of the documents or more."""
    for column in _languages(told):
        counts = {v["name"]: v[_of(files, "documents", "kept")] for v in column["values"]}
        total = sum(counts.values()) or 1
        return [n for n, c in counts.items() if _code_of(n) and c / total >= LANGUAGE]
    return []


def _languages(told: Facts) -> list[Facts]:
    """The columns that tell languages."""
    return [column for column in told["overview"]["labels"] if column["language"]]


def _code_of(name: str) -> bool:
    return bool(_CODE.fullmatch(name)) and name not in ("und", "zxx")  # unknown, none


def _paths(files: DataFiles) -> list[str]:
    """Names of the files, or the patterns that they fit."""
    names = [file.name for file in files.files]
    if len(names) <= NAMED:
        return names
    ends = {re.sub(r"^[^.]*", "", name.rpartition("/")[2]) for name in names}
    return sorted(f"**/*{end}" for end in ends)


def _name(told: Facts) -> str:
    return excerpt(str(told["run"]["name"]).removeprefix("report-"), 80)


def _of(files: DataFiles, pool: str, kept: str) -> str:
    """The field that tells of the documents that the files hold."""
    return kept if files.kind == "exported" else pool


def _counts(told: Facts, files: DataFiles) -> tuple[int, int]:
    """(documents, tokens) of the card."""
    accounts = told["run"]["accounts"]
    return (
        accounts[_of(files, "rows", "kept")],
        accounts[_of(files, "n_tokens", "kept_tokens")],
    )


def tokens_of(told: Facts, tokens: int) -> str:
    """So many tokens, and whether anybody counted them."""
    if told["overview"]["estimated"]:
        return f"about {tokens:,} tokens, estimated as a quarter of the bytes"
    return f"{tokens:,} tokens"


# -- sections --------------------------------------------------------------------------------------


def _what(told: Facts, files: DataFiles) -> Lines:
    documents, tokens = _counts(told, files)
    shapes = ", ".join(f"{k['documents']:,} {k['name']}" for k in told["overview"]["kinds"])
    about = tokens_of(told, tokens)
    yield "## What it is\n"
    if files.kind == "exported":
        rows = told["run"]["accounts"]["rows"]
        yield f"{documents:,} documents ({about}), chosen out of {rows:,} ({shapes}).\n"
    else:
        yield f"{documents:,} documents ({about}): {shapes}.\n"
    if files.files:
        count = f"{len(files.files):,} file" + "s" * (len(files.files) != 1)
        yield f"{count}, {files.bytes:,} bytes; a document is a {files.unit}."
    if files.trouble:
        yield f"Files are not listed here: {plain(files.trouble)}."
    if files.columns:
        yield "\n| field | type | meaning |\n|---|---|---|"
        yield from (f"| {plain(c.name)} | {c.type} | {plain(c.about)} |" for c in files.columns)
    yield "\nWho collected the documents, why, and under which terms, is not known to foresift.\n"


def _made(told: Facts, files: DataFiles) -> Lines:
    yield "## How it was made\n"
    if files.kind != "exported":
        yield "The files are as they were found. foresift read and measured them in these steps:\n"
    recipe = yaml.safe_load(told["recipe"])
    fields = [{k: v for k, v in recipe.get("data", {}).items() if k != "paths"}]
    yield f"1. read: {_settings(fields[0], 'read')}"
    rounds = recipe.get("rounds") or {}
    groups = [recipe.get("steps", []), rounds.get("steps", [])]
    for number, step in enumerate((s for group in groups for s in group), 2):
        verb = next(k for k in step if k in _VERBS)
        again = f" ({rounds.get('count', 1)} rounds)" if step in groups[1] else ""
        yield f"{number}. {verb}{again}: {_settings(step, verb)}"
    if files.kind != "exported":
        yield "\nWhat these steps keep is marked in a plan beside them; the files hold all rows:"
    yield "\n| rows | |\n|---|---:|"
    for line in told["funnel"]:
        yield f"| {plain(line['name'])} | {line['value']:,.0f} |"
    yield ""


_VERBS = ("score", "dedup", "select", "order", "train", "export")


def _settings(step: Mapping[str, Any], verb: str) -> str:
    """`part, field: value, ...` as the recipe has it."""
    value = step[verb]
    name = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    rest = (f"{k}: {v}" for k, v in step.items() if k != verb)
    return "; ".join(_code(text) for text in (name, *rest))


def _composition(told: Facts, files: DataFiles) -> Lines:
    yield "## Composition\n"
    group = _of(files, "pool", "kept")
    yield "| | 1 % | 10 % | median | 90 % | 99 % | longest |\n|---|---:|---:|---:|---:|---:|---:|"
    for length in told["overview"]["lengths"]:
        if length["group"] == group:
            shown = [length["quantiles"][i] for i in (1, 2, 4, 6, 7, 8)]
            cells = " | ".join("–" if q is None else f"{q:,.0f}" for q in shown)
            yield f"| {length['unit']} a document | {cells} |"
    yield ""
    sources, count = told["sources"]["rows"], told["sources"]["count"]
    field = _of(files, "documents", "chosen_documents")
    rows = ((s["name"], s[field]) for s in sources[:SOURCES])
    yield from _table(f"source ({count:,} in all)", rows, told["sources"]["total"][field])
    for column in told["overview"]["labels"]:
        field = _of(files, "documents", "kept")
        rows = ((v["name"], v[field]) for v in column["values"])
        total = sum(v[field] for v in [*column["values"], column["others"]] if v)
        yield from _table(f"{column['column']} ({column['distinct']:,} values)", rows, total)
    if not _languages(told):
        yield "Languages were not measured.\n"


def _table(title: str, rows: Iterable[tuple[str, int]], total: int) -> Lines:
    """The most frequent, and what they leave of the total."""
    some = sorted(((name, n) for name, n in rows if n), key=lambda row: (-row[1], row[0]))[:TOP]
    if some:
        yield f"| {plain(title)} | documents |\n|---|---:|"
        yield from (f"| {plain(excerpt(name, 80)) or '–'} | {n:,} |" for name, n in some)
        if rest := total - sum(n for _, n in some):
            yield f"| (all others) | {rest:,} |"
        yield ""


def _quality(told: Facts, files: DataFiles) -> Lines:
    yield "## Quality\n"
    detectors = [d for d in _detectors(told) if d["name"] not in PERSONAL]
    if not detectors:
        yield "No detector of faults was run.\n"
        return
    yield (
        "Documents with a finding, and the most frequent reasons; shares carry 95 % intervals of "
        "sampling, which know nothing of a detector's own errors. A finding is a reason to look, "
        "not a verdict.\n"
    )
    field = _of(files, "documents", "kept")
    yield "| detector | reason | documents | share | 95 % |\n|---|---|---:|---:|---:|"
    for detector in detectors:
        share = _of(files, "share", "kept_share")
        for reason in [r for r in detector["reasons"] if r[field]][:TOP]:
            shown = _interval(reason[share])
            name = f"{plain(detector['name'])} | {plain(reason['name'])}"
            yield f"| {name} | {reason[field]:,} | {shown} |"
    yield ""


def _interval(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return "– | –"
    if share["low"] is None or share["high"] is None:
        return f"{_percent(share['value'])} | –"
    return f"{_percent(share['value'])} | {_percent(share['low'])} to {_percent(share['high'])}"


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.1f} %"


def _detectors(told: Facts) -> list[Facts]:
    found: list[Facts] = (told["found"] or {}).get("detectors", [])
    return found


def _duplicates(told: Facts) -> Lines:
    yield "## Duplicates\n"
    steps = [s["label"] for s in told["run"]["steps"] if s["verb"] == "dedup"]
    if not steps:
        yield "Copies were not looked for.\n"
        return
    for step in dict.fromkeys(steps):
        found = next((c for c in told["clusters"] if c["label"] == step), None)
        if found is None:
            yield f"{_code(step)} found no copies.\n"
        else:
            yield (
                f"{_code(step)} found {found['clusters']:,} clusters of copies; all but one "
                f"document of each make {found['dropped']:,} documents.\n"
            )


def _personal(told: Facts, files: DataFiles) -> Lines:
    yield "## Personal data\n"
    found = [d for d in _detectors(told) if d["name"] in PERSONAL]
    if not found:
        yield "Personal data was not looked for.\n"
        return
    names = " and ".join(_code(d["name"]) for d in found)
    yield f"Looked for by {names}; no value is shown here.\n"
    field = _of(files, "documents", "kept")
    rows = [(r["name"], r[field]) for d in found for r in d["reasons"] if r[field]]
    if not rows:
        yield "Nothing was found.\n"
        return
    yield "| type | documents |\n|---|---:|"
    yield from (f"| {plain(name)} | {n:,} |" for name, n in rows)
    yield f"\n{UNNAMED[0].upper()}{UNNAMED[1:]}.\n" if names_unknown(told) else ""


def names_unknown(told: Facts) -> bool:
    """Whether personal data was looked for by its form alone."""
    return "presidio" not in told["recipe"]


def _limits(told: Facts, files: DataFiles) -> Lines:
    yield "## Limits of these measurements\n"
    overview = told["overview"]
    drawn = overview["sampled"] < overview["documents"] - overview["holdout"]
    of = f"{overview['sampled']:,} documents drawn by a hash of their content"
    of = of if drawn else "all documents"
    yield f"- Counts of documents and bytes are exact; quantiles are of {of}."
    if rejected := told["run"]["accounts"]["rejected"]:
        yield f"- {rejected:,} rows could not be read and are in no other figure."
    if overview["holdout"] and files.kind != "exported":
        yield f"- {overview['holdout']:,} documents are held out and were not scored."
    measured = max([d["documents"] for d in _detectors(told)], default=None)
    if measured is not None and measured < overview["documents"] - overview["holdout"]:
        yield f"- Detectors looked at {measured:,} documents."
    for step, warning in told["warnings"]:
        yield f"- {plain(step)} warns: {plain(warning)}"
    if files.kind == "exported":
        yield "- Figures are of the documents as they were read, before anything was replaced."
    yield "- Detectors err. Whether a finding is a fault depends on what the data is for.\n"


def _again(told: Facts, files: DataFiles) -> Lines:
    run = told["run"]
    yield "## How to do it again\n"
    yield "`foresift run recipe.yaml` with this recipe and the same files gives the same figures:\n"
    ticks = "`" * max(3, 1 + max((len(m) for m in re.findall("`+", told["recipe"])), default=0))
    yield f"{ticks}yaml\n{told['recipe'].rstrip()}\n{ticks}\n"
    versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items() if v != "absent")
    yield f"Fingerprint {_code(run['fingerprint'])}, seed {run['seed']}; {plain(versions)}.\n"
    if 0 < len(files.files) <= NAMED:
        yield "| file | bytes | sha256 |\n|---|---:|---|"
        yield from (f"| {plain(f.name)} | {f.bytes:,} | {_code(f.sha256)} |" for f in files.files)
        yield ""
    elif files.files:
        yield f"SHA-256 of the {len(files.files):,} files: `croissant.json`.\n"


# -- Markdown --------------------------------------------------------------------------------------

_MARKS = re.compile(f"([{re.escape(''.join(set(string.punctuation) - set('.,:;/-+=%()')))}])")


def plain(text: str) -> str:
    """Text of anybody as Markdown shows it: one line, nothing in it is markup."""
    return _MARKS.sub(r"\\\1", " ".join(str(text).split()))


def _code(text: str) -> str:
    """Text in a span of code."""
    shown = " ".join(str(text).split())
    ticks = "`" * (1 + max((len(m) for m in re.findall("`+", shown)), default=0))
    pad = " " if "`" in shown else ""
    return f"{ticks}{pad}{shown}{pad}{ticks}"
