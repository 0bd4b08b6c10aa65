"""Python as text: docstrings and comments of source files, and modules that hold texts.

prose             each docstring, and each block of comment lines that stand alone
python:site-packages       the folder of installed packages of the running interpreter
python:pydoc_data.topics   a module with a dict of texts: one document a key
"""

from __future__ import annotations

import ast
import importlib
import itertools
import sysconfig
import warnings
from collections.abc import Iterator

from foresift.pipeline.errors import DataError

SCHEME = "python:"
SITE = "python:site-packages"
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Unparsable(Exception):
    """A source file that is not Python of this version; `line` says where."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def site_packages() -> str:
    """The folder that `python:site-packages` means."""
    return sysconfig.get_paths()["purelib"]


def module_texts(path: str) -> dict[str, str]:
    """Key -> text of the first dict of texts that the module behind `python:<module>` holds."""
    name = path.removeprefix(SCHEME)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"cannot be imported ({error})", where=path) from error
    public = [value for key, value in vars(module).items() if not key.startswith("_")]
    for value in public:
        if isinstance(value, dict) and value and _all_strings([*value, *value.values()]):
            return dict(sorted(value.items()))
    raise DataError("holds no dict of texts", where=path)


def _all_strings(values: list[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def prose(source: str) -> list[tuple[int, str]]:
    """(line, text) of each docstring and comment block, in the order of lines."""
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except SyntaxError as error:
        raise Unparsable(f"not Python: {error.msg}", error.lineno or 1) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unparsable(f"not Python: {error}", 1) from error
    inside: set[int] = set()
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Constant, ast.JoinedStr)) and node.end_lineno != node.lineno:
            inside.update(range(node.lineno + 1, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            found.append((node.body[0].lineno, text))
    return sorted(found + list(_comments(source, inside)))


def _comments(source: str, inside: set[int]) -> Iterator[tuple[int, str]]:
    """Runs of lines that are comments alone; `inside` are lines within a string."""
    lines = enumerate(source.split("\n"), 1)
    bare = ((n, line.strip()) for n, line in lines)
    runs = itertools.groupby(bare, lambda p: p[1][:1] == "#" and p[0] not in inside)
    for comment, run in runs:
        block = list(run)
        if comment and block[0][1].startswith("#!"):
            block = block[1:]
        text = "\n".join(line.lstrip("#").removeprefix(":").strip() for _, line in block).strip()
        if comment and any(c.isalpha() for c in text):
            yield block[0][0], text
