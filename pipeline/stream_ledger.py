"""The ledger of a training whose rows are chosen as it goes: which row entered which step.

    stream = Stream(..., ledger="out/ledger")          also attach, attach_epochs, data_module
    Ledger.open(Path("out")).find(...)                 and `foresift trace`

The first process writes, for all of them: (id, step), steps from 1; round, shard and tokens are not
known here and null. Rows are named as `document_id` says: the 16 bytes of an id of 32 hex digits
(the ids of foresift's own data), else the 128-bit hash of the id.

What a step trains on is kept in memory and written by `state_dict`, which is why that is asked for
before weights are saved: so no checkpoint holds more than the ledger says. The end of the iteration
writes too. `load_state_dict` begins a new attempt after the step of the state: what was written of
later steps is void, since those weights are gone. A stream that begins at step 0 begins the ledger
anew, so a folder is of one training. Cost: 16 bytes a row and step; in the first of several
processes, reading the chosen rows of the others once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from foresift.pipeline.ledger import Log, document_id


class StreamLedger:
    """Appends what a stream trains on to a folder; elsewhere than in process 0 it does nothing."""

    def __init__(self, folder: str | Path, rank: int) -> None:
        self.folder, self.writes = Path(folder), rank == 0
        self._after = 0
        self._log: Log | None = None

    def add(self, step: int, names: Iterable[str]) -> None:
        """The rows that a step trains on; `step` counts from 1."""
        if self.writes:
            self._log = self._log or Log(self.folder, self._after)
            self._log.add([(document_id(name), None, None, step, None) for name in names])

    def flush(self) -> None:
        """Write what is in memory."""
        if self._log is not None:
            self._log.flush()

    def go_on(self, step: int) -> None:
        """What comes next goes on from the state of a step."""
        self._after, self._log = step, None


def opened(folder: str | Path | None, rank: int) -> StreamLedger | None:
    """The ledger of a stream, where one is asked for."""
    return None if folder is None else StreamLedger(folder, rank)
