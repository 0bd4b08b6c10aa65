"""Near-duplicates: guarantees on real text, exact Jaccard, invariances, restarts."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import RecipeError
from foresift.pipeline.nouns import Inputs, Job, Rng
from foresift.pipeline.store import StepDir
from foresift.stages.dedup.minhash import MinHash, write_signatures
from tests.corpora import Serial, drop, make_corpus, run, tree
from tests.stages.dedup.real import SETS
from tests.stages.dedup.test_text import loose_oracle, plain_oracle

LONG = "the quick brown fox jumps over the lazy dog while twelve small cats watch from the wall"


def decision(corpus: Corpus, out: Path) -> pa.Table:
    """The decision about every row, in corpus order."""
    return pa.concat_tables([pq.read_table(StepDir(out).shard(s.name)) for s in corpus.shards()])


def clusters(corpus: Corpus, out: Path) -> list[Any]:
    return decision(corpus, out)["cluster"].to_pylist()


def groups(corpus: Corpus, out: Path) -> set[frozenset[str]]:
    """Clusters as sets of texts."""
    texts = [t for s in corpus.shards() for t in pq.read_table(s.base)["text"].to_pylist()]
    found: dict[Any, set[str]] = {}
    for text, cluster in zip(texts, clusters(corpus, out), strict=True):
        found.setdefault(cluster, set()).add(text)
    return {frozenset(g) for g in found.values()}


def shingle_set(text: str, ngram: int = 5) -> set[tuple[str, ...]]:
    """The shingles of a document, from the definition."""
    parts = loose_oracle(text).split()
    return {tuple(parts[i : i + ngram]) for i in range(len(parts) - ngram + 1)}


def edited(seed: int, bases: int = 60, length: int = 120) -> list[str]:
    """Random documents, each with copies in which more and more words were replaced."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(bases):
        words = rng.integers(0, 5000, length)
        for changes in (0, 1, 2, 4, 12, 24):
            copy = words.copy()
            copy[rng.choice(length, changes, replace=False)] = rng.integers(5000, 9999, changes)
            texts.append(" ".join("".join(chr(97 + int(d)) for d in str(x)) for x in copy))
    return [texts[i] for i in rng.permutation(len(texts))]


def thirds(texts: list[str]) -> list[list[str]]:
    third = len(texts) // 3
    return [texts[:third], texts[third : 2 * third], texts[2 * third :]]


@pytest.mark.parametrize("threshold", [None, 0.8])
@pytest.mark.parametrize("name", SETS)
def test_every_exact_and_normalised_copy_is_found(
    name: str, threshold: float | None, tmp_path: Path, shared_data: Path
) -> None:
    texts = SETS[name][0](shared_data)
    corpus = make_corpus(tmp_path, thirds(texts))
    facts = run(MinHash(threshold=threshold), corpus, tmp_path / "out")
    found = clusters(corpus, tmp_path / "out")
    first: dict[str, Any] = {}
    copies = 0
    for text, cluster in zip(texts, found, strict=True):
        plain = re.sub(r"[\W_]+", " ", text.lower()).strip() or text
        copies += plain in first
        assert first.setdefault(plain, cluster) == cluster
    assert copies >= SETS[name][1]
    assert facts["dropped"] >= copies


