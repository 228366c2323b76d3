"""The lines of a rank's log, in the format of Lambda, and the state of the rank that they imply.

Formats: AWS Lambda developer guide, "Viewing CloudWatch logs for functions" (INIT_START, START,
END, REPORT, and the lines between them if an invocation failed).
"""

from __future__ import annotations

import platform
import re
from datetime import UTC, datetime

from perseid.measure.report_line import Report, format_report
from perseid.pipeline.attempts import Attempt, Ending
from perseid.pipeline.events import RankEvent, RankState
from perseid.plaintext import one_line

_START = re.compile(r"^START RequestId: (\S+) Version: \$LATEST$", re.MULTILINE)
_WHY = re.compile(r"^(?:RequestId: \S+ Error: |\S+ \S+ (?=Task timed out))(.+)$", re.MULTILINE)
_STANDS = {
    RankState.WAITING: "perseid: the run goes on, and the rank waits\n",
    RankState.RETRYING: "perseid: the rank is tried again\n",
    RankState.FAILED: "perseid: the rank has failed\n",
}
"""Lines that tell a reader of the log the state of the rank; the last one counts."""

_ERRORS = {
    Ending.RAISED: "Function.Error",
    Ending.BAD_INPUT: "Function.Error",
    Ending.OUT_OF_MEMORY: "Runtime.OutOfMemory",
    Ending.KILLED: "Runtime.ExitError",
    Ending.NO_RESULT: "Runtime.ExitError",
    Ending.STOPPED: "Runtime.ExitError",
}


def attempts_in(log: str) -> int:
    """Number of attempts in a rank's log, including unfinished ones."""
    return len(_START.findall(log))


def state_in(rank: int, log: str) -> RankEvent | None:
    """State of a rank without a record, according to its log; None if no attempt has begun."""
    attempts = attempts_in(log)
    if not attempts:
        return None
    # Lines of earlier attempts say nothing about the present state.
    last = log[log.rindex("START RequestId: ") :]
    # RUNNING is not written: an attempt whose end is not logged is running.
    state = next((state for state, words in _STANDS.items() if words in last), RankState.RUNNING)
    why = _WHY.findall(last) if state in (RankState.RETRYING, RankState.FAILED) else []
    return RankEvent(rank, state, attempts, message=why[-1] if why else "")


def start_lines(request_id: str, *, cold: bool, output: str = "") -> str:
    """Lines that begin an attempt; `output` is what the worker printed during its init."""
    first = (
        # Only a new environment logs its start, as on Lambda; tables count cold starts by it.
        f"INIT_START Runtime Version: python:{platform.python_version()}.local\n" if cold else ""
    )
    return f"{first}{output}START RequestId: {request_id} Version: $LATEST\n"


def end_lines(attempt: Attempt, output: str) -> str:
    """Lines that end an attempt: its output, its error, END and REPORT."""
    return (
        output
        + _error_line(attempt)
        # END and REPORT last: a reader takes the attempt for ended once they are there.
        + f"END RequestId: {attempt.request_id}\n"
        + format_report(_report(attempt))
        + "\n"
    )


def standing_line(state: RankState) -> str:
    """Line for a rank that now waits, will be tried again, or has failed; empty for other
    states."""
    return _STANDS.get(state, "")


def _report(attempt: Attempt) -> Report:
    # Lambda's REPORT tells only these two failures apart.
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
        # The format of Lambda: milliseconds and Z, with an empty line after it.
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        seconds = attempt.duration_ms / 1000
        return f"{now} {attempt.request_id} Task timed out after {seconds:.2f} seconds\n\n"
    if attempt.message:
        return f"RequestId: {attempt.request_id} Error: {one_line(attempt.message)}\n"
    return ""
