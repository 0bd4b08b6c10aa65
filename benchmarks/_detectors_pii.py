"""How much of the personal data in synthetic sentences is found, by type, and how fast?

    python benchmarks/_detectors_pii.py [--data ../shared/data]       half a minute on one core
    python benchmarks/_detectors_pii.py --smoke                a few seconds; goals are not judged
    python benchmarks/_detectors_pii.py --peers install        Presidio into .venv-peers/presidio

Data: presidio-research's synth_dataset_v2, 1500 sentences made from 209 templates. It is cut by
template, so that no template is on both sides: those with even numbers were looked at while rules
were written, those with odd numbers are reported. Types with a form of their own are measured;
names, places, organisations, dates, ages, titles, postal codes, web addresses and driving licences
are not what this tier is for: their number is reported as `not_covered`.

A span that is found counts where it overlaps one of the set of the same type; `exact` is the share
of those whose ends agree too. `ours` is the score `pii` at its defaults. `presidio` is Presidio
with all its recognisers on a blank spaCy pipeline (its patterns and check digits, with no model of
names and without lemmas, so that words around a number do not raise its score), from 0.3 on; it is
asked where it is installed beside the project.

Speed: `pii` and `secrets` over documents of the Pile, CPU seconds on one core, the best of three.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import time
import venv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.findings import findings
from foresift.pipeline.nouns import Scorer
from foresift.scorers.pii import Pii
from foresift.scorers.secrets import Secrets

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / ".venv-peers" / "presidio"
KINDS = {
    "EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "IP_ADDRESS": "ip", "CREDIT_CARD": "card",
    "IBAN_CODE": "iban", "US_SSN": "us_ssn",
}  # fmt: skip
#: types whose check digits decide
CHECKED = ("card", "iban")
#: domains of the Pile that stand for ordinary text, and one of code
ORDINARY = ("openwebtext2", "pile_cc", "wikipedia_en", "github")
GOAL_MB = 20.0
Span = tuple[str, int, int]
#: run by the interpreter of PEER: sentences on standard input, spans on standard output
ASK = """
import json, sys
import spacy
from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
from presidio_analyzer.nlp_engine import SpacyNlpEngine
nlp = SpacyNlpEngine(models=[{"lang_code": "en", "model_name": "blank"}])
nlp.nlp = {"en": spacy.blank("en")}
registry = RecognizerRegistry(supported_languages=["en"])
registry.load_predefined_recognizers(languages=["en"], nlp_engine=nlp)
engine = AnalyzerEngine(registry=registry, nlp_engine=nlp, supported_languages=["en"])
told = json.load(sys.stdin)
found = [engine.analyze(text=t, language="en", entities=told["entities"], score_threshold=0.3)
         for t in told["texts"]]
