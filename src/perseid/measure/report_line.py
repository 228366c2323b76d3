"""Reads and writes the REPORT line with which Lambda ends the log of each invocation.

The fields and their order are those of Lambda's own log (AWS Lambda developer guide, "Viewing
CloudWatch logs for functions"): tab-separated, ``Init Duration`` on a cold start only, ``Restore
Duration`` with SnapStart, ``Status`` and ``Error Type`` if the invocation did not succeed.
Downloaded logs often have spaces in place of the tabs; both forms are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from perseid.jsontext import parse_json
from perseid.measure.fields import Fields

_REQUEST = re.compile(r"(?<![\w])REPORT\s+RequestId:\s*(\S+)")
_NUMBER = r":\s*([0-9]+(?:\.[0-9]+)?)\s*"
# The lookbehinds keep "Duration" from matching inside the names of the longer fields.
_FIELDS = {
    "duration_ms": re.compile(r"(?<!Billed )(?<!Init )(?<!Restore )\bDuration" + _NUMBER + "ms"),
    "billed_ms": re.compile(r"\bBilled Duration" + _NUMBER + "ms"),
    "memory_mb": re.compile(r"\bMemory Size" + _NUMBER + "MB"),
    "max_memory_mb": re.compile(r"\bMax Memory Used" + _NUMBER + "MB"),
    "init_ms": re.compile(r"\bInit Duration" + _NUMBER + "ms"),
    "restore_ms": re.compile(r"(?<!Billed )\bRestore Duration" + _NUMBER + "ms"),
    "billed_restore_ms": re.compile(r"\bBilled Restore Duration" + _NUMBER + "ms"),
}
_REQUIRED = ("duration_ms", "billed_ms", "memory_mb", "max_memory_mb")
# Newer runtimes also report inits that succeeded: only the others are billed separately.
_FAILED_INIT = re.compile(
    r"\bINIT_REPORT\s+Init Duration:\s*([0-9]+(?:\.[0-9]+)?)\s*ms\b.*\bStatus:\s*(?!success)\w"
)
_STATUS = re.compile(r"\bStatus:\s*(\w+)")
_ERROR = re.compile(r"\bError Type:\s*(\S+)")


@dataclass(frozen=True)
class Report:
    """One invocation, as Lambda reports and bills it."""

    request_id: str
    """Id of the invocation; a retry has another one."""
    duration_ms: float
    """Time in the handler in ms, without init."""
    billed_ms: float
    """Billed time in whole ms: handler, init and billed restore together."""
    memory_mb: float
    """Configured memory in MB; it is billed, however much is used."""
    max_memory_mb: float
    """Peak memory of the execution environment so far, in MB."""
    init_ms: float | None = None
    """Time of the init phase in ms; None on a warm start."""
    restore_ms: float | None = None
    """Time of SnapStart's restore in ms; None without SnapStart or on a warm start."""
    billed_restore_ms: float | None = None
    """Billed part of the restore in ms, which `billed_ms` includes."""
    status: str = "success"
    """``success``, ``timeout``, ``error`` or ``failure``, as in the log."""
    error_type: str | None = None
    """Error type, e.g. ``Runtime.OutOfMemory``; None if the log has none."""

    @property
    def cold(self) -> bool:
        """Whether the environment was started for this invocation."""
        return self.init_ms is not None or self.restore_ms is not None

    @property
    def succeeded(self) -> bool:
        """Whether the handler returned."""
        return self.status == "success"


def find_reports(text: str) -> Iterator[Report]:
    """Find all complete REPORTs in a text, in order; incomplete ones are left out.

    Parameters
    ----------
    text
        A log of one or many lines, with anything before or after a REPORT.
    """
    for chunk in _chunks(text):
        report = _from_text(chunk)
        if report is not None:
            yield report
    for line in text.splitlines():
        report = _from_json(line)
        if report is not None:
            yield report


