"""The whole page: well-formed, self-contained, nothing unescaped, for runs of every kind."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from foresift.pipeline.run import Run
from foresift.stages.report import examples as texts
from foresift.stages.report import page
from foresift.stages.report.contents import Contents
from foresift.stages.report.mask import MASK
from foresift.stages.report.sources import top
from tests.runs import go
from tests.stages.report.conftest import LETTERS, TOP, WRONG, recipe, write_lines

VOID = {"meta", "br", "img", "hr", "input", "link", "col"}


class Balance(HTMLParser):
    """Notes tags that do not match, and every tag and attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(html: str) -> Balance:
    """A page that is balanced, loads nothing and runs nothing but its own script."""
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert not parser.faults
    assert not parser.open
    sections = re.findall(r'<section id="(\w+)"', html)
    assert re.findall(r'<a href="#(\w+)">', html) == sections, "links in the order of the page"
    assert not parser.tags & {"img", "link", "iframe", "object", "i", "b"}
    own = html.count('<script type="application/json" id="data">')
    assert html.count("<script") == html.count("</script>") == 1 + own
    code = html[html.rindex("<script>") + len("<script>") : html.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    for name, value in parser.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "data", "xlink:href"):
            assert (value or "").startswith("#")
    style = html[html.index("<style>") : html.rindex("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    ids = [v for n, v in parser.attributes if n == "id"]
    assert len(ids) == len(set(ids))
    links = {(v or "")[1:] for n, v in parser.attributes if n == "href"}
    assert links <= set(ids)
    assert set(re.findall('<section id="([^"]+)"', html)) <= links
    labelled = {v for n, v in parser.attributes if n in ("for", "aria-describedby")}
    assert labelled <= set(ids)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    return parser


def test_nasty_text_neither_breaks_the_page_nor_runs(nasty: Run) -> None:
    path = page.write(nasty)
    assert path == nasty.path / "report" / "index.html"
    html = path.read_text(encoding="utf-8")
    text = "".join(check(html).text)
    assert "&lt;b&gt;nasty&lt;b&gt;" in html
    for section in ("Funnel", "Scores", "Sources", "Rejects", "Duplicates", "Cost", "Reproduce"):
        assert section in text
    assert "Evidence" not in text
    assert "No model was compared." not in text, "none was trained"
    assert "estimated as a quarter of the bytes" in text
    assert len(html) < 1_000_000


def test_no_personal_data_in_any_text(nasty: Run) -> None:
    html = page.render(Contents.open(nasty.path))
    for secret in ("bob@example", "carol@example", "555-2671", "10.20.30.40", "4111111111111111"):
        assert secret not in html
    assert MASK in html


def test_no_personal_data_in_any_source(tmp_path: Path) -> None:
    rows = [{"text": f"same {'w ' * (n % 2)}", "at": f"bob@example.org/{n}"} for n in range(8)]
    steps = [{"dedup": "exact"}, LETTERS, WRONG, {"order": "shuffle"}]
    data = write_lines(tmp_path / "d.jsonl", rows)
    path = page.write(go(recipe(data, steps, source="at", holdout=0), tmp_path / "out"))
    for each in (path, path.with_name("report.json")):
        text = each.read_text(encoding="utf-8")
        assert "bob@example" not in text
        assert f"{MASK}/" in text or "\\u25ae/" in text


def test_the_first_component_of_an_address_is_its_host() -> None:
    paths = ["https://a.org/x/1", "https://b.org#x", "s3://c/d", "wiki/x", "code#y", "", None]
    assert top(pa.chunked_array([paths])).to_pylist() == [
        "https://a.org", "https://b.org", "s3://c", "wiki", "code", "(no source)", "(no source)",
    ]  # fmt: skip


def test_what_was_measured_alone_says_that_nothing_was_taken(tmp_path: Path) -> None:
    half = "2 (50.0 %) repeat another: without them 2 remain, with 50.0 % of the tokens."
    for name, rows, said in (
        ("some", "aaab", f"4 documents measured; the files stay as they are. {half}"),
        ("none", "a", "1 document measured; the files stay as they are. None repeats another."),
    ):
        data = write_lines(tmp_path / f"{name}.jsonl", [{"text": t} for t in rows])
        run = go(recipe(data, [{"dedup": "exact"}, LETTERS], holdout=0), tmp_path / name)
        text = "".join(check(page.render(Contents.open(run.path))).text)
        assert said in " ".join(text.split())
        assert "were kept" not in text
        assert "holdout left out" not in text


def test_the_page_is_the_same_each_time_and_leaves_no_other_file(nasty: Run) -> None:
    first = page.write(nasty).read_bytes()
    second = page.write(nasty).read_bytes()
    assert first == second
    assert sorted(os.listdir(nasty.path / "report")) == ["index.html", "report.json"]


def test_the_unfinished_manifest_is_read_too(nasty: Run, tmp_path: Path) -> None:
    moved = tmp_path / nasty.path.name
    shutil.copytree(nasty.path, moved)
    shutil.rmtree(moved / "report", ignore_errors=True)
    (moved / "manifest.json").rename(moved / ".manifest.json")
    assert page.write(Run(moved)).exists()


def test_the_funnel_adds_up(contents: Contents) -> None:
    lines = page.funnel(contents.manifest["accounts"])
    assert lines[0].value == sum(line.value for line in lines[1:]) == 219
    assert sum(line.share for line in lines[1:]) == pytest.approx(1)


def test_many_reasons_are_summed_up() -> None:
    reasons = {f"reason {n}": n + 1 for n in range(50)} | {"holdout": 3}
    rows = sum(reasons.values())
    accounts = {"rows_in": rows + 5, "rejected": 1, "dropped_by_reason": reasons}
    lines = page.funnel(accounts | {"kept_by_round": {"10": 1, "2": 3}})
    assert lines[0].value == sum(line.value for line in lines[1:])
    assert [line.name for line in lines[-3:]] == [
        "30 further reasons", "kept in round 2", "kept in round 10",
    ]  # fmt: skip


def test_nothing_kept(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "d.jsonl", [{"text": f"document {n}"} for n in range(30)])
    steps = [LETTERS, {"select": "where", "keep": "letters.count > 1000"}]
    html = page.write(go(recipe(data, steps), tmp_path / "out")).read_text(encoding="utf-8")
    assert "Nothing was kept: 30 rows went in" in "".join(check(html).text)


def test_no_steps_at_all(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "d.jsonl", [{"text": f"document {n}"} for n in range(30)])
    check(page.write(go(recipe(data, []), tmp_path / "out")).read_text(encoding="utf-8"))


def test_one_document(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "d.jsonl", [{"text": "only one"}])
    run = go(recipe(data, [LETTERS, WRONG], holdout=0), tmp_path / "out")
    html = page.write(run).read_text(encoding="utf-8")
    assert "only one" in "".join(check(html).text)


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        (
            {"messages": "turns"},
            lambda n: {
                "turns": [
                    {"role": "user", "content": f"<em>ask {n}</em>"},
                    {"role": "assistant", "content": "answer 10.9.8.7"},
                ]
            },
        ),
        (
            {"prompt": "q", "response": "a"},
            lambda n: {"q": f"<em>ask {n}</em>", "a": "answer 10.9.8.7"},
        ),
    ],
)
def test_conversations_and_pairs(tmp_path: Path, fields: dict[str, str], row: Any) -> None:
    data = write_lines(tmp_path / "d.jsonl", [row(n) for n in range(40)])
    run = go(recipe(data, [LETTERS, TOP, {"order": "shuffle"}], **fields), tmp_path / "out")
    html = page.write(run).read_text(encoding="utf-8")
    assert f"answer {MASK}" in "".join(check(html).text)


