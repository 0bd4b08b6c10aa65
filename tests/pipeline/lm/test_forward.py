"""The pass against a plain oracle: one document at a time, full logits, float64, autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm import head as heads
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.forward import compute, cpu_threads, score_table, window
from foresift.pipeline.lm.model import Loaded, load
from foresift.pipeline.lm.signals import DOCUMENT, TOKEN
from foresift.scorers.excess_loss import ExcessLoss
from foresift.scorers.ifd import Ifd
from foresift.scorers.loss import Loss
from tests.pipeline.lm.conftest import SHAPES, Make

NAMES = [*TOKEN, *DOCUMENT]
TEXTS = ["", "a", "the cat sat on the mat", "x" * 70, "Grüße aus Köln", "0123456789" * 9, "b"]
TABLE = pa.table({"prompt": ["say", "", "go on:", "why?", "a b c", "p", ""], "response": TEXTS})


def oracle(encoded: Encoded, loaded: Loaded) -> dict[str, list[Any]]:
    """Every signal of every document, the slow way."""
    out: dict[str, list[Any]] = {name: [] for name in NAMES}
    layer = loaded.model.get_output_embeddings()
    for start, stop in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True):
        ids = torch.tensor(encoded.ids[start:stop].astype(np.int64))[None]
        counted = torch.tensor(encoded.counts[start:stop])
        seen: list[torch.Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.enable_grad():
            logits = loaded.model(ids).logits[0].double()
        hook.remove()
        positions = counted.nonzero()[:, 0] - 1
        logp = logits[positions].log_softmax(-1)
        nll = -logp.gather(1, ids[0, positions + 1, None])[:, 0]
        two = logp.exp().topk(2).values.detach().numpy()
        out["nll"].append(nll.detach().numpy())
        out["entropy"].append(-(logp.exp() * logp).sum(-1).detach().numpy())
        mean = (logp.exp() * logp).sum(-1, keepdim=True)
        out["log_variance"].append((logp.exp() * (logp - mean).square()).sum(-1).detach().numpy())
        out["top_prob"].append(two[:, 0])
        out["margin"].append(two[:, 0] - two[:, 1])
        hidden = seen[0][0].detach().double().numpy()
        out["hidden_mean"].append(hidden.mean(0))
        out["hidden_mean_response"].append(hidden[counted.numpy()].mean(0))
        out["grad_norm"].append(head_gradient(loaded, hidden, positions, ids).numpy())
    return out


def head_gradient(loaded: Loaded, hidden: Any, positions: Any, ids: Any) -> torch.Tensor:
    """Autograd through the output use of the matrix alone, which is what the signal means."""
    layer, config = loaded.model.get_output_embeddings(), loaded.model.config
    weight = layer.weight.detach().double().requires_grad_()
    with torch.enable_grad():
        z = torch.tensor(hidden)[positions] @ weight.T
        z = z * (getattr(config, "logit_scale", None) or 1.0)
        z = z / (getattr(config, "logits_scaling", None) or 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        z = cap * torch.tanh(z / cap) if cap else z
        torch.nn.functional.cross_entropy(z, ids[0, positions + 1]).backward()
    assert weight.grad is not None
    return weight.grad.norm()


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(heads.TILE, "cpu", (48, 100))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["text", "pairs"])
@pytest.mark.usefixtures("small_tiles")
def test_signals_equal_the_oracle(make: Make, shape: str, kind: str) -> None:
    spec = make(shape, max_length=80)
    loaded = load(spec)
    table = pa.table({"text": TEXTS}) if kind == "text" else TABLE
    encoded = encode(table, loaded.tokenizer, spec)
    found = compute(encoded, loaded, NAMES, 200)
    expected = oracle(encoded, loaded)
    for name in TOKEN:
        np.testing.assert_allclose(
            found.token[name], np.concatenate(expected[name]), rtol=1e-5, atol=1e-5, err_msg=name
        )
    for name in DOCUMENT:
        np.testing.assert_allclose(
            found.document[name], np.stack(expected[name]), rtol=2e-5, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_variance_of_the_log_probability_has_its_known_answer(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(heads.TILE, "cpu", (2, columns))
    head = heads.Head(torch.eye(3), bias=None)
    hidden = torch.tensor([[0.7, 0.2, 0.1]] * 3 + [[1.0, 1e-30, 1e-30]]).log() + 5.0
    names = ["nll", "entropy", "log_variance"]
    found = heads.statistics(head, hidden, torch.tensor([0, 1, 2, 0]), names)
    assert found["entropy"][0] == pytest.approx(0.8018, abs=1e-4)  # mu = -0.8018
    assert found["log_variance"][:3].tolist() == pytest.approx([0.4944] * 3, abs=1e-4)
    deviation = (found["entropy"] - found["nll"]) / found["log_variance"].sqrt()
    assert deviation[:3].tolist() == pytest.approx([0.6331, -1.1486, -2.1344], abs=1e-4)
    assert found["log_variance"][3] == pytest.approx(0, abs=1e-20)  # never below 0
    alone = heads.statistics(head, hidden, torch.tensor([0, 1, 2, 0]), ["log_variance"])
    assert torch.equal(alone["log_variance"], found["log_variance"])


def test_a_long_document_takes_the_direct_gradient_form(make: Make) -> None:
    spec = make("llama", max_length=200)
    loaded = load(spec)
    encoded = encode(pa.table({"text": ["ab" * 90, "c"]}), loaded.tokenizer, spec)
    found = compute(encoded, loaded, ["grad_norm"], 0).document["grad_norm"]
    np.testing.assert_allclose(found, oracle(encoded, loaded)["grad_norm"], rtol=2e-5)


@pytest.mark.parametrize("shape", ["gpt2", "llama", "mistral"])
def test_no_signal_depends_on_batch_size_or_row_order(make: Make, shape: str) -> None:
    spec = make(shape)
    loaded = load(spec)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    encoded = encode(pa.table({"text": TEXTS}), loaded.tokenizer, spec)
    mixed = encode(pa.table({"text": [TEXTS[i] for i in order]}), loaded.tokenizer, spec)
    whole = compute(encoded, loaded, NAMES, 10_000)
    for other, rows in ((compute(encoded, loaded, NAMES, 1), slice(None)),
                        (compute(mixed, loaded, NAMES, 100), order)):  # fmt: skip
        for name in TOKEN:
            np.testing.assert_allclose(other.mean(name), whole.mean(name)[rows], atol=1e-5)
        for name in DOCUMENT:
            np.testing.assert_allclose(
                other.document[name], whole.document[name][rows], rtol=1e-5, atol=1e-5
            )


def test_the_same_window_gives_the_same_bits_and_fewer_signals_the_same_numbers(make: Make) -> None:
    spec = make()
    loaded = load(spec)
    encoded = encode(TABLE, loaded.tokenizer, spec)
    first, again = (compute(encoded, loaded, NAMES, 100) for _ in range(2))
    alone = compute(encoded, loaded, ["nll"], 100)
    for name in TOKEN:
        np.testing.assert_array_equal(first.token[name], again.token[name])
    np.testing.assert_array_equal(alone.token["nll"], first.token["nll"])


class Stub(torch.nn.Module):
    """A model that puts all probability on the successor of each token."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(300, 300, bias=False)
        self.layer.weight.data = 200 * torch.eye(300).roll(step, 0)
        self.config = type("Config", (), {"get_text_config": lambda s: s, "name_or_path": "stub"})()

    @property
    def base_model(self) -> Any:
        return lambda input_ids, **_: self._out(torch.nn.functional.one_hot(input_ids, 300).float())

    @staticmethod
    def _out(hidden: torch.Tensor) -> Any:
        return type("Out", (), {"last_hidden_state": hidden})

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.layer

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        hidden = torch.nn.functional.one_hot(input_ids, 300).float()
        return type("Out", (), {"logits": self.layer(hidden)})


