"""An execution of a state machine out of its history: how long each of its steps took.

Reads what Step Functions' GetExecutionHistory gives, from the service or from a file that
``aws stepfunctions get-execution-history`` wrote; any state machine, not only ours
(https://docs.aws.amazon.com/step-functions/latest/apireference/API_HistoryEvent.html).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from perseid.errors import BadInputError

_ENDS = {
    "ExecutionSucceeded": "SUCCEEDED",
    "ExecutionFailed": "FAILED",
    "ExecutionAborted": "ABORTED",
    "ExecutionTimedOut": "TIMED_OUT",
}
_MAP_ENDS = ("MapStateExited", "MapStateFailed", "MapStateAborted", "MapRunFailed", "MapRunAborted")


@dataclass(frozen=True)
class Step:
    """One state of the state machine, as the execution went through it."""

    name: str
    kind: str
    """``Task``, ``Map``, ``Choice``, …"""
    started: float
    """Seconds since the epoch."""
    ended: float | None = None
    """None: it had not ended where the history ends, or it failed."""


@dataclass(frozen=True)
class Execution:
    """One execution of a state machine."""

    arn: str
    status: str
    """``RUNNING``, ``SUCCEEDED``, ``FAILED``, ``ABORTED`` or ``TIMED_OUT``."""
    started: float
    ended: float | None = None
    input: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    """Top-level states in order; those inside a map are not among them."""
    transitions: int = 0
    """States that this execution entered; children of a distributed map have their own."""
    map_run: str | None = None
    """ARN of its (last) distributed map."""
    error: str = ""
    cause: str = ""

    @property
    def seconds(self) -> float | None:
        """The whole execution; None while it runs."""
        return None if self.ended is None else self.ended - self.started

    @property
    def map(self) -> Step | None:
        """The map state; where there are several, the one that took longest."""
        maps = [step for step in self.steps if step.kind == "Map"]
        return max(maps, key=lambda s: (s.ended or s.started) - s.started, default=None)

    def part(self, which: str) -> float | None:
        """Seconds ``before``, in (``map``) or ``after`` the map state; None where not known."""
        middle = self.map
        if middle is None or middle.ended is None:
            return None
        if which == "before":
            return middle.started - self.started
        if which == "map":
            return middle.ended - middle.started
        return None if self.ended is None else self.ended - middle.ended


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
        input=_object(first.get("executionStartedEventDetails", {}).get("input")),
        steps=_steps(ordered),
        transitions=sum(event["type"].endswith("StateEntered") for event in ordered),
        map_run=runs[-1] if runs else None,
        error=str(failed.get("error", "")),
        cause=str(failed.get("cause", "")),
    )


def parse_history(text: str, source: str) -> Execution:
    """From the JSON that the AWS command line writes; raises `BadInputError` naming the source."""
    try:
        plain = json.loads(text)
        events = plain["events"] if isinstance(plain, Mapping) else plain
        return read_history(events, source)
    except BadInputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{source} is not an execution's history: {error!r}") from error


def moment(value: datetime | float | str) -> float:
    """Seconds since the epoch, from any of the forms in which a time comes."""
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, str):
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return float(value)


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


def _object(text: Any) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, Mapping) else {}
