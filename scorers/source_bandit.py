"""A bandit over sources: each round, which source to draw more from, by what references gained.

Arms are the sources of the pool, contexts the references. A round pulls one arm for each reference
and gives each source the share

    share_g = (1 - floor) sum_{r: arm of r is g} weight_r / sum_r weight_r  +  floor / G

of what the round trains on (`mixture` with `shares: column`, `column: source_bandit.share`). The
next round takes the reference losses under the model trained in between. The arm that r pulled in
round n earned

    gain = log(L_r before / L_r after) / log((n + 1) / n)      trend: power_law
    gain = log(L_r before / L_r after)                         trend: none

scaled to a reward in [0, 1] from the least to the largest gain so far. A loss that falls as a power
of training falls by ever less each round; the divisor makes rounds comparable, or the arms pulled
first would look best. Each arm is pulled once first, in the order of their names; then

    arm of r = argmax_g mu_g(x_r) + eta sigma_g(x_r)           (`_bandit.py`)

with x_r = (one-hot of r, mean hidden state of r's documents at length 1) / sqrt 2: references tell
of each other as far as they are alike. Rewards of a rounds ago have the weight discount^a.

Columns, the same on every row of a source: `share` (they sum to 1 over sources), `ucb` (of the
source, over references by their weights), `utility` = ucb. Rows without a source have NaN.

**What it cannot know.** All sources of a round train one model; the drop is put down to the arm
that was pulled. More references than sources, or a high floor, blur that. Pulls of one round do not
know of each other. In a simulation
(three sources, each best in one of three contexts by 0.4, noise 0.1) the regret after 60 pulls is
16.0 at random, 15.6 epsilon-greedy without contexts, 12.8 with the paper's eta and 3.7 with eta 1.

Facts: arms, pulls, losses, gains and rewards with their rounds, mu and sigma of each arm for each
reference. Errors: fewer than two sources; a loss that is not a positive number; hidden states of
another width than in the round before. Cost: 2 P R a round for R tokens of references; no forward
over the pool. Source: PAK-UCB (Hu, Leung and Farnia 2025), which chooses generators for prompts;
sources, references and falling losses are put in their place here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from foresift.pipeline import references
from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.estimate import count_parameters
from foresift.pipeline.labels import labels
from foresift.pipeline.lm.evaluate import means
from foresift.pipeline.lm.forward import cpu_threads, window
from foresift.pipeline.lm.model import load
from foresift.pipeline.lm.signals import Window
from foresift.pipeline.nouns import Arrays, FittedModelScorer, Look
from foresift.pipeline.references import Aims
from foresift.pipeline.store import Facts, read_json, write_json
from foresift.pipeline.tables import Column
from foresift.pipeline.vectors import unit
from foresift.scorers._bandit import Floats, Kernel, KernelUcb, exploration, pull, scaled

_STATE = "bandit.json"


@dataclass(frozen=True, kw_only=True)
class SourceBandit(FittedModelScorer):
    """Which sources to draw more from, learned from reference losses round by round (PAK-UCB)."""

    reference: Aims
    """The contexts: data sets, files or readers, with weights. Each pulls one source a round."""
    by: str = "source"
    """Column that says where a row comes from: labels, or key paths (see `depth`)."""
    depth: int = 1
    """Components of a key path that name a source; 0 takes the label as it stands."""
    floor: float = 0.2
    """Part of the round that all sources share evenly, in [0, 1]."""
    kernel: Kernel = "rbf"
    """How alike two contexts are: `linear`, `rbf` or `polynomial`."""
    gamma: float = 1.0
    """Of the kernel; above 0."""
    alpha: float = 1.0
    """Ridge of the kernel regression, the noise of rewards; above 0."""
    eta: float | None = 1.0
    """Weight of what is not known. Null: the paper's formula, which explores for thousands of
    pulls."""
    pulls: int = 1000
    """T in that formula: references times rounds."""
    delta: float = 0.05
    """Probability in that formula that a bound fails."""
    trend: Literal["power_law", "none"] = "power_law"
    """How gains of early and late rounds compare: none for rewards that do not fade."""
    discount: float = 0.9
    """Weight of a reward for each round that it is older, in (0, 1]; 1 forgets nothing."""
    reference_documents: int = 128
    """Documents of each reference that are used, the first ones."""

    columns: ClassVar[Mapping[str, Column]] = {
        "share": Column(pa.float64(), "share of the round", "higher"),
        "ucb": Column(pa.float64(), "upper bound of the reward", "higher"),
        "utility": Column(pa.float64(), "upper bound of the reward", "higher"),
    }

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError("floor lies in [0, 1]")
        if not 0 < self.discount <= 1:
            raise ValueError("discount lies in (0, 1]")
        if not 0 < self.delta < 1:
            raise ValueError("delta lies in (0, 1)")
        if self.eta is not None and not (math.isfinite(self.eta) and self.eta >= 0):
            raise ValueError("eta is a number, not negative, or null")
        for name in ("gamma", "alpha", "pulls", "reference_documents"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive")
        if self.depth < 0:
            raise ValueError("depth must be at least 0")
        if self.by == "source" and self.depth == 0:
            raise ValueError("depth must be at least 1: every row has a `source` of its own")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    @property
    def aims(self) -> Any:
        return self.reference

    def fit(self, look: Look, out: Path) -> Facts:
        if not (out / _STATE).exists():
            arms = self._arms(look.corpus)
            before = look.previous / _STATE if look.previous else None
            known = read_json(before) if before and before.exists() else {"round": 0, "seen": []}
            now, flops = ask(look, self.reference_documents)
            weights = {r.name: r.weight for r in look.references}
            write_json(out / _STATE, {**self.decide(arms, now, weights, known), "flops": flops})
        told = read_json(out / _STATE)
        rewards = [{k: v for k, v in each.items() if k != "vector"} for each in told["seen"]]
        told["losses"] = {name: each["loss"] for name, each in told.pop("contexts").items()}
        return {**told, "seen": rewards}

    def _arms(self, corpus: Corpus) -> list[str]:
        """The names of the sources of the alive rows, in ascending order."""
        found: set[str] = set()
        for shard in corpus.shards():
            alive = pa.array(np.flatnonzero(shard.alive()))
            found |= set(labels(shard.load([self.by]).take(alive), self.by, self.depth)[0])
        arms = sorted(found)
        if len(arms) < 2:
            raise DataError(
                f"{len(arms)} source{'s' * (len(arms) != 1)} ({', '.join(arms) or 'none'}): "
                "shares are decided between at least two (see `by` and `depth`)",
                where=self.by,
            )
        return arms

    def decide(
        self, arms: Sequence[str], now: Facts, weights: Mapping[str, float], known: Facts
    ) -> Facts:
        """The state after this round's losses are known: history, pulls, bounds and shares."""
        number = known["round"] + 1
        seen = [dict(each) for each in (*known["seen"], *self._gains(known, now))]
        for each, reward in zip(seen, scaled(np.array([e["gain"] for e in seen])), strict=True):
            each["reward"] = float(reward)
        bounds = self._bounds(arms, now, seen, number)
        observed = [any(each["arm"] == arm for each in seen) for arm in arms]
        pulled: dict[str, str] = {}
        for name in now:
            upper = [bounds[name][arm]["ucb"] for arm in arms]
            pending = [list(pulled.values()).count(arm) for arm in arms]
            pulled[name] = arms[pull(upper, observed, pending)]
        total = sum(weights.values())
        share = dict.fromkeys(arms, self.floor / len(arms))
        for name, arm in pulled.items():
            share[arm] += (1 - self.floor) * weights[name] / total
        ucb = {a: sum(weights[n] * bounds[n][a]["ucb"] for n in now) / total for a in arms}
        return {
            "round": number, "arms": list(arms), "pulls": pulled, "share": share, "ucb": ucb,
            "bounds": bounds, "seen": seen, "contexts": now,
        }  # fmt: skip

    def _gains(self, known: Facts, now: Facts) -> list[Facts]:
        """What the pulls of the round before earned, for the references that were there then."""
        found, number = [], known["round"]
        unit_of = math.log((number + 1) / number) if number and self.trend == "power_law" else 1.0
        for name, each in known.get("contexts", {}).items():
            if name not in now:
                continue
            if len(each["vector"]) != len(now[name]["vector"]):
                raise DataError(
                    "hidden states have another width than in the round before: rewards of two "
                    "models do not tell of each other",
                    where=name,
                )
            gain = math.log(each["loss"] / now[name]["loss"]) / unit_of
            found.append({
                "context": name, "arm": known["pulls"][name], "round": number, "gain": gain,
                "vector": each["vector"],
            })  # fmt: skip
        return found

    def _bounds(self, arms: Sequence[str], now: Facts, seen: list[Facts], number: int) -> Facts:
        """context -> arm -> mu, sigma and upper bound."""
        places = sorted({*now, *(each["context"] for each in seen)})
        eta = exploration(self.pulls, len(arms), self.delta) if self.eta is None else self.eta
        model = KernelUcb(self.kernel, self.gamma, self.alpha)
        asked = _features(now.items(), places)
        found: Facts = {name: {} for name in now}
        for arm in arms:
            own = [each for each in seen if each["arm"] == arm]
            contexts = _features([(each["context"], each) for each in own], places)
            rewards = np.array([each["reward"] for each in own])
            ages = np.array([number - each["round"] for each in own])
            mu, sigma = model.predict(asked, contexts, rewards, self.discount**ages)
            for name, m, s in zip(now, mu.tolist(), sigma.tolist(), strict=True):
                found[name][arm] = {"mu": m, "sigma": s, "ucb": m + eta * s}
        return found

    def signals(self, out: Path) -> tuple[str, ...]:
        return ()

    def estimate(self, parameters: int, pool: int, references: int) -> tuple[float, float]:
        return 2.0 * parameters * references, 0.0

    def score(self, window: Window, out: Path) -> Arrays:
        told = read_json(out / _STATE)
        names, code = labels(window.tokens.table, self.by, self.depth)
        share, ucb = (
            np.array([told[k].get(name, math.nan) for name in [*names, None]])[code]
            for k in ("share", "ucb")
        )
        return {"share": share, "ucb": ucb, "utility": ucb}


