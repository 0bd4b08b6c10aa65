"""Splits: disjoint, free of overlap, the same for any order of rows, and what each is made of."""

from __future__ import annotations

import math
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.rng import Rng
from foresift.stages.forget import _language as language
from foresift.stages.forget._rows import Row
from foresift.stages.forget.coreset import clusters, coreset, worst_case, worst_weights
from foresift.stages.forget.folder import NEIGHBOURS, RELEARN, DeletionPlan
from foresift.stages.forget.keywords import keywords
from foresift.stages.forget.neighbours import Best, Family, Links, Style, closest_families, forms
from foresift.stages.forget.probes import cloze, probes, subjects
from foresift.stages.forget.relearn import relearn
from foresift.stages.forget.shared import LEAST, LISTED, Facts
from tests.stages.forget.planning import SMALL, ids, make_run, plan, records, resolved, under

DISJOINT = ("forget", *NEIGHBOURS, "retain", "holdout")


def row(number: int, text: str, source: str = "a/b#1") -> Row:
    return Row(number.to_bytes(16, "big"), (0, 0, number), source, {"text": text}, "", 1)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> DeletionPlan:
    history = make_run(tmp_path_factory.mktemp("splits"))
    return plan(history, resolved(history, under("clinic-0/patient-0")))


def test_sets_are_disjoint_and_full(planned: DeletionPlan) -> None:
    found = [id_ for name in DISJOINT for id_ in ids(planned.rows(name))]
    assert len(found) == len(set(found))
    assert len(planned.rows("forget")) == 5
    for name, size in (("retain", SMALL.retain), ("neighbors_direct", SMALL.neighbours)):
        assert len(planned.rows(name)) == size
    shown = {id_ for name in DISJOINT[1:] for id_ in ids(planned.rows(name))}
    for name in RELEARN:
        assert set(ids(planned.rows(name))) <= shown
    assert set(ids(planned.rows("coreset"))) <= set(ids(planned.rows("forget")))


def test_neighbours_are_what_they_are_called(planned: DeletionPlan) -> None:
    direct = planned.rows("neighbors_direct")
    assert {r["relation"] for r in direct} == {"clinic-0"}
    assert all(r["source"].startswith("clinic-0/") for r in direct)
    linked = planned.rows("neighbors_indirect")
    assert linked[0]["relation"] == "Magda Lindqvist"
    assert all(r["relation"] in r["text"] or r["relation"] in r["text"].lower() for r in linked)
    assert {r["relation"] for r in planned.rows("neighbors_style")} == {"style"}


def test_forget_and_holdout_share_no_run_of_13_words(tmp_path: Path) -> None:
    rows = records()
    long = " ".join(f"word{n}" for n in range(20))
    for r in rows:
        r["text"] += f" {long.upper()}." if r["source"].startswith("clinic-1/") else ""
        r["text"] += f" ({long})" if r["source"].startswith("clinic-0/patient-0") else ""
    history = make_run(tmp_path, rows)
    done = plan(history, resolved(history, under("clinic-0/patient-0")))

    def runs(name: str) -> set[tuple[str, ...]]:
        words = [language.words(text.replace("(", " ")) for text in done.texts(name)]
        return {tuple(w[i : i + 13]) for w in words for i in range(len(w) - 12)}

    assert runs("forget")
    assert done.rows("holdout")
    assert not runs("forget") & runs("holdout")
    assert done.facts["holdout_overlapping"] > 0
    assert any("13 words" in warning for warning in done.facts["warnings"])


def test_sets_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = records()
    rows += [{**rows[0], "source": "copies/x#1"}, {**rows[150], "source": "copies/x#2"}]
    told = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        history = make_run(tmp_path / name, order)
        done = plan(history, resolved(history, lambda r: "Visit 0 " in r["text"]))
        names = [n for n in DISJOINT if n != "forget"]
        files = [*names, "forget", "shared", "coreset", "worst_case", "probes", *RELEARN]
        told.append({n: (done.path / f"{n}.jsonl").read_text() for n in files})
        assert done.facts["rows"] == 2
        assert done.lineage["duplicates_kept"].to_pylist() == [2]
    assert told[0] == told[1]


