"""What Step Functions bills for a run: states, child executions, refused calls."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from perseid.aws.observe.calls import Calls
from perseid.aws.session import aws_errors
from perseid.errors import AwsError, NotFoundError, current_name
from perseid.measure.execution import Execution
from perseid.pipeline.attempts import Attempt, Ending

EXPRESS_GB = 0.0625
"""Memory that an EXPRESS execution with a few small states is billed for: 64 MB, in GB."""
EXPRESS_STEP_MS = 100.0
"""Step in seconds to which the duration of an EXPRESS execution is rounded up
(https://aws.amazon.com/step-functions/pricing/)."""
NOT_AGAIN = frozenset(
    {
        "BadInputError",
        "BadPartitionError",
        "UnsafePickleError",
        "BadModelError",
        "NotInstalledError",
    }
)
"""Errors caused by the input; every further attempt would end in the same way."""
GIVEN_UP = NOT_AGAIN | {
    "JobKeyRefusedError",
    "MismatchedCollectiveError",
    "PeerLostError",
    "ReplacedError",
}
"""Errors after which the state machine makes no further attempt."""


@dataclass(frozen=True)
class MapCounts:
    """Step Functions' counts for a map."""

    children: str = ""
    """Kind of the map's children, ``STANDARD`` or ``EXPRESS``; empty if there was no map."""
    items: Mapping[str, int] = field(default_factory=dict)
    """Numbers of items by how they ended, and their total; empty if unknown."""

    @classmethod
    def of(cls, calls: Calls, execution: Execution) -> MapCounts:
        """The counts of an execution's map."""
        step = execution.map
        if step is None:
            return cls()
        kind = "EXPRESS" if "Express" in step.name else "STANDARD"
        client = calls.client("stepfunctions")
        try:
            with aws_errors():
                arn = execution.map_run
                if arn is None:  # older histories do not contain it
                    runs = client.list_map_runs(executionArn=execution.arn)["mapRuns"]
                    arn = runs[0]["mapRunArn"]
                found = client.describe_map_run(mapRunArn=arn)
        except (AwsError, NotFoundError, IndexError):
            return cls(kind)
        return cls(kind, {name: int(number) for name, number in found["itemCounts"].items()})

    def to_json(self) -> dict[str, object]:
        """Convert to the form in ``engine.json``."""
        return {"children": self.children, **self.items} if self.children else {}


@dataclass(frozen=True)
class WorkflowUsage:
    """What Step Functions bills, under the names used in ``engine.json``."""

    transitions: int
    """Number of transitions, including `refused_transitions`."""
    refused_transitions: int
    """Transitions for calls that Lambda refused, one per retry; 0 for EXPRESS children, which are
    billed by time."""
    express_requests: int
    express_gb_seconds: float

    @classmethod
    def of(
        cls,
        executions: Sequence[Execution],
        counts: Sequence[MapCounts],
        attempts: Sequence[Attempt],
        refused: int,
    ) -> WorkflowUsage:
        """Sum the usage over a run's executions, each of which has its own kind of children."""
        states, requests, seconds = sum(execution.transitions for execution in executions), 0, 0.0
        begun = [execution.started for execution in executions]
        for place, entry in enumerate(counts):
            own = [a for a in attempts if max(1, bisect(begun, a.started)) - 1 == place]
            if entry.children == "EXPRESS":
                requests += entry.items.get("total", 0)
                seconds += express_seconds(own)
            else:
                states += child_states(own)
        if all(entry.children == "EXPRESS" for entry in counts):
            refused = 0
        return cls(states + refused, refused, requests, EXPRESS_GB * seconds)


def child_states(attempts: Sequence[Attempt]) -> int:
    """Number of states that the map's children went through, as STANDARD children are billed.

    There is one state per attempt. A failed attempt is followed by states that count and judge it,
    and that wait or give up; before a retry, a state gives it more memory if it lacked some.
    """
    failed = [attempt for attempt in attempts if attempt.ending is not Ending.DONE]
    once = sum(current_name(attempt.message.partition(":")[0]) in GIVEN_UP for attempt in failed)
    last: dict[int, int] = {}
    for one in attempts:
        last[one.rank] = max(one.attempt, last.get(one.rank, 0))
    larger = sum(a.ending is Ending.OUT_OF_MEMORY and a.attempt < last[a.rank] for a in failed)
    return len(attempts) + 3 * (len(failed) - once) + once + larger


def express_seconds(attempts: Sequence[Attempt]) -> float:
    """Seconds that EXPRESS children are billed for: from a rank's first call to its last call's
    end, including waits."""
    spans: dict[int, tuple[float, float]] = {}
    for attempt in attempts:
        ended = attempt.started + (attempt.duration_ms + (attempt.init_ms or 0.0)) / 1e3
        first, last = spans.get(attempt.rank, (attempt.started, ended))
        spans[attempt.rank] = (min(first, attempt.started), max(last, ended))
    # Times since 1970 have rounding errors below a microsecond, which must not add a billing step.
    steps = [
        math.ceil((end - start) * 1e3 / EXPRESS_STEP_MS - 1e-5) for start, end in spans.values()
    ]
    return sum(steps) * EXPRESS_STEP_MS / 1e3
