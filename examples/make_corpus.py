"""Make the example corpus from text that every CPython has: docstrings and the language reference.

    python examples/make_corpus.py examples

    corpus/docs-*.jsonl.gz   docstrings: text, source, kind (module, class or function)
    instruct.jsonl.gz        prompt: the signature of a function; response: its docstring
    reference.jsonl          paragraphs of the Python language reference

The same Python version gives the same rows in the same order; another version gives other texts.
The committed files were made with CPython 3.11. Their licence is in `examples/LICENSE.txt`.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import sysconfig
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

Row = dict[str, Any]
Function = (ast.FunctionDef, ast.AsyncFunctionDef)

#: modules and packages of the standard library that are read
MODULES = [
    "argparse", "asyncio", "collections", "concurrent", "configparser", "contextlib", "dataclasses",
    "difflib", "email", "enum", "fractions", "http", "importlib", "inspect", "ipaddress", "json",
    "logging", "os", "pathlib", "random", "shutil", "statistics", "subprocess", "tempfile",
    "textwrap", "threading", "traceback", "typing", "urllib",
]  # fmt: skip
#: characters that a docstring, and a paragraph of the reference, must have
SHORTEST, SHORTEST_PARAGRAPH = 120, 200
#: of all functions, one in so many becomes a pair
PAIRS = 3
#: characters of the reference
REFERENCE = 120_000
FILES = 2


def sources() -> Iterator[tuple[str, ast.Module]]:
    """(dotted module name, syntax tree) of every module read, by name."""
    root = Path(sysconfig.get_path("stdlib"))
    for name in MODULES:
        folder = root / name
        files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
        for file in sorted(files):
            parts = file.relative_to(root).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__"), ast.parse(file.read_text("utf-8"))


def documented(module: str, tree: ast.Module) -> Iterator[tuple[str, str, ast.AST, str]]:
    """(kind, dotted name, node, docstring) of everything that has a docstring, in file order."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, str, ast.AST, str]]:
        if isinstance(node, (ast.Module, ast.ClassDef, *Function)):
            text = ast.get_docstring(node)
            if text and len(text) >= SHORTEST:
                kind = "function" if isinstance(node, Function) else type(node).__name__
                yield kind.removesuffix("Def").lower(), name, node, text
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, *Function)):
                yield from walk(child, f"{name}.{child.name}")

    yield from walk(tree, module)


def docstrings() -> Iterator[Row]:
    """Every docstring; its source is a key path of the module and the name in it."""
    for module, tree in sources():
        package = module.partition(".")[0]
        for kind, name, _, text in documented(module, tree):
            yield {"text": text, "source": f"{package}/{module}#{name}", "kind": kind}


def pairs() -> Iterator[Row]:
    """Functions as prompt and response."""
    for module, tree in sources():
        for _, name, node, text in documented(module, tree):
            if isinstance(node, Function):
                head = f"def {name}({ast.unparse(node.args)})"
                yield {"prompt": f"Describe this function.\n{head}", "response": text}


def reference() -> Iterator[Row]:
    """Paragraphs of the language reference, topic by topic, up to REFERENCE characters."""
    left = REFERENCE
    for topic in sorted(topics):
        for number, text in enumerate(topics[topic].split("\n\n")):
            if SHORTEST_PARAGRAPH <= len(text) <= left:
                left -= len(text)
                yield {"text": text, "source": f"{topic}#{number}"}


def lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(folder: Path) -> None:
    """Write the four files; the compressed ones carry no time and no name."""
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    rows = list(docstrings())
    for number in range(FILES):
        packed = gzip.compress(lines(rows[number::FILES]), 9, mtime=0)
        (folder / "corpus" / f"docs-{number}.jsonl.gz").write_bytes(packed)
    (folder / "instruct.jsonl.gz").write_bytes(
        gzip.compress(lines(islice(pairs(), 0, None, PAIRS)), 9, mtime=0)
    )
    (folder / "reference.jsonl").write_bytes(lines(reference()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where corpus/ and the other files go")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
