"""The function that works on one rank. Imports only what a worker's zip contains: no pydantic, no
boto3."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perseid.aws.handlers import log
from perseid.aws.handlers.probe import PROBE, answer
from perseid.aws.handlers.ready import Answer, Event, answers_check, count, inner
from perseid.aws.handlers.secret import read_secret
from perseid.errors import PerseidError, StorageError
from perseid.jsontext import parse_json
from perseid.model.signature_files import signature_beside
from perseid.pipeline import layout
from perseid.pipeline.cold_start import load_runtime
from perseid.pipeline.items import WorkItem
from perseid.pipeline.join_settings import JoinSettings
from perseid.pipeline.run_settings import ItemOptions, Precision
from perseid.pipeline.work import work
from perseid.rendezvous import job_key
from perseid.storage import Storage

if TYPE_CHECKING:
    from perseid.model.runtime import Predictor

SPARE_SECONDS = 2.0
"""Seconds before the function's end at which a script is stopped, so that its last output reaches
the log."""


@answers_check("numpy", "obstore", "onnxruntime")
def handler(event: Event, context: Any) -> Answer:
    """Work on the rank of ``event["item"]``; ``event["attempt_before"]`` attempts were made before.

    Lambda refused ``event["refused_before"]`` calls before this one; each was billed as a
    transition.

    Raises what `perseid.pipeline.work.work` raises; Step Functions reads the name of the error's
    class.
    """
    if PROBE in event:
        return _probe(inner(event, PROBE), context)
    began = time.monotonic()
    item = WorkItem.from_json(inner(event, "item"))
    options = _join_options(item, context)
    options = replace(options, timeout=_script_seconds(options, context))
    item = replace(item, options=options)
    # The state machine counts this execution's attempts; the item has those of earlier executions.
    attempt = 1 + count(event, "attempt_before") + (options.attempts_before or 0)
    who = {"run": item.run_id, "rank": item.rank, "attempt": attempt}
    refused = count(event, "refused_before")
    log.write("start", **who, request=context.aws_request_id, refused=refused)
    try:
        done = _work(item, attempt)
    except Exception as error:
        said = {"error": type(error).__name__, "message": str(error)[:2000]}
        log.write("failed", **who, **said, seconds=round(time.monotonic() - began, 3))
        # Summarize cannot read logs, so an object of the run is the only way to tell it what went
        # wrong.
        _leave_reason(item, {**who, **said})
        raise
    log.write("done", **who, rows=done, seconds=round(time.monotonic() - began, 3))
    return {"rank": item.rank, "rows": done, "attempt": attempt}


def _probe(task: Event, context: Any) -> Answer:
    """Answer a request of `perseid aws prove`."""
    name = os.environ.get("RENDEZVOUS_SECRET_PARAMETER", "")
    left = float(context.get_remaining_time_in_millis()) / 1000
    own = signature_beside("default")
    signature = json.dumps(own.to_plain() if own else None)
    default = functools.partial(_runtime, "default", "float32", 512, None, signature, "")
    return answer(task, left, functools.partial(read_secret, name), default)


def _work(item: WorkItem, attempt: int) -> int:
    if item.options.script is not None:  # Lambda's bootstrap finds its modules by means of its own
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    cold, runtime, seconds = not _runtime.cache_info().currsize, None, 0.0
    if item.options.script is None and item.partitions:
        began = time.monotonic()
        # Lambda reuses a process for further calls, perhaps of another run: the key of the cache
        # must name everything that the model depends on.
        digest = item.model.digest if item.model else ""  # a model may be replaced between runs
        runtime = _runtime(
            item.model_url,
            item.precision,
            item.batch_size,
            item.options.threads,
            json.dumps(item.signature, sort_keys=True),
            digest,
        )
        seconds = time.monotonic() - began
    storage = Storage(item.results_url)
    if item.options.script is not None:
        from perseid.compat.scripts.run_script import run_script  # not needed to run a model

        record = run_script(item, storage, attempt=attempt, cold=cold)
    else:
        record = work(
            item, storage, runtime=runtime, attempt=attempt, cold=cold, init_seconds=seconds
        )
    key = layout.done_record(item.rank, script=item.options.script is not None)
    if not storage.exists(key):  # a rank that reports success must have left its record
        raise StorageError(
            f"rank {item.rank} ended without an error but left no {storage.where(key)}"
        )
    return record.rows


def _leave_reason(item: WorkItem, said: Event) -> None:
    """Leave the error's message for summarize, which can read only objects; the log has it, too."""
    with contextlib.suppress(PerseidError):
        Storage(item.results_url).put(layout.failure(item.rank), json.dumps(said).encode())


def _join_options(item: WorkItem, context: Any) -> ItemOptions:
    """The item's options, extended by what joining a communicator takes: this worker's deadline and
    the job's key.

    The key is never stored in an object of the run; each worker derives it from the stack's secret.
    """
    name = os.environ.get("RENDEZVOUS_SECRET_PARAMETER")
    if JoinSettings.of_item(item) is None:
        return item.options
    # A rank that Lambda cuts off in the middle of a collective would look lost to the others.
    left = float(context.get_remaining_time_in_millis()) / 1000 - SPARE_SECONDS
    options = replace(item.options, ends=time.time() + left)
    if name and options.rendezvous_key is None:
        try:
            key = job_key(read_secret(name), item.run_id)
            return replace(options, rendezvous_key=key.hex())
        except Exception as error:  # without the key ranks merge through the store, and say why
            log.write("no key", run=item.run_id, rank=item.rank, message=str(error)[:500])
            return replace(options, certificate=None)  # it cannot be decrypted without the key
    return options


@functools.lru_cache(maxsize=1)
def _runtime(
    model_url: str,
    precision: Precision,
    batch_size: int,
    threads: int | None,
    signature: str,
    digest: str,
) -> Predictor:
    """The model, kept for the next rank that runs in this environment."""
    item = WorkItem(
        run_id="",
        rank=0,
        world_size=1,
        results_url="memory://",
        data_url="memory://",
        partitions=(),
        model_url=model_url,
        precision=precision,
        batch_size=batch_size,
        signature=parse_json(signature),
        options=ItemOptions(threads=threads),
    )
    return load_runtime(item)


def _script_seconds(options: ItemOptions, context: Any) -> float:
    """Time limit of a script: as requested, but less than the time that the function has left."""
    # Lambda kills without notice, which would lose the script's last output.
    left = float(context.get_remaining_time_in_millis()) / 1000 - SPARE_SECONDS
    return max(1.0, min(left, options.timeout or left))
