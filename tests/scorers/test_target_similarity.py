"""Weights against a plain count of n-grams, neighbours against a plain sort, a real target."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Budget, Reference
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import content_ids
from foresift.scorers._dsir import Grams, divergence, shares
from foresift.scorers._nearest import mean_cosine
from foresift.scorers.target_similarity import TargetSimilarity
from foresift.stages.selectors.gumbel_topk import GumbelTopK
from tests.corpora import make_corpus

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
POOL = [
    "The cat sat on the mat.", "", "the the the", "Two and two make four!", "x", None,
    "How many apples has Ann, if she had 3 and got 4 more?", "3 + 4 = 7", "naïve Straße 東京",
]  # fmt: skip
AIM = ["How many pears has Bob, if he had 5 and got 2 more?", "5 + 2 = 7", "Ann got 3 apples."]


def table(texts: Sequence[str | None]) -> pa.Table:
    rows = pa.table({"text": pa.array(list(texts), pa.string())})
    return rows.append_column("id", content_ids(rows))


def scored(
    part: TargetSimilarity, pool: Sequence[str | None], aims: dict[str, Any], out: Path
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    out.mkdir(parents=True, exist_ok=True)
    references = tuple(
        Reference(name, make_corpus(out / "of" / name, [texts]), weight)
        for name, (texts, weight) in aims.items()
    )
    rows = table(pool)
    half = len(pool) // 2
    facts = part.fit([rows.slice(0, half), rows.slice(half)], references, out)
    return {k: np.asarray(v) for k, v in part.score(rows, out).items()}, facts


def plain_grams(text: str | None, n: int, buckets: int) -> Counter[int]:
    """Buckets of one text, word by word."""
    words = [
        xxhash.xxh3_64_intdigest(w.encode())
        for w in re.findall(r"\w+|[^\w\s]+", (text or "").lower())
    ]
    found: Counter[int] = Counter()
    for start in range(len(words)):
        value = words[start]
        found[value % buckets] += 1
        for word in words[start + 1 : start + n]:
            value = ((value ^ (value >> 29)) * 0x9E3779B97F4A7C15 + word) % 2**64
            found[value % buckets] += 1
    return found


def plain_weights(
    pool: Sequence[str | None], aims: dict[str, Any], part: TargetSimilarity
) -> tuple[list[float], list[float]]:
    n, buckets, added = part.ngrams, part.buckets, part.smoothing * part.buckets

    def count(texts: Sequence[str | None]) -> Counter[int]:
        total: Counter[int] = Counter()
        for text in texts:
            total += plain_grams(text, n, buckets)
        return total

    def smooth(counts: Counter[int]) -> list[float]:
        size = sum(counts.values()) + added
        return [(counts[b] + added * prior[b]) / size for b in range(buckets)]

    raw, heavy = count(pool), sum(w for _, w in aims.values())
    prior = [raw[b] / sum(raw.values()) for b in range(buckets)]
    if part.prior == "uniform":
        prior = [1 / buckets] * buckets
    q, p = smooth(raw), [0.0] * buckets
    for texts, weight in aims.values():
        p = [m + weight / heavy * s for m, s in zip(p, smooth(count(texts)), strict=True)]
    weights, means = [], []
    for text in pool:
        grams = plain_grams(text, n, buckets)
        value = sum(c * (math.log(p[b] + 1e-8) - math.log(q[b] + 1e-8)) for b, c in grams.items())
        weights.append(value)
        means.append(value / sum(grams.values()) if grams else math.nan)
    return weights, means


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    ("buckets", "smoothing", "prior"),
    [(10_000, 0.0, "pool"), (37, 0.0, "uniform"), (101, 0.5, "uniform"), (101, 2.0, "pool")],
)
def test_weights_are_those_of_a_plain_count(
    n: int, buckets: int, smoothing: float, prior: Any, tmp_path: Path
) -> None:
    aims = {"sums": (AIM, 1.0), "cats": (["A cat on a mat.", "the cat"], 3.0)}
    part = TargetSimilarity(
        reference=["a"], ngrams=n, buckets=buckets, smoothing=smoothing, prior=prior
    )
    found, facts = scored(part, POOL, aims, tmp_path)
    weights, means = plain_weights(POOL, aims, part)
    np.testing.assert_allclose(found["log_weight"], weights, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(found["per_ngram"], means, rtol=1e-12, atol=1e-9)
    empty = [i for i, t in enumerate(POOL) if not t]
    assert np.flatnonzero(np.isnan(found["utility"])).tolist() == empty
    kept = ~np.isnan(found["utility"])
    np.testing.assert_array_equal(found["utility"][kept], found["log_weight"][kept])
    assert facts["documents"] == {"pool": len(POOL), "sums": 3, "cats": 2}
    every = {"pool": POOL, "sums": AIM, "cats": aims["cats"][0]}
    grams = {k: [sum(plain_grams(t, n, buckets).values()) for t in v] for k, v in every.items()}
    assert facts["ngrams"] == {name: sum(found) for name, found in grams.items()}
    assert facts["kl"] > 0


def test_by_hand(tmp_path: Path) -> None:
    """Unigrams: p = (a 1/2, b 1/2), q = (a 1/4, b 3/4); a is 2 times likelier, b 2/3 times."""
    part = TargetSimilarity(reference="aim", ngrams=1, smoothing=0)
    found, facts = scored(part, ["a b", "B b"], {"aim": (["a", "b"], 1.0)}, tmp_path)
    expected = [math.log(2) + math.log(2 / 3), 2 * math.log(2 / 3)]
    np.testing.assert_allclose(found["log_weight"], expected, atol=1e-6)
    np.testing.assert_allclose(found["per_ngram"], np.array(expected) / 2, atol=1e-6)
    assert facts["kl"] == pytest.approx(math.log(2) / 2 + math.log(2 / 3) / 2, abs=1e-6)
    assert facts["unseen"] == 0


@pytest.mark.parametrize("fields", [{"smoothing": 0}, {}, {"prior": "uniform"}])
def test_a_pool_that_is_the_target_has_zero_everywhere(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    part = TargetSimilarity(reference="aim", **fields)
    found, facts = scored(part, POOL, {"aim": (POOL, 2.0)}, tmp_path)
    np.testing.assert_allclose(found["log_weight"], np.zeros(len(POOL)), atol=1e-9)
    assert facts["kl"] == pytest.approx(0, abs=1e-12)


def test_grams_stay_in_their_document_and_know_the_order_of_words() -> None:
    apart = Grams(["a b", "c d"], 2, 10**9)
    together = Grams(["a b c d"], 2, 10**9)
    assert apart.lengths.tolist() == [3, 3]
    assert together.lengths.tolist() == [7]
    assert set(apart.orders[1][0]) < set(together.orders[1][0])
    assert set(Grams(["b a"], 2, 10**9).orders[1][0]).isdisjoint(apart.orders[1][0])
    assert Grams([], 2, 5).counts().tolist() == [0] * 5


@given(st.lists(st.text(alphabet="ab .", max_size=12), max_size=6), st.integers(1, 3))
def test_sums_of_texts_are_their_own(texts: list[str], n: int) -> None:
    ratio = np.random.default_rng(0).normal(size=17)
    whole = Grams(texts, n, 17)
    alone = [float(Grams([t], n, 17).sums(ratio)[0]) for t in texts]
    assert whole.sums(ratio).tolist() == alone
    assert whole.counts().sum() == whole.lengths.sum()


def test_short_documents_have_no_utility_but_their_weight(tmp_path: Path) -> None:
    part = TargetSimilarity(reference="aim", min_tokens=4)
    found, _ = scored(part, POOL, {"aim": (AIM, 1.0)}, tmp_path)
    words = [len(re.findall(r"\w+|[^\w\s]+", t or "")) for t in POOL]
    assert np.isnan(found["utility"]).tolist() == [w < 4 for w in words]
    assert not np.isnan(found["log_weight"]).any()


def test_few_ngrams_without_smoothing_are_warned_of(tmp_path: Path) -> None:
    plain = TargetSimilarity(reference="aim", smoothing=0)
    _, facts = scored(plain, POOL, {"aim": (AIM, 1.0)}, tmp_path / "a")
    (warning,) = facts["warnings"]
    assert f"{facts['ngrams']['aim']} n-grams of aim are few" in warning
    smooth = TargetSimilarity(reference="aim")
    assert "warnings" not in scored(smooth, POOL, {"aim": (AIM, 1.0)}, tmp_path / "b")[1]
    few = TargetSimilarity(reference="aim", smoothing=0, buckets=3)
    assert "warnings" not in scored(few, POOL, {"aim": (AIM, 1.0)}, tmp_path / "c")[1]


def test_what_a_small_target_never_has_costs_little(tmp_path: Path) -> None:
    """Of two strangers to the target the longer loses thousands of nats unsmoothed, else few."""
    pool = [*POOL, " ".join(f"odd{i}" for i in range(400)), "odd"]
    for smoothing, low, high in ((0.0, -math.inf, -1000.0), (1.0, -50.0, 0.0)):
        part = TargetSimilarity(reference="aim", smoothing=smoothing)
        found, _ = scored(part, pool, {"aim": (AIM, 1.0)}, tmp_path / str(smoothing))
        assert low < found["utility"][-2] < high


@pytest.mark.parametrize(
    ("texts", "told"), [(["one"], "a target set of 1 document that"), (["", " "], "has a word")]
)
def test_targets_that_say_nothing_are_errors(texts: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        scored(TargetSimilarity(reference="aim"), POOL, {"aim": (texts, 1.0)}, tmp_path)


@pytest.mark.parametrize(
    "fields",
    [{"buckets": 0}, {"ngrams": 0}, {"smoothing": -1.0}, {"smoothing": math.nan},
     {"min_tokens": -1}, {"k": 0}],
)  # fmt: skip
def test_bad_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        TargetSimilarity(reference="aim", **fields)


# -- nearest vectors ---------------------------------------------------------------------------


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 4, 50])
@pytest.mark.parametrize("m", [1, 3, 40])
def test_neighbours_are_those_of_a_plain_sort(k: int, m: int, monkeypatch: Any) -> None:
    rng = np.random.default_rng(m)
    rows, target = unit(rng.normal(size=(23, 6))), unit(rng.normal(size=(m, 6)))
    target[m // 2] = target[0]
    rows[5] = np.nan
    expected = np.sort(rows.astype(float) @ target.astype(float).T)[:, ::-1][:, :k].mean(axis=1)
    found = mean_cosine(rows, target, k)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    monkeypatch.setattr("foresift.scorers._nearest.BLOCK_BYTES", 4 * m * 2)
    np.testing.assert_array_equal(mean_cosine(rows, target, k), found)
    np.testing.assert_array_equal(mean_cosine(rows[::-1], target, k), found[::-1])


def vectors(rows: Any) -> pa.Array:
    return pa.array([None if r is None else list(map(float, r)) for r in rows],
                    pa.list_(pa.float32()))  # fmt: skip


def aimed(path: Path, rows: Any, texts: Sequence[str] = AIM) -> Reference:
    columns = {"e.v": [vectors(rows)]}
    return Reference(path.name, make_corpus(path, [texts[: len(rows)]], columns=columns), 1.0)


def near(rows: Any) -> pa.Table:
    texts = [f"document {i}" for i in range(len(rows))]
    return table(texts).append_column("e.v", vectors(rows))


def test_near_documents_by_hand(tmp_path: Path) -> None:
    part = TargetSimilarity(reference="aim", method="knn", embedding="e.v", k=2)
    assert part.needs == part.aim_needs == ("e.v",)
    aim = aimed(tmp_path / "aim", [(2, 0), (0, 3), None])
    facts = part.fit([], (aim,), tmp_path)
    found = part.score(near([(5, 0), (1, 1), None, (0, 0), (-1, 0)]), tmp_path)
    half = math.sqrt(0.5)
    expected = [0.5, half, math.nan, math.nan, -0.5]
    np.testing.assert_allclose(np.asarray(found["utility"]), expected, atol=1e-7)
    assert found["neighbour"] is found["utility"]
    assert found["log_weight"].null_count == found["per_ngram"].null_count == 5
    assert facts["documents"] == {"aim": 2}


def test_references_weigh_in_by_their_weights(tmp_path: Path) -> None:
    part = TargetSimilarity(reference=["a", "b"], method="knn", embedding="e.v", k=1)
    one = aimed(tmp_path / "a", [(1, 0), (1, 0)])
    two = aimed(tmp_path / "b", [(0, 1), (0, 1)])
    part.fit([], (one, Reference("b", two.corpus, 3.0)), tmp_path)
    found = part.score(near([(1, 0), (0, 1)]), tmp_path)["utility"]
    np.testing.assert_allclose(found, [0.25, 0.75])


def test_references_without_the_vectors_are_errors(tmp_path: Path) -> None:
    part = TargetSimilarity(reference="aim", method="knn")
    bare = Reference("aim", make_corpus(tmp_path / "bare", [AIM]))
    with pytest.raises(DataError, match=r"\{score: \[embedding\], data: aim\}"):
        part.fit([], (bare,), tmp_path)
    part = TargetSimilarity(reference="aim", method="knn", embedding="e.v")
    with pytest.raises(DataError, match="no document has a vector"):
        part.fit([], (aimed(tmp_path / "none", [None, (0, 0)]),), tmp_path)
    with pytest.raises(DataError, match="1 document that"):
        part.fit([], (aimed(tmp_path / "one", [(1, 0)]),), tmp_path)
    part.fit([], (aimed(tmp_path / "aim", [(1, 0), (0, 1)]),), tmp_path)
    with pytest.raises(DataError, match="3 numbers, where the reference has 2"):
        part.score(near([(1, 0, 0)]), tmp_path)


# -- a real target -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed() -> tuple[list[str], np.ndarray, list[str]]:
    """A pool of articles, instructions and questions; which are questions; other questions."""
    if not DATA.exists():
        pytest.skip("needs ../shared/data")
    questions = [json.loads(x)["question"] for x in _text("reasoning/gsm8k/train.jsonl.gz")]
    paragraphs = [x for x in _text("pretrain/wikitext-2/wiki.test.txt.gz") if len(x) > 80]
    alpaca = json.loads("\n".join(_text("instruct/alpaca/random_9k.json.gz")))
    instructions = [f"{row['instruction']} {row['input']}" for row in alpaca]
    pool = [*questions[300:1000], *paragraphs[:1500], *instructions[:1500]]
    return pool, np.arange(len(pool)) < 700, questions[:300]


def _text(name: str) -> list[str]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return file.read().strip("\n").split("\n")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("fields", [{}, {"prior": "uniform"}])
def test_held_out_questions_find_questions(
    mixed: tuple[list[str], np.ndarray, list[str]],
    temperature: float,
    fields: dict[str, Any],
    tmp_path: Path,
) -> None:
    pool, wanted, target = mixed
    part = TargetSimilarity(reference="aim", **fields)
    found, _ = scored(part, pool, {"aim": (target, 1.0)}, tmp_path)
    kept = _keep(pool, found["utility"], temperature)
    assert wanted[kept].mean() > 0.95
    p = shares(Grams(target, 2, 10_000).counts())
    anyone = _keep(pool, np.zeros(len(pool)), 1.0)
    far, near = (
        divergence(p, shares(Grams(np.array(pool)[k].tolist(), 2, 10_000).counts()))
        for k in (anyone, kept)
    )
    assert near < 0.8 * far


def test_without_smoothing_a_small_target_finds_what_is_short(
    mixed: tuple[list[str], np.ndarray, list[str]], tmp_path: Path
) -> None:
    """The trap that the default avoids: an unseen n-gram costs so much that length decides."""
    pool, wanted, target = mixed
    part = TargetSimilarity(reference="aim", smoothing=0)
    found, _ = scored(part, pool, {"aim": (target, 1.0)}, tmp_path)
    kept = _keep(pool, found["utility"], 0.0)
    sizes = np.array([len(t) for t in pool])
    assert wanted[kept].mean() < 0.7
    assert np.median(sizes[kept]) < 0.6 * np.median(sizes[wanted])


def _keep(pool: list[str], utility: np.ndarray, temperature: float) -> np.ndarray:
    rows = table(pool).append_column("u", pa.array(utility))
    selector = GumbelTopK(by="u", temperature=temperature)
    return selector.select(rows, Budget.parse("500 rows"), Rng(0)).kept
