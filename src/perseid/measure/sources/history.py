"""An execution of a state machine out of its history: how long each of its steps took.

Reads what Step Functions' GetExecutionHistory gives, from the service or from a file that
``aws stepfunctions get-execution-history`` wrote; any state machine, not only ours
(https://docs.aws.amazon.com/step-functions/latest/apireference/API_HistoryEvent.html).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from perseid.errors import BadInputError
from perseid.measure.execution import Execution, ExecutionInput, Step
from perseid.measure.fields import Fields
from perseid.measure.sources.documents import Document, document
from perseid.measure.sources.log_files import MILLISECONDS_FROM

_ENDS = {
    "ExecutionSucceeded": "SUCCEEDED",
    "ExecutionFailed": "FAILED",
    "ExecutionAborted": "ABORTED",
    "ExecutionTimedOut": "TIMED_OUT",
}
_MAP_ENDS = ("MapStateExited", "MapStateFailed", "MapStateAborted", "MapRunFailed", "MapRunAborted")


def read_history(events: Iterable[Mapping[str, Any]], arn: str = "") -> Execution:
    """An execution from its events, oldest or newest first.

    Raises
    ------
    BadInputError
        They do not begin with the start of the execution.
    """
    ordered = sorted(events, key=lambda event: int(event["id"]))
    if not ordered or ordered[0]["type"] != "ExecutionStarted":
        raise BadInputError(f"the history of {arn or 'the execution'} does not hold its start")
    first, last = ordered[0], ordered[-1]
    status = _ENDS.get(last["type"], "RUNNING")
    details = [v for k, v in last.items() if k.endswith("EventDetails")]
    failed: Mapping[str, Any] = next((v for v in details if "error" in v or "cause" in v), {})
    runs = [event["mapRunStartedEventDetails"]["mapRunArn"] for event in ordered
            if "mapRunStartedEventDetails" in event]  # fmt: skip
    return Execution(
        arn=arn,
        status=status,
        started=moment(first["timestamp"]),
        ended=moment(last["timestamp"]) if status != "RUNNING" else None,
        input=_input(first.get("executionStartedEventDetails", {}).get("input")),
        steps=_steps(ordered),
        transitions=sum(event["type"].endswith("StateEntered") for event in ordered),
        map_run=runs[-1] if runs else None,
        error=str(failed.get("error", "")),
        cause=str(failed.get("cause", "")),
    )


def parse_history(text: str, source: str) -> Execution:
    """From a file that the AWS command line wrote; raises `BadInputError` naming the source."""
    return history_of(document(text, source))


def history_of(found: Document) -> Execution:
    """From a file that was read; raises `BadInputError` naming it where it is no history."""
    events: list[Any] = found.events
    try:
        return read_history(events, found.source)
    except BadInputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{found.source} is not an execution's history: {error!r}") from error


def moment(value: datetime | float | str) -> float:
    """Seconds since the epoch, from any of the forms in which a time comes."""
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, str):
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return float(value) / 1e3 if value > MILLISECONDS_FROM else float(value)


def _steps(events: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """Top-level states: nothing between the beginning of a map and its end."""
    steps: list[Step] = []
    inside: str | None = None
    for event in events:
        kind, when = event["type"], moment(event["timestamp"])
        if inside is not None:
            if kind in _MAP_ENDS and _exited(event, inside):
                steps[-1] = _ended(steps[-1], when)
                inside = None
        elif kind.endswith("StateEntered"):
            name = str(event["stateEnteredEventDetails"]["name"])
            steps.append(Step(name, kind.removesuffix("StateEntered"), when))
            inside = name if kind == "MapStateEntered" else None
        elif kind.endswith("StateExited") and steps:
            steps[-1] = _ended(steps[-1], when)
    return tuple(steps)


def _exited(event: Mapping[str, Any], name: str) -> bool:
    return bool(event.get("stateExitedEventDetails", {}).get("name", name) == name)


def _ended(step: Step, when: float) -> Step:
    return Step(step.name, step.kind, step.started, when)


def _input(text: Any) -> ExecutionInput:
    try:
        given = Fields(json.loads(text))
    except (TypeError, ValueError, RecursionError):
        return ExecutionInput()
    return ExecutionInput(
        result_path=given.text("result_path"),
        batch_size=given.count("batch_size"),
        world_size=given.count("world_size"),
    )
