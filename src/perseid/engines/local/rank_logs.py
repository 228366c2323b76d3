"""The logs of the ranks of a run, written to the store while the run goes on."""

from __future__ import annotations

import queue
import threading
from typing import Self

from perseid.engines.log_lines import attempts_in
from perseid.errors import NotFoundError, StorageError
from perseid.pipeline import layout
from perseid.storage import Storage


class RankLogs:
    """The logs of the ranks of a run; a thread writes the added text to the store.

    The driver never waits for the store: if it is slow or fails, logs are lost but not the run.
    This is a context manager; leaving it writes the rest, for at most `flush_seconds`.
    """

    def __init__(self, store: Storage, *, flush_seconds: float = 20.0) -> None:
        self._store = store
        self._texts: dict[int, str] = {}
        self._queue: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()
        self._flush_seconds = flush_seconds
        # A daemon thread: a store that hangs must not keep the process from exiting.
        self._thread = threading.Thread(target=self._write, name="rank-logs", daemon=True)
        self.failure = ""
        """Message of the last write that failed; empty if none did."""

    def load(self, ranks: set[int]) -> dict[int, int]:
        """Read the logs of former attempts; return the number of attempts by rank."""
        found = {}
        for info in self._store.list(layout.LOGS):
            # Other objects may be below this prefix; only <rank>.log is read.
            name = info.key.rsplit("/", 1)[-1].removesuffix(".log")
            if not name.isdecimal() or int(name) not in ranks:
                continue
            try:
                text = self._store.get(info.key).decode("utf-8", "replace")
            except NotFoundError:
                continue
            self._texts[int(name)] = text if not text or text.endswith("\n") else text + "\n"
            found[int(name)] = attempts_in(text)
        return found

    def add(self, rank: int, text: str, *, last: bool = False) -> None:
        """Append to a rank's log; `last` states that nothing more will follow in this run."""
        whole = self._texts.get(rank, "") + text
        self._texts[rank] = whole
        if last:  # frees the text: a run may have thousands of ranks
            del self._texts[rank]
        # The whole log, since objects in a store cannot be appended to.
        self._queue.put((rank, whole))

    def hurry(self, seconds: float) -> None:
        """Limit the time for the remaining writes, in seconds."""
        self._flush_seconds = seconds

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        # Bounded, so that a store which hangs does not hold up the end of a run.
        self._thread.join(self._flush_seconds)
        if self._thread.is_alive():
            self.failure = f"logs were not all written within {self._flush_seconds:.0f} s"

    def _write(self) -> None:
        while (entry := self._queue.get()) is not None:
            rank, text = entry
            try:
                self._store.put(layout.log(rank), text.encode())
            except StorageError as error:
                # Noted, not raised: the driver reports it once, at the end.
                self.failure = str(error)
