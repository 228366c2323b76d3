"""The function that begins a run, or goes on with one; the first step of the state machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from perseid.aws.handlers import log
from perseid.aws.handlers.ready import answers_check
from perseid.errors import (
    AlreadyExistsError,
    BadInputError,
    ForbiddenError,
    NotFoundError,
    PerseidError,
    RunError,
    StorageError,
)
from perseid.pipeline import layout
from perseid.pipeline.initialize import initialize, list_partitions
from perseid.pipeline.items import WorkItem
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.records import STORE
from perseid.pipeline.request import RunRequest
from perseid.pipeline.resumption import with_current_model
from perseid.pipeline.run_settings import ItemOptions
from perseid.pipeline.run_state import missing_ranks
from perseid.storage import Location, Storage

CONTROL = ("replace", "resume", "allow_model_change")
"""Keys of the input that are not of the request."""
EXPRESS_SECONDS = 240
"""Longest that a rank of an EXPRESS child may take with all its attempts: their limit is 300 s
(https://docs.aws.amazon.com/step-functions/latest/dg/choosing-workflow-type.html)."""
SLACK_SECONDS = 15
"""That a state waits longer than the function's own time limit."""
WAIT_SECONDS = 5
"""Longest that the state machine waits before another attempt."""
NO_LIMIT = 1 << 31
"""More ranks at once than there can be."""


@answers_check("numpy", "obstore", "pydantic")
def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Begin the run of ``event["input"]``; ``event["execution"]`` becomes its id.

    Returns what the state machine's other states read. What the user can mend comes back as
    ``ok: false`` with a sentence; what another attempt may mend is raised.
    """
    try:
        state = start(event["input"], str(event["execution"]), context.aws_request_id)
    except ForbiddenError as error:  # rights that were just given may come late: tried again
        raise _with_remedy(error, event["input"]) from error
    except PerseidError as error:
        transient = isinstance(error, StorageError)
        if transient and not isinstance(error, (NotFoundError, AlreadyExistsError)):
            raise
        log.write("refused", run=event["execution"], error=type(error).__name__, message=str(error))
        return {"ok": False, "error": type(error).__name__, "message": str(error)}
    log.write("initialized", **state)
    return state


def _with_remedy(error: ForbiddenError, given: Any) -> ForbiddenError:
    """The sentence, with what lets the functions into a bucket."""
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


def start(given: Any, execution: str, request_id: str) -> dict[str, Any]:
    """The state after this step. Doing it again (a retried request) changes nothing."""
    if not isinstance(given, Mapping):
        raise BadInputError(f"the input of the state machine must be a JSON object, not {given!r}")
    if given.get("resume"):
        allowed = bool(given.get("allow_model_change"))
        return _resume(str(given["resume"]), execution, request_id, allow_model_change=allowed)
    _log_start(execution, execution, request_id)
    request = RunRequest.parse({k: v for k, v in given.items() if k not in CONTROL})
    _on_s3(request.results_url)
    request = _within_reserve(_with_endpoint(request))
    begun = initialize(
        request,
        replace=bool(given.get("replace")),
        run_id=execution,
        check=_refuse_waiting_talkers,
    )
    return _state(begun.manifest, begun.items, layout.ITEMS, execution)


def _log_start(run: str, execution: str, request_id: str) -> None:
    log.write("start", function="initialize", run=run, execution=execution, request=request_id)


def _resume(
    url: str, execution: str, request_id: str, *, allow_model_change: bool
) -> dict[str, Any]:
    """Items of the ranks that are missing, under a key of this execution's own."""
    _on_s3(url)
    storage = Storage(url)
    manifest = Manifest.load(storage)
    _log_start(manifest.run_id, execution, request_id)
    if execution == manifest.run_id:
        raise RunError(f"{url} is the run of this very execution: resume it by another one")
    key = layout.items_of(execution)
    before = _attempts(manifest.settings.options) * _executions(storage, key)
    ranks = missing_ranks(storage, manifest)
    if ranks:
        manifest = with_current_model(manifest, allow_model_change=allow_model_change)
    items = [_again(manifest.item(rank), before) for rank in ranks]
    storage.delete([layout.MERGED])  # what was merged is not what there will be
    storage.put(key, json.dumps([item.to_json() for item in items], indent=1).encode())
    return _state(manifest, items, key, execution)


def _again(item: WorkItem, before: int) -> WorkItem:
    """The item of a rank that was tried before: its attempts are counted on.

    The rank merges from the store, since those that are done will not join again.
    """
    return replace(item, transport=STORE, options=replace(item.options, attempts_before=before))


def _executions(storage: Storage, own: str) -> int:
    """How many executions worked on the run before the one whose items have the key `own`.

    Each may have used up all attempts of a rank, and one that is killed leaves no trace: so their
    numbers go on after the highest that there can have been.
    """
    return sum(layout.is_items(name) and name != own for name in storage.names())


def _attempts(options: ItemOptions) -> int:
    return 1 + (2 if options.retries is None else options.retries)


def _state(
    manifest: Manifest, items: Sequence[WorkItem], key: str, execution: str
) -> dict[str, Any]:
    options = manifest.settings.options
    talks = any(item.transport != STORE or bool(item.options.talks) for item in items)
    limit = float(os.environ["WORKER_TIMEOUT"])
    timeout = min(options.timeout or limit, limit)
    # At the function's own limit Lambda's error says more than the state's would.
    state_timeout = timeout + SLACK_SECONDS if timeout == limit else timeout
    results = Location.parse(manifest.results_url)
    attempts = _attempts(options)
    longest = attempts * timeout + (attempts - 1) * WAIT_SECONDS
    at_once = _at_once(options)
    # An EXPRESS child may run twice at once: ranks that talk to each other must not. And it has no
    # time to wait for its turn.
    express = not talks and longest <= EXPRESS_SECONDS and _all_fit(min(at_once, len(items)))
    return {
        "ok": True,
        "run_id": manifest.run_id,
        "execution": execution,
        "results_url": manifest.results_url,
        "world_size": manifest.world_size,
        "ranks": len(items),
        "bucket": results.bucket,
        "items_key": (results / key).key,
        # A gang must run at once; otherwise as many as the account lets (0: no limit of ours).
        "max_concurrency": manifest.world_size if talks else at_once % NO_LIMIT,
        "children": "EXPRESS" if express else "STANDARD",
        "timeout_seconds": max(1, round(state_timeout)),
        "retries": attempts - 1,
        "tolerated_failure_percentage": 100.0
        if options.tolerated_failures is None
        else options.tolerated_failures,
    }


def _reserve() -> int:
    """Concurrency that is kept for workers; 0 where they share the account's."""
    return int(os.environ.get("RESERVED_CONCURRENCY") or 0)


def _at_once(options: ItemOptions) -> int:
    """Ranks that may run at one moment: as asked, and no more than are let through."""
    return min(options.workers or NO_LIMIT, _reserve() or NO_LIMIT)


def _all_fit(ranks: int) -> bool:
    """Whether none of so many ranks at once has to wait for its turn."""
    if _reserve():
        return ranks <= _reserve()
    import boto3  # the Lambda runtime has it
    from botocore.config import Config

    soon = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 3})
    try:
        limits = boto3.client("lambda", config=soon).get_account_settings()["AccountLimit"]
        return ranks <= int(limits["UnreservedConcurrentExecutions"])
    except Exception as error:  # STANDARD children can wait: right in any case, if dearer
        log.write("account not known", message=str(error)[:500])
        return False


