"""`croissant.json` beside the page: Croissant 1.0 (JSON-LD of MLCommons) of the data set's files.

    distribution   every file by name, size and SHA-256, and one FileSet of them all
    recordSet      `documents`: the fields of a row, by column of the files
    rai:*          what was done and found: steps, personal data by type, limits; nothing is made up

Names are relative to the folder of the data, where the file belongs when it is published. Licence,
address, creator and date of publication are left out unless they are given: mlcroissant warns of
it. Beyond MOST files, or where rows cannot be told as columns, less is said rather than guessed.
Source: the Croissant format specification 1.0 and its RAI extension 1.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from foresift.pipeline.run import Run
from foresift.pipeline.store import Facts, read_json, write_text
from foresift.stages.report.card import PERSONAL, UNNAMED, languages, names_unknown, tokens_of
from foresift.stages.report.contents import Contents
from foresift.stages.report.data_files import JSON, TEXT, Column, DataFiles, data_files
from foresift.stages.report.mask import clean

#: files listed one by one
MOST = 2000
FILES, DOCUMENTS = "files", "documents"
TYPES = {
    "text": "sc:Text", "integer": "cr:Int64", "number": "cr:Float64", "boolean": "sc:Boolean",
    "other": "sc:Text",
}  # fmt: skip
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def write(run: Run, license: str = "") -> Path:
    """Write `croissant.json` beside the page that is there already; return its path."""
    path = run.path / "report" / "croissant.json"
    told = read_json(path.with_name("report.json"))
    made = croissant(told, data_files(Contents.open(run.path)), license)
    write_text(path, json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    return path


def croissant(told: Facts, files: DataFiles, license: str = "") -> Facts:
    """The metadata, from `report.json` and the list of files."""
    name = clean(str(told["run"]["name"]).removeprefix("report-"))
    found: Facts = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [
            "http://mlcommons.org/croissant/1.0",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "name": re.sub(r"[^\w.-]+", "-", name) or "data",
        "description": _description(told, files),
        **({"license": license} if license else {}),
    }
    if codes := languages(told, files):
        found["inLanguage"] = codes
    found["keywords"] = [k["name"] for k in told["overview"]["kinds"]]
    found |= _rai(told, files)
    if files.files:
        found["distribution"] = _distribution(files)
        found["recordSet"] = _records(files)
    return found


def _description(told: Facts, files: DataFiles) -> str:
    accounts = told["run"]["accounts"]
    if files.kind == "exported":
        what = f"{accounts['kept']:,} documents chosen out of {accounts['rows']:,}"
        tokens = accounts["kept_tokens"]
    else:
        what, tokens = f"{accounts['rows']:,} documents", accounts["n_tokens"]
    said = f"{what}, {tokens_of(told, tokens)}."
    if files.trouble:
        said += f" Files are not listed: {clean(files.trouble)}."
    if len(files.files) > MOST:
        said += f" Of {len(files.files):,} files the first {MOST:,} are listed one by one."
    return f"{said} Described by foresift {told['run']['versions'].get('foresift', '')}.".strip()


# -- files and rows --------------------------------------------------------------------------------


def _distribution(files: DataFiles) -> list[Facts]:
    ids = _ids([file.name for file in files.files[:MOST]], {FILES, DOCUMENTS})
    listed: list[Facts] = [
        {
            "@type": "cr:FileObject",
            "@id": identity,
            "name": clean(file.name),
            "contentUrl": clean(file.name),
            "contentSize": f"{file.bytes} B",
            "encodingFormat": file.format,
            "sha256": file.sha256,
        }
        for file, identity in zip(files.files, ids, strict=False)
    ]
    together = {
        "@type": "cr:FileSet",
        "@id": FILES,
        "name": FILES,
        "description": "All files of the data set.",
        "encodingFormat": sorted({file.format for file in files.files}),
        "includes": _includes(files),
    }
    return [*listed, together]


def _ids(names: Sequence[str], taken: Set[str]) -> list[str]:
    """An id for each name: mlcroissant takes none with white space; equal ones are numbered."""
    found: list[str] = []
    used = set(taken)
    for name in names:
        first = identity = re.sub(r"[^\w./-]", "-", name, flags=re.ASCII)
        number = 1
        while identity in used:
            number += 1
            identity = f"{first}-{number}"
        used.add(identity)
        found.append(identity)
    return found


def _includes(files: DataFiles) -> list[str]:
    """Patterns that fit the files; beyond MOST their endings."""
    if len(files.files) <= MOST:
        return [re.sub(r"([*?\[])", r"[\1]", clean(file.name)) for file in files.files]
    ends = {re.sub(r"^[^.]*", "", file.name.rpartition("/")[2]) for file in files.files}
    return sorted(f"*{end}" for end in ends)


def _records(files: DataFiles) -> list[Facts]:
    """The rows, a field for each column."""
    formats = {file.format for file in files.files}
    if formats == {TEXT}:
        what = f"A file; as a document foresift took a {files.unit}."
        column = Column("content", "text", what)
        fields = [_field(column, column.name, {"fileProperty": "content"})]
    else:
        ids = _ids([c.name for c in files.columns], set())
        pairs = zip(files.columns, ids, strict=True)
        fields = [_field(column, name, _extract(column, formats)) for column, name in pairs]
    about = f"A document is a {files.unit}." if formats != {TEXT} else "The text of the files."
    record = {"@type": "cr:RecordSet", "@id": DOCUMENTS, "name": DOCUMENTS, "description": about}
    return [{**record, "field": fields}] if fields else []


def _extract(column: Column, formats: set[str]) -> Facts:
    if formats == {JSON}:
        name = column.name if column.name.isidentifier() else f"'{column.name}'"
        return {"jsonPath": f"$[*].{name}"}
    return {"column": column.name}


def _field(column: Column, identity: str, extract: Mapping[str, Any]) -> Facts:
    """One field; a conversation has its turns' role and content below it."""
    found: Facts = {
        "@type": "cr:Field",
        "@id": f"{DOCUMENTS}/{identity}",
        "name": column.name,
        **({"description": column.about} if column.about else {}),
    }
    source = {"fileSet": {"@id": FILES}, "extract": dict(extract)}
    if column.type != "messages":
        return {**found, "dataType": TYPES[column.type], "source": source}
    turns = [
        {
            "@type": "cr:Field",
            "@id": f"{DOCUMENTS}/{identity}/{part}",
            "name": part,
            "dataType": "sc:Text",
            "source": {**source, "transform": {"jsonPath": part}},
        }
        for part in ("role", "content")
    ]
    return {**found, "repeated": True, "subField": turns}


