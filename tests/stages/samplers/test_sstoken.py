"""ssToken keeps the known tokens, whatever the padding, and goes on after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.live import LiveModel
from foresift.pipeline.online import IGNORED
from foresift.stages.samplers import _history, sstoken
from foresift.stages.samplers.sstoken import SsToken
from tests.stages.samplers import token_rows
from tests.stages.samplers.test_history import adapted, learn

HIS, CUR = (2, 1, 3, 0.5, 1.5), (1, 1.2, 0.5, 0.5, 1.4)
ATTENTION = (0.9, 0.8, 0.1, 0.3, 0.2)
ROW = {"rows": [[1, 2, 3, 4, 5, 6, 7]], "counts": [[0, 0, 1, 1, 1, 1, 1]], "ids": ("a",)}


def known(path: Path, monkeypatch: pytest.MonkeyPatch, side: str, **fields: Any) -> list[bool]:
    """What is kept of the row whose losses and attention are given."""
    rows = token_rows.candidates(9, side, **ROW)  # type: ignore[arg-type]
    seen = token_rows.seen(rows, CUR)
    _history.write_history(path / "losses.parquet", ["a"], [np.array(HIS)], [7])
    part = SsToken(history="cached", reference=str(path / "losses.parquet"), **fields)
    masker: Any = part.open(LiveModel(token_rows.model()))
    if masker.attention:
        monkeypatch.setattr(masker.attention, "look", lambda _: (seen, np.array(ATTENTION)))
    return token_rows.flat(masker.labels(seen, 0), rows)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"gamma": 0.5}, {0, 1, 2}),
        ({"gamma": 0}, {0, 1, 3}),
        ({"gamma": 1}, {0, 2, 4}),
        ({"gamma": 1, "attention_only_steps": 1}, {0, 1, 3}),
        ({"gamma": 1, "polarity": "cur_minus_his"}, {1, 3, 4}),
        ({"gamma": 1, "rho": 1}, {0, 1, 2, 3, 4}),
    ],
)
def test_known_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, fields: Any, kept: set[int]
) -> None:
    found = known(tmp_path, monkeypatch, side, **fields)
    assert {i for i, k in enumerate(found) if k} == kept


def test_progress_is_scaled_within_each_sample() -> None:
    rel = np.array([*np.subtract(HIS, CUR), 7.0, 7.0, 3.0])
    found = sstoken.progress(rel, np.array([0, 5, 5, 7, 8]))
    np.testing.assert_allclose(found[:5], [0.4444, 0, 1, 0.0741, 0.1111], atol=5e-5)
    assert found[5:].tolist() == [0, 0, 0]  # all alike: zero, not NaN
    assert len(sstoken.progress(rel[:0], np.array([0, 0]))) == 0


@pytest.mark.parametrize("shape", ["gpt2", "qwen3"])
def test_masks_are_those_of_a_plain_computation(shape: str) -> None:
    eager, model = token_rows.model(shape, "eager"), token_rows.model(shape)
    rows = token_rows.candidates(12, "left")
    masker = SsToken(history="frozen", layer=-2).open(LiveModel(model))
    learn(model, 3)
    labels = masker.labels(token_rows.seen(rows), 1)
    moved = token_rows.model(shape, "eager")
    moved.load_state_dict(model.state_dict())
    expected = []
    for tokens, counts in zip(token_rows.ROWS, token_rows.COUNTS, strict=True):
        ids, at = torch.tensor([tokens]), [j for j, c in enumerate(counts) if c]
        if not at:
            continue
        then = -eager(input_ids=ids).logits[0].log_softmax(-1)
        now = moved(input_ids=ids, output_attentions=True)
        losses = -now.logits[0].log_softmax(-1)
        rel = np.array([(then - losses)[j - 1, tokens[j]].item() for j in at])
        maps = now.attentions[-2][0].mean(0)
        begin = [max(i for i in range(1, j + 1) if not counts[i - 1]) for j in at]
        look = [maps[j, :b].sum().item() for j, b in zip(at, begin, strict=True)]
        scaled = (rel - rel.min()) / (np.ptp(rel) + 1e-8)
        expected += token_rows.top(0.5 * scaled + 0.5 * np.array(look), 0.6)
    assert token_rows.flat(labels, rows) == expected
    assert masker.facts["attention"] > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("history", ["adapters", "frozen", "ema"])
def test_progress_is_exactly_zero_before_the_first_step(history: Any) -> None:
    live = LiveModel(adapted())
    masker: Any = SsToken(gamma=0.5, history=history).open(live)
    rows = token_rows.candidates()
    masker.labels(token_rows.seen(rows), 0)
    assert masker.facts["progress_nats"] == 0
    alone: Any = SsToken(gamma=0, history=history).open(live)
    for seen in (live.look(rows, ("nll",)), token_rows.seen(rows)):
        torch.testing.assert_close(masker.labels(seen, 0), alone.labels(seen, 0))
    learn(live.wrapped)
    masker.labels(token_rows.seen(rows), 1)
    assert masker.facts["progress_nats"] != 0


def test_rows_without_a_response_keep_their_labels() -> None:
    rows = token_rows.candidates()
    rows.labels[:] = IGNORED
    masker = SsToken().open(LiveModel(token_rows.model()))
    assert (masker.labels(token_rows.seen(rows), 0) == IGNORED).all()


def test_a_loss_that_is_not_a_number_names_its_row(tmp_path: Path) -> None:
    path = tmp_path / "losses.parquet"
    losses = [np.full(n, 2.0) for n in (4, 0, 5, 1)]
    losses[2][3] = np.nan
    _history.write_history(path, list("abcd"), losses, [8, 3, 6, 2])
    live, rows = LiveModel(token_rows.model()), token_rows.candidates()
    masker = SsToken(history="cached", reference=str(path)).open(live)
    with pytest.raises(DataError, match=r"sstoken history: 1 of 10 .* nan .* token 3 of row c"):
        masker.labels(token_rows.seen(rows), 0)
    masker = SsToken(gamma=1).open(live)
    with pytest.raises(DataError, match=r"sstoken loss: 10 of 10"):
        masker.labels(token_rows.seen(rows, np.full(10, np.nan)), 0)


def test_state_goes_into_a_checkpoint_and_back() -> None:
    model, rows = token_rows.model(), token_rows.candidates()
    live = LiveModel(model)
    one: Any = SsToken(gamma=0.9, history="ema", ema_decay=0.5).open(live)
    for step in range(2):
        one.labels(token_rows.seen(rows), step)
        learn(model)
    state = one.state_dict()
    first = one.labels(token_rows.seen(rows), 2), one.facts
    two: Any = SsToken(gamma=0.9, history="ema", ema_decay=0.5).open(live)
    two.load_state_dict(state)
    torch.testing.assert_close(two.labels(token_rows.seen(rows), 2), first[0])
    assert two.facts == first[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rho": 0}, "rho must be"),
        ({"gamma": 1.1}, "gamma must be"),
        ({"ema_decay": 1.0}, "ema_decay must be"),
        ({"attention_only_steps": -1}, "attention_only_steps must not"),
        ({"history": "cached"}, "needs a .parquet table"),
        ({"history": "frozen", "reference": "x.parquet"}, "needs a .parquet table"),
        ({"history": "adapters", "reference": "folder"}, "adapters takes no reference"),
    ],
)
def test_fields_that_make_no_sense(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SsToken(**fields)


def test_signals_are_asked_for_only_where_no_forward_of_its_own_gives_them() -> None:
    assert SsToken().signals == ()
    assert SsToken(gamma=1).signals == ("nll",)
    assert SsToken(gamma=1, attention_only_steps=5).signals == ()
    masker = SsToken(gamma=1, attention_only_steps=1).open(LiveModel(token_rows.model()))
    rows = token_rows.candidates()
    assert sum(token_rows.flat(masker.labels(token_rows.seen(rows), 3), rows)) == 7


def test_masks_of_two_hundred_samples_are_those_of_eager_maps() -> None:
    """Attention alone, where no rounding decides."""
    generator = np.random.default_rng(5)
    eager, live = token_rows.model("llama", "eager"), LiveModel(token_rows.model("llama"))
    masker = SsToken(gamma=0).open(live)
    close = 0
    for _ in range(10):
        lengths = generator.integers(4, 24, 20)
        tokens = [generator.integers(1, token_rows.VOCABULARY, n).tolist() for n in lengths]
        prompts = [int(generator.integers(1, n)) for n in lengths]
        counts = [[0] * p + [1] * (int(n) - p) for p, n in zip(prompts, lengths, strict=True)]
        ids = tuple(map(str, range(20)))
        rows = token_rows.candidates(30, "left", tokens, counts, ids)
        labels = masker.labels(token_rows.seen(rows), 0)
        for row, (given, prompt) in enumerate(zip(tokens, prompts, strict=True)):
            out = eager(input_ids=torch.tensor([given]), output_attentions=True)
            score = out.attentions[-1][0].mean(0)[prompt:, :prompt].sum(1).tolist()
            found = (labels[row, 30 - len(given) + prompt :] != IGNORED).tolist()
            expected = token_rows.top(score, 0.6)
            if found != expected:
                kept = [s for s, k in zip(score, expected, strict=True) if k]
                left = [s for s, k in zip(score, expected, strict=True) if not k]
                assert abs(min(kept) - max(left)) < 1e-6
                close += 1
    assert close < 3
