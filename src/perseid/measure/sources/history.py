"""Reads an execution of a state machine from its history: how long each step took.

The history comes from Step Functions' GetExecutionHistory, or from a file that
``aws stepfunctions get-execution-history`` wrote, for any state machine, not only ours
(https://docs.aws.amazon.com/step-functions/latest/apireference/API_HistoryEvent.html).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from perseid.errors import BadInputError
from perseid.jsontext import parse_json
from perseid.measure.execution import Execution, ExecutionInput, Step
from perseid.measure.fields import Fields
from perseid.measure.sources.documents import Document
from perseid.measure.sources.log_files import MILLISECONDS_FROM

_ENDS = {
    "ExecutionSucceeded": "SUCCEEDED",
    "ExecutionFailed": "FAILED",
    "ExecutionAborted": "ABORTED",
    "ExecutionTimedOut": "TIMED_OUT",
}
# A map that fails leaves no MapStateExited; whichever of these comes first ends it.
_MAP_ENDS = ("MapStateExited", "MapStateFailed", "MapStateAborted", "MapRunFailed", "MapRunAborted")


@dataclass(frozen=True)
class HistoryEvent:
    """What is read from one event; fields that the event does not have are empty."""

    number: int
    """Id of the event; ids ascend in the order of events."""
    kind: str
    """Type of the event, e.g. ``MapStateEntered``."""
    time: float
    """Time of the event, in seconds since the epoch."""
    entered: str = ""
    """Name of the state that was entered."""
    exited: str = ""
    """Name of the state that was left."""
    map_run: str = ""
    """ARN of the map run that started."""
    input: object = None
    """Input of the execution, as JSON text."""
    error: str = ""
    cause: str = ""

    @classmethod
    def of(cls, event: Any) -> HistoryEvent:
        """Parse an event; raises `KeyError`, `TypeError` or `ValueError` if it is not one."""
        details = {k: v for k, v in event.items() if k.endswith("EventDetails")}
        failed: Any = next((v for v in details.values() if "error" in v or "cause" in v), {})
        return cls(
            int(event["id"]),
            str(event["type"]),
            moment(event["timestamp"]),
            str(details.get("stateEnteredEventDetails", {}).get("name", "")),
            str(details.get("stateExitedEventDetails", {}).get("name", "")),
            str(details.get("mapRunStartedEventDetails", {}).get("mapRunArn", "")),
            details.get("executionStartedEventDetails", {}).get("input"),
            str(failed.get("error", "")),
            str(failed.get("cause", "")),
        )


def read_history(events: Iterable[object], arn: str = "") -> Execution:
    """Read an execution from its events, in any order.

    Raises
    ------
    BadInputError
        The start of the execution is not among the events.
    """
    # The command line can write the newest event first.
    ordered = sorted(map(HistoryEvent.of, events), key=lambda event: event.number)
    if not ordered or ordered[0].kind != "ExecutionStarted":
        raise BadInputError(f"the history of {arn or 'the execution'} does not hold its start")
    first, last = ordered[0], ordered[-1]
    # No event ends an execution that is still running.
    status = _ENDS.get(last.kind, "RUNNING")
    runs = [event.map_run for event in ordered if event.map_run]
    return Execution(
        arn=arn,
        status=status,
        started=first.time,
        ended=last.time if status != "RUNNING" else None,
        input=_input(first.input),
        steps=_steps(ordered),
        transitions=sum(event.kind.endswith("StateEntered") for event in ordered),
        map_run=runs[-1] if runs else None,
        error=last.error,
        cause=last.cause,
    )


def history_of(found: Document) -> Execution:
    """Read an execution from a file; raises a `BadInputError` that names it if it is no history."""
    events: list[Any] = found.events
    try:
        return read_history(events, found.source)
    except BadInputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{found.source} is not an execution's history: {error!r}") from error


def moment(value: datetime | float | str) -> float:
    """Seconds since the epoch: boto3 gives a datetime, the command line a number or a text."""
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, str):
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return float(value) / 1e3 if value > MILLISECONDS_FROM else float(value)


def _steps(events: Sequence[HistoryEvent]) -> tuple[Step, ...]:
    """Top-level states, without anything between the beginning and the end of a map."""
    steps: list[Step] = []
    inside: str | None = None
    for event in events:
        kind, when = event.kind, event.time
        if inside is not None:
            if kind in _MAP_ENDS and event.exited in ("", inside):
                steps[-1] = _ended(steps[-1], when)
                inside = None
        # States inside a map are not steps of their own.
        elif kind.endswith("StateEntered"):
            steps.append(Step(event.entered, kind.removesuffix("StateEntered"), when))
            inside = event.entered if kind == "MapStateEntered" else None
        elif kind.endswith("StateExited") and steps:
            steps[-1] = _ended(steps[-1], when)
    return tuple(steps)


def _ended(step: Step, when: float) -> Step:
    return Step(step.name, step.kind, step.started, when)


def _input(text: Any) -> ExecutionInput:
    try:
        given = Fields(parse_json(text))
    except (TypeError, ValueError):
        return ExecutionInput()
    return ExecutionInput(
        result_path=given.text("result_path"),
        batch_size=given.count("batch_size"),
        world_size=given.count("world_size"),
    )
