"""One forward for scoring and training: the graph of every candidate is kept, K are gone back.

    loss = sum over chosen rows and their counted tokens of nll / number of those tokens

Candidates go through the model once, with gradients, `at_once` at a time; methods read the hidden
states of that forward without their graphs. The output layer is applied once more with gradients,
to the counted positions of chosen rows alone. So the second forward of K rows is saved, at the
price of the activations of all B.

A backward runs through every forward in which a chosen row lies, with zeros for its other rows.
With `at_once=1` only chosen rows are gone back:

    usual      B forwards without gradients, K forwards, K backwards       B + 3 K
    shared     B forwards, K backwards                                     B + 2 K

Not chosen rows cost nothing but memory then, but a forward of one short row leaves a GPU idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.online import Rows

if TYPE_CHECKING:
    from foresift.pipeline.stream import Stream


def mean_loss(live: LiveModel, looks: Sequence[Seen], chosen: Rows) -> torch.Tensor:
    """The mean loss of some of the candidates that were looked at with their graphs."""
    total, count, start = torch.zeros((), device=live.device), 0, 0
    for seen in looks:
        mine = [int(c) - start for c in chosen if start <= c < start + len(seen)]
        start += len(seen)
        assert seen.graph is not None, "looked at without its graph"
        if mine:
            counted = seen.counted[mine][:, 1:]
            states = seen.graph[mine][:, :-1][counted.to(live.device)]
            targets = seen.ids[mine][:, 1:][counted].to(live.device)
            total = total + torch.nn.functional.cross_entropy(
                _logits(live, states), targets, reduction="sum"
            )
            count += len(targets)
    return total / max(1, count)


def _logits(live: LiveModel, states: torch.Tensor) -> torch.Tensor:
    """[n, V] in float32, with their graph."""
    head = live.head
    assert head is not None
    z: torch.Tensor = live.model.get_output_embeddings()(states).float()
    if head.scale != 1.0:
        z = z * head.scale
    return head.softcap * torch.tanh(z / head.softcap) if head.softcap else z


def refuse(stream: Stream) -> None:
    """DataError with the reason, where the forward cannot be shared."""
    reasons = {
        'candidates are scored in the training forward; say mode="train"':
            stream.live.mode != "train",
        "each process would need a share of the chosen rows among its own candidates; take"
        " batches where several processes train": stream.ranks.world > 1,
        "a token selector looks at the chosen rows in a forward of its own; take batches":
            stream.tokens is not None,
        "a preference loss is not a mean over tokens; take batches": stream.side is not None,
        "the model adds the balance of its experts to its loss (output_router_logits), which the"
        " mean over tokens leaves out; take batches":
            getattr(stream.live.model.config.get_text_config(), "output_router_logits", False),
        f"the output layer is not known ({stream.live.reason}); take batches":
            stream.live.head is None,
    }  # fmt: skip
    for reason, holds in reasons.items():
        if holds:
            raise DataError(reason, where="loss")
