"""A tiny encoder learns a label, keeps its best state, and predicts a text by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from foresift.pipeline.errors import DataError, ModelError, RecipeError
from foresift.pipeline.lm.dual import folds
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.encoder import Encoder, decode
from foresift.pipeline.lm.model import load_tokenizer
from foresift.pipeline.lm.regress import agreement
from foresift.pipeline.lm.regressor import EncoderSpec, load_regressor
from foresift.pipeline.tables import ID
from tests.pipeline.lm.conftest import Make

WORDS = [f"w{i}" for i in range(30)]
BERT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 16, "initializer_range": 0.2,
}  # fmt: skip
SHAPES = {
    "bert": BERT,
    "roberta": {**BERT, "max_position_embeddings": 20, "pad_token_id": 1},
    "distilbert": {
        "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 16,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16},
}  # fmt: skip


def write_tokenizer(folder: Path, *, special: bool = True) -> None:
    """One token a word, between [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *WORDS]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(folder)


def write_encoder(folder: Path, shape: str = "bert", *, special: bool = True) -> EncoderSpec:
    """Random weights on disk, as from a hub."""
    from transformers import AutoConfig, AutoModel

    fields = {**SHAPES[shape], "vocab_size": len(WORDS) + 4}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModel.from_config(AutoConfig.for_model(shape, **fields)).save_pretrained(folder)
    write_tokenizer(folder, special=special)
    return EncoderSpec(
        init=str(folder), device="cpu", learning_rate=5e-3, epochs=8, evaluate_every=5
    )


@pytest.fixture
def spec(tmp_path: Path) -> EncoderSpec:
    return write_encoder(tmp_path / "bert")


def corpus(n: int, seed: int = 0) -> tuple[list[str], Any]:
    """Texts of 1 to 29 words, and the share of words from the first half of the list."""
    rng = np.random.default_rng(seed)
    bags = [rng.choice(30, size=rng.integers(1, 30)) for _ in range(n)]
    for each, tilt in zip(bags, rng.random(n), strict=True):
        each[rng.random(len(each)) < tilt] %= 15
    return [" ".join(WORDS[i] for i in bag) for bag in bags], np.array(
        [(bag < 15).mean() for bag in bags]
    )


def quick(spec: EncoderSpec, **fields: Any) -> tuple[Encoder, list[str], Any]:
    texts, labels = corpus(60)
    return Encoder.fit(texts, labels, replace(spec, epochs=2, **fields)), texts, labels


def test_it_learns_a_label_that_can_be_learned(spec: EncoderSpec) -> None:
    texts, labels = corpus(300)
    encoder = Encoder.fit(texts, labels, spec)
    facts = encoder.facts()
    assert (facts["labels"], facts["held_out"], facts["left_out"]) == (300, 30, 0)
    assert facts["spearman"] > 0.8
    others, truth = corpus(200, seed=5)
    told = agreement(truth, encoder.predict(others))
    assert told["spearman"] > 0.8
    assert told["r2"] > 0.5  # in the unit of the labels


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_the_forward_is_its_definition(tmp_path: Path, shape: str) -> None:
    """Segments one at a time, without padding, and the mean over all their tokens."""
    spec = write_encoder(tmp_path, shape)
    texts, _ = corpus(12)
    model, tokenizer = load_regressor(spec)
    encoder = Encoder(spec, model, tokenizer, 3.0, 2.0, {})
    found = encoder.predict(texts)
    for text, value in zip(texts, found, strict=True):
        ids = tokenizer(text)["input_ids"][:32]
        states = [
            model.body(input_ids=torch.tensor([ids[a : a + 16]])).last_hidden_state[0]
            for a in range(0, len(ids), 16)
        ]
        expected = model.head(torch.cat(states).mean(dim=0)).item() * 2.0 + 3.0
        assert value == pytest.approx(expected, abs=2e-5)
    assert max(len(t.split()) for t in texts) > 16  # some had two segments


def test_a_prediction_does_not_depend_on_its_batch(spec: EncoderSpec) -> None:
    encoder, texts, _ = quick(spec)
    whole = encoder.predict(texts)
    assert whole.dtype == np.float32
    alone = np.concatenate([encoder.predict([text]) for text in texts])
    np.testing.assert_allclose(alone, whole, atol=1e-5 * encoder.spread)
    order = np.random.default_rng(0).permutation(60)
    turned = encoder.predict([texts[i] for i in order])
    np.testing.assert_allclose(turned, whole[order], atol=1e-5 * encoder.spread)


