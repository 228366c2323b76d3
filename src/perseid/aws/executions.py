"""Executions of a stack's state machine: start one, watch it with few requests, stop it, and fetch
what it left.

The whole run works there, initialize and summarize included; this side only asks how far it is.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from perseid import errors
from perseid.aws.observe.calls import Calls
from perseid.aws.observe.execution_history import ExecutionState, describe_execution
from perseid.aws.observe.execution_progress import MapProgress, Watcher
from perseid.aws.observe.run_archive import collect, collected_before
from perseid.aws.session import aws_errors
from perseid.aws.stack_resources import StackResources
from perseid.errors import (
    AwsError,
    BadInputError,
    NotFoundError,
    PerseidError,
    RunError,
    RunInterruptedError,
    StorageError,
)
from perseid.model.python_source import is_python
from perseid.pipeline import layout
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.initialize import new_run_id
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.pipeline.run_state import RunResult, result_of
from perseid.storage import Location, Storage

FIRST_WAIT, LONGEST_WAIT, LONGER = 1.0, 5.0, 1.25
"""Seconds between two looks: short at first, longer by this factor each time."""
RECENT = 50
"""Executions that are looked at for one that has just begun."""
WATCH_SECONDS = 86_400.0
"""Longest time that this side watches; the execution goes on."""
PATIENCE_SECONDS = 600.0
"""So long looks may fail one after the other: a network that is away, credentials that ended."""
Tell = Callable[[MapProgress], None]
Note = Callable[[str], None]
"""Told why something could not be seen."""


@dataclass(frozen=True)
class Started:
    """An execution that is under way, or was."""

    arn: str
    results_url: str
    """The run's own prefix."""
    resumed: bool = False

    @property
    def name(self) -> str:
        """The execution's name; for the first one of a run its id."""
        return self.arn.rpartition(":")[2]


class _PatientLooks:
    """Looks of which some may fail, each reason told once in a row."""

    def __init__(self, watcher: Watcher, started: Started, note: Note, patience: float) -> None:
        self._watcher = watcher
        self._started = started
        self._note = note
        self._patience = patience
        self._worked = time.monotonic()
        self._said = ""

    def look(self) -> MapProgress | None:
        """The state of now; None if it could not be seen."""
        try:
            now = self._watcher.look()
        except NotFoundError:
            raise
        except (AwsError, StorageError) as error:
            # A laptop that sleeps or changes networks must not end the watching, let alone the run.
            if time.monotonic() - self._worked >= self._patience:
                raise RunError(
                    f"{error}; {self._started.name} goes on without this command: `perseid status "
                    f"{self._started.results_url}` says how far it is"
                ) from error
            self._say(str(error))
            return None
        self._worked = time.monotonic()
        self._say(now.trouble)
        return now

    def _say(self, trouble: str) -> None:
        # Once, not every five seconds.
        if trouble and trouble != self._said:
            self._note(f"the run goes on, but cannot be seen as it should: {trouble}")
        self._said = trouble