@pytest.mark.parametrize(("step", "loss"), [(1, 0.0), (0, 200.0), (2, 200.0)])
def test_logits_are_shifted_exactly_once(make: Make, step: int, loss: float) -> None:
    ids = np.arange(10, dtype=np.int32)
    counts = np.arange(10) > 0
    encoded = Encoded(ids, counts, np.array([0, 10]), np.array([False]))
    loaded = Loaded(Stub(step), load(make()).tokenizer, "cpu")
    nll = compute(encoded, loaded, ["nll"], 0).token["nll"]
    np.testing.assert_allclose(nll, np.full(9, loss), atol=1e-5)


def test_a_model_that_changes_its_logits_otherwise_is_refused(make: Make) -> None:
    class Odd(Stub):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return type("Out", (), {"logits": 1.5 * super().forward(input_ids).logits})

    with pytest.raises(ModelError, match="stub: Odd does something to its logits"):
        heads.find_head(Odd(1), where="stub")


def test_both_views_share_the_offsets_and_a_cut_prompt_shortens_both(make: Make) -> None:
    spec = make(max_length=24)
    table = pa.table({"prompt": ["a" * 12, ""], "response": ["b" * 40, "cd"]})
    loaded = load(spec)
    seen = window(table, spec, loaded, ["nll", "nll@response"])
    tokens, signals = seen.tokens, seen.signals
    assert signals.counts.tolist() == [24 - 14, 3]
    assert tokens.cut.tolist() == [True, False]
    assert signals.token["nll@response"].shape == signals.token["nll"].shape
    assert signals.mean("nll")[0] != signals.mean("nll@response")[0]
    assert signals.mean("nll")[1] == pytest.approx(signals.mean("nll@response")[1], abs=1e-6)


