"""M1 and M2 at their edges, ratios of texts that repeat, signs with their places."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import findings
from foresift.scorers.junk import Junk, verdict, zlib_ratio

PROSE = (
    "The harbour was built in the last century and has been repaired twice since then. Most of the "
    "ships that call here carry grain, and in the autumn the quay is crowded with carts and "
    "children. Nobody remembers who planted the row of lime trees behind the customs house, but "
    "the older people like to sit there in the evening and to argue about the weather of years "
    "that are long gone."
)


def run(texts: list[str], **columns: list[Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "likes" in columns:
        fields = {"engagement": "likes", "length": "tokens"}
    if "said" in columns:
        fields["quality"] = "said"
    return dict(Junk(**fields).score(pa.table({"text": texts, **columns})))


def test_m1_is_popular_and_short_against_unpopular_and_long() -> None:
    posts = [(501, 29), (500, 29), (501, 30), (500, 101), (0, 100), (1000, 150)]
    likes, tokens = map(list, zip(*posts, strict=True))
    found = run(["a"] * 6, likes=likes, tokens=tokens)
    assert found["m1"] == [True, None, None, False, None, None]
    reasons = [{f.reason for f in row} for row in findings(found["findings"])]
    assert ["m1" in r for r in reasons] == [True] + [False] * 5
    assert run(["a", "b"], likes=[None, 900], tokens=[5, None])["m1"] == [None, None]
    assert run(["a"])["m1"] == [None]
    assert run(["a"], likes=["900"], tokens=["5"])["m1"] == [True]
    with pytest.raises(DataError, match="likes: engagement and length are numbers"):
        run(["a"], likes=["many"], tokens=[5])


@pytest.mark.parametrize(
    ("value", "junk"),
    [
        ("JUNK", True), ("HIGH-QUALITY", False), ("This is high-quality content.", False),
        ("High quality", False), ("label: junk", True), ("I cannot say", None), ("", None),
        (None, None), ("JUNK or HIGH-QUALITY?", None), ("junkyard", None), (4.9, True),
        (5.0, False), (float("nan"), None), (True, True), (0, True),
    ],
)  # fmt: skip
def test_m2_reads_answers_and_never_guesses(value: Any, junk: bool | None) -> None:
    assert verdict(value, 5.0) is junk
    if not isinstance(value, float):
        assert run(["a"], said=[value])["m2"] == [junk]


def test_repetition_and_noise_have_their_cut_points() -> None:
    rng = np.random.default_rng(0)
    signs = [chr(c) for c in range(33, 127) if chr(c) not in "!?#@"]
    random = "".join(rng.choice(signs, 2000))
    found = run([PROSE * 2, "again and again " * 100, random, "again again " * 9, ""])
    ratio = found["zlib_ratio"]
    assert ratio[1] < 0.05
    assert ratio[2] > 0.8
    assert np.isnan(ratio[4])
    reasons = [[f.reason for f in row] for row in findings(found["findings"])]
    assert reasons[1] == ["repetitive"]
    assert reasons[2] == ["brief", "incompressible"]
    assert reasons[3] == ["brief"]  # too short for a ratio to say anything
    assert found["junk"][[1, 2, 4]].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(found["utility"], -found["junk"])


@given(st.text(max_size=400))
def test_the_ratio_is_that_of_zlib_without_its_frame(text: str) -> None:
    raw = text.encode()
    if raw:
        assert zlib_ratio(text) == (len(zlib.compress(raw, 6)) - 6) / len(raw)


def test_signs_have_places_and_are_counted_in_a_hundred_words() -> None:
    text = f"{PROSE} You won't believe it!!! Click here, LOL #wow"
    found = run([text, PROSE])
    told, clean = findings(found["findings"])
    assert [(f.reason, text[f.start : f.stop]) for f in told] == [
        ("bait", "You won't believe"), ("shouting", "!!!"), ("promotion", "Click here"),
        ("small_talk", "LOL"),
    ]  # fmt: skip
    assert clean == []
    assert found["cues"][0] == 4  # less than a hundred words count as that
    assert found["junk"][0] == pytest.approx(1 - np.exp(-4 / 8))
    assert found["junk"][1] == 0
    assert run([text + " " + PROSE * 3])["cues"][0] < 2


def test_brevity_falls_in_a_line() -> None:
    found = run(["word " * k for k in (1, 15, 30, 60)])
    assert found["junk"].tolist() == pytest.approx([29 / 30, 0.5, 0, 0])
    assert Junk(brief=0).score(pa.table({"text": ["word"]}))["junk"].tolist() == [0]


def test_fields_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="short"):
        Junk(short=200)
    with pytest.raises(ValueError, match="brief"):
        Junk(brief=-1)
    assert Junk().needs == ()
    assert Junk(engagement="likes", quality="judge.utility").needs == (
        "likes", "n_tokens", "judge.utility",
    )  # fmt: skip