def test_text_that_cannot_be_read_is_said_and_the_page_is_written(
    nasty: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("the file is <gone>")

    monkeypatch.setattr(texts, "rows_in_plan_order", broken)
    html = page.render(Contents.open(nasty.path))
    check(html)
    assert "text could not be read" in html
    assert "the file is &lt;gone&gt;" in html


def test_evidence_enters_the_page(nasty: Run, tmp_path: Path) -> None:
    path = tmp_path / nasty.path.name
    shutil.copytree(nasty.path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    for arm, loss in (("selected", 3.2), ("random", 3.5), ("length_matched_random", None)):
        found = {"line": arm, "repeat": 0, "round": 1, "token_mean": loss, "token_mean_se": None}
        found |= {"documents": 12, "tokens": 99, "trained_tokens": 1000}
        manifest["evaluations"].append(found)
    (path / "manifest.json").write_text(json.dumps(manifest))
    html = page.write(Run(path)).read_text(encoding="utf-8")
    text = "".join(check(html).text)
    assert "has a held-out loss of 3.200 nats/token; random text 3.500" in text


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0 %"), (0.0004, "< 0.1 %"), (0.1234, "12.3 %"), (1, "100.0 %")]
)
def test_percent(value: float, shown: str) -> None:
    assert page.percent(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.04, "0.0 s"), (31.6, "32 s"), (150, "2 min 30 s"), (3725, "1 h 02 min")],
)
def test_seconds(value: float, shown: str) -> None:
    assert page.seconds(value) == shown


def test_warnings_of_steps_stand_at_the_top_escaped(nasty: Run) -> None:
    contents = Contents.open(nasty.path)
    assert 'class="warnings"' not in page.render(contents)
    step = contents.manifest["steps"][2]
    step["facts"]["warnings"] = ["column <b>x</b> is constant"]
    html = page.render(contents)
    check(html)
    told = f"<strong>{step['label']}</strong> column &lt;b&gt;x&lt;/b&gt; is constant"
    assert told in html[: html.index('id="funnel"')]