@pytest.mark.parametrize(("threshold", "unlike"), [(0.7, 0.5), (None, 0.3)])
def test_direct_pairs_agree_with_exact_jaccard(
    threshold: float | None, unlike: float, tmp_path: Path
) -> None:
    texts = edited(0)
    sets = [shingle_set(text) for text in texts]
    corpus = make_corpus(tmp_path, thirds(texts))
    pairs = joined_pairs(MinHash(threshold=threshold), corpus, StepDir(tmp_path / "work"))
    similar = {
        (i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        for i, j in itertools.combinations(range(len(texts)), 2)
    }
    alike = {pair for pair, s in similar.items() if s >= 0.9}
    assert len(alike) >= 20
    assert alike <= pairs
    assert len([s for s in similar.values() if 0.2 < s <= unlike]) >= 20
    assert not {pair for pair in pairs if similar[pair] <= unlike}


def joined_pairs(part: MinHash, corpus: Corpus, out: StepDir) -> set[tuple[int, int]]:
    """Pairs joined directly; without a threshold, all pairs that share a bucket."""
    from foresift.pipeline.components import bucket_pairs
    from foresift.stages.dedup._clusters import Pool

    pool = Pool.open(corpus, "", "higher")
    signed, paired = StepDir(out.path / "s"), StepDir(out.path / "p")
    found = part._pairs(pool, signed, paired, Job(engine=Serial(), rng=Rng(0)))
    if part.threshold is None:
        shards = [pq.read_table(signed.shard(s.name)) for s in corpus.shards()]
        keys = pa.concat_tables(shards).drop_columns(["id"])
        bands = [np.asarray(keys[name]) for name in keys.column_names]
        everyone = np.concatenate([bucket_pairs(band, len(band)) for band in bands])
        assert {tuple(p) for p in found.tolist()} <= {tuple(p) for p in everyone.tolist()}
        found = everyone
    return {(a, b) for a, b in found.tolist()}


def test_known_normalisation_joins_and_others_stay(tmp_path: Path) -> None:
    price = "this fine old lamp costs {} dollars"
    texts = [price.format("12.50"), price.format("7").upper() + "!", LONG, "lamp " + LONG[:20]]
    corpus = make_corpus(tmp_path, [texts])
    run(MinHash(), corpus, tmp_path / "out")
    found = decision(corpus, tmp_path / "out")
    assert found["kept"].to_pylist() == [True, False, True, True]
    assert found["reason"].to_pylist()[1] == "near duplicate"
    assert found["cluster"].to_pylist()[1] == found["id"].to_pylist()[0]


def test_short_documents_join_only_their_copies(tmp_path: Path) -> None:
    texts = [
        "answer 42",
        "Answer: 42.",
        "answer 43",
        "42",
        "43",
        ":)",
        "!!!",
        ":)",
        "",
        "ok",
        "OK!",
    ]
    corpus = make_corpus(tmp_path, [texts[:5], texts[5:]])
    for part in (MinHash(), MinHash(threshold=0.9)):
        run(part, corpus, tmp_path / part.fingerprint)
        kept = decision(corpus, tmp_path / part.fingerprint)["kept"].to_pylist()
        assert [t for t, k in zip(texts, kept, strict=True) if not k] == [
            "Answer: 42.",
            ":)",
            "OK!",
        ]


def test_clusters_do_not_depend_on_rows_shards_or_batches(tmp_path: Path) -> None:
    texts = list(dict.fromkeys(edited(1, bases=25)))
    other = [texts[i] for i in np.random.default_rng(5).permutation(len(texts))]
    found = []
    for number, shards in enumerate(
        (thirds(texts), [other], [[t] for t in other[:40]] + [other[40:]])
    ):
        corpus = make_corpus(tmp_path / str(number), shards)
        run(MinHash(), corpus, tmp_path / f"out-{number}")
        found.append(groups(corpus, tmp_path / f"out-{number}"))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) < len(texts)


@pytest.mark.parametrize("threshold", [None, 0.7])
def test_order_of_work_changes_no_byte(threshold: float | None, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, thirds(edited(2, bases=20)))
    part = MinHash(threshold=threshold, keep="n_bytes")
    run(part, corpus, tmp_path / "a")
    run(part, corpus, tmp_path / "b", shuffle=3)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    names = set(tree(tmp_path / "a"))
    assert names == {"stage.json", *(f"{s.name}.parquet" for s in corpus.shards())}


class Dies:
    """A serial engine that raises after some items, as a killed driver would stop."""

    def __init__(self, items: int) -> None:
        self.left = items

    def map(self, task: Any, items: Any, resources: Any) -> Any:
        for position, item in enumerate(items):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield position, task(item)


def test_a_run_killed_anywhere_continues_to_the_same_bytes(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, thirds(edited(3, bases=10)))
    part = MinHash(threshold=0.7)
    run(part, corpus, tmp_path / "whole")
    items = 3 + 14 + 3
    for count in (1, 3, 10, 17, 18, 19):
        out = StepDir(tmp_path / f"killed-{count}")
        out.open()
        with pytest.raises(KeyboardInterrupt):
            part.run(Inputs(corpus=corpus), out, Job(engine=Dies(count), rng=Rng(0)))
        rest = Dies(items - count)  # no item is done again
        out.finish(part.run(Inputs(corpus=corpus), out, Job(engine=rest, rng=Rng(0))))
        assert rest.left == 0
        assert tree(out.path) == tree(tmp_path / "whole")


