"""Which detectors of wrong labels find labels that are known to be wrong?

    python benchmarks/_detectors_labels.py [--data ../shared/data]      some minutes on one core
    python benchmarks/_detectors_labels.py --smoke                  a minute; goals are not judged

The sets of `_label_sets.py` are cut in two by hash of the id. Detectors see all documents with the
labels as given and never the truth, but for `trusted`: 300 documents of the first half with the
right label. The second half is reported. `chosen` is the F1 of flags at the noise that is best on
the first half, `f1` that of the detector's own proposals. Intervals of AUROC: 95 % by bootstrap
over documents. Vectors are 128 components of a truncated SVD of hashed TF-IDF; `early_learning`
reads the log of a small network trained 10 epochs on them. Baselines: chance, length of the text,
and the self-confidence of a classifier on what it was fitted to. cleanlab, where it is installed
beside the project, gets the same probabilities as `confident_learning`. All fields are defaults, of
which `c`, the number of n-grams and the noise of `intrinsic` were chosen on the first halves; its
`k: 1` too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _label_sets import RNG, Set, sets
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from foresift.pipeline.labels import labels
from foresift.pipeline.nouns import FittedScorer
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import content_ids
from foresift.pipeline.vectors import Vectors, vector_column
from foresift.scorers._label_folds import WordFeatures, out_of_fold
from foresift.scorers._label_samples import Samples
from foresift.scorers.confident_learning import ConfidentLearning
from foresift.scorers.early_learning import EarlyLearning
from foresift.scorers.label_propagation import LabelPropagation
from foresift.scorers.neighbour_disagreement import NeighbourDisagreement

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / ".venv-peers" / "cleanlab" / "bin" / "python"
WIDTH, EPOCHS, TRUSTED, RESAMPLES, SMOKE = 128, 10, 300, 200, 600
_PEER = """
import sys, warnings; import numpy as np
warnings.simplefilter("ignore")
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
d = np.load(sys.argv[1]); p = d["p"].astype(float); p /= p.sum(1, keepdims=True)
np.savez(sys.argv[2], issues=find_label_issues(d["y"], p, n_jobs=1),
         quality=get_label_quality_scores(d["y"], p, method="normalized_margin"))
