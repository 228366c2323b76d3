"""The program of a worker process: ``python -m perseid.engines.worker_program SOCKET PARENT``.

It loads the model once (its init), then works on the ranks that it receives through the socket, one
after the other, and ends with its parent.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perseid.engines import memory
from perseid.engines.message_stream import MessageStream
from perseid.engines.worker_messages import (
    Assignment,
    AttemptDone,
    AttemptFailed,
    MergeAssignment,
    MergeDone,
    Message,
    Progressed,
    RankNote,
    Ready,
    WorkerSetup,
)
from perseid.errors import BadInputError, PerseidError, StorageError
from perseid.lifetime import bound_to_parent
from perseid.pipeline import layout
from perseid.pipeline.events import Event, RankEvent, Report
from perseid.pipeline.items import WorkItem
from perseid.pipeline.join_settings import JoinSettings
from perseid.pipeline.records import STORE
from perseid.storage import Storage

if TYPE_CHECKING:
    from perseid.model.runtime import Predictor
    from perseid.pipeline.collective_merge import RankOutputs

Work = Callable[[WorkItem, int, Report], Any]
"""Function of (item, attempt, report) that writes the objects of a rank, the record last."""

# Often enough for a display, and too rarely to slow the work.
_PROGRESS_SECONDS = 0.2


def main(
    arguments: Sequence[str] | None = None,
    around: Callable[[Work], Work] | None = None,
    start: Callable[[WorkerSetup], Work] | None = None,
) -> int:
    """Work until the parent closes the socket; return the exit status.

    Parameters
    ----------
    arguments
        Number of the socket and process id of the parent, as on the command line.
    around
        Wraps the real work, so that a custom program can add to it.
    start
        The init phase: makes the work from the setup message; None for `Prepared`.
    """
    descriptor, parent = (int(word) for word in (arguments or sys.argv[1:])[:2])
    die_with_parent(parent)
    # A descriptor, not an address: nobody else on the machine can connect.
    connection = socket.socket(fileno=descriptor)
    # A script that the worker starts must not hold the socket open after the worker has ended.
    connection.set_inheritable(False)
    with MessageStream(connection) as channel:
        first = channel.receive()
        # The driver went away before it sent the setup.
        if not isinstance(first, WorkerSetup):
            return 0
        try:
            work = (start or Prepared)(first)
        except Exception as error:
            # The init failed: the driver is told why, and may start another process.
            channel.send(_failure(error))
            return 0
        channel.send(Ready())
        _serve(channel, around(work) if around else work, work)
    return 0


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    if bind := bound_to_parent():
        bind()
    # The kernel's signal covers only what happens after the request: the parent may have ended
    # before.
    if os.getppid() != parent:
        sys.exit(0)
    # A crash would write gigabytes of model and cutouts to disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Prepared:
    """The init phase: the model, loaded once for all ranks that this process will work on."""

    def __init__(self, setup: WorkerSetup) -> None:
        # Imported here: a program with its own `start` does not need it.
        from perseid.pipeline.cold_start import load_runtime

        self._setup = setup
        self._runtime: Predictor | None = None
        if setup.item.options.script is None:
            self._runtime = load_runtime(self._with_options(setup.item))
        self._init: list[float] = [time.time() - setup.started]
        self._kept: dict[int, RankOutputs] = {}

    def __call__(self, item: WorkItem, attempt: int, report: Report) -> Any:
        """Work on a rank and return its record."""
        # Only the first attempt of a process is cold, and only it is charged the init.
        cold, seconds = bool(self._init), self._init.pop() if self._init else 0.0
        if item.options.script is not None:
            from perseid.compat.scripts.run_script import run_script

            item = self._with_options(item)
            return run_script(item, attempt=attempt, report=report, cold=cold, init_seconds=seconds)
        from perseid.pipeline.work import work  # imported while the model was being loaded

        keep = _place_for(item)
        record = work(
            self._with_options(item),
            runtime=self._runtime,
            attempt=attempt,
            report=report,
            cold=cold,
            init_seconds=seconds,
            defer_merge=True,
            keep_dir=keep,
        )
        if keep is not None:
            from perseid.pipeline.collective_merge import RankOutputs

            storage = Storage(item.results_url)
            self._kept[item.rank] = RankOutputs(item, record.stored(), storage, keep)
        return record

    def merge(self, settings: JoinSettings, items: Sequence[WorkItem]) -> dict[int, str]:
        """Merge collectively as these ranks; see `rank_threads`. No prediction is made after
        that."""
        from perseid.engines.rank_threads import run_ranks

        self._runtime = None  # frees the memory of the model for the merge
        return run_ranks(settings, items, self._kept)

    def _with_options(self, item: WorkItem) -> WorkItem:
        setup = self._setup
        # The engine decides about threads and time; the item is the same on every engine.
        options = replace(item.options, threads=setup.threads, timeout=setup.timeout)
        return replace(item, options=options)


def _place_for(item: WorkItem) -> Path | None:
    """Folder that keeps a copy of a rank's objects for the merge; None if none is needed."""
    local = Storage(item.results_url).local_path() is not None
    # On a local disk the objects themselves are at hand, and through the store nothing merges here.
    if local or item.transport == STORE:
        return None
    # In TMPDIR, which the engine removes with everything in it.
    return Path(tempfile.mkdtemp(prefix=f"rank-{item.rank}-"))


