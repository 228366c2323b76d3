"""How far an execution has come: two or three requests a look."""

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
"""Records read at once."""
KEYS_A_PAGE = 1000


@dataclass(frozen=True)
class MapProgress:
    """Progress of a run at one moment."""

    stage: str
    """``initialize``, ``map``, ``summarize`` or ``ended``."""
    status: str
    """Status of the execution: ``RUNNING``, ``SUCCEEDED``, ``FAILED``, ``ABORTED``,
    ``TIMED_OUT``."""
    seconds: float
    """Since the execution began."""
    total: int = 0
    """Ranks of this execution; 0 before the map begins."""
    waiting: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    """Failed for good, timed out or aborted."""
    retried: int = 0
    """Ranks that are done and took more than one attempt."""
    rows: int = 0
    """Predicted by ranks that are done."""
    usd: float = 0.0
    """About what the workers that are done cost: their seconds, request and transition."""
    usd_running: float = 0.0
    """About what the workers cost that have begun and are not done: each as long as those that are
    done took, or since the execution began where none is."""
    done: tuple[RankEvent, ...] = ()
    """Ranks whose record was read at this look for the first time."""
    trouble: str = ""
    """Why records could not be read at this look; rows and costs are then those of the last."""

    @property
    def ended(self) -> bool:
        """Whether the execution is over."""
        return self.status != "RUNNING"


class Watcher:
    """Looks at one execution from time to time.

    A look is DescribeExecution, DescribeMapRun (ListMapRuns until there is one), and, where more
    ranks are done than at the last, a listing; each new rank's record is read once.

    Parameters
    ----------
    calls
        Counts what is asked.
    arn
        Of the execution.
    results_url
        The run's own prefix.
    run_id
        Of the run; records of another one, which may lie there, do not count.
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
        """The latest counts of DescribeMapRun: pending, running, succeeded, …"""

    def look(self) -> MapProgress:
        """Ask once how far the execution has come."""
        client = self._calls.client("stepfunctions")
        state = describe_execution(self._calls, self._arn)
        with aws_errors():
            map_status = self._look_at_map(client)
        status, began = state.status, state.started
        counts, trouble, self._fresh = self.counts, "", ()
        # Records are listed only if a rank has finished since: each look would otherwise cost
        # requests.
        if counts.get("succeeded", 0) != self._done:
            try:
                self._read_records()
                self._done = counts.get("succeeded", 0)
            except StorageError as error:  # the run does not depend on who may read it
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
        """The map run's status; None if there is none yet."""
        if self._map_run is None:
            runs = client.list_map_runs(executionArn=self._arn)["mapRuns"]
            if not runs:
                return None
            # Kept: an execution has one map run, and asking for it again is a request.
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
        """Cost of the finished workers of this execution; those of earlier executions are already
        paid."""
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
        """Cost of one worker per second, USD: its memory at the list price.

        One that tries a rank again counts as the one with more memory: rather too much than
        too little.
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
