"""Trees of text and code: documents by file, paragraph, line, docstring and comment."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.parts import find
from foresift.stages.readers import _python
from tests.corpora import Serial

Reader = Callable[..., Any]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    files = {
        "a.txt": "first\nsecond\n\n \n\nthird\r\nfourth",
        "docs/b.md": "# Title\n\nBody\u2028more",
        "docs/tests/c.md": "a test",
        "pkg/empty.py": "",
        "pkg/code.py": CODE,
        "image.png": "no text",
        "LICENSE": "Do as you like.",
        ".git/config.txt": "hidden",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    return root


CODE = '''#!/usr/bin/env python
# A header comment
# in two lines.

"""Module doc."""
x = 1  # not a comment block
#########
y = """
# not a comment
"""


class A:
    """Class doc.

    Second paragraph.
    """

    #: what `b` is
    b = "\\d"

    def f(self):
        "f doc"
        # inside
        return f"""{self}
# no comment either
"""
'''


def documents(got: Any) -> dict[str, str]:
    table = got.table()
    return dict(zip(table["source"].to_pylist(), table["text"].to_pylist(), strict=True))


def test_a_file_is_a_document(read: Reader, tree: Path) -> None:
    got = read("text", paths=[str(tree)], exclude=["**/tests/**"])
    assert documents(got) == {
        "LICENSE": "Do as you like.",
        "a.txt": "first\nsecond\n\n \n\nthird\r\nfourth",
        "docs/b.md": "# Title\n\nBody\u2028more",
        "pkg/code.py": CODE,
    }
    assert set(got.facts["sources"]) == {"LICENSE", "a.txt", "docs", "pkg"}


def test_selection_of_files(read: Reader, tree: Path) -> None:
    def names(**fields: Any) -> list[str]:
        return sorted(documents(read("text", **fields)))

    assert names(paths=[str(tree)], suffixes=[".md"]) == ["docs/b.md", "docs/tests/c.md"]
    assert names(paths=[str(tree)], exclude=["docs/*", "*.py"]) == ["LICENSE", "a.txt"]
    assert names(paths=[str(tree / "image.png")]) == ["image.png"]
    assert "image.png" in names(paths=[str(tree)], suffixes=[])
    assert names(paths=[str(tree)], suffixes=[".md"], max_bytes=10) == ["docs/tests/c.md"]
    with pytest.raises(DataError, match="matches no file"):
        read("text", paths=[str(tree)], exclude=["*"])


def test_paragraphs_and_lines(read: Reader, tree: Path) -> None:
    path = [str(tree / "a.txt")]
    assert documents(read("text", paths=path, split="paragraph")) == {
        "a.txt#1": "first\nsecond",
        "a.txt#6": "third\nfourth",
    }
    lines = {"a.txt#1": "first", "a.txt#2": "second", "a.txt#6": "third", "a.txt#7": "fourth"}
    assert documents(read("text", paths=path, split="line")) == lines
    packed = tree / "z.txt.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + (tree / "a.txt").read_bytes()))
    got = documents(read("text", paths=[str(packed)], split="line"))
    assert list(got.values()) == list(lines.values())


def test_bytes_that_are_no_utf8(read: Reader, tree: Path) -> None:
    (tree / "bad.txt").write_bytes(b"good\n\nb\xffd\n\nfine")
    got = read("text", paths=[str(tree / "*.txt")], max_rejects=0.5)
    assert [(r["file"], r["line"], r["reason"]) for r in got.rejects()] == [
        ("bad.txt", 3, "not UTF-8")
    ]
    got = read("text", paths=[str(tree / "bad.txt")], split="paragraph", max_rejects=0.5)
    assert documents(got) == {"bad.txt#1": "good", "bad.txt#5": "fine"}
    assert [(r["file"], r["line"]) for r in got.rejects()] == [("bad.txt", 3)]


PROSE = {
    "code.py#2": "A header comment\nin two lines.",
    "code.py#5": "Module doc.",
    "code.py#14": "Class doc.\n\nSecond paragraph.",
    "code.py#19": "what `b` is",
    "code.py#23": "f doc",
    "code.py#24": "inside",
}


def test_docstrings_and_comments(read: Reader, tree: Path) -> None:
    path = [str(tree / "pkg" / "code.py")]
    assert documents(read("text", paths=path, python="prose")) == PROSE
    both = documents(read("text", paths=path, python="both"))
    assert both == {**PROSE, "code.py": CODE}
    windows = tree / "pkg" / "crlf.py"
    windows.write_bytes(CODE.replace("\n", "\r\n").encode())
    got = documents(read("text", paths=[str(windows)], python="prose"))
    assert list(got.values()) == list(PROSE.values())


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ('"""ok"""\nprint "old"\n', 2),
        ("x = (\n", 1),
        ("x = '\0'\n", 1),
        ('def f():\n    "\\ud800"\n', 2),
        ("-" * 100_000 + "1", 1),
    ],
)
def test_what_is_no_python_is_rejected(read: Reader, tree: Path, source: str, line: int) -> None:
    (tree / "pkg" / "old.py").write_text(source)
    got = read("text", paths=[str(tree / "pkg")], python="prose", max_rejects=0.5)
    (reject,) = got.rejects()
    assert (reject["file"], reject["line"]) == ("old.py", line)
    assert documents(got) == PROSE


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(alphabet="ab \n\r\t\u2028\x0c\x85é", max_size=30), max_size=5))
def test_paragraphs_lose_nothing_but_blank_lines(
    read: Reader, tmp_path: Path, parts: list[str]
) -> None:
    text = "start\n" + "\n\n".join(parts)
    (tmp_path / "x.txt").write_bytes(text.encode())
    got = read("text", paths=[str(tmp_path / "x.txt")], split="line", max_rejects=1.0)
    kept = [
        line.rstrip("\r") for line in text.split("\n") if line.encode().strip() and line.strip()
    ]
    assert list(documents(got).values()) == kept


def test_the_language_reference_is_on_every_machine(read: Reader) -> None:
    import pydoc_data.topics

    got = read("text", paths=["python:pydoc_data.topics"])
    expected = {f"pydoc_data.topics#{k}": v for k, v in pydoc_data.topics.topics.items()}
    assert documents(got) == expected
    assert list(got.facts["sources"]) == ["pydoc_data.topics"]
    reader = find("read", "text").parse({"paths": ["python:pydoc_data.topics"]}, "data")
    ((name, digest),) = reader.inputs()  # type: ignore[attr-defined]
    assert name == "python:pydoc_data.topics"
    assert len(digest) == 32
    for module, message in (("no_such_module", "cannot be imported"), ("string", "no dict")):
        with pytest.raises(DataError, match=message):
            read("text", paths=[f"python:{module}"])


def test_installed_packages(read: Reader, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_python.sysconfig, "get_paths", lambda: {"purelib": str(tree)})
    whole = documents(read("text", paths=["python:site-packages"], python="prose"))
    assert whole["pkg/code.py#5"] == "Module doc."
    part = documents(read("text", paths=["python:site-packages/pkg"], python="prose"))
    assert part == {k: v for k, v in whole.items() if k.startswith("pkg/")}
    reader = find("read", "text").parse({"paths": ["python:site-packages"]}, "data")
    ((name, before),) = reader.inputs()  # type: ignore[attr-defined]
    assert name == "python:site-packages"
    (tree / "a.txt").write_text("changed")
    assert reader.inputs() != [(name, before)]  # type: ignore[attr-defined]


def test_real_packages_can_be_read(read: Reader) -> None:
    fields = {"paths": ["python:site-packages/fsspec"], "python": "prose"}
    one = read("text", **fields)
    assert one.facts["rows"] > 500
    assert one.facts["rejected"] == 0
    assert one.bytes() == read("text", **fields, engine=Serial(1)).bytes()
