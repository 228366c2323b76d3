"""Worker processes that stay alive between the blocks of a run, with the model they loaded."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from perseid.engines.local.process import Reaper
from perseid.engines.local.slots import Slot


@dataclass(frozen=True)
class WorkerKind:
    """What a process was started for; it is reused only for work of the same kind."""

    run_id: str
    command: tuple[str, ...]
    threads: int
    environment: tuple[tuple[str, str], ...]


class KeptWorkers:
    """Idle processes that successive blocks take and return; safe to use from several threads.

    `close` ends the processes, and so does the end of this process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[WorkerKind, Slot]] = []
        self._resources = ExitStack()
        self.reaper = self._resources.enter_context(Reaper())
        """Ends the worker processes if this process dies."""

    def take(self, kind: WorkerKind) -> Slot | None:
        """Take a ready, living process of this kind; return None if there is none."""
        while (slot := self._pop(kind)) is not None:
            if slot.process.exit_status() is None:
                return slot
            slot.process.end()  # died while idle: collect it and close its files
        return None

    def give(self, kind: WorkerKind, slots: Sequence[Slot]) -> None:
        """Keep these processes, which are ready and idle."""
        with self._lock:
            self._idle += [(kind, slot) for slot in slots]

    def close(self) -> None:
        """End all idle processes."""
        # The reaper goes last: until then it would end processes that this fails to end.
        with self._lock, self._resources:
            for _, slot in self._idle:
                slot.process.end()
            self._idle.clear()

    def _pop(self, kind: WorkerKind) -> Slot | None:
        with self._lock:
            for place, (one, slot) in enumerate(self._idle):
                # Not by the run id alone: a resumption may have other options.
                if one == kind:
                    del self._idle[place]
                    return slot
        return None