class Executions:
    """Starts and watches executions of one stack's state machine.

    Parameters
    ----------
    calls
        The account, with what is asked of it counted.
    place
        The state machine and its functions.
    """

    def __init__(self, calls: Calls, place: StackResources) -> None:
        self.calls = calls
        self.place = place

    def start(self, request: RunRequest, *, replace: bool = False) -> Started:
        """Start the run of a request, which begins there, and return at once.

        Raises
        ------
        BadInputError
            Data, model or results do not lie on S3.
        """
        check_places(request)
        # The execution's name is the run's id: it cannot be used twice, so no run can be started
        # twice.
        name = new_run_id(time.time())
        self._execute(name, request.given() | ({"replace": True} if replace else {}))
        return Started(self.place.execution(name), request.results_url)

    def start_begun(self, manifest: Manifest) -> Started:
        """Start the execution of a run that was initialized: it bears the run's id."""
        self._execute(manifest.run_id, manifest.request)
        return Started(self.place.execution(manifest.run_id), manifest.results_url)

    def resume(
        self, url: str, *, allow_model_change: bool = False, name: str | None = None
    ) -> Started:
        """Start an execution that computes what is missing from a run; returns immediately.

        `allow_model_change`: see `perseid.engines.driver.resume`; `name`: of the execution, a fresh
        one where it is not given.
        """
        url = Location.parse(url).url
        _on_s3("the run", url)
        Manifest.load(Storage(url))
        name = name or new_run_id(time.time())
        allowed = {"allow_model_change": True} if allow_model_change else {}
        self._execute(name, {"resume": url, **allowed})
        return Started(self.place.execution(name), url, resumed=True)

    def watch(
        self,
        started: Started,
        tell: Tell,
        *,
        first: float = FIRST_WAIT,
        longest: float = LONGEST_WAIT,
        seconds: float = WATCH_SECONDS,
        note: Note = lambda text: None,
        patience: float = PATIENCE_SECONDS,
    ) -> MapProgress:
        """Look from time to time until the execution has ended, and tell each time.

        A look that fails is a note: the execution does not depend on who watches it.

        Raises
        ------
        RunError
            It has not ended within `seconds`, or no look has worked for as long as `patience`; it
            goes on nevertheless.
        """
        looks = _PatientLooks(self._watcher(started), started, note, patience)
        deadline, wait = time.monotonic() + seconds, first
        while True:
            now = looks.look()
            if now is not None:
                tell(now)
            if now is not None and now.ended:
                return now
            if time.monotonic() > deadline:
                raise RunError(
                    f"{started.name} is still running after {seconds:g} s; `perseid status "
                    f"{started.results_url}` says how far it is"
                )
            time.sleep(wait)
            wait = min(longest, wait * LONGER)

    def look(self, started: Started) -> MapProgress:
        """Ask once how far the execution has come."""
        return self._watcher(started).look()

    def _watcher(self, started: Started) -> Watcher:
        # A resumed run keeps the id of its first execution.
        run = Manifest.load(Storage(started.results_url)).run_id if started.resumed else None
        return Watcher(
            self.calls, self.place, started.arn, started.results_url, run or started.name
        )

    def began(self, started: Started) -> float:
        """When it began, seconds since the epoch."""
        return describe_execution(self.calls, started.arn).started

    def stop(self, started: Started) -> bool:
        """Stop the execution; ranks that are working are not told and end on their own.

        Returns whether there was anything to stop.
        """
        if describe_execution(self.calls, started.arn).ended:
            return False
        with aws_errors():
            self.calls.client("stepfunctions").stop_execution(
                executionArn=started.arn, error="Stopped", cause="stopped by the user"
            )
        return True

    def report(self, started: Started) -> EngineReport:
        """Fetch logs and times of an ended execution.

        What was fetched before, whole, is not fetched again.

        Raises
        ------
        PerseidError
            The execution failed otherwise than by missing ranks: its own error and sentence.
        RunInterruptedError
            It was stopped.
        """
        found = describe_execution(self.calls, started.arn)
        error = _failure(found, started)
        if error is not None and not _left_a_run(started, error):
            raise error
        store = Storage(started.results_url)
        manifest = Manifest.load(store)
        arns = self.executions(started.results_url)
        # Logs expire after some days, and each request costs: what was archived whole is not read
        # again.
        mapped = collected_before(store, arns)
        if mapped is None:
            mapped = collect(self.calls, self.place, manifest, arns).mapped
        if error is not None:
            raise error
        return replace(mapped, published=True)

    def finish(self, started: Started) -> RunResult:
        """The result of an ended execution's run; see `report`."""
        mapped = self.report(started)
        store = Storage(started.results_url)
        return result_of(store, Manifest.load(store), mapped)

    def executions(self, url: str) -> list[str]:
        """ARNs of a run's executions, oldest first: its own, and those that went on with it."""
        store = Storage(url)
        manifest = Manifest.load(store)
        names = [name.removeprefix("items.").removesuffix(".json") for name in store.names()
                 if name.startswith("items.") and name != layout.ITEMS]  # fmt: skip
        return [self.place.execution(name) for name in (manifest.run_id, *sorted(names))]

    def find(self, run: str) -> Started:
        """The newest execution of a run, named by its URL, its id or an execution's ARN.

        Raises
        ------
        NotFoundError
            There is no such run or execution.
        """
        if run.startswith("s3://"):
            return self._newest(Location.parse(run).url)
        arn = run if run.startswith("arn:") else self.place.execution(run)
        given = _input_of(self.calls, arn)
        return Started(arn, _results_of(given, arn), resumed="resume" in given)

    def _newest(self, url: str) -> Started:
        """The newest execution of the run at a prefix; a run that has just started has no objects
        there yet."""
        with aws_errors():
            listed = self.calls.client("stepfunctions").list_executions(
                stateMachineArn=self.place.state_machine, maxResults=RECENT
            )["executions"]
        begun = Storage(url).exists(layout.MANIFEST)
        for entry in listed:  # newest first
            # The manifest of the run names those that have ended; here only a fresh one is looked
            # for.
            if begun and entry["status"] != "RUNNING":
                continue
            arn = str(entry["executionArn"])
            given = _input_of(self.calls, arn)
            with contextlib.suppress(BadInputError):
                if _results_of(given, arn) == url:
                    return Started(arn, url, resumed="resume" in given)
        arns = self.executions(url)
        return Started(arns[-1], url, resumed=len(arns) > 1)

    def _execute(self, name: str, payload: Mapping[str, object]) -> None:
        with aws_errors():
            self.calls.client("stepfunctions").start_execution(
                stateMachineArn=self.place.state_machine, name=name, input=json.dumps(payload)
            )


