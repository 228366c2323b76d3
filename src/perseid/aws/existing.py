"""Runs of a state machine that somebody else made: start them with their payload, follow and
measure them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from perseid.aws.observe.calls import Calls
from perseid.aws.observe.cloudwatch_logs import LATE_SECONDS, group_of, read_events
from perseid.aws.observe.execution_history import describe_execution, read_execution
from perseid.aws.session import aws_errors
from perseid.errors import AwsError, BadInputError, NotFoundError, RunError
from perseid.jsontext import parse_json
from perseid.measure.execution import Execution
from perseid.measure.fields import Fields
from perseid.measure.measured_run import MeasuredRun
from perseid.measure.report_line import Report
from perseid.measure.sources.load_options import LoadOptions
from perseid.measure.sources.logruns import execution_run, invocation_runs
from perseid.measure.sources.streams import Traced, trace
from perseid.pipeline.events import CountEvent
from perseid.pipeline.initialize import new_run_id

FIRST_WAIT, LONGEST_WAIT, LONGER = 1.0, 5.0, 1.25
"""Seconds between two polls: short at first, then longer by this factor each time."""
WATCH_SECONDS = 86_400.0
REPORT_SECONDS = 30.0
"""Seconds to wait for REPORT lines, which arrive some time after an invocation's end."""
REPORT_WAIT = 3.0
INVOKE = ("arn:aws:states:::lambda:invoke", "arn:aws:states:::aws-sdk:lambda:invoke")
"""Service integrations whose parameters name the function, with any suffix such as
``.waitForTaskToken`` (https://docs.aws.amazon.com/step-functions/latest/dg/connect-lambda.html)."""
NOTHING = Fields({})
Tell = Callable[[CountEvent], None]


@dataclass(frozen=True)
class ExistingMachine:
    """A state machine and the functions that its definition calls."""

    arn: str
    workers: tuple[str, ...]
    """Names of the functions called inside its map states."""
    others: tuple[str, ...]
    """Names of the functions called outside the map."""


@dataclass(frozen=True)
class MeasuredExecution:
    """Measurements of an execution that has ended."""

    execution: Execution
    run: MeasuredRun
    """The measured run, with the workers' invocations; the bill also covers those of the other
    functions."""


def examine(calls: Calls, arn: str) -> ExistingMachine:
    """Read a state machine's definition.

    Raises
    ------
    NotFoundError
        The state machine does not exist.
    BadInputError
        It is an EXPRESS state machine, whose executions cannot be followed.
    """
    with aws_errors():
        found = Fields(calls.client("stepfunctions").describe_state_machine(stateMachineArn=arn))
    if found.text("type") == "EXPRESS":
        raise BadInputError(
            f"{arn} is an EXPRESS state machine, whose executions cannot be followed: give a "
            "STANDARD one"
        )
    try:
        definition = Fields(parse_json(found.text("definition") or "null"))
    except ValueError as error:
        raise BadInputError(f"the definition of {arn} cannot be read: {error}") from error
    called = list(_functions(definition, in_map=False))
    workers = dict.fromkeys(name for name, in_map in called if in_map)
    others = dict.fromkeys(name for name, in_map in called if not in_map and name not in workers)
    return ExistingMachine(arn, tuple(workers), tuple(others))


def _functions(
    machine: Fields, *, in_map: bool, selector: Fields = NOTHING
) -> Iterator[tuple[str, bool]]:
    """Each function that a definition's states call, and whether the call is inside a map.

    `selector` is what the surrounding map passes to its items.
    """
    states = machine.inner("States")
    for name in states.names():
        state = states.inner(name)
        for function in _functions_of(state, machine, selector):
            yield function, in_map
        for key in ("ItemProcessor", "Iterator"):
            yield from _functions(state.inner(key), in_map=True, selector=_selector(state))
        for branch in state.rows("Branches"):
            yield from _functions(branch, in_map=in_map)


def _selector(state: Fields) -> Fields:
    """What a map passes to its items; older definitions call it parameters."""
    return next((state.inner(key) for key in ("ItemSelector", "Parameters")
                 if state.inner(key).names()), NOTHING)  # fmt: skip


def _functions_of(state: Fields, machine: Fields, selector: Fields) -> Iterator[str]:
    """Names of the functions that a task calls: none, one, or all those that its path can name."""
    resource = state.text("Resource") or ""
    if ":lambda:" in resource and ":function:" in resource:
        yield function_name(resource)
    if not resource.startswith(INVOKE):
        return
    for key in ("Parameters", "Arguments"):
        if (given := state.inner(key).text("FunctionName")) is not None:
            yield function_name(given)
        elif (path := state.inner(key).text("FunctionName.$")) is not None:
            yield from map(function_name, _constants(path, machine, selector))


