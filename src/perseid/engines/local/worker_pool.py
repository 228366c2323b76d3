"""The worker processes of a local map: start or reuse them, read from them, and end them."""

from __future__ import annotations

import contextlib
import functools
import selectors
from collections.abc import Callable, Iterator

from perseid.engines.local.kept_workers import KeptWorkers, WorkerKind
from perseid.engines.local.local_options import LocalOptions
from perseid.engines.local.process import Reaper, WorkerProcess
from perseid.engines.local.slots import Slot
from perseid.engines.worker_command import worker_environment
from perseid.engines.worker_messages import WorkerSetup
from perseid.pipeline.items import WorkItem

SCRIPT_SECONDS = 5.0
"""Seconds added to the time limit that a script is told, so that the engine times it out first."""


class WorkerPool:
    """Worker processes of one run, each in a `Slot`; iteration yields the slots.

    Parameters
    ----------
    first
        Any work item of the run, to set up workers with.
    options
        Number of workers at once, their program and their environment.
    reaper
        Kills the workers if this process dies.
    kept
        Idle processes to reuse; None if there are none.
    hear
        Called with the slot of a process that has sent something or has ended.
    """

    def __init__(
        self,
        first: WorkItem,
        options: LocalOptions,
        reaper: Reaper,
        kept: KeptWorkers | None,
        hear: Callable[[Slot], None],
    ) -> None:
        self._options, self._reaper, self._kept, self._hear = options, reaper, kept, hear
        seconds = options.timeout + SCRIPT_SECONDS
        # The item is one of the run; the time of the start is added when a process starts.
        self._setup = functools.partial(WorkerSetup, first, options.threads, seconds)
        self._environment = worker_environment(options.threads) | dict(options.environment)
        more = tuple(sorted(options.environment.items()))
        self._kind = WorkerKind(first.run_id, tuple(options.command), options.threads, more)
        self._slots: list[Slot] = []
        self._selector = selectors.DefaultSelector()

    def __iter__(self) -> Iterator[Slot]:
        """Iterate over a copy, so that slots may be dropped meanwhile."""
        return iter(list(self._slots))

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, slot: object) -> bool:
        return slot in self._slots

    @property
    def has_room(self) -> bool:
        """Whether another rank can be started now."""
        idle = any(slot.job is None for slot in self._slots)
        return idle or len(self._slots) < self._options.concurrency

    def at_hand(self) -> Slot | None:
        """An idle process: the newest of this pool, otherwise a kept one; None if there is none."""
        own = next((slot for slot in reversed(self._slots) if slot.job is None), None)
        if own is not None or self._kept is None:
            return own
        slot = self._kept.take(self._kind)
        return None if slot is None else self._listened(slot)

    def start(self) -> Slot:
        """Start a new process; raises `OSError` if that fails."""
        return self._listened(
            Slot(WorkerProcess(self._options.command, self._setup, self._reaper, self._environment))
        )

    def listen(self, seconds: float) -> None:
        """Wait up to this many seconds for messages or output, and handle what arrives first."""
        for key, _ in self._selector.select(seconds):
            callback: Callable[[], None] = key.data
            callback()

    def drop(self, slot: Slot) -> None:
        """End the process of a slot and remove the slot."""
        self._forget(slot)
        slot.process.end()

    def give_back(self) -> None:
        """Keep processes that are ready and idle for the next block."""
        if self._kept is None:
            return
        # Ready ones only: a worker that still loads the model would hold up the next block.
        idle = [slot for slot in self if slot.job is None and slot.init_ms is not None]
        for slot in idle:
            self._forget(slot)
        self._kept.give(self._kind, idle)

    def close(self) -> None:
        """Stop listening; remaining processes are not ended."""
        self._selector.close()

    def _listened(self, slot: Slot) -> Slot:
        self._slots.append(slot)
        hear = functools.partial(self._hear, slot)
        self._selector.register(slot.process.channel, selectors.EVENT_READ, hear)
        read = functools.partial(self._read_output, slot)
        self._selector.register(slot.process.output, selectors.EVENT_READ, read)
        return slot

    def _read_output(self, slot: Slot) -> None:
        if slot not in self._slots:
            return
        slot.process.output.read()
        # At its end a pipe is always readable: the selector would never wait again.
        if slot.process.output.ended:
            self._selector.unregister(slot.process.output)

    def _forget(self, slot: Slot) -> None:
        # Unregistered before its files are closed: a closed file cannot be unregistered.
        self._slots.remove(slot)
        for source in (slot.process.channel, slot.process.output):
            with contextlib.suppress(KeyError):  # its output may have ended before
                self._selector.unregister(source)
