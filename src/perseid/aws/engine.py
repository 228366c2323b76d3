"""The engine of a stack on AWS: ranks as Lambda functions of a Step Functions execution."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from perseid.aws.deploy.doctor import Check
from perseid.aws.executions import (
    FIRST_WAIT,
    LONGEST_WAIT,
    WATCH_SECONDS,
    Executions,
    Started,
    check_places,
)
from perseid.aws.observe import cloudwatch_logs
from perseid.aws.observe.calls import Calls
from perseid.aws.observe.execution_progress import MapProgress
from perseid.aws.preflight import Preflight
from perseid.aws.session import Aws
from perseid.aws.stack_resources import StackResources
from perseid.engines.base import Capabilities
from perseid.errors import BadInputError, NotFoundError, PerseidError, RunInterruptedError
from perseid.jsontext import parse_json
from perseid.model.identity import CPU, is_weights
from perseid.pipeline import layout
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.claim import give_up
from perseid.pipeline.events import CountEvent, Event, Report, StageEvent
from perseid.pipeline.initialize import new_run_id
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.plaintext import counted, html_table, on_command_line, option
from perseid.storage import Location, Storage, use_aws

NAMED_CALLS = 6
"""Number of kinds of requests that a run's notes name."""


class AwsEngine:
    """Runs ranks as Lambda functions of a deployed stack. The run continues when this process ends.

    Parameters
    ----------
    stack
        The name given to ``perseid aws deploy``.
    region, profile
        As for the AWS command line; if not given, its variables and files decide.
    executions
        Executions of another state machine than the stack's own.
    preflight
        Whether to check, before an execution starts, for anything that would fail.
    max_usd
        Approximate cost of the workers, in USD, at which a run that is waited for is stopped.

    Examples
    --------
    >>> perseid.run("s3://bucket/survey", engine=AwsEngine("mine"))  # doctest: +SKIP
    """

    name = "aws"
    on_aws = True

    def __init__(
        self,
        stack: str = "perseid",
        *,
        region: str | None = None,
        profile: str | None = None,
        executions: Executions | None = None,
        max_usd: float | None = None,
        preflight: bool = True,
    ) -> None:
        if max_usd is not None and not max_usd > 0:
            raise BadInputError(f"max_usd is {max_usd:g}: give an amount in USD above 0")
        self._stack, self._region, self._profile = stack, region, profile
        self._max_usd, self._preflight = max_usd, preflight
        self._notes: tuple[str, ...] = ()
        if executions is not None:
            self.executions = executions

    @classmethod
    def configured(cls, settings: Mapping[str, Any]) -> Self:
        """The engine of a stack that is given by name."""
        names = ("region", "profile", "max_usd")
        given = {name: settings.get(name) for name in names}
        wanted = not settings.get("no_preflight")
        return cls(settings.get("stack") or "perseid", **given, preflight=wanted)

    def _repr_html_(self) -> str:
        given = {"stack": self._stack, "region": self._region, "profile": self._profile,
                 "max_usd": self._max_usd}  # fmt: skip
        rows = [(name, value) for name, value in given.items() if value is not None]
        return html_table(("engine", self.name), rows)

    @cached_property
    def executions(self) -> Executions:
        """The stack's executions, looked up when they are first needed.

        Raises
        ------
        NotFoundError
            There is no such stack.
        NotInstalledError
            boto3 is missing.
        AwsError
            AWS refuses or fails.
        """
        if self._region or self._profile:
            use_aws(profile=self._profile, region=self._region)
        aws = Aws(self._region, self._profile)
        return Executions(Calls(aws), StackResources.of_stack(aws, self._stack))

    @property
    def capabilities(self) -> Capabilities:
        """The engine supports gang scheduling if the stack has a rendezvous; memory is that of the
        stack's function."""
        memory = self.executions.place.memory_mb
        return Capabilities(
            gang=True,
            detach=True,
            device="cpu",
            memory_per_rank=memory,
            max_parallel=None,
            more_memory=self.executions.place.retry_memory_mb > memory,
            own_default=False,
        )

    def default_results(self, data: str) -> str:
        """A fresh prefix in the stack's bucket."""
        stem = Location.parse(data).name or "run"
        bucket = Location(f"s3://{self.executions.place.bucket}")
        return (bucket / f"runs/{stem}-{new_run_id(time.time())}").url

    def prepare(self, request: RunRequest) -> RunRequest:
        """The request, if all its places are on S3 and the function has the memory that it asks
        for."""
        self.executions.place.check_version()
        memory = self.executions.place.memory_mb
        if "memory_mb" in request.model_fields_set and request.memory_mb != memory:
            raise BadInputError(
                f"the stack's workers have {memory} MB, not {request.memory_mb}: set it by "
                f"`perseid aws deploy --memory {request.memory_mb}`"
            )
        check_places(request)
        check_computable(request)
        return request

    def check(self, manifest: Manifest) -> None:
        """Raise `BadInputError` with one sentence for each thing that would fail on AWS."""
        if not self._preflight:
            return
        found = list(self.examine(manifest))
        wrong = [f"{check.name}: {check.text}" for check in found if check.state == "bad"]
        if wrong:
            raise BadInputError("; ".join([*wrong, f"{_without_checks()} starts it nevertheless"]))
        self._notes = tuple(check.text for check in found if check.state == "note")

    def examine(self, manifest: Manifest) -> Iterator[Check]:
        """Yield the results of the checks that `check` makes; nothing is started."""
        executions = self.executions
        return Preflight(executions.calls.aws, self._stack, executions.place, manifest).checks()

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> AwsRun:
        """Start an execution for a whole run, or for what is missing from it.

        Initialize on AWS determines the missing ranks itself, in the same way as this side.
        """
        self.executions.place.check_version()
        name = manifest.run_id if ranks is None else new_run_id(time.time())
        store = Storage(manifest.results_url)
        # Written before the execution starts, because callers take an error to mean that nothing
        # runs.
        store.put(layout.DRIVER, self._mark(name))
        try:
            if ranks is None:
                started = self.executions.start_begun(manifest)
            else:
                started = self.executions.resume(
                    manifest.results_url,
                    allow_model_change=manifest.allow_model_change,
                    name=name,
                )
        except PerseidError:
            store.delete([layout.DRIVER])
            raise
        return AwsRun(self.executions, started, self._max_usd, self._notes)

    def _mark(self, name: str) -> bytes:
        """Write ``driver.json`` with stack and region, so that `status` and `stop` find the
        execution without further options."""
        arn = self.executions.place.execution(name)
        mark = {"engine": self.name, "execution": arn, "since": time.time()}
        mark |= {"stack": self._stack, "region": self.executions.calls.aws.region}
        return json.dumps(mark).encode()

    def locate(self, name: str) -> str:
        """Where a run is that is given by its id or by an execution's ARN."""
        return self.executions.find(name).results_url

    def attach(self, manifest: Manifest) -> AwsRun:
        """The execution that ``driver.json`` names, or else the newest one of the run."""
        try:
            mark = parse_json(Storage(manifest.results_url).get(layout.DRIVER))
            arn = str(mark["execution"])
        except (NotFoundError, ValueError, KeyError, TypeError):
            return AwsRun(
                self.executions, self.executions.find(manifest.results_url), self._max_usd
            )
        started = Started(arn, manifest.results_url, resumed=not arn.endswith(manifest.run_id))
        return AwsRun(self.executions, started, self._max_usd)