# -- responsible AI --------------------------------------------------------------------------------


def _rai(told: Facts, files: DataFiles) -> Facts:
    """Properties of the RAI extension that the report can answer for."""
    run = told["run"]
    found: Facts = {}
    if files.kind == "exported":
        steps = [s["label"] for s in run["steps"] if s["line"] == "selected" and not s["repeat"]]
        found["rai:dataPreprocessingProtocol"] = [clean(s) for s in dict.fromkeys(steps)]
    tools = dict.fromkeys(s["name"] for s in run["steps"] if s["verb"] == "score")
    if tools:
        version = run["versions"].get("foresift", "")
        found["rai:machineAnnotationTools"] = [f"foresift {version}: {clean(t)}" for t in tools]
    detectors = (told["found"] or {}).get("detectors", [])
    if looked := [d for d in detectors if d["name"] in PERSONAL]:
        field = "kept" if files.kind == "exported" else "documents"
        kinds = [f"{r['name']}: {r[field]:,} documents" for d in looked for r in d["reasons"]]
        kinds += [] if kinds else ["none was found"]
        kinds += [UNNAMED] * names_unknown(told)
        found["rai:personalSensitiveInformation"] = kinds
    limits = ["Figures are of detectors, which err; they are reasons to look, not verdicts."]
    if run["accounts"]["rejected"]:
        limits.append(f"{run['accounts']['rejected']:,} rows could not be read.")
    return {**found, "rai:dataLimitations": limits}
