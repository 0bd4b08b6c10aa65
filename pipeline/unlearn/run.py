"""Unlearn some documents with a method that is asked for by name.

    unlearn(model, forget, retain, "npo", seed=0).model

| name          | method                                   | steps | rate | needs besides forget |
|---------------|------------------------------------------|-------|------|----------------------|
| ga            | gradient ascent                          |  20   | 1e-4 |                      |
| graddiff      | GA + retain NLL (`keep="kl"`: KL)        |  60   | 1e-4 | retain               |
| npo           | negative preference + retain             |  60   | 5e-4 | retain, reference    |
| simnpo        | NPO by length, without reference         |  60   | 5e-4 | retain               |
| dpo           | refusals preferred (IdkDPO)              |  60   | 5e-4 | retain, ref., templ. |
| pdu           | flat logits under a retain bound         |  60   | 5e-4 | retain               |
| flat          | divergence of template and answer        |  60   | 1e-4 | templates            |
| ce_u          | CE to the model without the token        |  60   | 1e-4 |                      |
| wga           | ascent weighted by the token             |  60   | 5e-4 | retain               |
| satimp        | the same, without what is saturated      |  60   | 1e-3 | retain               |
| undial        | self-distillation, true token lowered    |  60   | 5e-4 | reference            |
| me            | most entropy + retain                    |  60   | 5e-4 | retain               |
| random_labels | descent on random tokens + retain        |  60   | 5e-4 | retain               |
| rmu           | activations to a random direction        |  80   | 1e-3 | retain, reference    |
| ofmu          | ascent, cosine penalty, retain           |  60   | 1e-4 | retain               |
| gu            | Adam steps of `base` projected           |  60   | 1e-4 | retain + the base's  |
| sparse        | ignore-top-k updates on retain           |  60   | 1e-3 | retain               |
| ssd           | weights dampened once                    |   1   |  -   | retain               |
| iau           | one Adam step down retain, up forget     |   1   | 5e-4 | retain               |

Steps and rates are for models of 0.1 to 20 million parameters (a sweep of 1e-4 .. 1e-3 and 20 ..
100 steps is due for a fair comparison); published ones for 1B and more are near 1e-5. Descents use
AdamW with decay 0.01, gradients clipped to norm 1, a constant rate, dropout off.

The reference is the model as it was at the start unless one is given. All is float32. A result
depends on the documents and the seed, not on their order. FLOPs are 6N a token read with a backward
pass and 2N without one, real tokens only; measuring before and after is in neither FLOPs nor
seconds. A run stops where a loss or a gradient is not finite, or the forget batch's NLL passes ten
times that of an even guess; weights are then those of the last sound step.

Errors: RecipeError for a method or an option that does not exist, DataError for documents that
cannot be used (none to forget, retain or templates lacking, some in both sets, unknown tokens).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from foresift.pipeline.errors import DataError, RecipeError, nearest
from foresift.pipeline.lm.gradients.samples import trainable
from foresift.pipeline.unlearn import methods as m
from foresift.pipeline.unlearn.blocks import blocks, names_in
from foresift.pipeline.unlearn.documents import (
    Documents,
    Tokens,
    document_losses,
    documents,
    fits,
)
from foresift.pipeline.unlearn.gu import GU
from foresift.pipeline.unlearn.iau import IAU
from foresift.pipeline.unlearn.ofmu import OFMU
from foresift.pipeline.unlearn.rmu import RMU
from foresift.pipeline.unlearn.session import Meter, Session, Step, flat, place
from foresift.pipeline.unlearn.sparse import SparseRetain
from foresift.pipeline.unlearn.ssd import SSD

Facts = dict[str, Any]
WHERE = "unlearn"
_DECAY, _CLIP = 0.01, 1.0
#: a forget NLL of so many times that of an even guess is a collapse
_COLLAPSED = 10.0
#: documents of each set that are measured before and after
_PROBE = 64


@dataclass(frozen=True)
class Entry:
    """A method and its defaults for small models."""

    kind: type[m.Method] | type[m.Direct]
    steps: int = 60
    learning_rate: float = 5e-4


METHODS: dict[str, Entry] = {
    "ce_u": Entry(m.CEU, learning_rate=1e-4),
    "dpo": Entry(m.DPO),
    "flat": Entry(m.FLAT, learning_rate=1e-4),
    "ga": Entry(m.GA, steps=20, learning_rate=1e-4),
    "graddiff": Entry(m.GradDiff, learning_rate=1e-4),
    "gu": Entry(GU, learning_rate=1e-4),
    "iau": Entry(IAU, steps=1),
    "me": Entry(m.MaxEntropy),
    "npo": Entry(m.NPO),
    "ofmu": Entry(OFMU, learning_rate=1e-4),
    "pdu": Entry(m.PDU),
    "random_labels": Entry(m.RandomLabels),
    "rmu": Entry(RMU, steps=80, learning_rate=1e-3),
    "satimp": Entry(m.SatImp, learning_rate=1e-3),
    "simnpo": Entry(m.SimNPO),
    "sparse": Entry(SparseRetain, learning_rate=1e-3),
    "ssd": Entry(SSD, steps=1),
    "undial": Entry(m.UNDIAL),
    "wga": Entry(m.WGA),
}


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    model: Any
    """The unlearned model, in the mode (training or not) of the one that was given."""
    steps: int
    """Steps that changed it."""
    flops: int
    seconds: float
    """Of the method alone; for information, shared cores make it vary."""
    log: list[dict[str, float]]
    """For each step: step, loss, forget_nll and retain_nll where the method reads them."""
    stopped: str = ""
    """Why it ended early; empty when it did not."""
    facts: Facts = field(default_factory=dict)
    """Mean NLL of up to 64 documents of each set before and after, whether retain collapsed to
    worse than an even guess, and what the method says of itself."""


def build(method: str, options: Mapping[str, Any] | None = None) -> m.Method | m.Direct:
    """The method of a name with these options; `gu` hands what it does not know to its `base`."""
    if method not in METHODS:
        raise RecipeError(f"no method {method!r}{nearest(method, METHODS)}", where=WHERE)
    kind, given = METHODS[method].kind, dict(options or {})
    if kind is GU:
        base = given.pop("base", "graddiff")
        own: dict[str, Any] = {k: given.pop(k) for k in ("memory", "check") if k in given}
        inner = build(base, given)
        if not isinstance(inner, m.Method) or isinstance(inner, m.Amending | RMU):
            raise RecipeError(f"base {base!r} has no steps to correct", where=WHERE)
        given = {"base": inner, **own}
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise RecipeError(f"{method} has no option {name!r}{nearest(name, known)}", where=WHERE)
    try:
        return kind(**given)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{method}: {error}", where=WHERE) from error


def unlearn(
    model: Any,
    forget: Sequence[Tokens],
    retain: Sequence[Tokens],
    method: str,
    *,
    steps: int | None = None,
    learning_rate: float | None = None,
    batch: int = 8,
    seed: int = 0,
    reference: Any = None,
    options: Mapping[str, Any] | None = None,
    prompts: int | Sequence[int] = 0,
    templates: Sequence[Tokens] = (),
    layers: Sequence[int] | None = None,
    in_place: bool = False,
    device: str = "cpu",
    told: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Unlearn the token sequences `forget` while keeping `retain`.

    prompts: leading tokens of each forget sequence that are context and do not count.
    templates: the good answer to each forget sequence, or one for all; read after its prompt.
    layers: the blocks that may move; None = all tensors that require a gradient.
    in_place: change the model itself (it becomes float32 on `device`) instead of a copy.
    told: hears of every step, as (done, total).
    """
    chosen, entry = build(method, options), METHODS[method]
    steps = entry.steps if steps is None else steps
    rate = entry.learning_rate if learning_rate is None else learning_rate
    if steps < 0 or batch < 1 or not rate > 0:
        raise RecipeError("steps >= 0, batch >= 1 and learning_rate > 0", where=WHERE)
    needed = m.needs(chosen)
    sets = _sets(model, forget, retain, prompts, templates, needed)
    mine = (model if in_place else copy.deepcopy(model)).to(device).float()
    if "reference" in needed:
        reference = copy.deepcopy(model if reference is None else reference)
        reference = reference.to(device).float().eval().requires_grad_(False)
    session = Session(
        mine, _moving(mine, chosen, layers), *sets, reference=reference, batch=batch, seed=seed,
        steps=steps, learning_rate=rate, meter=Meter(sum(p.numel() for p in mine.parameters())),
        told=told,
    )  # fmt: skip
    with _still(session):
        return _measured(session, chosen)


