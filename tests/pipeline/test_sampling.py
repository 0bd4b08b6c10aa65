"""Draws from a pool: keyed by id alone, nested, whole where there are fewer; numbers as read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from foresift.pipeline import sampling
from foresift.pipeline.choice import Budget
from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import RecipeError
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import content_ids
from tests.corpora import drop, make_corpus

TEXTS = [f"document {k}" for k in range(60)]
RNG = Rng(3).at("probes")


def drawn(corpus: Corpus, number: int, rng: Rng = RNG) -> list[str]:
    found: list[str] = sampling.draw(corpus, number, rng)["text"].to_pylist()
    return found


def corpus(path: Path, *shards: Sequence[Any]) -> Corpus:
    return make_corpus(path, shards)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2000, Budget(2000, False, "rows")),
        ("2000", Budget(2000, False, "rows")),
        ("2k", Budget(2000, False, "rows")),
        ("2_000 rows", Budget(2000, False, "rows")),
        ("10%", Budget(0.1, True, "rows")),
        (" 0.5 % ", Budget(0.005, True, "rows")),
        ("30% rows", Budget(0.3, True, "rows")),
        ("100%", Budget(1.0, True, "rows")),
    ],
)
def test_a_number_of_documents_is_read(value: Any, expected: Budget) -> None:
    assert sampling.share(value, "probes") == expected


@pytest.mark.parametrize(
    "value",
    [0, -1, "0", "0%", "200%", "-5%", "", "many", "1B tokens", "10% tokens", "5 n_bytes", "rows"],
)
def test_what_is_no_number_of_documents_is_refused(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"probes: a number of documents or a share") as caught:
        sampling.share(value, "probes")
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "pool", "expected"),
    [(20, 100, 20), (200, 100, 100), ("10%", 100, 10), ("10%", 104, 10), ("10%", 106, 11),
     ("100%", 7, 7), ("1%", 10, 0), ("7%", 100, 7), ("2k", 10_000, 2000), (5, 0, 0)],
)  # fmt: skip
def test_how_many_documents_that_is(value: Any, pool: int, expected: int) -> None:
    assert sampling.count(value, pool) == expected


def test_a_draw_does_not_depend_on_shards(tmp_path: Path) -> None:
    one = corpus(tmp_path / "a", TEXTS)
    three = corpus(tmp_path / "b", TEXTS[40:], TEXTS[:7], TEXTS[7:40])
    found = drawn(one, 20)
    assert found == [t for t in TEXTS if t in set(found)]  # in corpus order
    assert len(set(found)) == 20
    other = drawn(three, 20)
    assert sorted(other) == sorted(found)
    assert other == [t for t in TEXTS[40:] + TEXTS[:40] if t in set(found)]


def test_fewer_are_among_more(tmp_path: Path) -> None:
    pool = corpus(tmp_path, TEXTS[:33], TEXTS[33:])
    nested = [set(drawn(pool, n)) for n in (1, 5, 20, 59, 60)]
    assert [len(s) for s in nested] == [1, 5, 20, 59, 60]
    for few, more in itertools.pairwise(nested):
        assert few < more


def test_a_document_drawn_among_many_is_drawn_among_fewer(tmp_path: Path) -> None:
    many, few = corpus(tmp_path / "a", TEXTS), corpus(tmp_path / "b", TEXTS[::2])
    kept = set(drawn(many, 20)) & set(TEXTS[::2])
    assert kept <= set(drawn(few, 20))


def test_a_draw_depends_on_the_seed(tmp_path: Path) -> None:
    pool = corpus(tmp_path, TEXTS)
    assert drawn(pool, 20) != drawn(pool, 20, Rng(4).at("probes"))
    assert drawn(pool, 20) != drawn(pool, 20, Rng(3).at("warmup"))


def test_all_are_drawn_where_there_are_fewer(tmp_path: Path) -> None:
    assert drawn(corpus(tmp_path, TEXTS[:5], TEXTS[5:9]), 20) == TEXTS[:9]


def test_only_what_is_alive_is_drawn(tmp_path: Path) -> None:
    flags = [[k % 3 == 0 for k in range(30)], [False] * 30]
    held = make_corpus(tmp_path / "a", [TEXTS[:30], TEXTS[30:]], holdout=flags)
    kept = [[k % 2 == 0 for k in range(30)], [k % 2 == 0 for k in range(30)]]
    pool = drop(held, tmp_path / "decision", kept)
    expected = [t for k, t in enumerate(TEXTS) if k % 2 == 0 and (k >= 30 or k % 3)]
    assert sampling.alive(pool) == len(expected)
    assert drawn(pool, 100) == expected
    assert drawn(held.only_holdout(), 100) == TEXTS[:30:3]


def test_ids_lie_beside_their_content(tmp_path: Path) -> None:
    content = pa.table({"prompt": TEXTS[::-1], "response": TEXTS})
    found = sampling.draw(corpus(tmp_path, content.slice(0, 9), content.slice(9)), 25, RNG)
    assert found.column_names == ["id", "prompt", "response"]
    assert found["id"].to_pylist() == content_ids(found.select(["prompt", "response"])).to_pylist()


def test_nothing_is_drawn_from_nothing(tmp_path: Path) -> None:
    pool = drop(corpus(tmp_path / "a", TEXTS[:4]), tmp_path / "decision", [[False] * 4])
    assert sampling.alive(pool) == 0
    assert sampling.draw(pool, 5, RNG).num_rows == 0


def test_labels_take_turns(tmp_path: Path) -> None:
    kinds = ["a"] * 50 + ["b"] * 6 + [None] * 4
    parts = {"s.kind": [kinds[:25], kinds[25:]]}
    pool = make_corpus(tmp_path, [TEXTS[:25], TEXTS[25:]], columns=parts)
    kind = dict(zip(TEXTS, kinds, strict=True))
    for number, each in ((3, [1, 1, 1]), (9, [3, 3, 3]), (16, [6, 6, 4]), (60, [50, 6, 4])):
        found = sampling.draw(pool, number, RNG, ["s.kind"], by="s.kind")
        assert found["s.kind"].to_pylist() == [kind[text] for text in found["text"].to_pylist()]
        told = found["s.kind"].to_pylist()
        assert [told.count(k) for k in ("a", "b", None)] == each
    alone = make_corpus(tmp_path / "b", [[t for t in TEXTS if kind[t] == "b"]])
    both = sampling.draw(pool, 9, RNG, by="s.kind")["text"].to_pylist()
    assert {t for t in both if kind[t] == "b"} == set(drawn(alone, 3))  # by the same draws


def test_copies_are_drawn_once_where_that_is_asked(tmp_path: Path) -> None:
    texts = [text for text in TEXTS[:20] for _ in range(1 + 9 * (text.endswith("7")))]
    kinds = [str(len(t)) for t in texts]
    pool = make_corpus(
        tmp_path, [texts[:11], texts[11:]], columns={"s.k": [kinds[:11], kinds[11:]]}
    )
    plain = corpus(tmp_path / "b", TEXTS[:20])
    for number in (1, 5, 12, 99):
        found = sampling.draw(pool, number, RNG, distinct=True)["text"].to_pylist()
        assert set(found) == set(drawn(plain, number))
        assert len(found) == min(number, 20)
        turned = sampling.draw(pool, number, RNG, by="s.k", distinct=True)["text"].to_pylist()
        assert len(set(turned)) == len(turned) == min(number, 20)
