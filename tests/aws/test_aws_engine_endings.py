"""How invocations ended, from their logs as Lambda writes them; the texts are of AWS's guide.

https://docs.aws.amazon.com/lambda/latest/dg/troubleshooting-invocation.html
"""

from __future__ import annotations

import json

import pytest

from perseid.aws.observe.run_archive import attempts_of
from perseid.measure.sources.streams import LogEvent, trace
from perseid.pipeline.stored import StoredRecord

ID = "adbca9aa-0d4f-4f0e-a3a1-8f6e1c2b3d4e"
START = f"START RequestId: {ID} Version: $LATEST"
MARK = "PERSEID " + json.dumps({"event": "start", "run": "r", "rank": 3, "attempt": 2})
FAILED = {"event": "failed", "run": "r", "rank": 3, "attempt": 2, "error": "MemoryError"}
REPORT = f"REPORT RequestId: {ID}\tDuration: 5000.00 ms\tBilled Duration: 5001 ms\t"
SIZES = "Memory Size: 1769 MB\tMax Memory Used: {used} MB"
KILLED = f"RequestId: {ID} Error: Runtime exited with error: signal: killed"


def lines(*more, used=400, status=""):
    return [START, MARK, *more, f"END RequestId: {ID}", REPORT + SIZES.format(used=used) + status]


@pytest.mark.parametrize(
    ("log", "ending", "says"),
    [
        (lines(KILLED, "Runtime.ExitError", used=1769), "out of memory", "than its 1769 MB"),
        (lines(used=1769, status="\tStatus: error\tError Type: Runtime.OutOfMemory"),
         "out of memory", "than its 1769 MB"),
        (lines("PERSEID " + json.dumps(FAILED | {"message": ""})), "out of memory", "1769 MB"),
        (lines("[ERROR] _ArrayMemoryError: Unable to allocate 9 GiB"),
         "out of memory", "than its 1769 MB"),
        (lines(KILLED, "Runtime.ExitError", used=600,
               status="\tStatus: error\tError Type: Runtime.ExitError"),
         "no result", "its process ended without a result (Runtime.ExitError)"),
        (lines(f"2026-11-22T10:00:00.000Z {ID} Task timed out after 5.00 seconds"),
         "timed out", "time was over"),
        (lines(status="\tStatus: timeout"), "timed out", "time was over"),
        (lines("[ERROR] StorageError: s3://b/1.pt: 503"), "raised", "StorageError: s3://b/1.pt"),
        (lines("[ERROR] WorkerFailedError: rank 3: the script was ended by signal 9"),
         "out of memory", "than its 1769 MB"),
        (lines("[ERROR] WorkerFailedError: rank 3: the script ended with status 1; its last words: "
               "MemoryError"), "out of memory", "than its 1769 MB"),
        (lines("[ERROR] WorkerFailedError: rank 3: the script was ended by signal 11"),
         "raised", "signal 11"),
        (lines(), "no result", "it returned without a result"),
        ([START, MARK], "no result", "it was cut off, or still runs"),
    ],
)  # fmt: skip
def test_an_ending_is_told_by_the_log(log, ending, says):
    events = [
        LogEvent("2026/11/22/[$LATEST]a", 1e9 + place, line) for place, line in enumerate(log)
    ]
    [attempt] = attempts_of(trace(events), 1769, {})
    assert (attempt.rank, attempt.attempt, attempt.ending.value) == (3, 2, ending)
    assert says in attempt.message


def test_a_record_that_is_there_says_that_the_attempt_was_done():
    """The last lines of a log may be missing; the record is written last of a rank's objects."""
    plain = {"run_id": "r", "rank": 3, "attempt": 2, "rows": 7, "stages": {"total": 1.5}}
    record, earlier = (StoredRecord.of({**plain, "attempt": n}, "3.json") for n in (2, 1))
    events = [LogEvent("s", 1e9, START), LogEvent("s", 1e9 + 1, MARK)]
    [attempt] = attempts_of(trace(events), 1769, {3: record})
    assert (attempt.ending.value, attempt.rows, attempt.work_seconds) == ("done", 7, 1.5)
    [late] = attempts_of(trace(events), 1769, {3: earlier})
    assert late.ending.value == "no result"
