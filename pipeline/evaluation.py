"""Evidence: the loss of a checkpoint on rows that nothing was selected or trained on, and what the
baselines do in place of the selection's own steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.nouns import Inputs, Job, Selector, Stage, StepDir
from foresift.pipeline.parts import find
from foresift.pipeline.recipe import StepSpec
from foresift.pipeline.store import Facts


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Mean loss (nats per token, lower is better) on a data set's holdout."""

    def run(self, inputs: Inputs, out: StepDir, job: Job) -> Facts:
        """Score every alive row of the corpus and average."""
        from foresift.pipeline.lm.evaluate import evaluate

        assert inputs.corpus is not None
        assert inputs.model is not None
        shards = inputs.corpus.shards()
        tables = (table for shard in shards for table, _ in shard.stream())
        facts = evaluate(tables, inputs.model)
        if not facts["documents"]:
            raise DataError(
                "its holdout is empty, so nothing can be measured on it; raise its `holdout` share",
                where=str(inputs.corpus.base),
            )
        return facts


def arm_specs(specs: Sequence[StepSpec], arm: str) -> list[StepSpec]:
    """The steps of a round for a baseline: its selector for ours, the same budget and trainer."""
    choosing = [i for i, s in enumerate(specs) if s.verb == "select" and s.budget is not None]
    if not choosing or not any(s.verb == "train" for s in specs):
        raise RecipeError(
            "evidence needs a budgeted `select` and a `train` in rounds", where="evidence"
        )
    kind = find("select", arm, "evidence.against")
    fields = {f.name for f in dataclasses.fields(kind)}
    like = {"like": "select.kept"} if "like" in fields else {}
    part = kind.parse(like, "evidence.against")
    assert isinstance(part, Selector)
    last = specs[choosing[-1]]
    chooser = replace(last, parts=((arm, part),), where="evidence.against")
    train = [s for s in specs[choosing[-1] + 1 :] if s.verb == "train" and not s.named]
    return [chooser, *train]
