"""The items of evaluation sets, as contamination searches for them: words, answers, places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foresift.pipeline.nouns import Reference
from foresift.pipeline.store import read_json, write_json
from foresift.pipeline.tables import content_columns, content_texts
from foresift.scorers._contamination import Ints, Keys, Postings, Words

#: fewer distinct words than this say nothing
DISTINCT = 4


@dataclass
class _Item:
    """One thing to search for."""

    set: int
    words: Keys
    place: str
    answers: list[Keys]


@dataclass(frozen=True)
class Items:
    """All items, set by set, each set by the first id that has the item."""

    words_of: Words | None
    set: Ints
    words: Ints
    """Words of each."""
    places: list[str]
    answer_words: Words
    answer_starts: Ints
    """[items + 1] item i has the answers from `answer_starts[i]` on."""
    told: dict[str, dict[str, int]]
    """Set -> how many items it has, and how many were left out."""

    def __len__(self) -> int:
        return len(self.set)

    @classmethod
    def of(cls, found: Sequence[_Item], told: dict[str, dict[str, int]]) -> Items:
        answers = [a for item in found for a in item.answers]
        return cls(
            _joined([item.words for item in found]),
            np.array([item.set for item in found], dtype=np.int64),
            np.array([len(item.words) for item in found], dtype=np.int64),
            [item.place for item in found],
            _joined(answers),
            np.cumsum([0, *(len(item.answers) for item in found)], dtype=np.int64),
            told,
        )

    def postings(self, n: int) -> Postings:
        assert self.words_of is not None
        return Postings.of(self.words_of, n, np.arange(len(self)))

    def set_name(self, item: int) -> str | None:
        return None if item < 0 else list(self.told)[self.set[item]]

    def place(self, item: int) -> str | None:
        return None if item < 0 else self.places[item]

    def answers(self, item: int) -> list[Keys]:
        first, last = self.answer_starts[item : item + 2].tolist()
        return [self.answer_words.of_text(a) for a in range(first, last)]

    def write(self, out: Path, more: Mapping[str, npt.NDArray[np.generic]]) -> None:
        kept = {
            "set": self.set, "words": self.words, "answer_ids": self.answer_words.ids,
            "answer_offsets": self.answer_words.offsets, "answer_starts": self.answer_starts,
        }  # fmt: skip
        both: dict[str, Any] = {**kept, **more}
        np.savez(out / "items.npz", **both)
        write_json(out / "items.json", {"places": self.places, "told": self.told})

    @classmethod
    def read(cls, out: Path) -> tuple[Items, dict[str, Any]]:
        with np.load(out / "items.npz", allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
        names = read_json(out / "items.json")
        answers = Words(stored["answer_ids"], stored["answer_offsets"])
        items = cls(
            None, stored["set"], stored["words"], names["places"], answers,
            stored["answer_starts"], names["told"],
        )  # fmt: skip
        return items, stored


def _joined(parts: Sequence[Keys]) -> Words:
    offsets = np.cumsum([0, *(len(p) for p in parts)], dtype=np.int64)
    return Words(np.concatenate([np.empty(0, np.uint64), *parts]), offsets)


def read_items(references: Sequence[Reference], n: int, shortest: int) -> Items:
    """The items of all sets; equal ones of a set are one, with the answers of all."""
    found: list[_Item] = []
    told: dict[str, dict[str, int]] = {}
    for number, reference in enumerate(references):
        own: dict[bytes, _Item] = {}
        short = set()
        for _, place, question, answer in sorted(_rows(reference), key=lambda row: row[0]):
            words, given = question, [answer] if len(answer) else []
            if len(words) < n:
                words, given = np.concatenate([question, answer]), []
            key = words.tobytes()
            if len(words) < shortest or len(np.unique(words)) < DISTINCT:
                short.add(key)
                continue
            item = own.setdefault(key, _Item(number, words, place, []))
            item.answers += [
                a for a in given if not any(np.array_equal(a, b) for b in item.answers)
            ]
        found += own.values()
        told[reference.name] = {"items": len(own), "left_out": len(short)}
    return Items.of(found, told)


def _rows(reference: Reference) -> Iterator[tuple[bytes, str, Keys, Keys]]:
    """(id, key path, words of the question, words of the answer), held-out ones too."""
    for view in (reference.corpus, reference.corpus.only_holdout()):
        for shard in view.shards():
            for table, _ in shard.stream(["source"]):
                names = content_columns(table.column_names)
                pair = names == ["prompt", "response"]
                heads = table["prompt"].to_pylist() if pair else content_texts(table)
                tails = table["response"].to_pylist() if pair else [""] * table.num_rows
                first, second = (Words.of([t or "" for t in texts]) for texts in (heads, tails))
                ids, sources = table["id"].to_pylist(), table["source"].to_pylist()
                for row, (key, source) in enumerate(zip(ids, sources, strict=True)):
                    yield key, source, first.of_text(row), second.of_text(row)
