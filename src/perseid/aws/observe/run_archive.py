"""Copy what Step Functions and CloudWatch know about a run to the run's own prefix.

Afterwards tables and reports need only the run's folder: ``engine.json`` holds every attempt and
the executions' times, and ``logs/`` what the ranks and the initialize and summarize functions
logged.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from perseid.aws.observe.calls import Calls
from perseid.aws.observe.cloudwatch_logs import group_of, invocations_of
from perseid.aws.observe.execution_history import read_executions
from perseid.aws.observe.workflow_bill import NOT_AGAIN, MapCounts, WorkflowUsage
from perseid.aws.stack_resources import StackResources
from perseid.errors import NotFoundError, current_name
from perseid.jsontext import json_bytes, parse_json
from perseid.measure.execution import Execution
from perseid.measure.sources.streams import Traced
from perseid.pipeline import layout
from perseid.pipeline.attempts import Attempt, Ending, EngineReport
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import read_records
from perseid.pipeline.stored import Records, StoredRecord
from perseid.storage import Storage

WRITERS = 32
MOST_MB = 10_240
"""Most memory of a function, in MB."""
REPORT_SECONDS = 30.0
"""Seconds to wait for REPORT lines, which arrive some time after an invocation's end."""
WAIT_SECONDS = 3.0
SUMMARIZE_TMP_MB = 2048
"""Size of the summarize function's /tmp, as in the template."""
_ERROR = re.compile(r"\[ERROR\]\s+([\w.]+): (.*)")
"""How Lambda's runtime logs an exception that left the handler."""


@dataclass(frozen=True)
class Collected:
    """The collected logs and times, as written to the run's prefix."""

    mapped: EngineReport
    executions: tuple[Execution, ...]
    engine: Mapping[str, object]
    """The content of ``engine.json``."""


def collect(
    calls: Calls, place: StackResources, manifest: Manifest, arns: Sequence[str]
) -> Collected:
    """Fetch logs and histories of a run's executions and write them to the run's prefix.

    Parameters
    ----------
    calls
        Clients of the account, whose requests are counted.
    place
        State machine and functions that the run used.
    manifest
        Manifest of the run.
    arns
        ARNs of its executions, oldest first: the original one and those that resumed the run.
    """
    store = Storage(manifest.results_url)
    executions = tuple(read_executions(calls, list(arns)))
    records = _records(calls, store, manifest, executions[-1])
    # Read after the records, which say how many REPORT lines to wait for.
    workers = _workers(calls, place, manifest, executions, len(records))
    around = _around(calls, place, manifest, executions)
    attempts = attempts_of(workers, place.memory_mb, records)
    mapped = _mapped(executions, attempts, records)
    engine = _engine(calls, place, mapped, executions, workers)
    _write(store, workers, around, engine)
    return Collected(mapped, executions, engine)


def _records(calls: Calls, store: Storage, manifest: Manifest, last: Execution) -> Records:
    """The records of all ranks: from a single object if the run was published, otherwise one object
    per rank."""
    published = last.status == "SUCCEEDED"
    published |= current_name(last.error or "") == "RunIncompleteError"
    if published and manifest.script is None:  # a script may have overwritten its record there
        calls.add("s3.GetObject")
        where = store.where(layout.COMBINED)
        records = [StoredRecord.of(one, where) for one in parse_json(store.get(layout.COMBINED))]
        found = {record.rank: record for record in records}
        surplus = {rank for rank, count in enumerate(manifest.assignment) if not count}
        return found | dict(read_records(store, manifest, surplus - found.keys())[0])
    calls.add("s3.GetObject", manifest.world_size)
    return read_records(store, manifest)[0]


def collected_before(store: Storage, arns: Sequence[str]) -> EngineReport | None:
    """What `collect` wrote about these executions, if it was complete; logs may have expired
    since."""
    try:
        engine = parse_json(store.get(layout.ENGINE))
        had = [execution["arn"] for execution in engine["executions"]]
        ended = all(execution["status"] != "RUNNING" for execution in engine["executions"])
        if had != list(arns) or engine["unreported"] or not ended:
            return None
        return EngineReport.from_json(engine)
    except (NotFoundError, ValueError, KeyError, TypeError):
        return None


def attempts_of(workers: Iterable[Traced], memory_mb: int, records: Records) -> tuple[Attempt, ...]:
    """Convert invocations to attempts at ranks, in the order in which they ended.

    An attempt that left its rank's record is done, even if the last lines of its log are missing.
    """
    ours = [traced for traced in workers if traced.count("rank") is not None]
    # Attempts without an end (running or cut off) come last, so they do not decide anything yet.
    ours.sort(key=lambda traced: traced.invocation.ended or float("inf"))
    found = [_attempt(traced, memory_mb) for traced in ours]
    return tuple(_by_record(attempt, records.get(attempt.rank)) for attempt in found)


