"""The program of a worker process: ``python -m perseid.engines.worker SOCKET PARENT``.

It loads the model once (its init), then works on one rank after the other as they come through the
socket, and ends with its parent.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from perseid.engines import memory
from perseid.engines.channel import Channel
from perseid.errors import BadInput, PerseidError, StorageError
from perseid.pipeline import layout
from perseid.pipeline.events import Event, RankEvent, Report
from perseid.pipeline.items import WorkItem
from perseid.storage import Storage

Setup = dict[str, Any]
"""``item``: one of the run's (all have the same model), ``threads``, ``timeout`` (s), ``started``
(seconds since the epoch)."""
Work = Callable[[WorkItem, int, Report], Any]
"""(item, attempt, report): writes the rank's objects, the record last."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PROGRESS_SECONDS = 0.2


def main(
    arguments: Sequence[str] | None = None,
    around: Callable[[Work], Work] | None = None,
    start: Callable[[Setup], Work] | None = None,
) -> int:
    """Serve until the parent closes the socket; the exit status.

    Parameters
    ----------
    arguments
        The socket's number and the parent's process id, as on the command line.
    around
        Puts something around the real work: how a program of one's own becomes a worker.
    start
        The init phase, from the setup message to the work; `prepare` where it is None.
    """
    descriptor, parent = (int(word) for word in (arguments or sys.argv[1:])[:2])
    die_with_parent(parent)
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    with Channel(connection) as channel:
        first = channel.receive()
        if first is None:
            return 0
        try:
            work = (start or prepare)(first["setup"])
        except Exception as error:
            channel.send(_failure(error))
            return 0
        channel.send({"event": "ready"})
        _serve(channel, around(work) if around else work)
    return 0


def die_with_parent(parent: int) -> None:
    """Be killed by the kernel when the parent goes; prctl(2), PR_SET_PDEATHSIG."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it went before we could ask
        sys.exit(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def prepare(setup: Setup) -> Work:
    """The init phase: load the model, once for all ranks that this process will work on."""
    # Inside: a program that brings its own `start` needs none of it.
    from perseid.pipeline import work as step

    first = WorkItem.from_json(setup["item"])
    options = {name: setup[name] for name in ("threads", "timeout")}
    runtime = None
    if "script" not in first.options:
        runtime = step.load_runtime(replace(first, options={**first.options, **options}))
    init: list[float] = [time.time() - float(setup["started"])]

    def work(item: WorkItem, attempt: int, report: Report) -> Any:
        cold, seconds = bool(init), init.pop() if init else 0.0
        return step.work(
            replace(item, options={**item.options, **options}),
            runtime=runtime,
            attempt=attempt,
            report=report,
            cold=cold,
            init_seconds=seconds,
        )

    return work


def _serve(channel: Channel, work: Work) -> None:
    while (message := channel.receive()) is not None:
        item = WorkItem.from_json(message["item"])
        answer = _attempt(item, int(message["attempt"]), work, channel)
        # The driver reads what was printed when it has the answer: all of it must be there.
        sys.stdout.flush()
        sys.stderr.flush()
        channel.send(answer)


def _attempt(item: WorkItem, attempt: int, work: Work, channel: Channel) -> dict[str, Any]:
    memory.reset_peak()
    began = time.monotonic()
    try:
        record = work(item, attempt, _Progress(channel))
        _check_record(item)
    except Exception as error:
        answer = _failure(error)
    else:
        answer = {"event": "done", "rows": getattr(record, "rows", 0)}
    return answer | {"work_seconds": time.monotonic() - began, "peak_mb": memory.peak()}


def _check_record(item: WorkItem) -> None:
    """A worker that calls itself done must have left a record of this run."""
    store = Storage(item.results_url)
    if not store.exists(layout.record(item.rank)):
        raise _NoResult(f"it ended without an error but left no {layout.record(item.rank)}")


class _NoResult(Exception):
    """The work returned and there is no record."""


def _failure(error: Exception) -> dict[str, Any]:
    ours = isinstance(error, PerseidError)
    told = ours or isinstance(error, _NoResult)
    if not told:
        traceback.print_exc()
    return {
        "event": "failed",
        "message": str(error) if told else f"{type(error).__name__}: {error}",
        "no_result": isinstance(error, _NoResult),
        # The same input fails in the same way again; a store may have recovered.
        "final": isinstance(error, BadInput) and not isinstance(error, StorageError),
        # An error that we did not foresee may have left the process in any state.
        "clean": ours,
    }


class _Progress:
    """Sends the rank's progress, a few times a second at most."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, RankEvent) and now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            self._channel.send({"event": "progress", "rows": event.rows})


if __name__ == "__main__":
    sys.exit(main())
