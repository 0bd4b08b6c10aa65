"""The losses of approximate unlearning, as pure functions of what a forward gives.

    L_i = -log p(x_i) summed over the counted tokens, T_i of them;  l = sum L_i / sum T_i
    log-ratio of model and reference = L_ref - L            all in nats, all are minimised

    gradient_ascent  -l                                       Jang et al. 2022 (GA); unbounded
    npo              -(2/b) log sigmoid(b (L - L_ref))        Zhang et al. 2024, per sequence
    simnpo           -(2/b) log sigmoid(b (L/T - d))          Fan et al. 2024, no reference
    dpo              -(2/b) log sigmoid(b (win - lose))       Rafailov et al. 2023, refusals win
    weighted_ascent  -p^b1 (1 - p)^b2 nll_t                   WGA (b2 = 0), SatImp; weight detached
    flattening       (max_v z - mean_v z)^2                   PDU, with `dual_update`
    undial           CE to softmax(z_ref - b at the token)    Dong et al. 2024
    unlikely_target  CE to softmax(detached z, token at -inf) CE-U; z is not detached in the CE
    flat             -g(P_good) + f*(g(P_bad))                Wang et al. 2024, see `flat`
    entropy          -sum_v p log p                           to be maximised (ME)
    kl               KL(reference || model) of the next token

At the reference NPO is 2 ln 2 / b and its gradient is that of -L: the weight 2 p^b / (p^b + q^b) of
a sequence with probability p, q under the reference, is one there and falls to 0 as p does.
Wherever a mean is taken it runs over documents for [B] and over tokens for [T] tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, logsigmoid, softplus

Tensor = torch.Tensor


def gradient_ascent(sums: Tensor, lengths: Tensor) -> Tensor:
    """Minus the mean NLL of the tokens; `sums` [B] NLL and `lengths` [B] tokens a document."""
    return -sums.sum() / lengths.sum()


def npo(sums: Tensor, reference: Tensor, beta: float = 0.1) -> Tensor:
    """Negative preference optimisation of [B] summed NLLs against those of the reference."""
    return -(2.0 / beta) * logsigmoid(beta * (sums - reference)).mean()


def simnpo(sums: Tensor, lengths: Tensor, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """NPO with the length-normalised NLL in place of a reference."""
    return -(2.0 / beta) * logsigmoid(beta * (sums / lengths - delta)).mean()


def dpo(
    win: Tensor, win_reference: Tensor, lose: Tensor, lose_reference: Tensor, beta: float = 0.1
) -> Tensor:
    """Preference of the refusals (`win`, [B] summed NLLs) over the answers to forget (`lose`)."""
    margin = (win_reference - win) - (lose_reference - lose)
    return -(2.0 / beta) * logsigmoid(beta * margin).mean()


def weighted_ascent(nll: Tensor, confident: float = 1.0, saturated: float = 0.0) -> Tensor:
    """Ascent on [T] token NLLs, weighted by p^confident (1 - p)^saturated."""
    p = torch.exp(-nll.detach())
    return -(p**confident * (1.0 - p) ** saturated * nll).mean()


def flattening(logits: Tensor) -> Tensor:
    """Mean over [T, V] logits of the squared lead of the largest over their mean."""
    return (logits.amax(-1) - logits.mean(-1)).square().mean()


def dual_update(multiplier: float, retain: float, bound: float, step: float = 1.0) -> float:
    """PDU's multiplier of `retain <= bound` after one ascent step."""
    return max(0.0, multiplier + step * (retain - bound))


def undial(logits: Tensor, reference: Tensor, targets: Tensor, beta: float = 10.0) -> Tensor:
    """Self-distillation to the reference's logits with the true token lowered by beta."""
    lowered = reference.detach().clone()
    lowered[torch.arange(len(targets), device=targets.device), targets] -= beta
    return cross_entropy(logits, lowered.softmax(-1))


def unlikely_target(logits: Tensor, targets: Tensor) -> Tensor:
    """CE-U: the model's own distribution without the true token, as the target."""
    without = logits.detach().clone()
    without[torch.arange(len(targets), device=targets.device), targets] = -math.inf
    return cross_entropy(logits, without.softmax(-1))


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the next token in nats."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1).mean()


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """Mean KL(reference || model) of the next token; both arguments are logits."""
    wanted = reference.detach().log_softmax(-1)
    return (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1).mean()


#: g*(P) of the good and f*(g*(P)) of the bad answer (Nowozin et al. 2016, tables 2 and 6)
_DIVERGENCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tv": (lambda p: torch.tanh(p) / 2.0, lambda p: torch.tanh(p) / 2.0),
    "kl": (lambda p: p, lambda p: torch.exp(p - 1.0)),
    "js": (lambda p: math.log(2.0) - softplus(-p), lambda p: softplus(p) - math.log(2.0)),
    "pearson": (lambda p: p, lambda p: p.square() / 4.0 + p),
}
DIVERGENCES = tuple(_DIVERGENCES)


def flat(good: Tensor, bad: Tensor, divergence: str = "tv") -> Tensor:
    """Forget-data-only adjustment of [B] mean token probabilities of template and answer."""
    activation, conjugate = _DIVERGENCES[divergence]
    return (conjugate(bad) - activation(good)).mean()