def failed_init_ms(text: str) -> float:
    """Milliseconds of all failed inits in a log (``INIT_REPORT``), which are billed, too.

    An init that succeeded is part of the first invocation's REPORT.
    """
    told = (float(m[1]) for line in text.splitlines() if (m := _FAILED_INIT.search(line)))
    return sum(told) + sum(_failed_init_of_json(line) for line in text.splitlines())


def _failed_init_of_json(line: str) -> float:
    """Milliseconds of a failed init in a ``platform.initReport`` event, for logs in JSON."""
    start = line.find("{")
    if start < 0 or "platform.initReport" not in line:
        return 0.0
    try:
        record = Fields(parse_json(line[start:])).inner("record")
    # A log may hold any text: what cannot be parsed is not an event.
    except ValueError:
        return 0.0
    if (record.text("status") or "success") == "success":
        return 0.0
    return record.inner("metrics").number("durationMs") or 0.0


def format_report(report: Report) -> str:
    """Write the line as Lambda does: tab-separated, with a tab at the end and no newline."""
    parts = [
        f"REPORT RequestId: {report.request_id}",
        f"Duration: {report.duration_ms:.2f} ms",
        f"Billed Duration: {report.billed_ms:.0f} ms",
        f"Memory Size: {report.memory_mb:.0f} MB",
        f"Max Memory Used: {report.max_memory_mb:.0f} MB",
    ]
    if report.init_ms is not None:
        parts.append(f"Init Duration: {report.init_ms:.2f} ms")
    if report.restore_ms is not None:
        parts.append(f"Restore Duration: {report.restore_ms:.2f} ms")
    if report.billed_restore_ms is not None:
        parts.append(f"Billed Restore Duration: {report.billed_restore_ms:.0f} ms")
    if not report.succeeded:
        parts.append(f"Status: {report.status}")
    if report.error_type is not None:
        parts.append(f"Error Type: {report.error_type}")
    return "\t".join(parts) + "\t"


def _chunks(text: str) -> Iterator[str]:
    """Cut a text into one piece per REPORT, which ends with its line or at the next REPORT."""
    for line in text.splitlines():
        # Interleaved streams may have put several REPORTs into one line.
        bounds = [*(match.start() for match in _REQUEST.finditer(line)), len(line)]
        for start, end in pairwise(bounds):
            yield line[start:end]


def _from_text(chunk: str) -> Report | None:
    request = _REQUEST.search(chunk)
    found = {name: pattern.search(chunk) for name, pattern in _FIELDS.items()}
    if request is None or any(found[name] is None for name in _REQUIRED):
        return None
    values = {name: float(m[1]) for name, m in found.items() if m is not None}
    status, error = _STATUS.search(chunk), _ERROR.search(chunk)
    return Report(
        request_id=request[1],
        # The text form names a status only if the invocation failed.
        status=status[1].lower() if status else "success",
        error_type=error[1] if error else None,
        **cast(Any, values),
    )


def _from_json(line: str) -> Report | None:
    """The REPORT in a ``platform.report`` event, for functions that log in JSON."""
    start = line.find("{")
    # Parsing every line of a log as JSON would be slow.
    if start < 0 or "platform.report" not in line:
        return None
    try:
        return report_of_event(Fields(parse_json(line[start:])))
    except ValueError:
        return None


def report_of_event(event: Fields) -> Report | None:
    """The report in a ``platform.report`` event; None if it lacks a required field."""
    record = event.inner("record")
    metrics = record.inner("metrics")
    request = record.text("requestId")
    duration, billed = metrics.number("durationMs"), metrics.number("billedDurationMs")
    memory, used = metrics.number("memorySizeMB"), metrics.number("maxMemoryUsedMB")
    if request is None or duration is None or billed is None or memory is None or used is None:
        return None
    return Report(
        request_id=request,
        duration_ms=duration,
        billed_ms=billed,
        memory_mb=memory,
        max_memory_mb=used,
        init_ms=metrics.number("initDurationMs"),
        restore_ms=metrics.number("restoreDurationMs"),
        billed_restore_ms=metrics.number("billedRestoreDurationMs"),
        status=(record.text("status") or "success").lower(),
        error_type=record.text("errorType"),
    )
