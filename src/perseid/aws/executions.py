"""Executions of a stack's state machine: start one, watch it with few requests, stop it, and fetch
its results.

The whole run takes place on AWS, including initialize and summarize; this side only asks about its
progress.
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
from perseid.jsontext import parse_json
from perseid.model.python_source import is_python
from perseid.pipeline import layout
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.initialize import new_run_id
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.pipeline.run_state import RunResult, result_of
from perseid.plaintext import option
from perseid.storage import Location, Storage

FIRST_WAIT, LONGEST_WAIT, LONGER = 1.0, 5.0, 1.25
"""Seconds between two polls: short at first, then longer by this factor each time."""
RECENT = 50
"""Number of executions that are searched for one that has just begun."""
WATCH_SECONDS = 86_400.0
"""Longest time in seconds that this side watches; the execution then goes on unwatched."""
PATIENCE_SECONDS = 600.0
"""Seconds for which polls may fail one after the other, as without a network or with expired
credentials."""
Tell = Callable[[MapProgress], None]
Note = Callable[[str], None]
"""Called with the reason if something could not be read."""


@dataclass(frozen=True)
class Started:
    """An execution that was started."""

    arn: str
    results_url: str
    """The run's own prefix."""
    resumed: bool = False

    @property
    def name(self) -> str:
        """Name of the execution; for a run's first execution, the id of the run."""
        return self.arn.rpartition(":")[2]


class _PatientLooks:
    """Polls an execution. Some polls may fail; each reason is reported only once in a row."""

    def __init__(self, watcher: Watcher, started: Started, note: Note, patience: float) -> None:
        self._watcher = watcher
        self._started = started
        self._note = note
        self._patience = patience
        self._worked = time.monotonic()
        self._said = ""

    def look(self) -> MapProgress | None:
        """The current state; None if it could not be read."""
        try:
            now = self._watcher.look()
        except NotFoundError:
            raise
        except (AwsError, StorageError) as error:
            # A laptop that sleeps or changes networks must not end the watching, let alone the run
            # itself.
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
        # Report it once, not every five seconds.
        if trouble and trouble != self._said:
            self._note(f"the run goes on, but its progress cannot be read completely: {trouble}")
        self._said = trouble


class Executions:
    """Starts and watches executions of a stack's state machine.

    Parameters
    ----------
    calls
        Clients of the account, whose requests are counted.
    place
        Location of the state machine and its functions.
    """

    def __init__(self, calls: Calls, place: StackResources) -> None:
        self.calls = calls
        self.place = place

    def start(self, request: RunRequest, *, replace: bool = False) -> Started:
        """Start the run of a request and return at once; the run is initialized on AWS.

        Raises
        ------
        BadInputError
            Data, model or results are not on S3.
        """
        check_places(request)
        # The execution's name is the run's id. Names cannot be used twice, so no run can be started
        # twice.
        name = new_run_id(time.time())
        self._execute(name, request.given() | ({"replace": True} if replace else {}))
        return Started(self.place.execution(name), request.results_url)

    def start_begun(self, manifest: Manifest) -> Started:
        """Start the execution of a run that was already initialized; its name is the run's id."""
        self._execute(manifest.run_id, manifest.request)
        return Started(self.place.execution(manifest.run_id), manifest.results_url)

    def resume(
        self, url: str, *, allow_model_change: bool = False, name: str | None = None
    ) -> Started:
        """Start an execution that computes what is missing from a run, and return at once.

        `allow_model_change`: see `perseid.engines.driver.resume`; `name` is that of the execution;
        a new one is made up if it is not given.
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
        """Poll until the execution has ended, and report each state.

        A poll that fails only gives a note, because the execution does not depend on being watched.

        Raises
        ------
        RunError
            The execution has not ended within `seconds`, or no poll has succeeded for `patience`
            seconds. The execution goes on nevertheless.
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
        """Ask once about the execution's progress."""
        return self._watcher(started).look()

    def _watcher(self, started: Started) -> Watcher:
        # A resumed run keeps the id of its first execution.
        run = Manifest.load(Storage(started.results_url)).run_id if started.resumed else None
        return Watcher(
            self.calls, self.place, started.arn, started.results_url, run or started.name
        )

    def began(self, started: Started) -> float:
        """When the execution began, in seconds since the epoch."""
        return describe_execution(self.calls, started.arn).started

    def stop(self, started: Started) -> bool:
        """Stop the execution. Working ranks are not notified and end on their own.

        Returns whether the execution was still running.
        """
        if describe_execution(self.calls, started.arn).ended:
            return False
        with aws_errors():
            self.calls.client("stepfunctions").stop_execution(
                executionArn=started.arn, error="Stopped", cause="stopped by the user"
            )
        return True

    def report(self, started: Started) -> EngineReport:
        """Fetch the logs and times of an ended execution.

        What was fetched completely before is not fetched again.

        Raises
        ------
        PerseidError
            The execution failed for another reason than missing ranks; its error is raised with its
            message.
        RunInterruptedError
            The execution was stopped.
        """
        found = describe_execution(self.calls, started.arn)
        error = _failure(found, started)
        if error is not None and not _left_a_run(started, error):
            raise error
        store = Storage(started.results_url)
        manifest = Manifest.load(store)
        arns = self.executions(started.results_url)
        # Logs expire after some days, and each request costs money: complete archives are not read
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
        """ARNs of a run's executions, oldest first: the original one and those that resumed the
        run."""
        store = Storage(url)
        manifest = Manifest.load(store)
        names = [name.removeprefix("items.").removesuffix(".json") for name in store.names()
                 if name.startswith("items.") and name != layout.ITEMS]  # fmt: skip
        return [self.place.execution(name) for name in (manifest.run_id, *sorted(names))]

    def find(self, run: str) -> Started:
        """The newest execution of a run, given by the run's URL or id or by an execution's ARN.

        Raises
        ------
        NotFoundError
            The run or execution does not exist.
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
            # The run's manifest leads to executions that have ended; here only a new one is
            # searched for.
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
            f"bucket_root is for runs on this machine: leave it out with {option('engine', 'aws')}"
        )
    data = [request.data] if isinstance(request.data, str) else request.data or []
    for url in data:
        _on_s3("the data", str(url))
    if is_python(request.model):
        raise BadInputError(
            f"the model {request.model} is Python code, which the workers on AWS do not have: "
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
    """The input of an execution without its empty keys; empty if it is not a JSON object."""
    try:
        given = parse_json(describe_execution(calls, arn).input)
    except ValueError:
        return {}
    # An execution may have been started by hand, with a list or a number as its input.
    if not isinstance(given, Mapping):
        return {}
    return {k: v for k, v in given.items() if v or k != "resume"}


def _results_of(given: Mapping[str, object], arn: str) -> str:
    """The run's prefix according to an execution's input."""
    if "resume" in given:
        return Location.parse(str(given["resume"])).url
    request = {k: v for k, v in given.items() if k != "replace"}
    try:
        return RunRequest.parse(request).results_url
    except BadInputError as error:
        raise BadInputError(f"{arn} is not a run of perseid: {error}") from error


def _failure(found: ExecutionState, started: Started) -> PerseidError | None:
    """The error of an execution that ended without a published result; None if it published one."""
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
    """Whether the run of the failed execution had begun, so that its logs can be identified."""
    if isinstance(error, BadInputError):
        return False
    try:
        manifest = Manifest.load(Storage(started.results_url))
    except (NotFoundError, BadInputError):
        return False
    return started.resumed or manifest.run_id == started.name