def _constants(path: str, machine: Fields, selector: Fields) -> Iterator[str]:
    """Values at a path such as ``$.function``, as passed by the map or set by a state."""
    if (given := selector.text(path.removeprefix("$."))) is not None:
        yield given
    states = machine.inner("States")
    for state in map(states.inner, states.names()):
        put = state.text("Result") if state.text("ResultPath") == path else None
        if put is not None:
            yield put


def function_name(given: str) -> str:
    """The function's name from its ARN, with or without a version or alias, or from the name
    itself."""
    if not given.startswith("arn:"):
        return given.partition(":")[0]
    return given.split(":")[6]


def start(calls: Calls, machine: ExistingMachine, payload: str) -> str:
    """Start an execution with exactly this input; returns its ARN."""
    with aws_errors():
        answer = calls.client("stepfunctions").start_execution(
            stateMachineArn=machine.arn, name=new_run_id(time.time()), input=payload
        )
    return str(answer["executionArn"])


def follow(
    calls: Calls, arn: str, tell: Tell, note: Callable[[str], None], seconds: float = WATCH_SECONDS
) -> None:
    """Poll until the execution has ended, and report each state.

    A poll that fails only gives a note, because the execution does not depend on being watched.

    Raises `RunError` if it has not ended within `seconds`.
    """
    deadline, wait, said = time.monotonic() + seconds, FIRST_WAIT, ""
    while True:
        try:
            now = look(calls, arn)
            tell(now)
            if now.ended:
                return
        except AwsError as error:
            if str(error) != said:
                note(f"the execution goes on, but its progress cannot be read: {error}")
            said = str(error)
        if time.monotonic() > deadline:
            raise RunError(f"{arn} is still running after {seconds:g} s")
        time.sleep(wait)
        wait = min(LONGEST_WAIT, wait * LONGER)


def look(calls: Calls, arn: str) -> CountEvent:
    """The progress of an execution; takes two or three requests."""
    client, state = calls.client("stepfunctions"), describe_execution(calls, arn)
    with aws_errors():
        runs = client.list_map_runs(executionArn=arn)["mapRuns"]
        described = client.describe_map_run(mapRunArn=runs[0]["mapRunArn"]) if runs else {}
    counts = Fields(described).inner("itemCounts")
    return CountEvent(
        stage=state.status.lower() if state.ended else "map" if runs else "running",
        seconds=state.seconds,
        total=counts.count("total") or 0,
        waiting=counts.count("pending") or 0,
        running=counts.count("running") or 0,
        done=counts.count("succeeded") or 0,
        failed=sum(counts.count(name) or 0 for name in ("failed", "timedOut", "aborted")),
        ended=state.ended,
    )


def measure(
    calls: Calls, machine: ExistingMachine, arn: str, options: LoadOptions | None = None
) -> MeasuredExecution:
    """Measure the time and cost of an ended execution, from its history and its functions' logs.

    Simultaneous invocations of other executions, which received a different result path, are left
    out.
    """
    execution = read_execution(calls, arn)
    options = replace(options or LoadOptions(), executions=(execution,))
    workers = _invocations(calls, machine.workers, execution, patience=REPORT_SECONDS)
    source = ", ".join(group_of(name) for name in machine.workers) or machine.arn
    size = float(sum(len(traced.text) for traced in workers))
    found = invocation_runs([traced.invocation for traced in workers], source, size, options)
    run = next((one for one in found if one.execution is execution), None)
    if run is None:
        return MeasuredExecution(execution, execution_run(execution, source))
    others = _invocations(calls, machine.others, execution)
    return MeasuredExecution(execution, _with_others(run, others))


def _with_others(run: MeasuredRun, others: Iterable[Traced]) -> MeasuredRun:
    reports = tuple(_reports(others))
    if run.usage is None:
        return run
    return replace(run, usage=replace(run.usage, other_reports=reports))


def _reports(found: Iterable[Traced]) -> Iterator[Report]:
    for traced in found:
        if traced.invocation.report is not None:
            yield traced.invocation.report


def _invocations(
    calls: Calls, functions: Iterable[str], execution: Execution, patience: float = 0.0
) -> list[Traced]:
    """Invocations that began during the execution; waits for REPORT lines that are still to
    come."""
    end = execution.ended or time.time()
    deadline = time.monotonic() + patience
    while True:
        found: list[Traced] = []
        for name in functions:
            try:
                events = read_events(
                    calls, group_of(name), execution.started - 1.0, end + LATE_SECONDS
                )
                found += trace(events)
            except NotFoundError:  # the function was never called
                continue
        own = [one for one in found if (one.invocation.started or end) <= end + 1.0]
        whole = bool(own) and all(one.invocation.report for one in own)
        if whole or time.monotonic() > deadline:
            return own
        time.sleep(REPORT_WAIT)
