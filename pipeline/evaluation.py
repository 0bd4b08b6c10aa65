"""Evaluate: the loss of a checkpoint on rows that nothing was selected or trained on."""

from __future__ import annotations

from dataclasses import dataclass

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Inputs, Job, Stage, StepDir
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
