"""The first step of the state machine: the function that begins or resumes a run."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from perseid.aws.handlers import log
from perseid.aws.handlers.ready import Answer, Event, answers_check
from perseid.aws.handlers.run_rendezvous import Wait, with_endpoint
from perseid.aws.handlers.secret import read_secret
from perseid.comm.certificates import make_certificate
from perseid.compat.scripts.script_job import script_job
from perseid.errors import (
    AlreadyExistsError,
    BadInputError,
    ForbiddenError,
    NotFoundError,
    PerseidError,
    RunError,
    StorageError,
)
from perseid.jsontext import json_bytes
from perseid.pipeline import layout
from perseid.pipeline.initialize import initialize
from perseid.pipeline.items import WorkItem
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.records import STORE
from perseid.pipeline.request import RunRequest
from perseid.pipeline.request_listing import list_partitions
from perseid.pipeline.resumption import with_current_model
from perseid.pipeline.run_settings import ItemOptions
from perseid.pipeline.run_state import missing_ranks
from perseid.plaintext import counted
from perseid.rendezvous import job_key
from perseid.storage import Location, Storage

CONTROL = ("replace", "resume", "allow_model_change")
"""Keys of the input that are not part of the request."""
EXPRESS_SECONDS = 240
"""Most seconds that a rank of an EXPRESS child may take with all its attempts, as their limit is
300 s (https://docs.aws.amazon.com/step-functions/latest/dg/choosing-workflow-type.html)."""
SLACK_SECONDS = 15
"""Seconds that a state waits beyond the function's own time limit."""
WAIT_SECONDS = 5
"""Longest wait of the state machine before another attempt, in seconds."""
NO_LIMIT = 1 << 31
"""A limit higher than the number of ranks that can run at once."""
NOT_YET = Wait()


@answers_check("numpy", "obstore", "pydantic")
def handler(event: Event, context: Any) -> Answer:
    """Begin the run of ``event["input"]``, with ``event["execution"]`` as its id.

    Returns what the state machine's other states read. An error that the user can fix is returned
    as ``ok: false`` with a sentence; one that another attempt may fix is raised.
    """
    given, wait = Wait.of(event["input"])
    try:
        state = start(given, str(event["execution"]), context.aws_request_id, wait)
    except ForbiddenError as error:
        # New permissions may take effect late: raise, to be tried again.
        raise _with_remedy(error, given) from error
    except PerseidError as error:
        # Raising makes the state machine retry, which helps only if the store may answer
        # differently.
        transient = isinstance(error, StorageError)
        if transient and not isinstance(error, (NotFoundError, AlreadyExistsError)):
            raise
        log.write("refused", run=event["execution"], error=type(error).__name__, message=str(error))
        return {"ok": False, "error": type(error).__name__, "message": str(error)}
    log.write("initialized", **state)
    return state


def _with_remedy(error: ForbiddenError, given: object) -> ForbiddenError:
    """The error's sentence, extended by how to give the functions access to the bucket."""
    found = re.match("s3://([a-z0-9.-]+)", str(error))
    if found is None:
        return error
    results = given.get("results") if isinstance(given, Mapping) else None
    option = "--data-bucket"
    if results and Location.parse(str(results)).bucket == found[1]:
        option = "--results-bucket"
    return ForbiddenError(
        f"{error}; the stack's functions may, after `perseid aws deploy {option} {found[1]}` (name "
        "further buckets of the stack beside it)"
    )


def start(given: object, execution: str, request_id: str, wait: Wait = NOT_YET) -> Answer:
    """The state after this step. Repeating the step (a retried request) changes nothing.

    If the run's rendezvous is still starting, the state says so, and nothing has begun.
    """
    if not isinstance(given, Mapping):
        raise BadInputError(f"the input of the state machine must be a JSON object, not {given!r}")
    if given.get("resume"):
        allowed = bool(given.get("allow_model_change"))
        return _resume(str(given["resume"]), execution, request_id, allow_model_change=allowed)
    _log_start(execution, execution, request_id)
    request = RunRequest.parse({k: v for k, v in given.items() if k not in CONTROL})
    _on_s3(request.results_url)
    limit = _limit()
    known, wait = with_endpoint(_that_may_join(request, limit), wait, _client)
    if known is None:
        return wait.state(given)
    # With the execution's name as run id: Step Functions may call this function twice for one run,
    # and the second call then finds what the first has begun.
    begun = initialize(
        known,
        script_job(known),
        replace=bool(given.get("replace")),
        run_id=execution,
        check=functools.partial(_refuse_waiting_talkers, limit=limit),
        certificate=_certificate(known, execution),
    )
    state = _state(begun.manifest, begun.items, layout.ITEMS, execution, limit)
    return state | {"stop_rendezvous": wait.started}


def _certificate(request: RunRequest, run_id: str) -> str | None:
    """A new certificate for ranks that will communicate, whose private key only they can decrypt.

    None if the ranks do not communicate, or if it cannot be made; they then send unencrypted data,
    which is logged.
    """
    name = os.environ.get("RENDEZVOUS_SECRET_PARAMETER")
    if not name or request.transport == STORE or not request.rendezvous_endpoint:
        return None
    if request.script_mode:  # scripts use the existing system's protocol, which is not encrypted
        return None
    try:
        return make_certificate(job_key(read_secret(name), run_id))
    except Exception as error:
        log.write("not encrypted", message=str(error)[:500])
        return None


def _log_start(run: str, execution: str, request_id: str) -> None:
    log.write("start", function="initialize", run=run, execution=execution, request=request_id)


def _resume(url: str, execution: str, request_id: str, *, allow_model_change: bool) -> Answer:
    """Items of the missing ranks, under a key of this execution's own."""
    _on_s3(url)
    storage = Storage(url)
    manifest = Manifest.load(storage)
    _log_start(manifest.run_id, execution, request_id)
    # Its items would overwrite those that its own map is reading.
    if execution == manifest.run_id:
        raise RunError(f"{url} is the run of this very execution: resume it by another one")
    # A key of its own: Step Functions may still read the items of a former execution.
    key = layout.items_of(execution)
    before = _attempts(manifest.settings.options) * _executions(storage, key)
    ranks = missing_ranks(storage, manifest)
    if ranks:
        # Checked before anything is written, so that a refused resumption leaves the run as it was.
        manifest = with_current_model(manifest, allow_model_change=allow_model_change)
    items = [_again(manifest.item(rank), before) for rank in ranks]
    storage.delete([layout.MERGED])  # the earlier merge will not cover the new ranks
    storage.put(key, json_bytes([item.to_json() for item in items]))
    return _state(manifest, items, key, execution, _limit())


def _again(item: WorkItem, before: int) -> WorkItem:
    """The item of a rank that was tried before; its attempts continue to be counted.

    Statistics of the rank go through the store, since ranks that are done will not join a
    communicator again.
    """
    return replace(item, transport=STORE, options=replace(item.options, attempts_before=before))


def _executions(storage: Storage, own: str) -> int:
    """Number of executions that worked on the run before the one whose items have the key `own`.

    Each may have used up all attempts of a rank, and an attempt that is killed leaves no trace. So
    attempts are numbered from the highest number that can have been used.
    """
    return sum(layout.is_items(name) and name != own for name in storage.names())


def _attempts(options: ItemOptions) -> int:
    return 1 + (2 if options.retries is None else options.retries)


def _state(
    manifest: Manifest, items: Sequence[WorkItem], key: str, execution: str, limit: int | None
) -> Answer:
    options = manifest.settings.options
    talks = any(item.transport != STORE or bool(item.options.talks) for item in items)
    most = float(os.environ["WORKER_TIMEOUT"])
    timeout = min(options.timeout or most, most)
    # Lambda's own time-out error says more than the state's, so the state waits a little longer.
    state_timeout = timeout + SLACK_SECONDS if timeout == most else timeout
    results = Location.parse(manifest.results_url)
    attempts = _attempts(options)
    longest = attempts * timeout + (attempts - 1) * WAIT_SECONDS
    at_once = min(options.workers or NO_LIMIT, limit or NO_LIMIT)
    # An EXPRESS child may run twice at once, which ranks that talk to each other must not. And it
    # has no time to wait until a function is available.
    wanted = min(options.workers or NO_LIMIT, len(items))
    fits = bool(_reserve()) or (limit is not None and wanted <= limit)
    express = not talks and longest <= EXPRESS_SECONDS and fits
    return {
        "ok": True,
        "run_id": manifest.run_id,
        "execution": execution,
        "results_url": manifest.results_url,
        "world_size": manifest.world_size,
        "ranks": len(items),
        "bucket": results.bucket,
        "items_key": (results / key).key,
        # A gang must run all at once. Otherwise as many as the account allows, because each call
        # that it refuses is billed as a transition (0: no limit of ours).
        "max_concurrency": manifest.world_size if talks else at_once % NO_LIMIT,
        "children": "EXPRESS" if express else "STANDARD",
        "timeout_seconds": max(1, round(state_timeout)),
        "retries": attempts - 1,
        "tolerated_failure_percentage": 100.0
        if options.tolerated_failures is None
        else options.tolerated_failures,
    }


def _reserve() -> int:
    """Concurrency reserved for workers; 0 if they share the account's."""
    return int(os.environ.get("RESERVED_CONCURRENCY") or 0)


def _limit() -> int | None:
    """Number of workers that may run at once: the reserved number, or else what the account has
    left.

    None if it cannot be read from the account.
    """
    if _reserve():
        return _reserve()
    import boto3  # the Lambda runtime has it
    from botocore.config import Config

    soon = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 3})
    try:
        limits = boto3.client("lambda", config=soon).get_account_settings()["AccountLimit"]
        return int(limits["UnreservedConcurrentExecutions"])
    except Exception as error:  # STANDARD children can wait: always correct, though more expensive
        log.write("account not known", message=str(error)[:500])
        return None


