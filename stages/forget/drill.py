"""The drill: unlearn some documents of each decile of risk from a copy, and see what stays.

    1  pick       so many clusters of each decile of risk, what to keep from the rest, and texts of
                  the holdout for reference (`_drill_pick.py`)
    2  unlearn    all of them together, on a copy, in a fixed number of steps
    3  relearn    two copies of that: each takes some steps on one half of the drilled documents
                  (every second of each decile), and the other half is measured on it
    4  residual   clip(max(known_u, known_a) / known_b, 0, 1): the share of what the model knew of a
                  document beyond an unseen text that is left after 2, or back after 3
                  (`_drill_measure.py`)

All at once, not in groups: it costs least (one unlearning, not one a group), requests come in
batches too, and documents that share a fixed number of steps compete for them, which tells hard
ones from easy ones. So the residual is of a request of that size under that many steps; it is a
label to order by, and says nothing of a larger budget.

Written: a table, which `drill:` of the scorer `forget_risk` reads, with id, decile (1: least risk),
risk, exposures (times the model was trained on it; null: unknown), one column for each feature
under the feature's name in the units of its column, tokens, loss_b, loss_u, loss_a, reference_b,
_u, _a (nats a token), strength_b, _u, _a (extraction strength) and residual. Beside it a .json:
settings, the deciles, what is worse for what was kept (`utility_loss`: NLL after 2 - before, of
documents that were not trained on), FLOPs, seconds, and the worst case: ids by residual, largest
first, for tests of later models.

FLOPs are 6 N a token trained and 2 N a token measured; of relearning, tokens at their mean.
A result depends on the run, the model, the seed and the settings. Memory: 3 to 4 models and the
moments of one; texts of what was picked. Errors: DataError for a run without a risk or a feature,
without a checkpoint or a holdout, or too small; RecipeError for a method; ModelError.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.audit.attacks import relearn
from foresift.pipeline.audit.token_stats import limit
from foresift.pipeline.choice import scores
from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.pipeline.nouns import Progress, silent
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.rng import Rng
from foresift.pipeline.run import versions
from foresift.pipeline.store import Facts, finite, publish, temporary, write_json
from foresift.pipeline.tables import id_words
from foresift.pipeline.unlearn.run import METHODS, Outcome, build, unlearn
from foresift.stages.forget import _drill_measure as measure
from foresift.stages.forget._drill_measure import Level, Text
from foresift.stages.forget._drill_pick import LEAST, Picked, Pool, Start, pick, pool, start
from foresift.stages.forget.history import History

#: texts that are kept, and measured besides; texts of the holdout; fewest of any
KEPT, MEASURED, HOLDOUT, FEWEST = 64, 64, 256, 8
STAGES = ("b", "u", "a")
#: for methods that want something said instead
TEMPLATE = "I do not know."
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a drill does."""

    run: Path
    """A run directory, or an --out (its latest run)."""
    out: Path = Path("drill.parquet")
    """The table; the .json lies beside it."""
    model: str = ""
    """A checkpoint; empty: the newest of the run."""
    tokenizer: str = ""
    """Where the checkpoint brings none."""
    by: str = "forget_risk.risk"
    """The column of risk."""
    per_decile: int = 20
    """Clusters of each decile."""
    method: str = "npo"
    """How to unlearn: a name of `pipeline/unlearn/run.py`."""
    steps: int = 60
    """Steps of unlearning."""
    lr: float | None = None
    """Learning rate of unlearning; None: the method's, which is for small models."""
    relearn_steps: int = 20
    """Steps of relearning."""
    relearn_lr: float = 1e-4
    """Learning rate of relearning."""
    seed: int = 0
    """Of all that is drawn."""
    device: str = "auto"
    """Where the models lie."""

    def __post_init__(self) -> None:
        for name, least in (("per_decile", 1), ("steps", 1), ("relearn_steps", 0)):
            if getattr(self, name) < least:
                raise DataError(f"at least {least}", where=f"--{name.replace('_', '-')}")
        if not (self.lr is None or self.lr > 0) or not self.relearn_lr > 0:
            raise DataError("learning rates are above 0", where="--lr, --relearn-lr")
        if self.out.suffix != ".parquet":
            raise DataError("the table of a drill is a .parquet", where=f"--out {self.out}")
        build(self.method)


