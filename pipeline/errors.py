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
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

#: what the operating system says of a disk that is full, read-only, broken or not ours
_DISK = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES", "EPERM")
_DISK_ERRNOS = {getattr(errno, name) for name in _DISK if hasattr(errno, name)}


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


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Give errors that name no place this one; what the disk refuses becomes a StoreError."""
    try:
        yield
    except ForesiftError as error:
        if error.where:
            raise
        raise type(error)(error.message, where=where) from error
    except OSError as error:
        if error.errno is None or error.errno not in _DISK_ERRNOS:
            raise
        raise StoreError(
            f"{os.strerror(error.errno)}; what is finished stays, a rerun goes on from there",
            where=str(error.filename or where),
        ) from error


def _rebuild(kind: type[ForesiftError], message: str, where: str) -> ForesiftError:
    return kind(message, where=where)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `'; did you mean X?'` and the known names, as the tail of a message."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(names) if names else 'none'})"
