"""Groups the invocations in logs into runs, with the execution that they worked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from perseid.measure.cost import Usage, map_transitions
from perseid.measure.execution import Execution
from perseid.measure.measured_run import MeasuredRun, ResultPath, Span, common
from perseid.measure.sources.load_options import LoadOptions
from perseid.measure.sources.log_files import Invocation

CLOCK_SECONDS = 1.0
"""Seconds by which the clocks of Lambda and Step Functions may differ."""
PART_OF_A_RUN = "the log does not hold the whole run"


@dataclass(frozen=True)
class _Group:
    """Invocations that worked for one run."""

    name: str
    path: str
    """Result path of the run; empty if unknown."""
    invocations: tuple[Invocation, ...]
    log_bytes: float
    """Share of the logs' size that is charged to this run."""
    execution: Execution | None = None

    @property
    def said(self) -> bool:
        """Whether any invocation says what it received."""
        return any(one.event.known for one in self.invocations)

    @property
    def received(self) -> int:
        """Number of ranks that succeeded; an invocation without a rank counts as one of its own."""
        return len(
            {
                one.event.rank or one.request_id
                for one in self.invocations
                if one.report and not one.failed
            }
        )


def invocation_runs(
    invocations: Sequence[Invocation],
    source: str,
    log_bytes: float,
    options: LoadOptions | None = None,
) -> Iterator[MeasuredRun]:
    """Make one run per execution, and one per result path of all other invocations.

    An invocation belongs to an execution if it began while the execution was running and received
    its result path, or does not say what it received. Of the other invocations, those that do not
    say what they received form one run together.
    """
    options = options or LoadOptions()
    for group in _groups(invocations, source, log_bytes, options.executions):
        yield _log_run(group, options)


def _groups(
    invocations: Sequence[Invocation],
    source: str,
    log_bytes: float,
    executions: Sequence[Execution],
) -> Iterator[_Group]:
    left = list(invocations)
    for execution in executions:
        own = tuple(one for one in left if _works_for(one, execution))
        taken = {id(one) for one in own}
        left = [one for one in left if id(one) not in taken]
        if own:
            name = execution.arn.rpartition(":")[2] or source
            # Logs are billed by size: each run gets a share by its number of invocations.
            share = log_bytes * len(own) / len(invocations)
            path = execution.input.result_path or ""
            yield _Group(f"{source} · {name}", path, own, share, execution)
    by_path: dict[str, list[Invocation]] = {}
    for invocation in left:
        # Runs of the existing system have no id: their result path is what tells them apart.
        by_path.setdefault(invocation.event.result_path or "", []).append(invocation)
    for path, found in by_path.items():
        name = f"{source} · {path}" if path and len(by_path) > 1 else source
        yield _Group(name, path, tuple(found), log_bytes * len(found) / len(invocations))


def _works_for(invocation: Invocation, execution: Execution) -> bool:
    began = invocation.started
    if began is None or began < execution.started - CLOCK_SECONDS:
        return False
    if execution.ended is not None and began > execution.ended + CLOCK_SECONDS:
        return False
    # Two executions may run at the same time: the result path, if known, tells them apart.
    theirs, its = invocation.event.result_path, execution.input.result_path
    return theirs is None or its is None or theirs == its


def _log_run(group: _Group, options: LoadOptions) -> MeasuredRun:
    events = [one.event for one in group.invocations if one.event.known]
    reports = tuple(one.report for one in group.invocations if one.report is not None)
    place = ResultPath.of(group.path)
    expected, why = options.expected, "what was given"
    if expected is None:
        expected, why = common(event.world_size for event in events), "WORLD_SIZE"
    # The span of the workers is the time of the map only if all of them are in the log.
    complete = expected is not None and group.received >= expected
    execution = group.execution
    return MeasuredRun(
        name=group.name,
        partition=place.partition if place else common(event.data_prefix for event in events),
        data=place.data if place else None,
        batch_size=common(event.batch_size for event in events),
        expected=expected,
        expected_from=why if expected is not None else "",
        received=group.received,
        whole=_whole(execution),
        map=_map(execution) or (_span(group.invocations) if complete else None),
        durations=tuple(one.seconds for one in group.invocations if one.seconds is not None),
        reports=reports,
        unreported=sum(one.report is None for one in group.invocations),
        usage=Usage(
            reports=reports,
            architecture=options.architecture,
            transitions=_transitions(group),
            log_bytes=group.log_bytes,
        ),
        function=next((event.function for event in events if event.function), ""),
        notes=(
            *([PART_OF_A_RUN] if group.said and not complete else ()),
            *execution_notes(execution),
        ),
        execution=execution,
    )


def execution_run(execution: Execution, source: str) -> MeasuredRun:
    """A run of which only the execution's history was given: it has times, and nothing else."""
    path = execution.input.result_path or ""
    place = ResultPath.of(path)
    return MeasuredRun(
        name=f"{source} · {path}" if path else source,
        partition=place.partition if place else None,
        data=place.data if place else None,
        batch_size=execution.input.batch_size,
        expected=execution.input.world_size,
        expected_from="the execution's input" if execution.input.world_size else "",
        whole=_whole(execution),
        map=_map(execution),
        notes=("no log of its workers was given", *execution_notes(execution)),
        execution=execution,
    )


def _transitions(group: _Group) -> int:
    """State transitions: those of the execution, and one per invocation in a distributed map."""
    if group.execution is None:
        return map_transitions(len(group.invocations), group.received) if group.said else 0
    # The history of the execution includes the states of an inline map already.
    inline = group.execution.map_run is None
    return group.execution.transitions + (0 if inline else len(group.invocations))


def _whole(execution: Execution | None) -> Span | None:
    seconds = execution.seconds if execution else None
    return None if seconds is None else Span(seconds, "whole execution")


def _map(execution: Execution | None) -> Span | None:
    seconds = execution.part("map") if execution else None
    return None if seconds is None else Span(seconds, "map state")


def execution_notes(execution: Execution | None) -> tuple[str, ...]:
    """Notes on the times of an execution's parts, and on how it ended if it did not succeed."""
    if execution is None:
        return ()
    parts = [(name, execution.part(name)) for name in ("before", "map", "after")]
    words = ", ".join(f"{name} {value:.2f} s" for name, value in parts if value is not None)
    notes = [f"execution: {words}"] if words else []
    if execution.status != "SUCCEEDED":
        notes.append(f"the execution is {execution.status} {execution.error}".rstrip())
    return tuple(notes)


def _span(group: Sequence[Invocation]) -> Span | None:
    starts = [one.started for one in group if one.started is not None]
    ends = [one.ended for one in group if one.ended is not None]
    # A log without times has no span.
    if not starts or not ends:
        return None
    return Span(max(0.0, max(ends) - min(starts)), "map")
