"""Worker processes that stand by between the blocks of a run, with the model that they loaded."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from perseid.engines.local.process import Reaper
from perseid.engines.local.slots import Slot


@dataclass(frozen=True)
class WorkerKind:
    """What a process was started for: it may only go on with the same."""

    run_id: str
    command: tuple[str, ...]
    threads: int
    environment: tuple[tuple[str, str], ...]


class KeptWorkers:
    """Idle processes, taken by one block after the other; safe in several threads.

    `close` ends them; so does the end of this process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[WorkerKind, Slot]] = []
        self._resources = ExitStack()
        self.reaper = self._resources.enter_context(Reaper())
        """Ends the processes when this one is gone."""

    def take(self, kind: WorkerKind) -> Slot | None:
        """A ready process of this kind that is alive; None if there is none."""
        while (slot := self._pop(kind)) is not None:
            if slot.process.exit_status() is None:
                return slot
            slot.process.end()
        return None

    def give(self, kind: WorkerKind, slots: Sequence[Slot]) -> None:
        """Keep these, which are ready and have nothing to do."""
        with self._lock:
            self._idle += [(kind, slot) for slot in slots]

    def close(self) -> None:
        """End all that are idle."""
        with self._lock, self._resources:
            for _, slot in self._idle:
                slot.process.end()
            self._idle.clear()

    def _pop(self, kind: WorkerKind) -> Slot | None:
        with self._lock:
            for place, (one, slot) in enumerate(self._idle):
                if one == kind:
                    del self._idle[place]
                    return slot
        return None