def _sets(
    model: Any,
    forget: Sequence[Tokens],
    retain: Sequence[Tokens],
    prompts: int | Sequence[int],
    templates: Sequence[Tokens],
    needed: frozenset[m.Need],
) -> tuple[Documents, Documents, Documents | None]:
    """The three sets, checked; templates stand behind the prompts of their documents."""
    if len(forget) == 0:
        raise DataError("there is nothing to forget", where="forget")
    if "retain" in needed and len(retain) == 0:
        raise DataError("this method needs documents to retain", where="retain")
    gone, order = documents(forget, prompts, where="forget")
    kept, _ = documents(retain, where="retain")
    shared = set(gone.rows) & set(kept.rows)
    if shared:
        raise DataError(f"{len(shared)} forget sequences are among the retained", where="retain")
    fits(gone, model, "forget")
    fits(kept, model, "retain")
    if "templates" not in needed:
        return gone, kept, None
    if len(templates) not in (1, len(forget)):
        raise DataError(
            f"this method needs one template, or one for each of {len(forget)} sequences; "
            f"{len(templates)} are given",
            where="templates",
        )
    own = [tuple(int(t) for t in templates[int(i) if len(templates) > 1 else 0]) for i in order]
    good = Documents(
        tuple(r[:s] + t for r, s, t in zip(gone.rows, gone.starts, own, strict=True)), gone.starts
    )
    if any(len(r) <= max(1, s) for r, s in zip(good.rows, good.starts, strict=True)):
        raise DataError("a template has no token left to predict", where="templates")
    fits(good, model, "templates")
    return gone, kept, good


