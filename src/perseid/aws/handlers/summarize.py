"""The last step: the function that merges what the ranks left and publishes the result."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from perseid.aws.handlers import log
from perseid.aws.handlers.ready import Answer, Event, answers_check, inner
from perseid.aws.handlers.run_rendezvous import stop_after
from perseid.errors import RunIncompleteError, StorageError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.run_summary import ExecutionSummary
from perseid.pipeline.summarize import summarize
from perseid.storage import Storage


class Failures(Mapping[int, str]):
    """The reasons that ranks left for their failures; only those that are requested are read."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._storage, self._run_id = storage, run_id

    def __getitem__(self, rank: int) -> str:
        try:
            left = parse_json(self._storage.get(layout.failure(rank)))
        except (StorageError, ValueError):
            raise KeyError(rank) from None
        # A reason left by an earlier run at this prefix says nothing about this run.
        if not isinstance(left, dict) or left.get("run") != self._run_id:
            raise KeyError(rank)
        return f"{left.get('error')}: {left.get('message')}"

    def __iter__(self) -> Iterator[int]:
        world_size = Manifest.load(self._storage).world_size
        return (rank for rank in range(world_size) if rank in self)

    def __bool__(self) -> bool:
        return True  # otherwise `or` would count them, with one request per rank

    def __len__(self) -> int:
        return sum(1 for _ in self)


@answers_check("numpy", "obstore", "pydantic")
def handler(event: Event, context: Any) -> Answer:
    """Publish the run of ``event["state"]``, which holds what the state machine knows about it.

    Returns the state with a short ``summary``, or ``ok: false`` with a sentence that names what is
    missing. What is there has been published in either case.
    """
    state = inner(event, "state")
    try:
        return _publish(state, context)
    finally:
        stop_after(bool(state.get("stop_rendezvous")), str(state["execution"]), _client)


def _publish(state: Event, context: Any) -> Answer:
    who = {"run": state["run_id"], "execution": state["execution"]}
    log.write("start", function="summarize", **who, request=context.aws_request_id)
    storage = Storage(str(state["results_url"]))
    engine: ExecutionSummary = {
        "engine": "aws", "execution": str(state["execution"]),
        "children": str(state["children"]),
    }  # fmt: skip
    try:
        failures = Failures(storage, str(state["run_id"]))
        summary = summarize(storage, failures=failures, engine=engine)
    except RunIncompleteError as error:
        said = {"error": "RunIncompleteError", "message": str(error)}
        log.write("incomplete", run=state["run_id"], **said)
        return {**state, "ok": False, **said}
    short = {
        "status": summary["status"],
        "rows": summary["rows"]["received"],
        "summary_url": storage.where(layout.SUMMARY),
    }
    log.write("summarized", run=state["run_id"], **short)
    return {**state, "summary": short}


@functools.cache
def _client(service: str) -> Any:
    import boto3  # the Lambda runtime has it

    return boto3.client(service)