json.dump([[[r.entity_type, r.start, r.end] for r in rs] for rs in found], sys.stdout)
"""


def reported(data: Path) -> tuple[list[str], list[list[Span]], dict[str, int]]:
    """Sentences of odd templates, their spans of our types, and how many of others there are."""
    path = data / "pii" / "presidio-synth" / "synth_dataset_v2.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [row for row in json.load(file) if row["template_id"] % 2]
    spans: list[list[Span]] = []
    others: Counter[str] = Counter()
    for row in rows:
        here = [(s["entity_type"], s["start_position"], s["end_position"]) for s in row["spans"]]
        spans.append([(KINDS[kind], a, b) for kind, a, b in here if kind in KINDS])
        others.update(kind for kind, _, _ in here if kind not in KINDS)
    return [row["full_text"] for row in rows], spans, dict(others.most_common())


def ours(texts: Sequence[str]) -> list[list[Span]]:
    """What the score finds at its defaults."""
    column = Pii().score(pa.table({"text": pa.array(texts, pa.string())}))["findings"]
    return [[(f.reason, f.start, f.stop) for f in row] for row in findings(column)]


def presidio(texts: Sequence[str], peers: str) -> list[list[Span]] | None:
    """What Presidio finds; None where it is not installed."""
    python = PEER / "bin" / "python"
    if peers == "install" and not python.exists():
        venv.create(PEER, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "presidio-analyzer"], check=True)
    if peers == "none" or not python.exists():
        return None
    told = json.dumps({"texts": list(texts), "entities": list(KINDS)})
    done = subprocess.run(
        [python, "-c", ASK], input=told, capture_output=True, text=True, check=True
    )
    return [[(KINDS[kind], a, b) for kind, a, b in row] for row in json.loads(done.stdout)]


def measured(
    detector: str, found: Sequence[Sequence[Span]], truth: Sequence[Sequence[Span]]
) -> list[dict[str, Any]]:
    """A row for each type."""
    rows = []
    for kind in KINDS.values():
        hit = exact = right = given = n = 0
        for mine, wanted in zip(found, truth, strict=True):
            mine = [s for s in mine if s[0] == kind]
            wanted = [s for s in wanted if s[0] == kind]
            n, given = n + len(wanted), given + len(mine)
            hit += sum(any(_overlap(s, w) for s in mine) for w in wanted)
            exact += sum(w in mine for w in wanted)
            right += sum(any(_overlap(s, w) for w in wanted) for s in mine)
        precision, recall = right / max(given, 1), hit / max(n, 1)
        f1 = 2 * precision * recall / max(precision + recall, 1e-12)
        rows.append({"detector": detector, "type": kind, "n": n, "found": given,
                     "precision": precision, "recall": recall, "f1": f1,
                     "exact": exact / max(hit, 1)})  # fmt: skip
    return rows


def _overlap(one: Span, other: Span) -> bool:
    return one[1] < other[2] and other[1] < one[2]


def speeds(data: Path, smoke: bool) -> dict[str, dict[str, float]]:
    """Score -> domain -> megabytes a CPU second."""
    parts: dict[str, Scorer] = {"pii": Pii(), "secrets": Secrets()}
    found: dict[str, dict[str, float]] = {name: {} for name in parts}
    for domain in ORDINARY:
        path = data / "pretrain" / "pile-domains" / f"{domain}.parquet"
        table = pq.read_table(path, columns=["original"]).rename_columns(["text"])
        table = table.slice(0, 50) if smoke else table
        size = table["text"].nbytes / 1e6
        for name, part in parts.items():
            seconds = []
            for _ in range(1 if smoke else 3):
                start = time.process_time()
                part.score(table)
                seconds.append(time.process_time() - start)
            found[name][domain] = size / min(seconds)
    return found


def run(data: Path, smoke: bool = False, peers: str = "present") -> dict[str, Any]:
    """Rows for every detector and type, speeds, and goals."""
    texts, truth, others = reported(data)
    if smoke:
        texts, truth = texts[:150], truth[:150]
    rows = measured("ours", ours(texts), truth)
    theirs = presidio(texts, peers)
    if theirs is not None:
        rows += measured("presidio", theirs, truth)
    fast = speeds(data, smoke)
    judged = [] if smoke else goals(rows, fast)
    return {"rows": rows, "speed": fast, "not_covered": others, "goals": judged}


def goals(
    rows: Sequence[Mapping[str, Any]], fast: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """What was asked for before anything was measured."""
    mine = {row["type"]: row for row in rows if row["detector"] == "ours"}
    theirs = {row["type"]: row for row in rows if row["detector"] == "presidio"}

    def goal(name: str, least: float, measured: float) -> dict[str, Any]:
        return {"name": name, "goal": least, "measured": measured, "met": measured >= least}

    found = [
        goal("recall of cards and IBANs, the lower", 1.0, min(mine[k]["recall"] for k in CHECKED)),
        goal("precision of the worst type", 0.95, min(r["precision"] for r in mine.values())),
        goal("MB/s of pii and secrets on ordinary text, the slowest", GOAL_MB,
             min(v for by in fast.values() for v in by.values())),
    ]  # fmt: skip
    if theirs:
        lead = min(mine[k]["f1"] - theirs[k]["f1"] for k in mine)
        found.append(goal("F1 less that of Presidio's patterns, the worst type", 0.0, lead))
    return found


def table(found: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    names = ("detector", "type", "n", "found", "precision", "recall", "f1", "exact")
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for row in found["rows"]:
        cells = [row[name] for name in names]
        lines.append(f"| {' | '.join(f'{c:.3f}' if type(c) is float else str(c) for c in cells)} |")
    for name, by in found["speed"].items():
        told = ", ".join(f"{domain} {value:.0f}" for domain, value in by.items())
        lines.append(f"- {name}, MB/s: {told}")
    lines += [f"- {'met' if g['met'] else 'NOT MET'}: {g['name']}" for g in found["goals"]]
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--peers", choices=["install", "present", "none"], default="present")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = run(args.data, args.smoke, args.peers)
    print(table(found))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
