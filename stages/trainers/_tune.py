"""Training some tensors and leaving the others as they are (`pipeline/tunable.py`).

    kappa    the `most` best-conditioned matrices of the model that training begins with; of equal
             ones the first by name. Embeddings and vectors stay (KappaTune)
    fpf      the tensors of the `most` modules that moved most from an earlier checkpoint to it
             (k-FPF; replay into them comes from the plan, as `order: rehearsal` makes it)

The choice depends on these weights alone, so a training that goes on after an interruption makes it
again. The optimizer gets the free tensors only: moments of others are neither restored nor saved.
"""

from __future__ import annotations

from typing import Any, Literal

from foresift.pipeline import tunable
from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.model import ModelSpec, load
from foresift.pipeline.store import Facts

Tune = Literal["all", "kappa", "fpf"]


def check(tune: Tune, most: int, earlier: str) -> None:
    """ValueError where the fields do not go together."""
    if most < 1:
        raise ValueError("tune_most is at least 1")
    if (tune == "fpf") != bool(earlier):
        raise ValueError("tune_from names the earlier checkpoint of tune: fpf, and of nothing else")


def contents(earlier: str) -> str:
    """What the choice depends on besides the model that training begins with."""
    return ModelSpec(init=earlier).digest() if earlier else ""


def free(model: Any, tune: Tune, most: int, earlier: str, spec: ModelSpec) -> Facts:
    """Freeze what may not move; says what may. Nothing where all may."""
    if tune == "all":
        return {}
    if tune == "kappa":
        values = tunable.kappas(model)
        chosen = tunable.smallest(values, most)
        told: Facts = {"kappa": {name: values[name] for name in chosen}}
    else:
        after = dict(model.named_parameters())
        before = _parameters(earlier, spec)
        try:
            chosen = tunable.most_moved(before, after, most)
        except ModelError as error:
            raise ModelError(f"is another model: {error}", where=earlier) from error
        told = {"movement": tunable.movement(before, {n: after[n] for n in chosen})}
    count = tunable.freeze(model, chosen)
    return {"tune": tune, "tensors": chosen, "parameters": count, **told}


def _parameters(checkpoint: str, spec: ModelSpec) -> dict[str, Any]:
    from pathlib import Path

    earlier = load.__wrapped__(spec.at(Path(checkpoint)))
    return dict(earlier.model.named_parameters())