def _by_record(attempt: Attempt, record: StoredRecord | None) -> Attempt:
    if attempt.ending is not Ending.NO_RESULT or record is None:
        return attempt
    if record.attempt != attempt.attempt:
        return attempt
    seconds = record.stages.get("total", 0.0)
    return replace(attempt, ending=Ending.DONE, message="", rows=record.rows, work_seconds=seconds)


def _workers(
    calls: Calls,
    place: StackResources,
    manifest: Manifest,
    executions: Sequence[Execution],
    expected: int,
) -> list[Traced]:
    """The run's workers; waits a limited time for REPORT lines that are still to come.

    After a stop it does not wait, because functions go on for minutes. A later call fetches the
    rest.
    """
    start, end = _window(executions)
    patience = 0.0 if executions[-1].status == "ABORTED" else REPORT_SECONDS
    group, deadline = group_of(place.worker), time.monotonic() + patience
    while True:
        try:
            found = invocations_of(calls, group, manifest.run_id, start, end)
        except NotFoundError:
            found = []  # no worker was ever called
        reported = {t.count("rank") for t in found if t.invocation.report is not None}
        whole = len(reported) >= expected and all(t.invocation.report for t in found)
        # Lines that never arrive (a stream may lose its last one) must not delay the result.
        if whole or time.monotonic() > deadline:
            return found
        time.sleep(WAIT_SECONDS)


def _around(
    calls: Calls, place: StackResources, manifest: Manifest, executions: Sequence[Execution]
) -> dict[str, list[Traced]]:
    """Invocations of the initialize and summarize functions."""
    start, end = _window(executions)
    found: dict[str, list[Traced]] = {}
    for name, function in (("initialize", place.initialize), ("summarize", place.summarize)):
        try:
            group = group_of(function)
            found[name] = invocations_of(calls, group, manifest.run_id, start, end)
        except NotFoundError:
            continue
    return found


def _window(executions: Sequence[Execution]) -> tuple[float, float | None]:
    ends = [execution.ended for execution in executions]
    last = None if None in ends else max(end for end in ends if end is not None)
    return min(execution.started for execution in executions) - 1.0, last


def _attempt(traced: Traced, memory_mb: int) -> Attempt:
    invocation, report = traced.invocation, traced.invocation.report
    ending, message = ending_of(traced)
    began = invocation.started or 0.0
    init = None if report is None else report.init_ms
    lasted = 0.0
    if report is not None:
        lasted = report.duration_ms
    elif invocation.ended is not None:
        lasted = (invocation.ended - began) * 1e3
    # All lines of a short stream may have the time of its last one.
    if invocation.ended is not None:
        began = min(began, invocation.ended - lasted / 1e3)
    return Attempt(
        rank=traced.count("rank") or 0,
        attempt=traced.count("attempt") or 1,
        request_id=invocation.request_id,
        ending=ending,
        message=message,
        started=began - (init or 0.0) / 1e3,
        duration_ms=lasted,
        memory_mb=int(report.memory_mb) if report else memory_mb,
        max_memory_mb=report.max_memory_mb if report else 0.0,
        init_ms=init,
        work_seconds=traced.number("seconds") or 0.0,
        rows=traced.count("rows") or 0 if ending is Ending.DONE else 0,
    )


def ending_of(traced: Traced) -> tuple[Ending, str]:
    """How an invocation ended, and a sentence if something went wrong."""
    invocation, report = traced.invocation, traced.invocation.report
    events = {mark.text("event") for mark in traced.marks}
    kind = (report.error_type or "") if report else ""
    if invocation.died == "timeout" or (report is not None and report.status == "timeout"):
        return Ending.TIMED_OUT, "the function's time was over"
    raised = _raised(traced)
    if "OutOfMemory" in kind or _lacked_memory(raised) or _killed_for_memory(traced):
        if report is None:
            return Ending.OUT_OF_MEMORY, "it needed more memory than it has"
        more = min(MOST_MB, 2 * report.memory_mb)
        said = f"it needed more memory than its {report.memory_mb:.0f} MB"
        if more > report.memory_mb:
            said += f" (`perseid aws deploy --memory {more:.0f}`, then `perseid resume`)"
        return Ending.OUT_OF_MEMORY, said
    if raised is not None:
        error, message = raised
        return Ending.BAD_INPUT if error in NOT_AGAIN else Ending.RAISED, f"{error}: {message}"
    if "done" in events:
        return Ending.DONE, ""
    if report is None:
        return Ending.NO_RESULT, "its log has no REPORT: it was cut off, or still runs"
    if invocation.failed:
        return Ending.NO_RESULT, f"its process ended without a result ({kind or report.status})"
    return Ending.NO_RESULT, "it returned without a result"