"""


def prepared(found: Set) -> tuple[pa.Table, np.ndarray, WordFeatures]:
    """A table of the set, the half that is reported, and the words."""
    table = pa.table({"text": found.texts, "label": found.given})
    table = table.append_column("id", content_ids(table))
    second = RNG.at("half").uniform(table["id"]) < 0.5
    words = WordFeatures()
    list(words.reading([table]))
    features = words.of(np.arange(len(found.texts)))
    svd = TruncatedSVD(WIDTH, n_iter=3, random_state=0).fit_transform(features)
    svd[~words.worded()] = np.nan
    first = np.flatnonzero(~second)
    chosen = first[np.argsort(RNG.at("trusted").uniform(table["id"]).take(first))][:TRUSTED]
    trusted = np.isin(np.arange(len(second)), chosen)
    right = [r if t else g for r, g, t in zip(found.right, found.given, trusted, strict=True)]
    more = {"vector": vector_column(svd), "trusted": pa.array(trusted), "mended": pa.array(right)}
    for name, column in more.items():
        table = table.append_column(name, column)
    return table, second, words


def network(table: pa.Table, folder: Path) -> None:
    """Train a small network on the given labels and log what it predicts after every epoch."""
    x = torch.tensor(np.nan_to_num(Vectors.of(table, "vector").raw(np.arange(table.num_rows))))
    x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-6) * WIDTH**0.5
    names, code = labels(table, "label")
    y, rng = torch.from_numpy(code), torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (torch.nn.Linear(WIDTH, 256), torch.nn.ReLU(), torch.nn.Linear(256, len(names)))
        model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    folder.mkdir()
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(y), generator=rng).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            p = model(x).softmax(1).numpy()
        rows = {"id": table["id"], "epoch": [epoch] * len(p), "probabilities": list(p)}
        pq.write_table(pa.table(rows), folder / f"epoch-{epoch:03}.parquet")


def fitted(part: FittedScorer, table: pa.Table, folder: Path) -> tuple[dict[str, Any], Any]:
    """The columns of a detector, and its facts."""
    folder.mkdir()
    facts = part.fit(iter([table.select(["id", *part.needs])]), folder)
    found = part.score(table.select(["id", *part.needs]), folder)
    return {n: v.to_pylist() if isinstance(v, pa.Array) else v for n, v in found.items()}, facts


def detectors(found: Set, table: pa.Table, words: WordFeatures, work: Path) -> dict[str, Any]:
    """Name -> (noise of every row, flags or None)."""
    ids, flags = table["id"], lambda c: np.array([p != "keep" for p in c["proposal"]])
    made: dict[str, Any] = {
        "random": (RNG.at("random").uniform(ids), None),
        "length": (np.array([len(t) for t in found.texts], dtype=float), None),
    }
    samples = Samples.of(table, "label")
    features = words.of(samples.rows)
    model = LogisticRegression(C=3.0, max_iter=200).fit(features[samples.document], samples.label)
    _, code = labels(table, "label")
    p = out_of_fold(features, samples, 5, 3.0, Rng(0).at("confident_learning")).values
    place = {i: row for row, i in enumerate(samples.ids.to_pylist())}
    rows = np.array([place[i] for i in ids.to_pylist()])
    inside = model.predict_proba(features)[rows]
    made["self_confidence_in_sample"] = (1 - inside[np.arange(len(code)), code], None)
    given = table.append_column("p", vector_column(p[rows]))
    base = {"label": "label", "probabilities": "p"}
    for name, fields in {"": {}, " adjusted": {"adjust": True}}.items():
        part = ConfidentLearning(**base, **fields)
        columns, facts = fitted(part, given, work / f"cl{name}")
        quality = 1 - np.asarray(columns["quality"])
        made[f"confident_learning{name}"] = (quality, flags(columns), facts)
    made |= _cleanlab(p, samples, rows, code, work, made["confident_learning"][1])
    network(table, work / "log")
    parts: dict[str, FittedScorer] = {
        "early_learning": EarlyLearning(label="label", log=str(work / "log")),
        "neighbour_disagreement": NeighbourDisagreement(label="label", vectors="vector"),
        "neighbours, 300 trusted": NeighbourDisagreement(
            label="mended", vectors="vector", k=5, trusted="trusted"
        ),
        "label_propagation": LabelPropagation(label="label", vectors="vector"),
    }
    if found.negative:
        parts["neighbours, intrinsic"] = NeighbourDisagreement(
            label="label", vectors="vector", k=1, strategy="intrinsic", negative=found.negative
        )
    for number, (name, part) in enumerate(parts.items()):
        columns, facts = fitted(part, table, work / str(number))
        made[name] = (np.asarray(columns["noise"]), flags(columns), facts)
    return made


def _cleanlab(
    p: np.ndarray, samples: Samples, rows: np.ndarray, code: np.ndarray, work: Path, ours: Any
) -> dict[str, Any]:
    """Scores and flags of cleanlab on the same probabilities, one row a sample."""
    if not PEER.exists():
        return {}
    values = p[samples.document]
    np.savez(work / "in.npz", p=values, y=samples.label)
    command = [PEER, "-c", _PEER, work / "in.npz", work / "out.npz"]
    subprocess.run([str(c) for c in command], check=True)
    out = np.load(work / "out.npz")
    pairs = zip(samples.document.tolist(), samples.label.tolist(), strict=True)
    place = {pair: i for i, pair in enumerate(pairs)}
    at = np.array([place[pair] for pair in zip(rows.tolist(), code.tolist(), strict=True)])
    issues = out["issues"][at]
    facts = {"flags_that_differ": int((issues != ours).sum())}
    return {"cleanlab": (1 - out["quality"][at], issues, facts)}


def measured(name: str, noise: Any, flags: Any, wrong: Any, first: Any, second: Any) -> Any:
    """The row of a detector on the second half."""
    noise = np.nan_to_num(np.asarray(noise, dtype=float), nan=-np.inf)
    finite = np.where(np.isneginf(noise), np.min(noise[np.isfinite(noise)], initial=0) - 1, noise)
    truth, values = wrong[second], finite[second]
    draws = np.random.default_rng(0).integers(0, len(truth), (RESAMPLES, len(truth)))
    resampled = [roc_auc_score(truth[d], values[d]) for d in draws if 0 < truth[d].sum() < len(d)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    limits = np.quantile(finite[first], np.linspace(0.02, 0.98, 97))
    best = max(limits, key=lambda t: _f1(wrong[first], finite[first] >= t))
    row = {
        "detector": name, "n": int(second.sum()), "noise_rate": float(truth.mean()),
        "auroc": float(roc_auc_score(truth, values)), "auroc_low": float(low),
        "auroc_high": float(high), "chosen": _f1(truth, values >= best),
    }  # fmt: skip
    row["average_precision"] = float(average_precision_score(truth, values))
    if flags is not None:
        mine = flags[second]
        hit = float((mine & truth).sum())
        row |= {"flagged": float(mine.mean()), "precision": hit / max(mine.sum(), 1),
                "recall": hit / truth.sum(), "f1": _f1(truth, mine)}  # fmt: skip
    return row


def _f1(truth: np.ndarray, flags: np.ndarray) -> float:
    hit = float((truth & flags).sum())
    return 2 * hit / max(truth.sum() + flags.sum(), 1)


def run(data: Path, smoke: bool = False) -> dict[str, Any]:
    """Rows for every set and detector, and goals."""
    rows: list[dict[str, Any]] = []
    cleanlab: dict[str, Any] = {}
    for found in sets(data):
        if smoke:
            found = _smaller(found)
        start = time.perf_counter()
        table, second, words = prepared(found)
        with tempfile.TemporaryDirectory() as folder:
            made = detectors(found, table, words, Path(folder))
        told = {name: facts[0] for name, (_, _, *facts) in made.items() if facts}
        cleanlab |= {found.name: told["cleanlab"]} if "cleanlab" in told else {}
        for part, which in found.measured.items():
            for name, (noise, flags, *_) in made.items():
                halves = (which & ~second, which & second)
                row = measured(name, noise, flags, found.wrong, *halves)
                if "noise_rate" in told.get(name, {}):
                    ends = ("", "_low", "_high")
                    row["estimated"] = [told[name][f"noise_rate{end}"] for end in ends]
                rows.append({"set": part, **row})
        print(f"{found.name}: {time.perf_counter() - start:.1f} s", flush=True)
    return {"rows": rows, "cleanlab": cleanlab, "goals": [] if smoke else goals(rows, cleanlab)}


def _smaller(found: Set) -> Set:
    """Some documents of a set, of which some are wrong and some measured."""
    order = np.random.default_rng(0).permutation(len(found.texts))
    shown = np.any(list(found.measured.values()), axis=0)
    checked = min(found.measured.values(), key=np.sum)
    kinds = (found.wrong & shown, checked, np.ones(len(order), dtype=bool))
    some = np.unique(np.concatenate([order[kind[order]][: SMOKE // 3] for kind in kinds]))

    def take(values: list[str]) -> list[str]:
        return [values[i] for i in some]

    return Set(
        found.name, take(found.texts), take(found.given), take(found.right), found.wrong[some],
        {n: m[some] for n, m in found.measured.items()}, found.negative,
    )  # fmt: skip


def goals(rows: list[dict[str, Any]], cleanlab: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was asked for before anything was measured."""
    of = {(r["set"], r["detector"]): r for r in rows}
    names = sorted({r["set"] for r in rows})

    def goal(name: str, met: Callable[[], bool]) -> dict[str, Any]:
        return {"goal": name, "met": bool(met())}

    def auroc(name: str, detector: str, end: str = "") -> float:
        return float(of[name, detector][f"auroc{end}"])

    found = [
        goal("confident learning ranks better than chance on every set",
             lambda: all(auroc(n, "confident_learning", "_low") > 0.5 for n in names)),
        goal("and better than length on every set",
             lambda: all(auroc(n, "confident_learning") > auroc(n, "length") for n in names)),
        goal("planted flips of 20 % in 20 Newsgroups: F1 of its flags at least 0.6",
             lambda: of["20news-20", "confident_learning"]["f1"] >= 0.6),
        goal("a clean set of 300 beats the intrinsic strategy on `other`",
             lambda: auroc("20news-other", "neighbours, 300 trusted")
             > auroc("20news-other", "neighbours, intrinsic")),
        goal("what intrinsic flags is at least 3 times as often wrong as any `other`",
             lambda: of["20news-other", "neighbours, intrinsic"]["precision"]
             >= 3 * of["20news-other", "neighbours, intrinsic"]["noise_rate"]),
    ]  # fmt: skip
    if cleanlab:
        same = not any(f["flags_that_differ"] for f in cleanlab.values())
        found.append(goal("flags are those of cleanlab on the same probabilities", lambda: same))
    return found


def table(found: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    names = ("set", "detector", "n", "noise_rate", "auroc", "average_precision", "precision",
             "recall", "f1", "chosen")  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for row in found["rows"]:
        cells = [row.get(name, "") for name in names]
        lines.append(
            f"| {' | '.join(f'{c:.3f}' if isinstance(c, float) else str(c) for c in cells)} |"
        )
    lines += [f"- {'met' if g['met'] else 'NOT MET'}: {g['goal']}" for g in found["goals"]]
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = run(args.data, args.smoke)
    print(table(found))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
