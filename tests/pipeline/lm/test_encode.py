"""What counts, where it starts and ends, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import ModelError, RecipeError
from foresift.pipeline.lm.batches import batches, plan
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.model import ModelSpec, load, load_tokenizer
from foresift.pipeline.lm.signals import validate
from tests.pipeline.lm.conftest import Make

CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "no"},
    {"role": "user", "content": "bye"},
]


def counted(encoded: Encoded, tokenizer: Any) -> list[str]:
    """The counted text of each document."""
    bounds = zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)
    return [tokenizer.decode(encoded.ids[a:b][encoded.counts[a:b]]) for a, b in bounds]


def whole(encoded: Encoded, tokenizer: Any) -> list[str]:
    bounds = zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)
    return [tokenizer.decode(encoded.ids[a:b]) for a, b in bounds]


def test_text_counts_all_but_its_start(make: Make) -> None:
    tokenizer = load_tokenizer("bytes")
    encoded = encode(pa.table({"text": ["ab", None]}), tokenizer, make())
    assert counted(encoded, tokenizer) == ["ab<|endoftext|>", "<|endoftext|>"]
    assert encoded.lengths.tolist() == [4, 2]


def test_only_the_response_counts_in_both_views(make: Make) -> None:
    tokenizer = load_tokenizer("bytes")
    table = pa.table({"prompt": ["Say it", None], "response": ["ok", ""]})
    full = encode(table, tokenizer, make())
    bare = encode(table, tokenizer, make(), view="response")
    assert counted(full, tokenizer) == ["ok<|endoftext|>", "<|endoftext|>"]
    assert counted(bare, tokenizer) == counted(full, tokenizer)
    assert whole(full, tokenizer)[0] == "<|endoftext|>Say it\nok<|endoftext|>"
    assert whole(bare, tokenizer)[0] == "<|endoftext|>\nok<|endoftext|>"


def test_only_assistant_turns_count_without_a_template(make: Make) -> None:
    tokenizer = load_tokenizer("bytes")
    table = pa.table({"messages": [CHAT]})
    full = encode(table, tokenizer, make())
    bare = encode(table, tokenizer, make(), view="response")
    assert counted(full, tokenizer) == counted(bare, tokenizer) == ["yes\nno\n"]
    assert whole(bare, tokenizer) == ["<assistant>\nyes\n<assistant>\nno\n"]
    assert whole(full, tokenizer)[0].endswith("no\n<user>\nbye\n")


@pytest.mark.parametrize("header", ["A:", ""])
def test_a_template_of_the_tokenizer_is_used(make: Make, header: str) -> None:
    tokenizer = load_tokenizer.__wrapped__("bytes")  # not the cached one: it is changed here
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}" + header + "{% else %}U:{% endif %}"
        "{{ m.content }};{% endfor %}{% if add_generation_prompt %}" + header + "{% endif %}"
    )
    table = pa.table({"messages": [CHAT[:2]]})
    full = encode(table, tokenizer, make())
    bare = encode(table, tokenizer, make(), view="response")
    assert whole(full, tokenizer) == [f"U:hi;{header}yes;"]
    assert counted(full, tokenizer) == counted(bare, tokenizer) == ["yes;"]


def test_a_conversation_without_an_assistant_counts_whole_and_an_empty_one_not(make: Make) -> None:
    tokenizer = load_tokenizer("bytes")
    encoded = encode(pa.table({"messages": [CHAT[:1], [], None]}), tokenizer, make())
    assert counted(encoded, tokenizer) == ["user>\nhi\n", "", ""]
    assert encoded.lengths.tolist()[1:] == [0, 0]


def test_long_documents_are_cut_at_their_end_and_said_so(make: Make) -> None:
    tokenizer = load_tokenizer("bytes")
    table = pa.table({"text": ["x" * 6, "x" * 7, "y" * 50_000_000]})
    encoded = encode(table, tokenizer, make(max_length=8))
    assert encoded.lengths.tolist() == [8, 8, 8]
    assert encoded.cut.tolist() == [False, True, True]
    assert counted(encoded, tokenizer)[0].endswith("<|endoftext|>")


def test_batches_keep_their_budget_and_hold_every_document_once(make: Make) -> None:
    lengths = np.random.default_rng(0).integers(0, 60, 200)
    lengths[7] = 500
    found = plan(lengths, 128)
    everyone = np.concatenate(found)
    assert sorted(everyone) == np.flatnonzero(lengths).tolist()
    assert all(len(b) * lengths[b].max() <= 128 or len(b) == 1 for b in found)
    encoded = encode(pa.table({"text": ["abc", "", "abcdefg"]}), load_tokenizer("bytes"), make())
    for batch in batches(encoded, np.arange(3), 12):
        for row, document in enumerate(batch.documents):
            start, size = encoded.offsets[document], encoded.lengths[document]
            np.testing.assert_array_equal(batch.ids[row, :size], encoded.ids[start : start + size])
            assert not batch.counted[row, size:].any()


def test_a_missing_model_is_a_located_error() -> None:
    with pytest.raises(ModelError, match=r"\./nowhere: no such file"):
        ModelSpec(init="./nowhere", tokenizer="bytes").check()


def test_a_pickled_checkpoint_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    for action in (lambda s: s.check(), load):
        with pytest.raises(ModelError, match="its weights are a pickle"):
            action(ModelSpec(init=str(tmp_path), tokenizer="bytes"))


def test_a_tokenizer_larger_than_the_model_is_refused(make: Make, tmp_path: Path) -> None:
    spec = make("gpt2")
    loaded = load(spec)
    loaded.model.resize_token_embeddings(100)
    loaded.model.save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match="the tokenizer has 257 tokens, the model only 100"):
        load(ModelSpec(init=str(tmp_path / "small"), tokenizer="bytes", device="cpu"))


def test_a_wrong_signal_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"step 2: no signal 'entrpy'; did you mean 'entropy'"):
        validate(["nll", "entrpy"], "step 2")


def test_tuning_fields_do_not_change_the_digest(make: Make) -> None:
    assert make(batch_tokens=7, threads=2).digest() == make().digest()
    assert make(max_length=7).digest() != make().digest()