def ask(look: Look, documents: int) -> tuple[Facts, float]:
    """(reference -> loss and mean hidden state, operations) under the model."""
    loaded, spec = load(look.model), look.model
    found: Facts = {}
    tokens = 0
    with cpu_threads(spec.threads if loaded.device == "cpu" else 0):
        for each in look.references:
            table = references.load(each).slice(0, documents)
            seen = window(table, spec, loaded, ("nll", "hidden_mean"))
            sums, counts = seen.signals.sum("nll"), seen.signals.counts.astype(np.float64)
            if not counts.any():
                raise DataError(
                    "no document of the reference has a token to predict", where=each.name
                )
            loss = means(sums[counts > 0], counts[counts > 0])["token_mean"]
            if not 0 < loss < math.inf:
                raise ModelError(f"the loss of the model on it is {loss}", where=each.name)
            states = np.nanmean(seen.signals.document["hidden_mean"].astype(np.float64), axis=0)
            found[each.name] = {"loss": loss, "vector": unit(states[None])[0].tolist()}
            tokens += int(seen.tokens.lengths.sum())
    return found, 2.0 * count_parameters(spec) * tokens


def _features(contexts: Iterable[tuple[str, Facts]], places: Sequence[str]) -> Floats:
    """[n, contexts + width] a one-hot of each context's name beside its vector, at length 1."""
    rows = [
        [*(float(name == place) for place in places), *each["vector"]] for name, each in contexts
    ]
    if not rows:
        return np.empty((0, 0))
    found: Floats = np.array(rows, dtype=np.float64) / math.sqrt(2.0)
    return found
