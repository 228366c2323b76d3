"""A rank's log, in the lines that Lambda writes, kept in the store while the run goes on.

Formats: AWS Lambda developer guide, "Viewing CloudWatch logs for functions" (INIT_START, START,
END, REPORT and what stands between where an invocation failed).
"""

from __future__ import annotations

import platform
import queue
import re
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from perseid.errors import NotFoundError, StorageError
from perseid.measure.report_line import Report, format_report
from perseid.pipeline import layout
from perseid.pipeline.attempts import Attempt, Ending
from perseid.plaintext import one_line
from perseid.storage import Storage

_START = re.compile(r"^START RequestId: (\S+) Version: \$LATEST$", re.MULTILINE)

_ERRORS = {
    Ending.RAISED: "Function.Error",
    Ending.BAD_INPUT: "Function.Error",
    Ending.OUT_OF_MEMORY: "Runtime.OutOfMemory",
    Ending.KILLED: "Runtime.ExitError",
    Ending.NO_RESULT: "Runtime.ExitError",
    Ending.STOPPED: "Runtime.ExitError",
}


def attempts_in(log: str) -> int:
    """How many attempts a rank's log tells of, unfinished ones included."""
    return len(_START.findall(log))


def start_lines(request_id: str, *, cold: bool, output: str = "") -> str:
    """What a log holds when an attempt begins; `output` is what the worker printed in its init."""
    first = (
        f"INIT_START Runtime Version: python:{platform.python_version()}.local\n" if cold else ""
    )
    return f"{first}{output}START RequestId: {request_id} Version: $LATEST\n"


def end_lines(attempt: Attempt, output: str) -> str:
    """What is added when it ends: the output, the error, END and REPORT."""
    return (
        output
        + _error_line(attempt)
        + f"END RequestId: {attempt.request_id}\n"
        + format_report(_report(attempt))
        + "\n"
    )


def _report(attempt: Attempt) -> Report:
    timed_out = attempt.ending is Ending.TIMED_OUT
    failed = "timeout" if timed_out else "error"
    return Report(
        request_id=attempt.request_id,
        duration_ms=attempt.duration_ms,
        billed_ms=attempt.billed_ms,
        memory_mb=attempt.memory_mb,
        max_memory_mb=attempt.max_memory_mb,
        init_ms=attempt.init_ms,
        status="success" if attempt.ending is Ending.DONE else failed,
        error_type=_ERRORS.get(attempt.ending),
    )


def _error_line(attempt: Attempt) -> str:
    if attempt.ending is Ending.TIMED_OUT:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        seconds = attempt.duration_ms / 1000
        return f"{now} {attempt.request_id} Task timed out after {seconds:.2f} seconds\n\n"
    if attempt.message:
        return f"RequestId: {attempt.request_id} Error: {one_line(attempt.message)}\n"
    return ""


class RankLogs:
    """The logs of a run's ranks: text is added here and written to the store by a thread.

    The driver never waits for the store: a slow or failing one costs logs, not the run. A context
    manager; leaving it writes what is left, for at most `flush_seconds`.
    """

    def __init__(self, store: Storage, *, flush_seconds: float = 20.0) -> None:
        self._store = store
        self._texts: dict[int, str] = {}
        self._queue: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()
        self._flush_seconds = flush_seconds
        self._thread = threading.Thread(target=self._write, name="rank-logs", daemon=True)
        self.failure = ""
        """The last write that failed, as a sentence."""

    def load(self, ranks: set[int]) -> dict[int, int]:
        """Read the logs that former attempts left; the number of attempts by rank."""
        found = {}
        for info in self._store.list(layout.LOGS):
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
        """Append to a rank's log; `last`: nothing more will come in this run."""
        whole = self._texts.get(rank, "") + text
        self._texts[rank] = whole
        if last:
            del self._texts[rank]
        self._queue.put((rank, whole))

    def hurry(self, seconds: float) -> None:
        """Leave no more than this for what is still to be written."""
        self._flush_seconds = seconds

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        self._thread.join(self._flush_seconds)
        if self._thread.is_alive():
            self.failure = f"logs were not all written within {self._flush_seconds:.0f} s"

    def _write(self) -> None:
        while (entry := self._queue.get()) is not None:
            rank, text = entry
            try:
                self._store.put(layout.log(rank), text.encode())
            except StorageError as error:
                self.failure = str(error)
