"""Executions of state machines, ours and others', as recorded by Step Functions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from perseid.aws.observe.calls import Calls
from perseid.aws.session import aws_errors
from perseid.measure.execution import Execution
from perseid.measure.fields import Fields
from perseid.measure.sources.history import moment, read_history

READERS = 4
"""Number of histories read at once; the service allows only a few requests per second."""


@dataclass(frozen=True)
class ExecutionState:
    """The state of an execution from DescribeExecution."""

    status: str
    """``RUNNING``, ``SUCCEEDED``, ``FAILED``, ``ABORTED`` or ``TIMED_OUT``."""
    started: float
    """When it started, in seconds since the epoch."""
    stopped: float | None = None
    input: str = "{}"
    """Input of the execution, as JSON."""
    error: str = ""
    cause: str = ""

    @property
    def ended(self) -> bool:
        """Whether the execution has ended."""
        return self.status != "RUNNING"

    @property
    def seconds(self) -> float:
        """Seconds since it began, or until it ended."""
        until = max(self.started, time.time()) if self.stopped is None else self.stopped
        return until - self.started


def describe_execution(calls: Calls, arn: str) -> ExecutionState:
    """Describe an execution with one request; raises `NotFoundError` if it does not exist."""
    with aws_errors():
        answer = calls.client("stepfunctions").describe_execution(executionArn=arn)
    found, stopped = Fields(answer), answer.get("stopDate")
    return ExecutionState(
        found.text("status") or "",
        moment(answer["startDate"]),
        None if stopped is None else moment(stopped),
        found.text("input") or "{}",
        found.text("error") or "",
        found.text("cause") or "",
    )


def read_execution(calls: Calls, arn: str) -> Execution:
    """Read an execution with its whole history, all pages of it.

    Raises
    ------
    NotFoundError
        The execution does not exist, or is older than the service keeps (90 days).
    """
    client = calls.client("stepfunctions")
    with aws_errors():
        pages = client.get_paginator("get_execution_history").paginate(executionArn=arn)
        events = [event for page in pages for event in page["events"]]
    return read_history(events, arn)


def executions_between(calls: Calls, state_machine: str, start: float, end: float) -> list[str]:
    """ARNs of the executions that were running at any time between two times, oldest first."""
    return sorted(_between(calls, state_machine, start, end))


def _between(calls: Calls, state_machine: str, start: float, end: float) -> Iterator[str]:
    client = calls.client("stepfunctions")
    with aws_errors():
        pages = client.get_paginator("list_executions").paginate(stateMachineArn=state_machine)
        for page in pages:  # newest first
            for entry in page["executions"]:
                stopped = entry.get("stopDate")
                late = moment(entry["startDate"]) > end
                if not late and (stopped is None or moment(stopped) >= start):
                    yield str(entry["executionArn"])


def read_executions(calls: Calls, arns: list[str]) -> list[Execution]:
    """Read several executions, in the order of their ARNs."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda arn: read_execution(calls, arn), arns))
