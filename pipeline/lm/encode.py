"""From rows to token ids, with a mask of the tokens whose prediction counts.

    text                [start] text [end]                    every token after the start counts
    prompt + response   [start] template(prompt) response [end]   the response and its end count
    messages            the chat template's rendering          assistant turns count

The response view leaves out the prompt, or all turns but the assistant's with their headers.
`start` is the BOS token, or the EOS token where there is no BOS; `end` is the EOS token. Prompt and
response are tokenised apart, so a response has the same tokens with and without its prompt (which
IFD needs). A document longer than `max_length` is cut at its end, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.tables import content_columns

View = Literal["full", "response"]
#: how a conversation is rendered when the tokenizer brings no chat template
PLAIN_CHAT = (
    "{% for m in messages %}{{ '<' + m['role'] + '>\n' + (m['content'] or '') + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Encoded:
    """n documents as ragged arrays: document i is `ids[offsets[i]:offsets[i+1]]`."""

    ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.bool_]
    """Whether the prediction of this token counts; never at a document's first token."""
    offsets: npt.NDArray[np.int64]
    cut: npt.NDArray[np.bool_]
    """Which documents were longer than max_length."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens in each document."""
        return np.diff(self.offsets)


Segments = list[tuple[str, bool]]


def encode(table: pa.Table, tokenizer: Any, spec: ModelSpec, view: View = "full") -> Encoded:
    """Tokenise the content of a table. `view="response"` leaves the prompt out."""
    names = content_columns(table.column_names)
    if names == ["text"]:
        rows: list[Segments] = [[(t or "", True)] for t in table["text"].to_pylist()]
    elif names == ["prompt", "response"]:
        pairs = list(zip(table["prompt"].to_pylist(), table["response"].to_pylist(), strict=True))
        bare = view == "response"
        heads = [spec.template.replace("{prompt}", "" if bare else p or "") for p, _ in pairs]
        rows = [[(h, False), (r or "", True)] for h, (_, r) in zip(heads, pairs, strict=True)]
    else:
        rows = [_turns(m or [], tokenizer, view) for m in table["messages"].to_pylist()]
    chat = names == ["messages"]
    return _pack(rows, tokenizer, spec.max_length, ends=not chat)


def _turns(messages: Sequence[dict[str, str]], tokenizer: Any, view: View) -> Segments:
    """The rendered conversation, cut where an assistant turn begins or ends."""
    template = None if tokenizer.chat_template else PLAIN_CHAT

    def render(turns: Sequence[dict[str, str]], prompt: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            list(turns), chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
        return text

    segments: Segments = []
    done = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = render(messages[:number], True), render(messages[: number + 1], False)
        if not (before.startswith(done) and after.startswith(before)):
            return [(render(messages, False), True)]  # a template that rewrites earlier turns
        asked = before[len(done) :]
        if view == "response":
            earlier = render(messages[:number], False) if number else ""
            header = before[len(earlier) :] if before.startswith(earlier) else ""
            asked = header or tokenizer.bos_token or tokenizer.eos_token or ""
        segments += [(asked, False), (after[len(before) :], True)]
        done = after
    if not segments:
        return [(render(messages, False), True)] if messages else []
    if view == "response":
        return segments
    rest = render(messages, False)
    return [*segments, (rest[len(done) :], False)] if rest.startswith(done) else segments


def _pack(rows: list[Segments], tokenizer: Any, limit: int, *, ends: bool) -> Encoded:
    end = tokenizer.eos_token_id if ends else None
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    start = start if ends else None  # a chat template writes its own start
    pieces = [text for row in rows for text, _ in row]
    tokens = iter(_tokenise(pieces, tokenizer, limit))
    ids: list[npt.NDArray[np.int32]] = []
    counts: list[npt.NDArray[np.bool_]] = []
    cut = np.zeros(len(rows), dtype=np.bool_)
    for number, row in enumerate(rows):
        parts = [([start], False)] if start is not None else []
        parts += [(next(tokens), counted) for _, counted in row]
        if end is not None:
            parts.append(([end], True))
        document = np.concatenate([np.asarray(p, dtype=np.int32) for p, _ in parts] or [_NONE])
        counted = np.concatenate([np.full(len(p), c) for p, c in parts] or [_NONE.astype(bool)])
        counted[:1] = False
        cut[number] = len(document) > limit
        ids.append(document[:limit])
        counts.append(counted[:limit])
    lengths = [len(d) for d in ids]
    return Encoded(
        ids=np.concatenate([*ids, _NONE]),
        counts=np.concatenate([*counts, _NONE.astype(np.bool_)]),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        cut=cut,
    )


_NONE = np.empty(0, dtype=np.int32)


def _tokenise(texts: list[str], tokenizer: Any, limit: int) -> list[list[int]]:
    """Token ids of each text, at least the first `limit` of them; a huge text is not read whole."""
    if not texts:
        return []
    reach = 32 * limit
    head = tokenizer([t[:reach] for t in texts], add_special_tokens=False)["input_ids"]
    for number, text in enumerate(texts):
        size = reach
        while len(head[number]) <= limit and size < len(text):
            size *= 4
            head[number] = tokenizer(text[:size], add_special_tokens=False)["input_ids"]
    found: list[list[int]] = head
    return found
