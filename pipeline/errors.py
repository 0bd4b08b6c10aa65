"""Every error a user can meet, in one tree.

    ForesiftError                 anything that foresift itself can explain; the CLI exits with 2
    ├── RecipeError  (ValueError) the recipe is wrong: says where, what was received, what exists
    ├── DataError    (ValueError) the data is wrong: missing files, empty corpus, too many rejects
    ├── ModelError   (ValueError) a model or tokenizer does not load or does not fit
    └── StoreError   (OSError)    what lies on disk contradicts itself, or a worker keeps dying

Whatever is not in this tree is a defect of foresift and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ForesiftError(Exception):
    """Base of all errors that are the user's to mend. `where` names the place."""

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.where = where

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.where))


class RecipeError(ForesiftError, ValueError):
    """The recipe cannot be planned."""


class DataError(ForesiftError, ValueError):
    """The data cannot be used."""


class ModelError(ForesiftError, ValueError):
    """A model or a tokenizer cannot be used."""


class StoreError(ForesiftError, OSError):
    """The output directory contradicts itself, or the work there cannot be finished."""


def _rebuild(kind: type[ForesiftError], message: str, where: str) -> ForesiftError:
    return kind(message, where=where)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `'; did you mean X?'` and the known names, as the tail of a message."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(names) if names else 'none'})"
