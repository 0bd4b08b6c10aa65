"""Train the byte-level BPE tokenizer of `configs/models/tiny` on text that every Python has.

    python examples/train_tokenizer.py configs/models/tiny --size 2048

The text is the Python language reference (`pydoc_data.topics`) and the sources of the standard
library, so nothing is downloaded. Another Python version gives a slightly other vocabulary: the
committed files are the ones to use, and this script is how such files are made for your own text.
"""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
#: bytes of standard library source that are read
LIMIT = 8 << 20


def texts() -> Iterator[str]:
    """The language reference, then the standard library's sources in the order of their names."""
    yield from topics.values()
    left = LIMIT
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        left -= len(source)
        if left < 0:
            return
        yield source


def train(size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `size` tokens, the end-of-text token included: no unknown token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, clean_up_tokenization_spaces=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the tokenizer's files go")
    parser.add_argument("--size", type=int, default=2048, help="tokens in the vocabulary")
    options = parser.parse_args()
    tokenizer = train(options.size)
    tokenizer.save_pretrained(options.folder)
    print(f"{len(tokenizer)} tokens in {options.folder}")


if __name__ == "__main__":
    main()