def _without_checks() -> str:
    # The command line has a switch for what is True in Python unless said otherwise.
    return option("no_preflight", True) if on_command_line() else option("preflight", False)


def check_computable(request: RunRequest) -> None:
    """Raise `BadInputError` if Lambda functions cannot compute the model."""
    if request.device != CPU:
        raise BadInputError(
            f"device {request.device}: functions of AWS have no GPU; leave it out, or use "
            f"{option('engine', 'local')}, slurm or dask"
        )
    if request.model and is_weights(request.model):
        raise BadInputError(
            f"{request.model} holds weights, which torch computes, and functions of AWS have none: "
            "export them by `perseid model export`"
        )


class AwsRun:
    """An execution of the state machine, as a run's handle."""

    def __init__(
        self,
        executions: Executions,
        started: Started,
        max_usd: float | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._executions, self._max_usd, self._notes = executions, max_usd, notes
        self.started = started
        self._last: MapProgress | None = None

    @property
    def ended(self) -> bool:
        """Whether the execution had ended when it was last polled."""
        return self._last is not None and self._last.ended

    def poll(self) -> Sequence[Event]:
        """Number of ranks in each state now; takes two or three requests to AWS."""
        self._last = self._executions.look(self.started)
        return (*self._last.done, event_of(self._last))

    def wait(self, report: Report, timeout: float | None = None) -> None:
        """Poll at increasing intervals until the execution has ended."""
        report(StageEvent("map", f"execution  {self.started.arn}"))
        report(StageEvent("map", f"results    {self.started.results_url}"))

        for note in self._notes:
            report(StageEvent("map", f"note       {note}"))

        def tell(now: MapProgress) -> None:
            self._last = now
            for done in now.done:
                report(done)
            report(event_of(now))
            self._stop_above_cap(now)

        seconds = WATCH_SECONDS if timeout is None else timeout
        self._executions.watch(
            self.started,
            tell,
            first=FIRST_WAIT,
            longest=LONGEST_WAIT,
            seconds=seconds,
            note=lambda text: report(StageEvent("map", text)),
        )
        report(StageEvent("collect"))

    def _stop_above_cap(self, now: MapProgress) -> None:
        spent = now.usd + now.usd_running
        if self._max_usd is None or now.ended or spent < self._max_usd:
            return
        self.stop()
        raise RunInterruptedError(
            f"stopped: its workers have cost about {spent:.4f} USD, and "
            f"{option('max_usd')} is {self._max_usd:g}; what is done stays, and `perseid resume "
            f"{self.started.results_url} --engine aws` goes on with the rest"
        )

    def stop(self) -> bool:
        """Stop the execution. Working ranks are not notified and end on their own."""
        return self._executions.stop(self.started)

    def leave(self) -> str:
        """Does nothing, because the state machine publishes the results."""
        return ""

    def report(self) -> EngineReport:
        """Fetch logs and times; what was fetched before is not fetched again."""
        try:
            found = self._executions.report(self.started)
        except PerseidError:
            self._give_up_if_refused()
            raise
        Storage(self.started.results_url).delete([layout.DRIVER])  # no more requests to AWS follow
        return replace(found, notes=(*found.notes, f"asked      {_asked(self._executions.calls)}"))

    def _give_up_if_refused(self) -> None:
        """Remove a run that ended before any rank began, so that its prefix is free again."""
        last = self._last or self._executions.look(self.started)
        store = Storage(self.started.results_url)
        # A total means that the map has begun, so there may be results to keep.
        if self.started.resumed or last.status != "FAILED" or last.total:
            return
        with contextlib.suppress(NotFoundError, BadInputError):
            if Manifest.load(store).run_id == self.started.name:
                give_up(store)
                store.delete([layout.DRIVER])

    def logs(self, rank: int | None = None, *, follow: bool = False) -> Iterator[tuple[int, str]]:
        """The ranks' logs from the worker's log group."""
        calls, started = self._executions.calls, self.started
        run_id = started.name  # a run that has just begun has only a name
        if started.resumed:
            run_id = Manifest.load(Storage(started.results_url)).run_id
        group, tail = (
            cloudwatch_logs.group_of(self._executions.place.worker),
            cloudwatch_logs.Tail(run_id, rank),
        )
        start = self._executions.began(started) - 1.0
        if follow:
            ended = lambda: self._executions.look(started).ended  # noqa: E731
            yield from cloudwatch_logs.follow(calls, group, tail, start, ended)
            return
        for event in sorted(
            cloudwatch_logs.read_events(calls, group, start), key=lambda e: e.time or 0.0
        ):
            yield from tail.feed(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing: no resource is held, and the execution goes on."""


def event_of(now: MapProgress) -> CountEvent:
    """Convert a watcher's observation to an event."""
    return CountEvent(
        stage=now.status.lower() if now.ended else now.stage,
        seconds=now.seconds,
        total=now.total,
        waiting=now.waiting,
        running=now.running,
        done=now.succeeded,
        failed=now.failed,
        retried=now.retried,
        rows=now.rows,
        usd=now.usd,
        ended=now.ended,
    )


def _asked(calls: Calls) -> str:
    parts = ", ".join(f"{name} {number}" for name, number in calls.counts.most_common(NAMED_CALLS))
    return f"{counted(calls.total, 'request')} of AWS from here ({parts})"
