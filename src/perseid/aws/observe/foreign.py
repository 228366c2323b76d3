"""Runs of the existing system's functions and state machine, reconstructed from their log
groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from perseid.aws.observe.calls import Calls
from perseid.aws.observe.cloudwatch_logs import LATE_SECONDS, read_events
from perseid.aws.observe.execution_history import executions_between, read_executions
from perseid.errors import BadInputError
from perseid.measure.measured_run import MeasuredRun
from perseid.measure.sources.load_options import LoadOptions
from perseid.measure.sources.logruns import invocation_runs
from perseid.measure.sources.streams import trace


def group_runs(
    calls: Calls,
    groups: Sequence[str],
    start: float,
    end: float,
    state_machine: str | None,
    options: LoadOptions,
) -> list[MeasuredRun]:
    """Every run in some log groups between two times (seconds since the epoch).

    Parameters
    ----------
    state_machine
        ARN of the state machine. Its executions give the times of their steps and distinguish runs
        with the same result path.

    Raises
    ------
    NotFoundError
        The log group or state machine does not exist.
    BadInputError
        The groups contain no invocation in that time.
    """
    if state_machine is not None:
        arns = executions_between(calls, state_machine, start, end)
        executions = tuple(read_executions(calls, arns))
        options = replace(options, executions=(*options.executions, *executions))
    found: list[MeasuredRun] = []
    for group in groups:
        events = list(read_events(calls, group, start, end + LATE_SECONDS))
        # Invocations that began before or after belong to other runs; ends may come a little later.
        traced = [t for t in trace(events) if start <= (t.invocation.started or start) <= end]
        size = float(sum(len(event.text) for event in events))
        invocations = [t.invocation for t in traced]
        found += invocation_runs(invocations, group, size, options) if invocations else ()
    if not found:
        raise BadInputError(
            f"no invocation was logged in {', '.join(groups)} in that time (UTC): check "
            "its beginning and its end"
        )
    return found