def _within_reserve(request: RunRequest) -> RunRequest:
    """A gang that could never run at once is refused, or does without meeting if it may."""
    reserve = _reserve()
    if request.transport == STORE or not reserve:
        return request
    ranks = request.world_size or len(list_partitions(request).partitions)
    if ranks <= reserve:
        return request
    if request.transport == "auto":
        return RunRequest.parse({**request.given(), "transport": STORE})
    raise BadInputError(
        f"{ranks} ranks are to meet (transport {request.transport}), but only {reserve} workers "
        f"may run at once: reserve more with `perseid aws deploy --reserve {ranks}`, or take fewer "
        "ranks (`world_size`), or leave `transport` at store"
    )


def _refuse_waiting_talkers(manifest: Manifest) -> None:
    """Ranks of a script that talk to each other could never all run at once."""
    ranks, reserve = manifest.world_size, _reserve()
    if manifest.talks and reserve and ranks > reserve:
        raise BadInputError(
            f"the {ranks} ranks of this script talk to each other and must run at once, but only "
            f"{reserve} workers may: reserve more with `perseid aws deploy --reserve {ranks}`, or "
            "take fewer ranks (`world_size`)"
        )


def _on_s3(url: str) -> None:
    if Location.parse(url).scheme != "s3":
        raise BadInputError(
            f"results are to go to {url}, which Lambda cannot reach: name an s3:// URL"
        )


def _with_endpoint(request: RunRequest) -> RunRequest:
    """The stack's own rendezvous, where ranks are to talk and the request names none."""
    name = os.environ.get("RENDEZVOUS_ADDRESS_PARAMETER")
    if request.transport == "store" or request.rendezvous_endpoint or name is None:
        return request
    if not name:
        if request.transport == "auto":
            return request
        raise BadInputError(
            f"transport is {request.transport} but this stack has no rendezvous: deploy it with "
            "`perseid aws deploy --rendezvous`, or leave `transport` at store"
        )
    import boto3  # the Lambda runtime has it

    value = json.loads(boto3.client("ssm").get_parameter(Name=name)["Parameter"]["Value"])
    if not value.get("address"):
        if request.transport == "auto":
            return request
        raise RunError(
            f"transport is {request.transport} but the rendezvous does not run: start it with "
            "`perseid aws rendezvous start`, or leave `transport` at store"
        )
    return RunRequest.parse({**request.given(), "rendezvous_endpoint": value["address"]})