def _more_at_once(ranks: int) -> str:
    """How the user can have this many workers run at once."""
    if _reserve():
        return f"reserve more with `perseid aws deploy --reserve {ranks}`"
    return (
        "ask AWS for more under Service Quotas (Lambda, concurrent executions of this account and "
        "region)"
    )


def _that_may_join(request: RunRequest, limit: int | None) -> RunRequest:
    """The request, if its gang can run all at once; otherwise refuse it, or let it merge through
    the store."""
    if request.transport == STORE or limit is None:
        return request
    ranks = request.world_size or len(list_partitions(request).partitions)
    # Lambda starts as many as may run; the others would wait to start while the first ones wait
    # for them.
    if ranks <= limit:
        return request
    if request.transport == "auto":
        return RunRequest.parse({**request.given(), "transport": STORE})
    raise BadInputError(
        f"{ranks} ranks are to merge collectively (transport {request.transport}), but only "
        f"{counted(limit, 'worker')} may run at once: {_more_at_once(ranks)}, or take fewer ranks "
        "(`world_size`), or leave `transport` at store"
    )


def _refuse_waiting_talkers(manifest: Manifest, limit: int | None) -> None:
    """Refuse a script whose ranks talk to each other if they could never all run at once."""
    ranks = manifest.world_size
    if manifest.talks and limit is not None and ranks > limit:
        raise BadInputError(
            f"the {ranks} ranks of this script talk to each other and must run at once, but only "
            f"{counted(limit, 'worker')} may: {_more_at_once(ranks)}, or take fewer ranks "
            "(`world_size`)"
        )


def _on_s3(url: str) -> None:
    if Location.parse(url).scheme != "s3":
        raise BadInputError(
            f"results are to go to {url}, which Lambda cannot reach: name an s3:// URL"
        )


@functools.cache
def _client(service: str) -> Any:
    import boto3  # the Lambda runtime has it

    return boto3.client(service)