def test_a_seed_chooses_another_retain_but_not_what_is_forgotten(tmp_path: Path) -> None:
    history = make_run(tmp_path)
    found = resolved(history, under("clinic-0/patient-0"))
    one, other = (plan(history, found, out=tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert ids(one.rows("retain")) != ids(other.rows("retain"))
    for name in ("forget", "shared", "holdout"):
        assert ids(one.rows(name)) == ids(other.rows(name))


def test_only_rows_that_the_run_chose_are_kept(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    history = make_run(tmp_path)
    table = pq.read_table(history.run.plan)
    even = pa.array(np.arange(table.num_rows) % 2 == 0)
    chosen = pc.and_(table["kept"], even)
    place = table.column_names.index("kept")
    pq.write_table(table.set_column(place, "kept", chosen), history.run.plan)
    done = plan(history, resolved(history, under("clinic-0/patient-0")))
    allowed = {i.hex() for i in table.filter(chosen)["id"].to_pylist()}
    for name in (*NEIGHBOURS, "retain"):
        assert set(ids(done.rows(name))) <= allowed


def test_suspects_are_in_no_set(tmp_path: Path) -> None:
    import dataclasses

    history = make_run(tmp_path)
    found = resolved(history, under("clinic-0/patient-0"))
    suspects = resolved(history, under("clinic-0/patient-1"), reason="semantic").rows
    done = plan(history, dataclasses.replace(found, suspects=suspects))
    hidden = {i.hex() for i in suspects["id"].to_pylist()}
    assert done.facts["suspects"] == len(suspects) > 0
    assert not hidden & {i for name in DISJOINT for i in ids(done.rows(name))}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=400), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_best_holds_the_smallest_of_each_id(pairs: list[tuple[int, int]], size: int) -> None:
    best = Best(size)
    for number, key in pairs:
        best.add(bytes([number]), (key,), "", (0, 0, 0), "")
    least: dict[int, int] = {}
    for number, key in pairs:
        least[number] = min(key, least.get(number, key))
    expected = sorted((key, number) for number, key in least.items())[:size]
    assert [(f[0][0], i[0]) for i, f in best.ranked()] == expected


def test_best_forgets_what_cannot_be_among_the_smallest() -> None:
    best = Best(3)
    for number in np.random.default_rng(0).permutation(500).tolist():
        best.add(number.to_bytes(2, "big"), (number,), "", (0, 0, 0), "")
        assert len(best._held) <= 2 * 3 + 64
    assert [f[0][0] for _, f in best.ranked()] == [0, 1, 2]


def test_a_family_is_the_longest_head_in_common() -> None:
    family = Family(["web/site/page#10", "web/site/page#40", "books/one"])
    assert family.rank("web/site/page#12") == ((-3, 2), ("web", "site", "page"))
    assert family.rank("web/site/page#39") == ((-3, 1), ("web", "site", "page"))
    assert family.rank("web/site/other#12") == ((-2, 1 << 62), ("web", "site"))
    assert family.rank("books/two") == ((-1, 1 << 62), ("books",))
    assert family.rank("news/one") is None
    assert Family(["alone"]).rank("alone") is None
    near = [(b"1", ((0,), "", (0, 0, 0), "web/site")), (b"2", ((0,), "", (0, 0, 0), "web"))]
    other = (b"3", ((0,), "", (0, 0, 0), "books"))
    assert closest_families([*near, other]) == [near[0], other]


def test_links_go_by_rare_terms_only() -> None:
    links = Links(["Ada Lovelace wrote about engines in Turin"])
    texts = {1: "of Ada Lovelace", 2: "Turin in spring", 3: "engines", 4: "nothing"}
    texts |= dict.fromkeys(range(5, 40), "engines again")
    for number, text in texts.items():
        found = links.vocabulary & set(language.words(text))
        links.look(number.to_bytes(16, "big"), "s", (0, 0, number), text, found)
    ranked = links.ranked(1000, Rng(0))
    assert {int.from_bytes(i, "big"): f[3] for i, f in ranked} == {1: "Ada Lovelace", 2: "turin"}
    assert -ranked[0][1][0][0] == pytest.approx(2 * math.log(1001 / 2))  # by name and by word
    assert -ranked[1][1][0][0] == pytest.approx(math.log(1001 / 2))


def test_style_is_the_distance_to_the_nearest_form() -> None:
    rows = [row(1, "A short line.", "web/a#1"), row(2, "x = 1\ny = 2\n" * 40, "code/a#1")]
    style = Style(rows)
    texts = ["A short line.", "x = 1\ny = 2\n" * 40, "A short line."]
    found = style.distances(texts, ["web/z#9", "code/z", "elsewhere/z"])
    assert found.tolist() == [0.0, 0.0, 1.0]
    far = style.distances(["12 " * 900], ["web/z"])[0]
    assert far == pytest.approx(
        min(np.linalg.norm(forms(["12 " * 900])[0] - forms([r.text])[0]) for r in rows)
    )


WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath"]
SENTENCE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=7).map(
    lambda words: " ".join([words[0].capitalize(), *words[1:]]) + "."
)
TEXT = st.lists(SENTENCE, min_size=1, max_size=4).map(" ".join)


@given(
    st.lists(TEXT, min_size=1, max_size=4),
    st.lists(TEXT, max_size=6),
    st.sampled_from([0.6, 0.8, 1]),
)
@settings(max_examples=120, deadline=None)
def test_shared_facts_are_those_of_comparing_every_pair(
    forget: list[str], kept: list[str], share: float
) -> None:
    rows = [row(n, text) for n, text in enumerate(forget)]
    facts = Facts(rows, share)
    for number, text in enumerate(kept):
        found = facts.vocabulary & set(language.words(text))
        facts.look(bytes([number]), text, found)
    expected: dict[frozenset[str], list[str]] = {}
    for text in forget:
        for sentence in language.sentences(text):
            mine = frozenset(language.content_words(sentence))
            support = [
                bytes([number]).hex()
                for number, other in enumerate(kept)
                if any(
                    len(mine & set(language.content_words(s))) / len(mine) >= share - 1e-9
                    for s in language.sentences(other)
                )
            ]
            if len(mine) >= LEAST and support:
                expected[mine] = support[:LISTED]
    told = {
        frozenset(language.content_words(r["text"])): r["supporting_doc_ids"] for r in facts.rows()
    }
    assert told == expected


def test_shared_facts_of_a_plan(planned: DeletionPlan) -> None:
    shared = planned.rows("shared")
    assert "All visits of the clinic are recorded under protocol seven." in [
        r["text"] for r in shared
    ]
    gone = set(ids(planned.rows("forget")))
    assert all(r["id"] in gone and not gone & set(r["supporting_doc_ids"]) for r in shared)
    assert all(r["supporting_doc_ids"] for r in shared)


def test_worst_weights_known_answer() -> None:
    rows = [row(n, "") for n in range(3)]
    cluster = {r.id: n for n, r in enumerate(rows)}
    losses = {r.id: 1 / 3 - a for r, a in zip(rows, [0.9, 0.6, 0.1], strict=True)}
    weights = worst_weights(rows, cluster, losses, 1)
    np.testing.assert_allclose(weights, [0.65, 0.35, 0.0], atol=1e-12)
    halved = worst_weights(rows, cluster, {rows[1].id: 0.0}, 1)
    np.testing.assert_allclose(halved, [1 / 3] * 3, atol=1e-12)


def test_the_worst_case_has_most_copies_or_the_lowest_loss() -> None:
    rows = [row(n, f"text {n}") for n in range(4)]
    ids_ = [r.id for r in rows]
    cluster = clusters(ids_, [(ids_[3], ids_[2])])
    assert cluster == {ids_[0]: 0, ids_[1]: 1, ids_[2]: 2, ids_[3]: 2}
    copies = dict(zip(ids_, [1, 5, 3, 3], strict=True))
    worst = worst_case(rows, cluster, copies, 0.5)
    assert [(r["id"], r["copies"]) for r in worst] == [(ids_[2].hex(), 6), (ids_[3].hex(), 6)]
    losses = {ids_[0]: 2.0, ids_[1]: 0.1, ids_[2]: 3.0, ids_[3]: 2.0}
    worst = worst_case(rows, cluster, copies, 0.25, losses)
    assert ids(worst) == [ids_[1].hex()]
    assert worst[0]["w"] == 1.0


def test_a_cluster_is_joined_through_copies_of_copies() -> None:
    a, b, c, d = (bytes([n]) for n in range(4))
    assert clusters([a, b, c, d], [(c, b), (b, a), (d, d)]) == {a: 0, b: 0, c: 0, d: 1}


def test_a_coreset_takes_from_clusters_in_proportion() -> None:
    rows = [row(n, f"text {n}") for n in range(200)]
    cluster = {r.id: int(n >= 160) for n, r in enumerate(rows)}
    draws = {r.id: float(n * 37 % 200) for n, r in enumerate(rows)}
    chosen = coreset(rows, cluster, draws, 0.05, Rng(3))
    assert sum(r["weight"] for r in chosen) == 200
    assert len(chosen) == 10
    sizes = [cluster[bytes.fromhex(r["id"])] for r in chosen]
    assert sizes.count(0) == 8
    assert sizes.count(1) == 2
    assert len(coreset(rows[:3], cluster, draws, 0.05, Rng(3))) == 1


def test_relearning_takes_half_of_each_pool() -> None:
    names = (*NEIGHBOURS, "retain")
    sets = {n: [row(10 * k + i, "") for i in range(5)] for k, n in enumerate(names)}
    draws = {r.id: -float(r.place[2]) for rows in sets.values() for r in rows}
    found = relearn(sets, draws, 4)
    assert [r.place[2] for r in found["relearn_hi"]] == [14, 13, 12, 11]
    assert [r.place[2] for r in found["relearn_mid"]] == [24, 23, 22]
    assert [r.place[2] for r in found["relearn_lo"]] == [34, 33, 32]


def test_keywords_by_count_and_rarity() -> None:
    texts = ["The zebra saw Ada Lovelace and the zebra slept on 12/03.", "Water, water."]
    found = keywords(texts, {"water": 99, "zebra": 0}, 99, 3)
    first = found["words"][0]
    assert first == {"word": "zebra", "score": round(2 * math.log(100), 6), "count": 2, "df": 0}
    assert "water" not in [w["word"] for w in found["words"]]
    assert found["names"] == [{"text": "Ada Lovelace", "count": 1}]
    assert found["numbers"] == [{"text": "12/03", "count": 1}]
    by_model = keywords(texts, {}, 99, 1, {"slept": 3.0})
    assert by_model["words"][0]["word"] == "slept"


def spans(text: str, found: list[tuple[int, int]]) -> list[str]:
    return [text[a:b] for a, b in found]


def test_names_and_numbers() -> None:
    text = (
        "The Prime Minister, Anna de Groot, met Li Wei's team (IBM) in 1998"
        " and Don Quixote of La Mancha."
    )
    assert spans(text, language.names(text)) == [
        "Prime Minister", "Anna de Groot", "Li Wei", "Don Quixote of La Mancha",
    ]  # fmt: skip
    assert spans(text, language.numbers("in 1998 or 3.5 or 7")) != []
    assert spans("1998, 3.5, 7", language.numbers("1998, 3.5, 7")) == ["1998", "3.5"]
    assert language.names("Only one Word here, and None.") == []


def test_sentences() -> None:
    text = 'Dr. Smith left. "He ran!" Nobody saw it\nexcept 3.5 people. 我来了。你呢？'
    assert language.sentences(text) == [
        "Dr. Smith left.", '"He ran!"', "Nobody saw it", "except 3.5 people.", "我来了。", "你呢？",
    ]  # fmt: skip


@given(st.text(alphabet=string.ascii_letters + " \n\t.é", max_size=80))
@settings(max_examples=100, deadline=None)
def test_halves_lose_nothing_but_the_space_between(text: str) -> None:
    head, tail = language.halves(text)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert (head + " " + tail).split() == text.split()
    assert len(head.split()) - len(tail.split()) in (0, 1, -1)


@given(st.lists(st.sampled_from("ab"), max_size=40), st.lists(st.sampled_from("ab"), max_size=40))
@settings(max_examples=80, deadline=None)
def test_runs_of_words_are_shared_where_they_are_equal(one: list[str], other: list[str]) -> None:
    def tuples(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + 4]) for i in range(len(words) - 3)}

    mine, theirs = (language.grams(", ".join(w).upper(), 4) for w in (one, other))
    assert np.isin(mine, theirs).any() == bool(tuples(one) & tuples(other))


def test_probes_ask_for_what_stands_in_the_text() -> None:
    rows = [
        row(1, "In 1987 Ada Stone moved to Ghent. She paid 40 francs there each month."),
        Row(bytes(16), (0, 0, 0), "a", {"question": "Who?", "answer": "Bo Lind"}, "", 1),
    ]
    found = probes(rows, subjects(rows, {}), Rng(0), 3)
    plain = [p for p in found if p["level"] != "3"]
    assert [(p["query"], p["answer"]) for p in plain] == [
        ("In ___ Ada Stone moved to Ghent.", "1987"),
        ("She paid ___ francs there each month.", "40"),
        ("Who?", "Bo Lind"),
    ]
    assert [p["subject"] for p in plain] == ["Ada Stone", "Ada Stone", "Bo Lind"]
    choice = next(p for p in found if p["type"] == "multiple_choice")
    assert {"1987", "40"} <= set(choice["query"].replace("(", " ").split())
    assert list(cloze("Ada Stone saw Ada Stone yesterday")) == []
    assert list(cloze("In 1987 there")) == []
