"""Forgetting confidence (LWF): what unlearning a document would do for another task.

    delta = eta g(x)                                        one ascent step on document x
    FC(x) = -( g_L . delta + 1/2 delta' F delta )           second-order drop of the task's loss L

g_L is the task's gradient and F its diagonal Fisher information, the mean of squared gradients of
single documents. FC > 0: unlearning x helps the task; -FC ranks what comes in by how much it would
conflict. The closed form is a reading of a summary of the paper. Cost: 6N a token of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.gradients.samples import trainable
from foresift.pipeline.unlearn.documents import Documents, read
from foresift.pipeline.unlearn.session import flat

Tensor = torch.Tensor


def confidence(gradient: Tensor, task: Tensor, fisher: Tensor, eta: float = 0.1) -> float:
    """FC of one [P] gradient against the task's [P] gradient and diagonal Fisher."""
    delta = eta * gradient
    return -float(task @ delta + 0.5 * (fisher * delta.square()).sum())


def confidences(
    model: Any, given: Documents, task: Documents, eta: float = 0.1
) -> npt.NDArray[np.float64]:
    """[n] FC of each document for the task's documents."""
    if len(task) == 0:
        raise DataError("forgetting confidence needs documents of the task", where="task")
    parameters = list(trainable(model).values())
    zero = torch.zeros_like(flat(parameters))
    mean, fisher = zero, zero
    for i in range(len(task)):
        g = _gradient(model, task, i, parameters)
        mean, fisher = mean + g / len(task), fisher + g.square() / len(task)
    found = (_gradient(model, given, i, parameters) for i in range(len(given)))
    return np.array([confidence(g, mean, fisher, eta) for g in found])


def _gradient(model: Any, given: Documents, i: int, parameters: list[Tensor]) -> Tensor:
    loss = read(model, given.batch([i])).mean
    return flat(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
