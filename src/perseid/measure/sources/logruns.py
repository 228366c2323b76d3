"""Runs out of the invocations that logs tell of, with the execution that they worked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perseid.errors import BadInputError
from perseid.measure.cost import Usage, map_transitions
from perseid.measure.runs import MeasuredRun, Place, Span
from perseid.measure.sources.history import Execution
from perseid.measure.sources.logs import Invocation, read_log

CLOCK_SECONDS = 1.0
"""The clocks of Lambda and Step Functions may differ so much."""


@dataclass(frozen=True)
class LoadOptions:
    """What the sources themselves do not say."""

    architecture: str = "x86"
    expected: int | None = None
    """Ranks that should have left a result, over what the source says."""
    executions: tuple[Execution, ...] = ()
    """Executions of the state machine that the logs' functions may have worked for."""

    def __post_init__(self) -> None:
        if self.expected is not None and self.expected < 1:
            raise BadInputError(
                f"the number of expected ranks must be at least 1, not {self.expected}"
            )


def log_runs(text: str, source: str, options: LoadOptions | None = None) -> Iterator[MeasuredRun]:
    """The runs in a log; see `invocation_runs`."""
    return invocation_runs(read_log(text), source, float(len(text)), options)


def invocation_runs(
    invocations: Sequence[Invocation],
    source: str,
    log_bytes: float,
    options: LoadOptions | None = None,
) -> Iterator[MeasuredRun]:
    """One run for each execution, and for each result path of what no execution accounts for.

    An execution has the invocations that began while it went on and that received its result
    path, or that do not say what they received. Invocations that no execution accounts for and
    that do not say what they received are one run together.
    """
    options = options or LoadOptions()
    left = list(invocations)
    for execution in options.executions:
        own = [one for one in left if _works_for(one, execution)]
        left = [one for one in left if one not in own]
        if own:
            name = execution.arn.rpartition(":")[2] or source
            share = log_bytes * len(own) / len(invocations)
            path = str(execution.input.get("result_path", ""))
            yield _log_run(own, f"{source} · {name}", path, share, options, execution)
    groups: dict[str, list[Invocation]] = {}
    for invocation in left:
        groups.setdefault(str(invocation.event.get("RESULT_PATH", "")), []).append(invocation)
    for path, group in groups.items():
        name = f"{source} · {path}" if path and len(groups) > 1 else source
        yield _log_run(group, name, path, log_bytes * len(group) / len(invocations), options)


def _works_for(invocation: Invocation, execution: Execution) -> bool:
    began = invocation.started
    if began is None or began < execution.started - CLOCK_SECONDS:
        return False
    if execution.ended is not None and began > execution.ended + CLOCK_SECONDS:
        return False
    path = invocation.event.get("RESULT_PATH")
    return path is None or path == execution.input.get("result_path", path)


def _log_run(
    group: Sequence[Invocation],
    name: str,
    path: str,
    log_bytes: float,
    options: LoadOptions,
    execution: Execution | None = None,
) -> MeasuredRun:
    reports = tuple(i.report for i in group if i.report is not None)
    place = Place.of(path)
    events = [i.event for i in group if i.event]
    expected, why = options.expected, "given"
    if expected is None:
        expected, why = number(common(e.get("WORLD_SIZE") for e in events)), "WORLD_SIZE"
    done = {str(i.event.get("RANK", i.request_id)) for i in group if i.report and not i.failed}
    received = len(done)
    whole_map = expected is not None and received >= expected
    usage = Usage(
        reports=reports,
        architecture=options.architecture,
        transitions=_transitions(group, received, execution, bool(events)),
        log_bytes=log_bytes,
    )
    return MeasuredRun(
        name=name,
        partition=place.partition if place else common(e.get("DATA_PREFIX") for e in events),
        data=place.data if place else None,
        batch_size=number(common(e.get("BATCH_SIZE") for e in events)),
        expected=expected,
        expected_from=why if expected is not None else "",
        received=received,
        whole=_execution_span(execution, None),
        map=_execution_span(execution, "map") or (_span(group) if whole_map else None),
        durations=tuple(i.seconds for i in group if i.seconds is not None),
        reports=reports,
        unreported=sum(i.report is None for i in group),
        usage=usage,
        function=_function(events),
        notes=(*_log_notes(bool(events), whole_map), *execution_notes(execution)),
        extra={"execution": execution} if execution else {},
    )


def _log_notes(known: bool, whole_map: bool) -> tuple[str, ...]:
    return () if whole_map or not known else ("the log does not hold the whole run",)


def _transitions(
    group: Sequence[Invocation], received: int, execution: Execution | None, known: bool
) -> int:
    """States entered: by the execution itself, and one an invocation in a distributed map."""
    if execution is None:
        return map_transitions(len(group), received) if known else 0
    inline = execution.map_run is None
    return execution.transitions + (0 if inline else len(group))


def _execution_span(execution: Execution | None, part: str | None) -> Span | None:
    if execution is None:
        return None
    if part is None:
        return None if execution.seconds is None else Span(execution.seconds, "whole execution")
    seconds = execution.part(part)
    return None if seconds is None else Span(seconds, "map state")


def execution_notes(execution: Execution | None) -> tuple[str, ...]:
    """The times of an execution's parts, and how it ended where that was not well."""
    if execution is None:
        return ()
    parts = [(name, execution.part(name)) for name in ("before", "map", "after")]
    words = ", ".join(f"{name} {value:.2f} s" for name, value in parts if value is not None)
    notes = [f"execution: {words}"] if words else []
    if execution.status != "SUCCEEDED":
        notes.append(f"the execution is {execution.status} {execution.error}".rstrip())
    return tuple(notes)


def _span(group: Sequence[Invocation]) -> Span | None:
    starts = [i.started for i in group if i.started is not None]
    ends = [i.ended for i in group if i.ended is not None]
    if not starts or not ends:
        return None
    return Span(max(ends) - min(starts), "map")


def _function(events: Sequence[Mapping[str, Any]]) -> str:
    if any("SCRIPT" in event for event in events):
        return "inference worker"
    if any("rendezvous_endpoint" in event and "bucket" not in event for event in events):
        return "connection test"
    return ""


def common(values: Iterable[Any]) -> Any:
    """The one value that all have, else None."""
    distinct = {value for value in values if value is not None}
    return distinct.pop() if len(distinct) == 1 else None


def number(value: Any) -> int | None:
    """A count that may have been written as text; None where it is none."""
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        return None