def _lacked_memory(raised: tuple[str, str] | None) -> bool:
    """Whether the handler or a script ran out of memory; numpy has its own error for that."""
    if raised is None:
        return False
    error, message = raised
    # Only the kernel kills a script before its time limit.
    script = "MemoryError" in message or "was ended by signal 9" in message
    return error.endswith("MemoryError") or (error == "WorkerFailedError" and script)


def _killed_for_memory(traced: Traced) -> bool:
    """Whether the kernel killed the process because its memory was used up. The log only says that
    it was killed, so the memory that it used must also have reached the limit."""
    report = traced.invocation.report
    full = report is not None and report.max_memory_mb >= report.memory_mb
    return full and any("signal: killed" in line for line in traced.lines)


def _raised(traced: Traced) -> tuple[str, str] | None:
    """Class and message of the handler's exception, from its own log line or Lambda's."""
    failed = next((mark for mark in traced.marks if mark.text("event") == "failed"), None)
    if failed is not None:
        return current_name(failed.text("error") or ""), failed.text("message") or ""
    found = next((m for m in map(_ERROR.search, traced.lines) if m), None)
    return (current_name(found[1]), found[2]) if found else None


def _mapped(
    executions: Sequence[Execution], attempts: tuple[Attempt, ...], records: Records
) -> EngineReport:
    last: dict[int, Attempt] = {attempt.rank: attempt for attempt in attempts}
    failures = {rank: attempt.message for rank, attempt in last.items() if rank not in records}
    return EngineReport(
        attempts=attempts,
        failures=failures,
        wall_seconds=sum(execution.part("map") or 0.0 for execution in executions),
        concurrency=max(1, most_at_once(attempts)),
        done=tuple(sorted(records)),
    )


def most_at_once(attempts: Iterable[Attempt]) -> int:
    """Largest number of attempts that ran at the same time."""
    moments = [(a.started, 1) for a in attempts]
    moments += [(a.started + (a.duration_ms + (a.init_ms or 0)) / 1e3, -1) for a in attempts]
    now = most = 0
    for _, step in sorted(moments):
        now += step
        most = max(most, now)
    return most


def _engine(
    calls: Calls,
    place: StackResources,
    mapped: EngineReport,
    executions: Sequence[Execution],
    workers: Sequence[Traced],
) -> dict[str, object]:
    counts = [MapCounts.of(calls, execution) for execution in executions]
    refused = sum(traced.count("refused") or 0 for traced in workers)
    usage = WorkflowUsage.of(executions, counts, mapped.attempts, refused)
    return mapped.to_json() | {
        "engine": "aws",
        "drivers": len(executions),
        "state_machine": place.state_machine,
        "architecture": place.architecture,
        "tmp_mb": place.tmp_mb,
        "executions": [
            {
                "arn": execution.arn,
                "status": execution.status,
                "started": execution.started,
                "seconds": execution.seconds,
                "before_seconds": execution.part("before"),
                "map_seconds": execution.part("map"),
                "after_seconds": execution.part("after"),
                "error": execution.error,
                "cause": execution.cause,
                "map": entry.to_json(),
            }
            for execution, entry in zip(executions, counts, strict=True)
        ],
        **vars(usage),
        "refused_calls": refused,
        "summarize_tmp_mb": SUMMARIZE_TMP_MB,
        "unreported": sum(traced.invocation.report is None for traced in workers),
        "api_calls": dict(sorted(calls.counts.items())),
    }


def _write(
    store: Storage,
    workers: Sequence[Traced],
    around: Mapping[str, Sequence[Traced]],
    engine: Mapping[str, object],
) -> None:
    texts: dict[str, str] = {}
    for traced in workers:
        rank = traced.count("rank")
        if rank is not None:
            key = layout.log(rank)
            texts[key] = texts.get(key, "") + traced.text
    for name, found in around.items():
        if found:
            texts[f"{layout.LOGS}/{name}.log"] = "".join(traced.text for traced in found)
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda entry: store.put(entry[0], entry[1].encode()), texts.items()))
    store.put(layout.ENGINE, json_bytes(engine))
