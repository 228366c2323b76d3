"""The progress of an execution, with two or three requests per poll."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from perseid.aws.observe.calls import Calls
from perseid.aws.observe.execution_history import describe_execution
from perseid.aws.session import aws_errors
from perseid.aws.stack_resources import StackResources
from perseid.errors import NotFoundError, RunError, StorageError
from perseid.jsontext import parse_json
from perseid.measure.cost import MB_PER_GB
from perseid.measure.prices import Prices
from perseid.pipeline.events import RankEvent, RankState
from perseid.pipeline.stored import StoredRecord
from perseid.storage import Storage

READERS = 32
"""Number of records that are read at once."""
KEYS_A_PAGE = 1000


@dataclass(frozen=True)
class MapProgress:
    """Progress of a run at one point in time."""

    stage: str
    """Step of the run: ``initialize``, ``map``, ``summarize`` or ``ended``."""
    status: str
    """Status of the execution: ``RUNNING``, ``SUCCEEDED``, ``FAILED``, ``ABORTED``,
    ``TIMED_OUT``."""
    seconds: float
    """Seconds since the execution began."""
    total: int = 0
    """Number of ranks of this execution; 0 before the map begins."""
    waiting: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    """Number of ranks that failed for good, timed out or were aborted."""
    retried: int = 0
    """Number of ranks that are done and took more than one attempt."""
    rows: int = 0
    """Number of rows predicted by ranks that are done."""
    usd: float = 0.0
    """Approximate cost in USD of the workers that are done: their seconds, request and
    transition."""
    usd_running: float = 0.0
    """Approximate cost in USD of the workers that have begun and are not done. Each counts as long
    as the average of those that are done or, if none is, as long as the execution has run."""
    done: tuple[RankEvent, ...] = ()
    """Ranks whose record was read for the first time in this poll."""
    trouble: str = ""
    """Why records could not be read in this poll; rows and costs are then those of the last one."""

    @property
    def ended(self) -> bool:
        """Whether the execution has ended."""
        return self.status != "RUNNING"


class Watcher:
    """Polls one execution from time to time.

    A poll consists of DescribeExecution, DescribeMapRun (ListMapRuns until there is a map run) and,
    if more ranks are done than at the last poll, a listing. Each new rank's record is read once.

    Parameters
    ----------
    calls
        Clients of the account, whose requests are counted.
    arn
        ARN of the execution.
    results_url
        The run's own prefix.
    run_id
        Id of the run; records of another run, which may be at the prefix, are ignored.
    """

    def __init__(
        self, calls: Calls, place: StackResources, arn: str, results_url: str, run_id: str
    ) -> None:
        self._calls = calls
        self._place = place
        self._arn = arn
        self._url = results_url
        self._run_id = run_id
        self._map_run: str | None = None
        self._records: dict[str, StoredRecord] = {}
        self._done = -1
        self._fresh: tuple[RankEvent, ...] = ()
        self.counts: Mapping[str, int] = {}
        """Latest counts of DescribeMapRun: pending, running, succeeded, …"""

    def look(self) -> MapProgress:
        """Ask once about the execution's progress."""
        client = self._calls.client("stepfunctions")
        state = describe_execution(self._calls, self._arn)
        with aws_errors():
            map_status = self._look_at_map(client)
        status, began = state.status, state.started
        counts, trouble, self._fresh = self.counts, "", ()
        # Records are listed only if a rank has finished since: otherwise each poll would cost more
        # requests.
        if counts.get("succeeded", 0) != self._done:
            try:
                self._read_records()
                self._done = counts.get("succeeded", 0)
            except StorageError as error:
                # The run itself does not depend on whether it can be read.
                trouble = str(error)
        return MapProgress(
            stage=_stage(status, map_status),
            status=status,
            seconds=state.seconds,
            total=counts.get("total", 0),
            waiting=counts.get("pending", 0),
            running=counts.get("running", 0),
            succeeded=counts.get("succeeded", 0),
            failed=sum(counts.get(name, 0) for name in ("failed", "timedOut", "aborted")),
            retried=sum(record.attempt > 1 for record in self._records.values()),
            rows=sum(record.rows for record in self._records.values()),
            usd=sum(self._usd(began)),
            usd_running=counts.get("running", 0) * self._typical_usd(began),
            done=self._fresh,
            trouble=trouble,
        )

    def _look_at_map(self, client: Any) -> str | None:
        """The status of the map run; None if there is none yet."""
        if self._map_run is None:
            runs = client.list_map_runs(executionArn=self._arn)["mapRuns"]
            if not runs:
                return None
            # Kept, because an execution has only one map run and asking again would cost a request.
            self._map_run = str(runs[0]["mapRunArn"])
        found = client.describe_map_run(mapRunArn=self._map_run)
        self.counts = found["itemCounts"]
        return str(found["status"])

    @cached_property
    def _store(self) -> Storage:
        return Storage(self._url)

    def _read_records(self) -> None:
        names = [n for n in self._store.names() if n.removesuffix(".json").isdecimal()]
        fresh = [name for name in names if name not in self._records]
        self._calls.add("s3.ListObjectsV2", len(names) // KEYS_A_PAGE + 1)
        self._calls.add("s3.GetObject", len(fresh))
        with ThreadPoolExecutor(READERS) as pool:
            found = [pair for pair in pool.map(self._record, fresh) if pair is not None]
        self._records |= {f"{event.rank}.json": record for event, record in found}
        self._fresh = tuple(event for event, _ in found)

    def _record(self, name: str) -> tuple[RankEvent, StoredRecord] | None:
        try:
            data = self._store.get(name)
            record = StoredRecord.of(parse_json(data), name)
        except (NotFoundError, StorageError, RunError, ValueError, TypeError):
            return None
        if record.run_id != self._run_id:
            return None
        rank = int(name.removesuffix(".json"))
        event = RankEvent(rank, RankState.DONE, record.attempt, record.rows, record=data)
        return event, record

    def _usd(self, began: float) -> list[float]:
        """Cost in USD of each finished worker of this execution; those of earlier executions are
        already paid for and do not count."""
        prices = Prices()
        each = prices.lambda_request.usd + prices.state_transition.usd
        return [
            self._usd_a_second(record.attempt > 1) * record.stages.get("total", 0.0) + each
            for record in self._records.values()
            if record.stages and _start(record) >= began
        ]

    def _typical_usd(self, began: float) -> float:
        done = self._usd(began)
        if done:
            return sum(done) / len(done)
        return self._usd_a_second() * max(0.0, time.time() - began)

    def _usd_a_second(self, again: bool = False) -> float:
        """Cost in USD of one worker per second, from its memory and the list price.

        A retry counts as if it ran on the worker with more memory, so the cost is overestimated
        rather than underestimated.
        """
        price = Prices().lambda_gb_second(self._place.architecture).usd
        memory = max(self._place.memory_mb, self._place.retry_memory_mb if again else 0)
        return memory / MB_PER_GB * price


def _start(record: StoredRecord) -> float:
    return min((start for _, start, _ in record.timeline), default=float("inf"))


def _stage(status: str, map_status: str | None) -> str:
    if status != "RUNNING":
        return "ended"
    if map_status is None:
        return "initialize"
    return "map" if map_status == "RUNNING" else "summarize"