def test_work_files_half_deleted_by_a_kill_do_no_harm(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, thirds(edited(3, bases=5)))
    part = MinHash()
    run(part, corpus, tmp_path / "out")
    before = tree(tmp_path / "out")
    (tmp_path / "out" / "stage.json").unlink()
    write_signatures(part, tmp_path / "out" / "signatures", corpus.shards()[1])
    run(part, corpus, tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_the_best_by_a_column_is_kept(tmp_path: Path) -> None:
    texts = [LONG, LONG.upper(), LONG + "!", "something else altogether in five or more words"]
    nan = float("nan")
    columns = {"loss.nll": [[2.0, nan], [3.0, nan]], "x.gone": [[nan, nan], [nan, nan]]}
    corpus = make_corpus(tmp_path, [texts[:2], texts[2:]], columns=columns)
    for part, kept in (
        (MinHash(keep="loss.nll"), [False, False, True, True]),
        (MinHash(keep="loss.nll", prefer="lower"), [True, False, False, True]),
        (MinHash(keep="x.gone"), [True, False, False, True]),
        (MinHash(keep="n_bytes"), [False, False, True, True]),
    ):
        run(part, corpus, tmp_path / part.fingerprint)
        assert decision(corpus, tmp_path / part.fingerprint)["kept"].to_pylist() == kept


def test_rows_dropped_before_and_the_holdout_take_no_part(tmp_path: Path) -> None:
    corpus = make_corpus(
        tmp_path, [[LONG, LONG, LONG], [LONG]], holdout=[[True, False, False], [False]]
    )
    corpus = drop(corpus, tmp_path / "before", [[True, False, True], [True]])
    facts = run(MinHash(threshold=0.8), corpus, tmp_path / "out")
    found = decision(corpus, tmp_path / "out")
    assert found["kept"].to_pylist() == [False, False, True, False]
    assert found["cluster_size"].to_pylist() == [None, None, 2, 2]
    assert found["reason"].to_pylist() == [None, None, "best of cluster", "exact copy"]
    assert (facts["rows"], facts["kept"]) == (2, 1)


@pytest.mark.parametrize("shards", [[], [[]], [["only one"]], [[None]], [["", "!"]]])
@pytest.mark.parametrize("threshold", [None, 0.8])
def test_small_corpora(
    shards: list[list[str | None]], threshold: float | None, tmp_path: Path
) -> None:
    corpus = make_corpus(tmp_path, shards)
    facts = run(MinHash(threshold=threshold), corpus, tmp_path / "out")
    assert facts["rows"] == facts["kept"] == sum(map(len, shards))
    assert facts["largest_cluster"] == 0


def test_a_long_document_in_one_word_and_in_many(tmp_path: Path) -> None:
    blob = "Zm9yZXNpZnQ" * 200_000
    prose = (LONG + " ") * 20_000
    corpus = make_corpus(tmp_path, [[blob, prose, blob + "x", prose + "end"]])
    run(MinHash(threshold=0.8), corpus, tmp_path / "out")
    assert decision(corpus, tmp_path / "out")["kept"].to_pylist() == [True, True, False, False]


def test_large_text_and_conversations_are_read(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": LONG}], [{"role": "user", "content": LONG.title()}]]
    tables = [
        pa.table({"text": pa.array([LONG, LONG.title()], pa.large_string())}),
        pa.table({"messages": turns}),
        pa.table({"prompt": [LONG, LONG.title()], "response": ["yes", "Yes."]}),
    ]
    for number, table in enumerate(tables):
        corpus = make_corpus(tmp_path / str(number), [table])
        run(MinHash(), corpus, tmp_path / f"out-{number}")
        assert decision(corpus, tmp_path / f"out-{number}")["kept"].to_pylist() == [True, False]


@pytest.mark.parametrize(
    "fields",
    [{"bands": 0}, {"rows": 0}, {"ngram": -1}, {"threshold": 1.2}, {"threshold": 0}, {"seed": -1}],
)
def test_impossible_fields_are_refused_with_their_place(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(RecipeError, match=rf"steps\[0\].*{name}"):
        MinHash.parse(fields, "steps[0]")
    with pytest.raises(RecipeError, match="prefer"):
        MinHash.parse({"prefer": "best"}, "steps[0]")


def test_the_oracle_of_plain_forms_is_the_measured_one() -> None:
    assert plain_oracle("It's £5.") == "it s 5"