def test_the_state_that_was_best_on_the_part_held_out_is_kept(
    spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def spy(truth: Any, guess: Any) -> Any:
        seen.append(agreement(truth, guess)["spearman"] or 0.0)
        return agreement(truth, guess)

    monkeypatch.setattr("foresift.pipeline.lm.encoder.agreement", spy)
    texts, labels = corpus(60)
    ids = pa.array([n.to_bytes(16, "big") for n in range(60)], ID)
    fields = {"learning_rate": 0.1, "evaluate_every": 1, "epochs": 4}  # a rate that diverges
    encoder = Encoder.fit(texts, labels, replace(spec, **fields), ids=ids)
    facts, (*looks, told) = encoder.facts(), seen
    assert len(looks) == facts["steps"] == 8
    assert looks[-1] < max(looks) == looks[facts["best_step"] - 1] == told == facts["spearman"]
    held = np.flatnonzero(folds(np.arange(60), ids, 10) == 0)
    again = agreement(labels[held], encoder.predict([texts[i] for i in held]))
    assert again["r2"] == pytest.approx(facts["r2"], abs=1e-4)


def test_the_size_of_a_forward_does_not_change_a_step(spec: EncoderSpec) -> None:
    """Gradients add up to those of the whole batch (without dropout, up to rounding)."""
    config = Path(spec.init) / "config.json"
    silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.write_text(json.dumps({**json.loads(config.read_text()), **silent}))
    fields = {"dropout": 0.0, "learning_rate": 1e-4}
    small, texts, _ = quick(spec, batch_tokens=40, **fields)
    large, _, _ = quick(spec, batch_tokens=4000, **fields)
    np.testing.assert_allclose(small.predict(texts), large.predict(texts), atol=1e-4)
    fresh, _, _ = quick(spec, **{**fields, "learning_rate": 1e-12})
    assert np.abs(fresh.predict(texts) - large.predict(texts)).max() > 1e-3


def test_a_seed_repeats_and_draws_outside_are_left_alone(spec: EncoderSpec) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, texts, _ = quick(spec)
    assert torch.equal(torch.rand(3), expected)
    again, other = quick(spec)[0], quick(spec, seed=1)[0]
    np.testing.assert_array_equal(first.predict(texts), again.predict(texts))
    assert np.abs(first.predict(texts) - other.predict(texts)).max() > 1e-3


def test_the_unit_of_the_labels_does_not_matter(spec: EncoderSpec) -> None:
    first, texts, labels = quick(spec)
    other = Encoder.fit(texts, 1000.0 * labels - 5.0, replace(spec, epochs=2))
    expected = 1000.0 * first.predict(texts).astype(float) - 5.0
    np.testing.assert_allclose(other.predict(texts), expected, atol=0.1)


def test_a_saved_encoder_is_the_same_and_holds_no_pickle(spec: EncoderSpec, tmp_path: Path) -> None:
    encoder, texts, _ = quick(spec, segments=1)
    encoder.save(tmp_path / "saved")
    loaded = Encoder.load(tmp_path / "saved", device="cpu")
    np.testing.assert_array_equal(loaded.predict(texts), encoder.predict(texts))
    assert loaded.facts() == encoder.facts()
    assert loaded.spec.settings() == encoder.spec.settings()
    kinds = {f.suffix for f in (tmp_path / "saved").iterdir()}
    assert kinds <= {".safetensors", ".json", ".txt"}


def test_what_was_not_saved_whole_is_a_located_error(spec: EncoderSpec, tmp_path: Path) -> None:
    quick(spec)[0].save(tmp_path / "saved")
    head = tmp_path / "saved" / "head.safetensors"
    content = head.read_bytes()
    for damaged in (content[:20], content[:-3], content.replace(b"mean", b"moan")):
        head.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"head\.safetensors: no fitted encoder can be read"):
            Encoder.load(tmp_path / "saved")
    head.unlink()
    with pytest.raises(ModelError, match=r"head\.safetensors: no fitted encoder can be read"):
        Encoder.load(tmp_path / "saved")