def check_places(request: RunRequest) -> None:
    """Raise `BadInputError` unless all places of the request are on S3."""
    if request.bucket_root:
        raise BadInputError(
            "bucket_root is for runs on this machine: leave it out with --engine aws"
        )
    data = [request.data] if isinstance(request.data, str) else request.data or []
    for url in data:
        _on_s3("the data", str(url))
    if is_python(request.model):
        raise BadInputError(
            f"the model {request.model} is Python code, and the workers on AWS have none of it: "
            "export it to ONNX, or run it as a script in a container image of your own (`perseid "
            "aws deploy --worker-image`)"
        )
    if request.model and request.model != "default":
        _on_s3("the model", request.model)
    if request.results:
        _on_s3("the place for results", request.results)


def _on_s3(what: str, url: str) -> None:
    if Location.parse(url).scheme != "s3":
        raise BadInputError(
            f"{what} is {url}, which workers on AWS cannot reach: give an s3:// URL (upload it "
            "with `perseid split SURVEY s3://…` or `aws s3 cp`)"
        )


def _input_of(calls: Calls, arn: str) -> Mapping[str, object]:
    """The input of an execution, without empty keys."""
    given = json.loads(describe_execution(calls, arn).input)
    return {k: v for k, v in given.items() if v or k != "resume"} if given else {}


def _results_of(given: Mapping[str, object], arn: str) -> str:
    """The run's prefix from an execution's input."""
    if "resume" in given:
        return Location.parse(str(given["resume"])).url
    request = {k: v for k, v in given.items() if k != "replace"}
    try:
        return RunRequest.parse(request).results_url
    except BadInputError as error:
        raise BadInputError(f"{arn} is not a run of perseid: {error}") from error


def _failure(found: ExecutionState, started: Started) -> PerseidError | None:
    """The error of an execution that ended without a published result; None if there is one."""
    status = found.status
    if status == "SUCCEEDED" or errors.current_name(found.error) == "RunIncompleteError":
        return None
    if status == "RUNNING":
        return RunError(f"{started.name} is still running")
    if status == "ABORTED":
        return RunInterruptedError(
            f"{started.name} was stopped; `perseid resume {started.results_url} --engine aws` goes "
            "on with what is missing"
        )
    name, cause = found.error or status, found.cause or "no cause was given"
    kind = getattr(errors, errors.current_name(name), RunError)
    if isinstance(kind, type) and issubclass(kind, PerseidError):
        return kind(cause)
    return RunError(f"the execution {started.name} failed: {cause} ({name})")


def _left_a_run(started: Started, error: PerseidError) -> bool:
    """Whether the failed execution's run has begun, so that its logs can be told apart."""
    if isinstance(error, BadInputError):
        return False
    try:
        manifest = Manifest.load(Storage(started.results_url))
    except (NotFoundError, BadInputError):
        return False
    return started.resumed or manifest.run_id == started.name