def test_bfloat16_is_near_float32(make: Make) -> None:
    results = []
    for dtype in ("float32", "bfloat16"):
        spec = make("llama", dtype=dtype)
        loaded = load(spec)
        encoded = encode(TABLE, loaded.tokenizer, spec)
        results.append(compute(encoded, loaded, NAMES, 0))
    np.testing.assert_allclose(results[1].mean("nll"), results[0].mean("nll"), rtol=0.05)
    np.testing.assert_allclose(
        results[1].document["grad_norm"], results[0].document["grad_norm"], rtol=0.05
    )


def test_nothing_to_score_is_no_error(make: Make) -> None:
    spec = make()
    loaded = load(spec)
    none = encode(pa.table({"text": pa.array([], pa.string())}), loaded.tokenizer, spec)
    assert compute(none, loaded, NAMES, 0).offsets.tolist() == [0]
    empty = encode(pa.table({"messages": [[], []]}), loaded.tokenizer, spec)
    found = compute(empty, loaded, NAMES, 0)
    assert np.isnan(found.mean("nll")).all()
    assert np.isnan(found.document["grad_norm"]).all()
    assert np.isnan(found.document["hidden_mean"]).all()


def test_threads_are_the_specs_and_put_back(make: Make) -> None:
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_score_table_gives_each_scorer_its_columns(make: Make) -> None:
    table = TABLE.append_column("id", pa.array([bytes(16)] * len(TEXTS), pa.binary(16)))
    table = table.append_column("irreducible.nll", pa.array([1.0] * 6 + [None]))
    scorers = [Loss(), ExcessLoss(against="irreducible.nll")]
    loss, excess = score_table(table, make(), scorers)
    assert set(loss) == set(Loss.columns)
    np.testing.assert_allclose(excess["utility"][:6], loss["nll"][:6] - 1)
    assert np.isnan(excess["utility"][6])


def test_ifd_is_one_under_a_model_that_ignores_the_prompt(make: Make) -> None:
    spec = make("gpt2", seed=7)
    with torch.no_grad():
        load(spec).model.get_output_embeddings().weight.zero_()
    table = TABLE.append_column("id", pa.array([bytes(16)] * len(TEXTS), pa.binary(16)))
    (found,) = score_table(table, spec, [Ifd()])
    np.testing.assert_allclose(found["utility"], np.ones(len(TEXTS)), rtol=1e-6)
    np.testing.assert_allclose(found["nll"], np.full(len(TEXTS), np.log(257)), rtol=1e-6)