def test_unusable_rows_are_left_out_and_a_text_without_tokens_is_nan(tmp_path: Path) -> None:
    spec = replace(write_encoder(tmp_path, special=False), epochs=1)
    texts, labels = corpus(40)
    texts[4], labels[[6, 7]] = "", [np.nan, -np.inf]
    encoder = Encoder.fit(texts, labels, spec)
    assert (encoder.facts()["labels"], encoder.facts()["left_out"]) == (37, 3)
    assert np.flatnonzero(np.isnan(encoder.predict(texts))).tolist() == [4]
    assert encoder.predict([]).shape == (0,)


def test_constant_labels_are_predicted_and_said_so(spec: EncoderSpec) -> None:
    texts, _ = corpus(40)
    encoder = Encoder.fit(texts, np.full(40, 0.1), spec)
    np.testing.assert_array_equal(encoder.predict(texts), np.full(40, np.float32(0.1)))
    facts = encoder.facts()
    assert (facts["constant"], facts["steps"], facts["spearman"]) == (True, 0, None)


def test_half_precision_ranks_alike(spec: EncoderSpec) -> None:
    encoder, texts, _ = quick(spec)
    rough = Encoder.load(_saved(encoder, Path(spec.init).parent / "saved"), device="cpu")
    rough.model.mixed = True
    told = agreement(encoder.predict(texts), rough.predict(texts))
    assert told["spearman"] > 0.98
    assert told["pearson"] < 1.0 - 1e-9  # it is another arithmetic


def _saved(encoder: Encoder, folder: Path) -> Path:
    encoder.save(folder)
    return folder


def test_texts_come_back_from_another_models_tokens(make: Make) -> None:
    tokenizer = load_tokenizer("bytes")
    table = pa.table({"text": ["w1 w2", "", "two , words"]})
    assert decode(encode(table, tokenizer, make()), tokenizer) == ["w1 w2", "", "two , words"]
    assert decode(encode(table[:0], tokenizer, make()), tokenizer) == []


def test_bad_input_is_refused_with_a_place(spec: EncoderSpec) -> None:
    texts, labels = corpus(30)
    few = np.where(np.arange(30) < 19, labels, np.nan)
    with pytest.raises(DataError, match="step 4: only 19 distinct documents have a usable label"):
        Encoder.fit(texts, few, spec, where="step 4")
    with pytest.raises(DataError, match=r"labels of shape \(29,\) for 30 texts"):
        Encoder.fit(texts, labels[:29], spec)
    with pytest.raises(RecipeError, match="held_out must be at least 2"):
        EncoderSpec.parse({"init": "x", "held_out": 1}, "step 1")
    with pytest.raises(ModelError, match=r"\./nowhere: no such file or folder"):
        Encoder.fit(texts, labels, replace(spec, init="./nowhere"))


def test_weights_that_do_not_fit_are_refused(spec: EncoderSpec) -> None:
    texts, labels = corpus(30)
    folder = Path(spec.init)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"bert: 16 tensors are missing or of another shape"):
        Encoder.fit(texts, labels, spec)
    (folder / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    with pytest.raises(ModelError, match="it is an encoder-decoder"):
        Encoder.fit(texts, labels, spec)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="its weights are a pickle"):
        Encoder.fit(texts, labels, spec)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="does not load"):
        Encoder.fit(texts, labels, spec)


def test_a_checkpoint_without_a_pooler_is_an_encoder(spec: EncoderSpec) -> None:
    """Masked language models are stored without the pooler, which has no part in the mean."""
    from safetensors.torch import load_file, save_file

    weights = Path(spec.init) / "model.safetensors"
    texts, _ = corpus(10)
    before = _untrained(spec).predict(texts)
    kept = {n: t for n, t in load_file(weights).items() if not n.startswith("pooler.")}
    save_file(kept, weights, metadata={"format": "pt"})
    np.testing.assert_allclose(_untrained(spec).predict(texts), before, atol=1e-6)


def _untrained(spec: EncoderSpec) -> Encoder:
    model, tokenizer = load_regressor(spec)
    torch.nn.init.constant_(model.head.weight, 0.1)
    torch.nn.init.zeros_(model.head.bias)
    return Encoder(spec, model, tokenizer, 0.0, 1.0, {})
