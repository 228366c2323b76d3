"""The worker's and summarize's handlers, failing as a plan beside the run says: in real zips.

``<results_url>.faults.json`` holds ``{"0": ["raise", "exit"]}``: what attempt 1, 2, … at rank 0
does instead of its work; later attempts work.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from perseid.errors import BadModelError, NotFoundError, StorageError
from perseid.pipeline import layout
from perseid.storage import Storage

MUCH = 500
"""MB that a worker takes beside what it works on."""
FREE = 8 << 20
"""Bytes that a worker without memory may still take."""


def handler(event, context):
    from perseid.aws.handlers import worker

    item = event["item"]
    attempt = int(event.get("attempt_before") or 0) + int(item["options"].get("attempts_before", 0))
    planned = plan(item["results_url"]).get(str(item["rank"]), [])
    fault = planned[attempt] if attempt < len(planned) else "work"
    if fault == "work":
        return worker.handler(event, context)
    said = {"event": "start", "run": item["run_id"], "rank": item["rank"], "attempt": attempt + 1}
    print("PERSEID " + json.dumps({**said, "request": context.aws_request_id}), flush=True)
    if fault == "raise":
        raise StorageError(f"rank {item['rank']} cannot read its partition")
    if fault == "bad model":
        raise BadModelError("the model has no output")
    if fault == "exit":
        os._exit(7)
    if fault == "kill":  # as the kernel does where memory is short
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "memory":
        return starved(event, context)
    if fault == "much memory":
        taken = b"x" * (MUCH << 20)  # written to, so that it is resident
        time.sleep(1.0)
        assert taken
        return worker.handler(event, context)
    if fault == "hang":
        time.sleep(600)
    return None  # "nothing": it says that it is done, and is not


STARVED = """
import json, sys
from types import SimpleNamespace
import onnxruntime  # what is short is memory, not a library
import faulty_lambda
from perseid.aws.handlers import worker
event, request, left = json.load(sys.stdin)
context = SimpleNamespace(aws_request_id=request, get_remaining_time_in_millis=lambda: left)
with faulty_lambda.little_memory():
    worker.handler(event, context)
"""


def starved(event, context):
    """The worker in a process of its own: a warm one has memory that earlier events freed."""
    given = [event, context.aws_request_id, context.get_remaining_time_in_millis()]
    done = subprocess.run(
        [sys.executable, "-c", STARVED], input=json.dumps(given), capture_output=True, text=True,
        timeout=50,
    )  # fmt: skip
    print(done.stdout, end="", flush=True)
    failed = [line for line in done.stdout.splitlines() if '"event":"failed"' in line]
    said = json.loads(failed[-1].removeprefix("PERSEID ")) if failed else {}
    # What else is short of memory may abort the process while it ends: the worker has spoken.
    if done.returncode and said.get("error") == "MemoryError":
        raise MemoryError(said["message"])
    raise RuntimeError(f"not ended for want of memory: {done.returncode}, {done.stderr[-1000:]}")


@contextlib.contextmanager
def little_memory():
    """The process may take next to none beyond what it has: asking for more is a MemoryError."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + FREE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def summarize_handler(event, context):
    """Summarize; its first so many calls, as planned, fail."""
    from perseid.aws.handlers import summarize

    url = event["state"]["results_url"]
    calls, name = Storage.holding(url)
    planned = plan(url).get("summarize", [])
    before = sum(info.key.startswith(f"{name}.call-") for info in calls.list())
    calls.put(f"{name}.call-{before}", b"")
    fault = planned[before] if before < len(planned) else "work"
    if fault == "raise":
        raise StorageError("the records cannot be read")
    if fault == "exit before the summary":
        put = Storage.put

        def put_or_die(self, key, *given, **named):
            if key == layout.SUMMARY:
                os._exit(7)
            put(self, key, *given, **named)

        Storage.put = put_or_die
    return summarize.handler(event, context)


def plan(results_url: str) -> dict[str, list[str]]:
    runs, name = Storage.holding(results_url)
    try:
        return dict(json.loads(runs.get(f"{name}.faults.json")))
    except NotFoundError:
        return {}