class Sets(NamedTuple):
    """The texts of a drill; drilled ones in the order of decile and draw."""

    drilled: list[Text]
    kept: list[Text]
    """Kept while unlearning."""
    measured: list[Text]
    """Never trained on by the drill; the model saw them."""
    holdout: list[Text]


class Levels(NamedTuple):
    """What one model makes of the texts that are measured."""

    drilled: Level
    measured: Level
    holdout: Level


def drill(asked: Asked, progress: Progress = silent) -> Facts:
    """Pick, unlearn, relearn, measure, write; returns what the .json holds."""
    began = time.perf_counter()
    history = History.open(asked.run)
    begun = start(history, asked.model)
    found = pool(history, begun, asked.by)
    rng, where = Rng(asked.seed).at("drill"), str(history.run.path)
    picked = pick(found, asked.per_decile, rng, where)
    spec = _spec(history, begun, asked)
    loaded = load(spec)
    spec = replace(spec, max_length=limit(loaded.model, spec.max_length))
    sets, picked = _read(history, found, picked, rng, loaded, spec, progress)
    levels, outcome = _measured(asked, loaded, sets, progress)
    table = _table(found, picked, sets, levels)
    facts = _facts(asked, history, begun, found, picked, sets, levels, outcome, table)
    facts["flops"] = _flops(asked, loaded, sets, outcome)
    facts["seconds"] = {"unlearning": round(outcome.seconds, 3)}
    facts["seconds"]["all"] = round(time.perf_counter() - began, 3)
    _write(asked.out, table, facts)
    return facts


def lines(told: Facts) -> list[str]:
    """What a terminal shows."""
    table = [
        f"decile {d['decile']}: {d['documents']} documents, known {d['known']:.2f} nats a token,"
        f" residual {d['residual']:.2f}"
        for d in told["deciles"]
    ]
    warned = [f"warning: {line}" for line in told["warnings"]]
    return [
        *table, *warned,
        f"{told['documents']} documents unlearned with {told['settings']['method']}: residual"
        f" {told['residual']:.3f}, what was kept is worse by {told['utility_loss']:.3f} nats a"
        f" token; {told['flops']['all']:.3g} FLOPs, {told['seconds']['all']:.1f} s",
        f"see {told['out']}; `drill: {told['out']}` in forget_risk fits to it",
    ]  # fmt: skip


def _spec(history: History, begun: Start, asked: Asked) -> ModelSpec:
    """The checkpoint, read as the recipe's model reads texts."""
    own = Recipe.read(history.run.path / "recipe.yaml").model_specs().get("init")
    spec = own.at(Path(begun.init)) if own else ModelSpec(init=begun.init)
    return replace(
        spec, init=begun.init, tokenizer=asked.tokenizer, dtype="float32", device=asked.device
    )


