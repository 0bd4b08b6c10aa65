"""Fields with which the conformance suite builds parts.

A part whose fields all have defaults needs no entry: it is built without fields. A part with a
required field needs one; several mappings try several variants. Column names are those of
`samples.py`: `s.u` (distinct numbers), `s.gap` (numbers with NaN and null), `s.flag` (booleans with
null), `s.vector` (vectors with null), `n_bytes`, `n_tokens`. A scorer that asks the model has the
reference `aim` (see `asked.py`); keep its examples tiny.
"""

from __future__ import annotations

from typing import Any

from foresift.pipeline import parts
from foresift.pipeline.parts import Part
from tests.contract.logged import log

FIELDS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("read", "hf"): [{"paths": ["saved"]}],
    ("read", "jsonl"): [{"paths": ["data/*.jsonl"]}],
    ("read", "parquet"): [{"paths": ["data/*.parquet"]}],
    ("read", "text"): [{"paths": ["docs"]}],
    ("score", "boilerplate"): [
        {},
        {"recurs": 2, "by": "source", "depth": 1, "least": 0.9},
        {"recurs": 2, "by": "s.flag", "least": 0.0},
    ],
    ("score", "clusters"): [
        {"embedding": "s.vector"},
        {"embedding": "s.vector", "clusters": 9, "seed": 1},
    ],
    ("score", "contamination"): [
        {"reference": "aim", "n": 4, "gram": 2, "shortest": 5},
        {"reference": "aim", "n": 3, "gram": 1, "shortest": 4, "common": 0, "threshold": 0.1},
    ],
    ("score", "confident_learning"): [
        {"label": "s.flag"},
        {"label": "s.gap", "features": "s.vector", "folds": 3, "filter": "both", "adjust": True},
    ],
    ("score", "density"): [
        {"embedding": "s.vector"},
        {"embedding": "s.vector", "neighbours": 4, "exact_up_to": 9, "probes": 2},
    ],
    ("score", "combined"): [
        {"by": {"s.u": 1.0, "n_bytes": -2.0}},
        {"by": {"s.u": 1.0, "s.gap": 0.5}, "scale": "standard"},
    ],
    ("score", "early_learning"): [
        {"label": "s.flag", "log": log("probabilities")},
        {"label": "s.flag", "log": log("loss"), "until": 1, "re_annotate_at": None},
    ],
    ("score", "embedding"): [{}, {"span": "response", "normalise": False}],
    ("score", "entanglement"): [
        {"reference": "aim", "rank": 3, "cluster": "s.flag"},
        {"sample": 40, "retain": 4, "projection": 64},
    ],
    ("score", "excess_loss"): [{"against": "s.u"}, {"against": "s.gap"}],
    ("score", "forget_risk"): [
        {"features": []},
        {
            "features": ["personal", "temporal", "copies", "junk"],
            "columns_of": {
                "personal": ["n_tokens"],
                "temporal": ["s.flag"],
                "copies": ["s.gap", "s.flag"],
                "junk": ["s.u"],
            },
            "value": "s.u",
        },
    ],
    ("score", "gradient_similarity"): [
        {"reference": "aim", "variant": "tracin"},
        {"reference": "aim", "variant": "trak", "projection": 16, "kernel_documents": 12},
        {"reference": "aim", "rank": 2, "alpha": 4, "share": 16, "epochs": 1, "batch": 4},
    ],
    ("score", "ifd"): [{}, {"variant": "ppl_ratio"}],
    ("score", "influence"): [
        {"reference": "aim", "method": "direct"},
        {"reference": "aim", "probes": 44, "hidden": True, "each": True, "clip": 0},
        {"reference": "aim", "probes": 44, "labels": "exact", "reference_documents": 3},
    ],
    ("score", "judge"): [{"judge": "stub"}, {"judge": "stub", "missing_as_zero": True}],
    ("score", "junk"): [
        {},
        {"engagement": "s.u", "popular": 0.0, "quality": "s.gap", "quality_below": 2.0},
        {"engagement": "s.gap", "length": "n_bytes", "quality": "s.flag", "brief": 0},
    ],
    ("score", "late_learning"): [
        {"losses": ["n_tokens", "s.gap"]},
        {"losses": ["s.gap", "n_tokens", "n_bytes"], "learned": 50.0, "beta": 0.0},
        {"log": log("loss")},
    ],
    ("score", "licence"): [
        {},
        {"identity": "s.flag", "url": "source", "contested": ["bucket1"]},
    ],
    ("score", "label_propagation"): [
        {"label": "s.gap", "vectors": "s.vector", "k": 4},
        {"label": "s.flag", "vectors": "s.vector", "rounds": 2, "exact_up_to": 9, "flag_at": 0},
    ],
    ("score", "lqs"): [
        {"reference": "aim", "steps": 3, "interval": 1, "batch": 4, "proxies": 44},
        {
            "reference": "aim",
            "steps": 2,
            "interval": 1,
            "batch": 2,
            "proxies": 44,
            "variant": "pds",
        },
    ],
    ("score", "memorisation"): [{"against": "s.u"}, {"against": "s.gap", "k": 1.0}],
    ("score", "middo"): [
        {"before": "s.u", "after": "s.gap", "embedding": "s.vector", "quality": "s.gap"},
        {"quality": "s.u", "std": "released", "m_low": 0.5},
    ],
    ("score", "neighbour_disagreement"): [
        {"label": "s.gap", "vectors": "s.vector", "k": 3},
        {"label": "s.gap", "vectors": "s.vector", "trusted": "s.flag", "negative": "0.0"},
        {"label": "s.flag", "vectors": "s.vector", "strategy": "intrinsic", "negative": "false"},
    ],
    ("score", "orthogonal"): [
        {"by": ["s.u", "n_bytes"], "axes": 2, "quality": ["s.u"]},
        {"by": ["s.u", "s.gap", "n_bytes"], "axes": 3, "unsigned": "both", "regressor": "none"},
        {"by": ["s.u", "n_bytes"], "axes": 1, "scale": "rank_gauss", "unsigned": "keep"},
    ],
    ("score", "quality_classifier"): [
        {"label": "s.flag", "buckets": 64, "folds": 2},
        {"label": "s.u", "kind": "grade", "ngrams": 1, "buckets": 32, "strength": 0.1},
    ],
    ("score", "preference_pairs"): [
        {"rejected": "source"},
        {
            "rejected": "source",
            "chosen": "source",
            "chosen_reward": "s.u",
            "rejected_reward": "s.gap",
            "context_type": "s.flag",
            "error_type": "s.gap",
            "cap": 3,
        },
    ],
    ("score", "process_reward"): [
        {
            "checkpoint": "configs/models/tiny",
            "tokens": ["+", "-"],
            "separator": "\n",
            "shortest": 3,
            "max_length": 64,
        },
        {"checkpoint": "configs/models/tiny", "separator": ".", "by": "auto", "max_length": 64},
    ],
    ("score", "relation"): [
        {"reference": "aim", "by": "s.u", "embedding": "s.vector", "rollouts": 24, "length": 3},
    ],
    ("score", "rollout_gain"): [
        {"with_context": "s.gap", "without_context": "s.gap"},
        {"with_context": "n_tokens", "without_context": "s.gap", "rollouts": 97, "share": 1.0},
    ],
    ("score", "semantic_duplicate"): [
        {"embedding": "s.vector", "eps": 0.5},
        {"embedding": "s.vector", "keep": "random", "restarts": 2, "largest_cell": 9},
        {"embedding": "s.vector", "keep": "easy", "rule": "greedy", "eps": 0.4, "clusters": 2},
    ],
    ("score", "source_bandit"): [
        {"reference": "aim", "by": "s.flag", "depth": 0},
        {"reference": "aim", "depth": 2, "kernel": "polynomial", "eta": None, "floor": 0},
    ],
    ("score", "target_similarity"): [
        {"reference": "aim"},
        {"reference": "aim", "buckets": 50, "ngrams": 3, "prior": "uniform", "min_tokens": 9},
        {"reference": "aim", "method": "knn", "embedding": "s.vector", "k": 2},
    ],
    ("score", "temporal_leak"): [
        {"cutoff": "2021-06-30"},
        {"cutoff": "1999-12-31", "years": False, "horizon": 3},
    ],
    ("score", "uncertainty"): [{}, {"level": "sample", "beta": 0.5}],
    ("score", "whitened"): [
        {"embedding": "s.vector"},
        {"embedding": "s.vector", "dimensions": 3, "whiten": True},
    ],
    ("score", "worst_case"): [
        {"sample": 24, "folds": 2, "steps": 1, "batch": 2},
        {"sample": 24, "folds": 2, "steps": 1, "batch": 2, "cluster": "s.gap"},
    ],
    ("select", "cluster_quota"): [
        {"clusters": "s.flag", "by": "s.u"},
        {"clusters": "s.flag", "by": "s.gap", "lowest": True, "quota": "equal", "refill": False},
        {"clusters": "s.gap", "quota": "sqrt"},
        {"clusters": "s.gap", "quota": "modular"},
    ],
    ("select", "competence_band"): [
        {"pass_rate": "s.flag"},
        {"rewards": "s.vector", "theta": 1.5},
        {"rewards": "s.vector", "low": -0.2, "high": 0.3},
    ],
    ("select", "facility_location"): [
        {"embedding": "s.vector"},
        {"embedding": "s.vector", "cells": 1, "neighbours": 5, "by": "s.gap", "bonus": 0.5},
        {"embedding": "s.vector", "cells": "s.flag", "variant": "stochastic"},
    ],
    ("select", "gumbel_topk"): [
        {"by": "s.u"},
        {"by": "s.gap", "variant": "discard_pl", "standardise": True, "lowest": True},
    ],
    ("select", "length_matched_random"): [{"like": "s.flag"}, {"like": "s.flag", "by": "n_bytes"}],
    ("select", "mixture"): [
        {"by": "source", "depth": 1, "shares": {"bucket0": 7, "bucket1": 3}},
        {"by": "s.flag", "shares": "unimax", "epochs": 2.0, "utility": "s.gap"},
        {"by": "s.flag", "shares": "column", "column": "s.flag"},
        {"by": "s.gap", "shares": "temperature", "temperature": 5.0},
    ],
    ("select", "per_axis_top"): [
        {"axes": ["s.u", "s.gap"]},
        {"axes": ["s.vector", "s.u"], "tails": {"s.vector": "both", "s.u": "low"}},
    ],
    ("select", "quality_then_diversity"): [
        {"by": ["n_bytes", "n_tokens"], "embedding": "s.vector"},
        {"by": ["s.gap"], "embedding": "s.vector", "threshold": 0.2, "scale": "rank"},
    ],
    ("select", "relational"): [
        {"by": "s.u", "embedding": "s.vector"},
        {"by": "s.u", "embedding": "s.vector", "clusters": 3, "tau": 0.5},
        {"by": "s.gap", "embedding": "s.vector", "clusters": "s.flag", "alpha": 0.3},
    ],
    ("select", "softmax_sample"): [
        {"by": "s.u"},
        {"by": "s.gap", "lowest": True, "temperature": 2.0, "per": "s.flag"},
    ],
    ("select", "topk"): [{"by": "s.u"}, {"by": "s.gap", "lowest": True}],
    ("select", "weighted_coreset"): [
        {"by": ["s.u"], "embedding": "s.vector"},
        {"by": ["s.gap", "s.u"], "embedding": "s.vector", "cells": 1, "distance": "euclidean"},
        {"by": ["n_bytes"], "embedding": "s.vector", "cells": "s.flag", "scale": "raw"},
        {"by": ["s.u"], "embedding": "s.vector", "pool": 0.8},
    ],
    ("select", "where"): [
        {"keep": "s.u > 0 and not s.flag"},
        {"keep": "s.gap is not null or n_tokens / 2 > 9 and s.u not in [1, 2]"},
    ],
    ("order", "curriculum"): [{"by": "s.u"}, {"by": "s.gap", "c0": 0.2, "p": 1, "until": 0.5}],
    ("order", "domains"): [
        {"by": "s.flag"},
        {"by": "s.gap", "arrange": "similar", "embedding": "s.vector"},
        {"by": "s.gap", "arrange": "dissimilar", "embedding": "s.vector", "within": "s.u"},
        {"by": "s.flag", "arrange": "given", "domains": [True, None, False]},
    ],
    ("order", "folding"): [{"by": "s.u"}, {"by": "s.u", "folds": 7, "variant": "paper"}],
    ("order", "jit"): [{"by": "s.u", "window": 5}, {"by": "s.gap", "window": 4, "folds": 3}],
    ("order", "rehearsal"): [
        {"share": 0.3},
        {"stages": 5, "share": 0.5, "schedule": "doubling", "by": "s.gap"},
        {"stages": "s.flag", "share": 0.5, "cost": "rows", "exponent": 0.5},
    ],
    ("order", "risk_late"): [
        {"risk": "s.u", "decision": "", "epochs": 3},
        {"risk": "s.gap", "decision": "s.flag", "apart": ["true"], "intervals": 4, "epochs": 2},
    ],
    ("order", "saw"): [{"by": "s.u"}, {"by": "s.gap", "sections": 5, "radius": 0.2, "folds": 3}],
    ("order", "seg"): [{"by": "s.u"}, {"by": "s.gap", "front_from": "high", "back_from": "low"}],
    ("order", "sorted"): [{"by": "s.u"}, {"by": "s.u", "descending": True}],
    ("order", "strata"): [{"by": "s.u"}, {"by": "s.gap", "sections": 4, "radius": 0.3}],
    ("order", "view_batch"): [{}, {"views": 3, "epochs": 6, "batch": 9}],
    ("order", "zig"): [{"by": "s.u"}, {"by": "s.gap", "folds": 3}],
    ("export", "refined"): [{"refiner": "stub"}],
    ("sample", "gradient_match"): [{"reference": "aim.parquet"}],
    ("sample", "rho1"): [{"reference": "losses.parquet"}, {"reference": "m", "scope": "sample"}],
    ("sample", "rho_loss"): [{"against": "irreducible.parquet"}],
    ("sample", "token_cleaning"): [{"reference": "losses.parquet", "threshold": 0.5}],
    ("train", "command"): [{"command": ["true"]}],
}


def on_disk(*verbs: str) -> list[tuple[str, str]]:
    """(verb, name) of every part that lies in the folders of these verbs (all by default)."""
    return [(verb, name) for verb in verbs or parts.VERBS for name in parts.names(verb)]


def build(verb: str, name: str) -> list[Part]:
    """The example parts; fails with what to do where a required field has no example."""
    kind = parts.find(verb, name)
    tried = FIELDS.get((verb, name), [{}])
    try:
        return [kind.parse(fields, f"{verb} {name}") for fields in tried]
    except ValueError as error:
        raise AssertionError(
            f"the conformance suite cannot build {kind.__name__}: {error}. "
            f"Give ({verb!r}, {name!r}) working fields in tests/contract/examples.py"
        ) from error