def _moving(
    model: Any, method: m.Method | m.Direct, layers: Sequence[int] | None
) -> dict[str, torch.Tensor]:
    """The parameters that may move, by name."""
    found = trainable(model)
    if isinstance(method, RMU):
        try:
            own = method.moved(model)
        except ValueError as error:
            raise RecipeError(f"rmu: {error}", where=WHERE) from error
        layers = own if layers is None else layers
    if layers is None:
        return found
    count = len(blocks(model))
    if not layers or min(layers) < 0 or max(layers) >= count:
        raise RecipeError(f"layers {list(layers)}: the blocks are 0 to {count - 1}", where=WHERE)
    inside = names_in(model, layers)
    return {name: p for name, p in found.items() if name in inside}


@contextmanager
def _still(session: Session) -> Any:
    """Dropout off and only what moves with a gradient, for a while."""
    model, training = session.model, session.model.training
    before = [(p, p.requires_grad) for p in model.parameters()]
    moving = {id(p) for p in session.moving}
    model.eval()
    for p, _ in before:
        p.requires_grad_(id(p) in moving)
    try:
        yield
    finally:
        model.train(training)
        for p, had in before:
            p.requires_grad_(had)
            p.grad = None


def _measured(session: Session, method: m.Method | m.Direct) -> Outcome:
    """Run the method between two measurements."""
    before = _probe(session)
    began = time.perf_counter()
    log: list[dict[str, float]] = []
    stopped, facts = "", {}
    if isinstance(method, m.Direct):
        facts = method.apply(session) if session.steps else {}
        done = session.steps
    else:
        log, stopped = _descend(session, method)
        done = len(log)
        kept = ("multiplier", "bound", "active", "skipped")
        facts = {k: session.state[k] for k in kept if k in session.state}
    seconds = time.perf_counter() - began
    after = _probe(session)
    for name in before:
        facts |= {f"{name}_nll_before": before[name], f"{name}_nll_after": after[name]}
    facts["collapsed"] = _collapsed(session, before, after)
    return Outcome(session.model, done, session.meter.flops, seconds, log, stopped, facts)


def _descend(session: Session, method: m.Method) -> tuple[list[dict[str, float]], str]:
    """AdamW on the method's loss: the log, and why it ended early."""
    optimizer = torch.optim.AdamW(
        session.moving, lr=session.learning_rate, weight_decay=_DECAY, foreach=False
    )
    log: list[dict[str, float]] = []
    for number in range(session.steps):
        step = Step(session, number)
        optimizer.zero_grad(set_to_none=True)
        loss = method.loss(step)
        seen = {"step": float(number), "loss": float(loss.detach()), **step.seen()}
        reason = _unsound(session, seen)
        if not reason:
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(session.moving, _CLIP)
            reason = "" if bool(torch.isfinite(norm)) else "the gradient is not finite"
        if reason:
            return log, f"stopped before step {number}: {reason}"
        _move(session, method, step, optimizer)
        log.append(seen)
        if session.told:
            session.told(number + 1, session.steps)
    return log, ""


def _move(session: Session, method: m.Method, step: Step, optimizer: Any) -> None:
    """One step of the optimizer, corrected where the method does that."""
    if not isinstance(method, m.Amending):
        optimizer.step()
        return
    before = flat(session.moving)
    optimizer.step()
    change = flat(session.moving) - before
    place(session, before + method.amend(step, before, change, optimizer))


def _even(session: Session) -> float:
    """NLL per token of an even guess."""
    return math.log(session.model.get_input_embeddings().num_embeddings)


def _unsound(session: Session, seen: Mapping[str, float]) -> str:
    if not all(math.isfinite(v) for v in seen.values()):
        return "the loss is not finite"
    limit = _COLLAPSED * _even(session)
    if seen.get("forget_nll", 0.0) > limit:
        return f"collapse, the forget NLL is {seen['forget_nll']:.1f} nats a token"
    return ""


def _probe(session: Session) -> dict[str, float]:
    """Mean over documents of the mean NLL, for at most 64 of each set."""
    found = {}
    for name, given in (("forget", session.forget), ("retain", session.retain)):
        if len(given):
            size = min(_PROBE, len(given))
            rows = session.generator("probe", name).choice(len(given), size=size, replace=False)
            some = Documents(
                tuple(given.rows[i] for i in np.sort(rows)),
                tuple(given.starts[i] for i in np.sort(rows)),
            )
            found[name] = float(document_losses(session.model, some).mean())
    return found


def _collapsed(session: Session, before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether what is kept became worse than an even guess, or not finite."""
    if not all(math.isfinite(v) for v in after.values()):
        return True
    even = _even(session)
    return "retain" in after and after["retain"] > even >= before["retain"]
