"""Which Trainers an epoch plan fits: the reasons of those that are refused.

Weights need a loss that is a mean over tokens of the cross entropy, as the Trainer's and the
SFTTrainer's are; whether a plan gives any is found by running its epochs with made-up losses, which
costs what the plan costs and is done only where the loss is another one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers.loss.loss_utils import ForCausalLMLoss

from foresift.pipeline.adapters._trainer import refuse
from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.live import unwrap
from foresift.pipeline.online import EpochPlan

_MEAN_OF_TOKENS = ("Trainer.compute_loss", "SFTTrainer.compute_loss")


def whole_epochs(args: Any) -> int:
    """`num_train_epochs`, which is a float there."""
    epochs = float(args.num_train_epochs)
    if epochs != int(epochs):
        raise DataError(
            f"a plan has whole epochs, num_train_epochs is {epochs:g}", where="attach_epochs"
        )
    return int(epochs)


def refuse_trainer(trainer: Any) -> None:
    """DataError with the reason, where no plan can say what this Trainer visits."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise DataError(
            "weights are sharded (FSDP, DeepSpeed); epoch plans were not tried with that",
            where="attach_epochs",
        )
    refuse(trainer)
    trainer._set_signature_columns_if_needed()
    labelled = "labels" in trainer._signature_columns and _next_tokens(trainer)
    reasons = {
        f"{type(trainer).__name__} trains {type(trainer.model).__name__} on something else than the"
        " next token of each row, so rows have no loss in nats per token": not labelled,
        "several GPUs in one process (DataParallel); start one process for each":
            trainer.args.n_gpu > 1,
    }  # fmt: skip
    for reason, holds in reasons.items():
        if holds:
            raise DataError(reason, where="attach_epochs")


def _next_tokens(trainer: Any) -> bool:
    """Whether labels are next tokens: as the Trainer says, or by default, of a model it misses.

    Models without a kind of loss in their class name (GPT2LMHeadModel) train by the default, which
    is that of causal language models.
    """
    if trainer._loss_shifts_labels:
        return True
    model = unwrap(trainer.model)
    decodes = getattr(model.config, "is_encoder_decoder", False)
    plain = getattr(model, "loss_type", "") is None and model.get_output_embeddings() is not None
    return plain and not decodes and model.loss_function is ForCausalLMLoss


def refuse_weights(trainer: Any, plan: EpochPlan, n: int) -> None:
    """DataError with the reason, where a plan gives weights that this loss cannot take."""
    args, own = trainer.args, type(trainer).compute_loss.__qualname__
    reasons = {
        "label_smoothing_factor is set": trainer.label_smoother is not None,
        "compute_loss_func is set": trainer.compute_loss_func is not None,
        f"loss_type is {getattr(args, 'loss_type', None)!r}":
            getattr(args, "loss_type", "nll") != "nll",
        f"there is {own}": own not in _MEAN_OF_TOKENS,
    }  # fmt: skip
    found = [reason for reason, holds in reasons.items() if holds]
    if found and _weighs(plan, n, whole_epochs(args)):
        raise DataError(
            "the plan weights rows, which is defined for the mean over tokens of the cross entropy,"
            f" and {found[0]}; a plan of equal weights can be attached (seta, dynamic_random)",
            where="attach_epochs",
        )


def _weighs(plan: EpochPlan, n: int, epochs: int) -> bool:
    """Whether it gives weights other than 1, tried with every other row an easy one."""
    running = plan.open(n, epochs, 0)
    for epoch in range(epochs):
        rows, weights = running.epoch(epoch)
        if (weights != 1).any():
            return True
        running.update(rows, np.asarray(1.0 + rows % 2))
    return False
