"""Read CloudWatch logs: all pages, assembled into invocations, and filtered by run.

This module uses `FilterLogEvents` and its own parsing, not Insights queries: one request per page
of up to 10,000 events
(https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_FilterLogEvents.html).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from perseid.aws.observe.calls import Calls
from perseid.aws.session import aws_errors
from perseid.measure.sources.log_files import Invocation
from perseid.measure.sources.streams import LogEvent, Stream, Traced, trace

GROUP = "/aws/lambda/"
FOLLOW_SECONDS = 2.0
"""Seconds between two reads of a log that is followed."""
QUIET_LOOKS = 2
"""Seconds after the run's end for which further lines are waited for."""
LATE_SECONDS = 60.0
"""Seconds by which events may become visible after they happened."""


def group_of(function: str) -> str:
    """The log group of a function that is given by its name or ARN."""
    return GROUP + function.rpartition(":")[2]


def read_events(
    calls: Calls, group: str, start: float, end: float | None = None
) -> Iterator[LogEvent]:
    """Every event of all streams of a group between two times (seconds since the epoch).

    Raises
    ------
    NotFoundError
        The group does not exist.
    """
    times = {"startTime": int(start * 1e3)}
    if end is not None:
        times["endTime"] = int(end * 1e3) + 1
    client = calls.client("logs")
    with aws_errors():
        pages = client.get_paginator("filter_log_events").paginate(logGroupName=group, **times)
        for page in pages:
            for event in page["events"]:
                yield LogEvent(
                    str(event["logStreamName"]), event["timestamp"] / 1e3, str(event["message"])
                )


def invocations_of(
    calls: Calls, group: str, run_id: str, start: float, end: float | None
) -> list[Traced]:
    """The invocations of a function that worked for this run and no other, ordered by their
    start."""
    events = read_events(calls, group, start, None if end is None else end + LATE_SECONDS)
    return [traced for traced in trace(events) if traced.is_of(run_id)]


@dataclass
class Tail:
    """Lines of one run as they arrive, from the streams of all its workers."""

    run_id: str
    rank: int | None = None
    """Only lines of this rank; None means those of all ranks."""
    _streams: dict[str, Stream] = field(default_factory=dict)
    _said: dict[str, int] = field(default_factory=dict)

    def feed(self, event: LogEvent) -> Iterator[tuple[int, str]]:
        """Yield (rank, line) for all lines that are known by now to belong to the run; lines about
        init come with the rank's first."""
        stream = self._streams.setdefault(event.stream, Stream(event.stream))
        for line in event.text.splitlines():
            for traced in stream.add(LogEvent(event.stream, event.time, line)):
                yield from self._fresh(event.stream, traced)
                self._said[event.stream] = 0
        open_one = Traced(Invocation(""), event.stream, tuple(stream.lines), tuple(stream.marks))
        yield from self._fresh(event.stream, open_one)

    def _fresh(self, stream: str, traced: Traced) -> Iterator[tuple[int, str]]:
        rank = traced.count("rank")
        if not traced.is_of(self.run_id) or rank is None or self.rank not in (None, rank):
            return
        for line in traced.lines[self._said.get(stream, 0) :]:
            yield rank, line
        self._said[stream] = len(traced.lines)


def follow(
    calls: Calls,
    group: str,
    tail: Tail,
    start: float,
    ended: Callable[[], bool],
    *,
    seconds: float = 86_400.0,
) -> Iterator[tuple[int, str]]:
    """Yield the lines of a run until `ended` returns True and no late lines arrive, or until
    `seconds` have passed."""
    seen: Counter[LogEvent] = Counter()
    deadline = time.monotonic() + seconds
    since, over, quiet = start, False, 0
    while True:
        # CloudWatch may show an event late, so the last minute is read again each time, and what
        # was seen before is left out, by how often it occurred.
        again: Counter[LogEvent] = Counter()  # identical lines may occur at the same time
        for event in sorted(read_events(calls, group, since), key=lambda event: event.time or 0.0):
            again[event] += 1
            if again[event] > seen[event]:
                quiet = 0
                yield from tail.feed(event)
        seen = again  # older events are not read any more
        if quiet >= QUIET_LOOKS or time.monotonic() > deadline:
            return
        over = over or ended()
        quiet += over
        since = max(start, time.time() - LATE_SECONDS)
        time.sleep(FOLLOW_SECONDS)