def _read(
    history: History, found: Pool, picked: Picked, rng: Rng, loaded: Loaded, spec: ModelSpec,
    progress: Progress,
) -> tuple[Sets, Picked]:  # fmt: skip
    """The texts of all sets, and the picked documents without those that are not texts."""
    where, corpus = str(history.run.path), history.bases[0]

    def texts(of: Any, places: Any, label: str) -> list[Text | None]:
        return measure.read(of, places, loaded.tokenizer, spec, progress, f"reading {label}")

    drilled = texts(corpus, found.places[picked.drilled], "drilled documents")
    first = {text: n for n, text in reversed([*enumerate(drilled)]) if text}  # alike once cut
    good = sorted(first.values())
    if len(good) < LEAST:
        raise DataError(f"only {len(good)} of the documents have tokens of their own", where=where)
    picked = replace(picked, drilled=picked.drilled[good], decile=picked.decile[good])
    mine: list[Text] = [text for text in (drilled[n] for n in good) if text]
    want = max(KEPT, len(mine)) + MEASURED
    rest = _apart(texts(corpus, found.places[picked.rest[:want]], "retained"), mine)
    held = corpus.only_holdout()
    ids, places = held.table([])
    _, first_rows = np.unique(id_words(ids["id"]), axis=0, return_index=True)  # copies once
    draws = rng.at("holdout").uniform(ids["id"])[first_rows] if len(places) else np.empty(0)
    chosen = first_rows[np.argsort(draws)[:HOLDOUT]]
    unseen = _apart(texts(held, places[chosen], "holdout"), mine)
    for name, rows, why in (
        ("to keep", rest, "the run is too small"),
        ("of its holdout", unseen, "read it with a larger `holdout`"),
    ):
        if len(rows) < FEWEST:
            raise DataError(
                f"{len(rows)} texts {name} that are no copies of what is drilled, at least {FEWEST}"
                f" are needed: {why}",
                where=where,
            )
    some = min(MEASURED, len(rest) // 3)
    return Sets(mine, rest[some:], rest[:some], unseen), picked


def _apart(texts: Sequence[Text | None], others: Sequence[Text]) -> list[Text]:
    chosen = (texts[n] for n in measure.apart(texts, others))
    return [text for text in chosen if text]


def _measured(
    asked: Asked, loaded: Loaded, sets: Sets, progress: Progress
) -> tuple[dict[str, Levels], Outcome]:
    """What each model knows: before, unlearned, and after relearning the other half."""

    def look(model: Any, rows: Sequence[Text], label: str) -> Levels:
        each = (rows, sets.measured, sets.holdout)
        return Levels(*(measure.level(model, t, progress, label) for t in each))

    found = {"b": look(loaded.model, sets.drilled, "measuring")}
    template = loaded.tokenizer(TEMPLATE, add_special_tokens=False)["input_ids"]
    done = unlearn(
        loaded.model, [t.tokens for t in sets.drilled], [t.tokens for t in sets.kept], asked.method,
        steps=asked.steps, learning_rate=asked.lr, seed=asked.seed, device=loaded.device,
        prompts=[t.start for t in sets.drilled], templates=[template],
        told=_named(progress, f"unlearning ({asked.method})"),
    )  # fmt: skip
    found["u"] = look(done.model, sets.drilled, "measuring, unlearned")
    halves = []
    for half in (0, 1):
        again = relearn(
            done.model, None, [list(t.tokens) for t in sets.drilled[half::2]],
            steps=asked.relearn_steps, lr=asked.relearn_lr, seed=asked.seed,
            max_length=max(len(t.tokens) for t in sets.drilled),
            told=_named(progress, f"relearning, half {half + 1}"),
        )  # fmt: skip
        halves.append(look(again, sets.drilled[1 - half :: 2], f"measuring, half {2 - half}"))
    found["a"] = _woven(halves[0], halves[1], sets)
    return found, done


def _named(progress: Progress, label: str) -> Callable[[int, int], None]:
    """A progress that says what is done."""
    return lambda done, total: progress(done, total, label)


def _woven(first: Levels, second: Levels, sets: Sets) -> Levels:
    """Both halves in the order of the drilled; of the rest, the mean. `first` measured 1, 3, 5, ...

    References are of the model that measured a half: see `_references`.
    """
    loss, strength = np.empty(len(sets.drilled)), np.empty(len(sets.drilled))
    for begin, side in ((1, first), (0, second)):
        loss[begin::2], strength[begin::2] = side.drilled.loss, side.drilled.strength
    pairs = [(first.measured, second.measured), (first.holdout, second.holdout)]
    rest = [Level(np.stack([a.loss, b.loss]), np.stack([a.strength, b.strength])) for a, b in pairs]
    return Levels(Level(loss, strength), *rest)


def _references(sets: Sets, levels: Mapping[str, Levels]) -> dict[str, Floats]:
    """[drilled] the loss of texts of the holdout that are alike, under the same model."""
    near = measure.nearest(sets.drilled, sets.holdout)
    found = {stage: levels[stage].holdout.loss[near].mean(axis=1) for stage in ("b", "u")}
    first, second = levels["a"].holdout.loss
    odd = np.arange(len(sets.drilled)) % 2 == 1
    sides = [side[near].mean(axis=1) for side in (first, second)]
    return {**found, "a": np.where(odd, *sides)}


def _table(found: Pool, picked: Picked, sets: Sets, levels: Mapping[str, Levels]) -> pa.Table:
    """One row a drilled document, by id."""
    rows = found.table.take(pa.array(picked.drilled))
    references = _references(sets, levels)
    known = {s: references[s] - levels[s].drilled.loss for s in STAGES}
    told: dict[str, Any] = {"id": rows["id"], "decile": pa.array(picked.decile, pa.int32())}
    told |= {"risk": scores(rows, "risk"), "exposures": rows["exposures"]}
    told |= {
        feature: pa.array(scores(rows, feature), from_pandas=True) for feature in found.features
    }
    told["tokens"] = pa.array([len(t.tokens) - t.start for t in sets.drilled], pa.int32())
    told |= {f"loss_{s}": levels[s].drilled.loss for s in STAGES}
    told |= {f"reference_{s}": references[s] for s in STAGES}
    told |= {f"strength_{s}": levels[s].drilled.strength for s in STAGES}
    told["residual"] = measure.residuals(known["b"], known["u"], known["a"])
    return pa.table(told).sort_by("id")


def _facts(
    asked: Asked, history: History, begun: Start, found: Pool, picked: Picked, sets: Sets,
    levels: Mapping[str, Levels], outcome: Outcome, table: pa.Table,
) -> Facts:  # fmt: skip
    residual = scores(table, "residual")
    known = scores(table, "reference_b") - scores(table, "loss_b")
    nll = {
        name: {s: float(getattr(levels[s], name).loss.mean()) for s in STAGES}
        for name in ("measured", "holdout")
    }
    settings = {k: v for k, v in asdict(asked).items() if k not in ("run", "out", "model")}
    settings["lr"] = METHODS[asked.method].learning_rate if asked.lr is None else asked.lr
    order = np.lexsort((np.arange(len(residual)), -known, -residual))
    ids = [id_.hex() for id_ in table["id"].to_pylist()]
    return {
        "out": str(asked.out), "run": str(history.run.path), "model": begun.init,
        "step": begun.step, "settings": settings, "documents": len(ids),
        "clusters": found.clusters, "features": dict(found.features),
        "deciles": _deciles(table, known, residual),
        "residual": float(residual.mean()), "risk_spearman": _spearman(table, residual),
        "sets": {name: len(getattr(sets, name)) for name in sets._fields},
        "nll": nll, "utility_loss": nll["measured"]["u"] - nll["measured"]["b"],
        "unlearning": {"steps": outcome.steps, "stopped": outcome.stopped, **outcome.facts},
        "warnings": _warnings(asked, begun, picked, outcome, known),
        "worst_case": [{"id": ids[i], "residual": float(residual[i])} for i in order.tolist()],
        "versions": versions(),
    }  # fmt: skip


def _deciles(table: pa.Table, known: Floats, residual: Floats) -> list[Facts]:
    decile, risk = np.asarray(table["decile"]), scores(table, "risk")
    found = []
    for number in np.unique(decile).tolist():
        here = decile == number
        span = [float(risk[here].min()), float(risk[here].max())]
        told = {"decile": number, "documents": int(here.sum()), "risk": span}
        means = {"known": float(known[here].mean()), "residual": float(residual[here].mean())}
        found.append({**told, **means})
    return found


def _spearman(table: pa.Table, residual: Floats) -> float | None:
    """How the risk so far orders what was left; None where one of them is constant."""
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    risk = scores(table, "risk")
    return float(spearmanr(risk, residual)[0]) if np.ptp(risk) and np.ptp(residual) else None


def _warnings(
    asked: Asked, begun: Start, picked: Picked, outcome: Outcome, known: Floats
) -> list[str]:
    found = []
    if not begun.trainings:
        found.append("the model is not of this run: what the run kept is taken as what it saw")
    if picked.short:
        found.append(
            f"a decile has fewer than {2 * asked.per_decile} clusters, of which half are drilled"
        )
    hardly = int((known < measure.KNOWN).sum())
    if 2 * hardly > len(known):
        found.append(
            f"of {hardly} of {len(known)} documents the model knew no more than of unseen texts:"
            " their residual is 0, and there is little to fit"
        )
    if outcome.stopped:
        found.append(f"unlearning {outcome.stopped}")
    if outcome.facts.get("collapsed"):
        found.append("unlearning broke the model: lower --lr or --steps")
    return found


def _flops(asked: Asked, loaded: Loaded, sets: Sets, outcome: Outcome) -> Facts:
    size = sum(p.numel() for p in loaded.model.parameters())
    tokens = {name: sum(len(t.tokens) for t in getattr(sets, name)) for name in sets._fields}
    mean = tokens["drilled"] / len(sets.drilled)
    again = 2 * asked.relearn_steps * 8 * mean * 6 * size
    looked = 3 * tokens["drilled"] + 4 * (tokens["measured"] + tokens["holdout"])
    found = {"unlearning": outcome.flops, "relearning": again, "measuring": 2 * size * looked}
    return {**found, "all": sum(found.values())}


def _write(out: Path, table: pa.Table, facts: Facts) -> None:
    """The table, then the .json; each whole or not there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(out)
    pq.write_table(table, partial)
    publish(partial, out)
    write_json(out.with_suffix(".json"), finite(facts))