def _serve(channel: MessageStream, work: Work, prepared: Work) -> None:
    while (message := channel.receive()) is not None:
        answer: Message
        if isinstance(message, MergeAssignment):
            answer = _merge(message, prepared)
        else:
            assert isinstance(message, Assignment)
            answer = _attempt(message, work, channel)
        # The driver reads the output when the answer arrives, so all of it must be written by then.
        sys.stdout.flush()
        sys.stderr.flush()
        channel.send(answer)


def _merge(assigned: MergeAssignment, prepared: Work) -> MergeDone:
    items = assigned.items
    if isinstance(prepared, Prepared):
        notes = prepared.merge(assigned.settings, items)
    else:
        # A program with its own `start` has no model and no outputs of ours.
        notes = {item.rank: "the worker's program has no collective merge" for item in items}
    return MergeDone(tuple(RankNote(rank, note) for rank, note in notes.items()))


def _attempt(
    assigned: Assignment, work: Work, channel: MessageStream
) -> AttemptDone | AttemptFailed:
    item = assigned.item
    # The process works on many ranks, and each attempt reports its own peak.
    memory.reset_peak()
    began = time.monotonic()
    try:
        record = work(item, assigned.attempt, _Progress(channel))
        _check_record(item)
    except Exception as error:
        answer: AttemptDone | AttemptFailed = _failure(error)
    else:
        answer = AttemptDone(getattr(record, "rows", 0))
    return replace(answer, work_seconds=time.monotonic() - began, peak_mb=memory.peak())


def _check_record(item: WorkItem) -> None:
    """Raise `_NoResultError` if the work returned but left no record."""
    store = Storage(item.results_url)
    key = layout.done_record(item.rank, script=item.options.script is not None)
    if not store.exists(key):
        raise _NoResultError(f"it ended without an error but left no {key}")


class _NoResultError(Exception):
    """The work returned without writing a record."""


def _failure(error: Exception) -> AttemptFailed:
    ours = isinstance(error, PerseidError)
    told = ours or isinstance(error, _NoResultError)
    # Our own messages say what is wrong; only unexpected errors need a traceback in the log.
    if not told:
        traceback.print_exc()
    return AttemptFailed(
        str(error) if told else f"{type(error).__name__}: {error}",
        no_result=isinstance(error, _NoResultError),
        # The same input fails in the same way again; a store may have recovered.
        final=isinstance(error, BadInputError) and not isinstance(error, StorageError),
        # An unforeseen error may have left the process in any state.
        clean=ours,
    )


class _Progress:
    """Sends the progress of a rank, at most a few times per second."""

    def __init__(self, channel: MessageStream) -> None:
        self._channel = channel
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        # The driver learns the final number of rows from the answer.
        if isinstance(event, RankEvent) and now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            self._channel.send(Progressed(event.rows))


if __name__ == "__main__":
    sys.exit(main())
