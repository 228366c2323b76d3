"""The engine of a Dask cluster that the user has: ranks as tasks of a `distributed.Client`."""

from __future__ import annotations

import importlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import perseid
from perseid.engines.attached import AttachedRun
from perseid.engines.base import Capabilities, stated
from perseid.engines.block import (
    attempts_before,
    done_since,
    merged_through_store,
    work_on_block,
)
from perseid.engines.local.kept_workers import KeptWorkers
from perseid.engines.local.local_engine import LocalEngine, options_of
from perseid.engines.local.local_options import LocalOptions
from perseid.engines.owner import Owner
from perseid.engines.retry import RetryPolicy
from perseid.engines.stopping import StopRequests
from perseid.engines.worker_command import WORKER
from perseid.errors import BadInputError, NotInstalledError, RunError
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.events import CountEvent, Event, Report
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import read_records
from perseid.pipeline.request import RunRequest
from perseid.pipeline.resumption import with_current_model
from perseid.pipeline.run_summary import EngineDocument
from perseid.storage import Storage

LIMITS = ("threads", "memory_mb", "timeout", "retries")
LOOK_SECONDS = 0.2
"""Between two looks at the tasks."""
STOP_SECONDS = 30.0
"""How long tasks may take to end their ranks when the run is stopped."""
_kept: dict[str, KeptWorkers] = {}
"""In a Dask worker: processes with a loaded model, by run; `ModelKeeper` puts them there."""
_stops: dict[str, list[StopRequests]] = {}
"""In a Dask worker: the blocks that work on each run, so that a stop reaches them."""


class DaskEngine:
    """Runs ranks as tasks of a Dask cluster; the cluster is the user's, never one of ours.

    Each task works on one or more ranks in a process of its own beside the Dask worker, so that a
    crash or a limit ends a rank, not the worker; the next task goes on with that process, and the
    model that it has loaded. Ranks merge through the store, since tasks start
    when there is room. The run ends with this process.

    Parameters
    ----------
    client
        A `distributed.Client`; else one is made for `scheduler`.
    scheduler
        Address of a scheduler, such as ``tcp://10.0.0.1:8786``.
    ranks_per_task
        Ranks that one task works on, one after the other (default 1).
    threads, memory_mb, timeout, retries
        Threads of a rank's process, memory (MB) and seconds that a rank may take, and attempts
        after a failed one; default: as the run's request says.
    resources
        Of Dask workers that a task needs, such as ``{"GPU": 1}``; see Dask's worker resources.
    environment
        Further variables of the ranks' processes.
    command
        The worker's program, for tests.

    Examples
    --------
    >>> from distributed import Client  # doctest: +SKIP
    >>> perseid.run("survey/", engine=DaskEngine(Client("tcp://10.0.0.1:8786")))  # doctest: +SKIP
    """

    name = "dask"

    def __init__(
        self,
        client: Any = None,
        *,
        scheduler: str | None = None,
        ranks_per_task: int = 1,
        threads: int | None = None,
        memory_mb: int | None = None,
        timeout: float | None = None,
        retries: int | None = None,
        resources: Mapping[str, float] | None = None,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = (),
    ) -> None:
        if ranks_per_task < 1:
            raise BadInputError(f"ranks_per_task must be at least 1, not {ranks_per_task}")
        self._given, self._scheduler = client, scheduler
        self._ranks_per_task = ranks_per_task
        given = dict(zip(LIMITS, (threads, memory_mb, timeout, retries), strict=True))
        self._limits = {name: value for name, value in given.items() if value is not None}
        self._environment = environment if environment is not None else {}
        self._command = tuple(command)
        self._resources = dict(resources or {})

    @classmethod
    def configured(cls, settings: Mapping[str, object]) -> Self:
        """With these of the keyword arguments."""
        return cls(**stated(settings, ("scheduler", "ranks_per_task", *LIMITS)))

    @property
    def client(self) -> Any:
        """The `distributed.Client`.

        Raises
        ------
        NotInstalledError
            Dask's `distributed` is missing.
        RunError
            No scheduler answers at the address.
        """
        if self._given is None:
            if not self._scheduler:
                raise BadInputError(
                    "no Dask cluster is named: give the scheduler's address (--scheduler "
                    "tcp://host:8786), or DaskEngine(client)"
                )
            distributed = _distributed()
            try:
                self._given = distributed.Client(self._scheduler, timeout=10)
            except (OSError, ValueError) as error:
                raise RunError(f"no Dask scheduler answers at {self._scheduler}: {error}") from None
        return self._given

    @property
    def capabilities(self) -> Capabilities:
        """Tasks start when there is room; the futures, and so the run, end with this process."""
        memory = self._limits.get("memory_mb")
        return Capabilities(
            gang=False,
            detach=False,
            device="cpu",
            memory_per_rank=None if memory is None else int(memory),
            max_parallel=None,
        )

    def default_results(self, data: str) -> str:
        """As on one machine: ``runs/<the data's name>-<now>`` in the current folder."""
        return LocalEngine().default_results(data)

    def prepare(self, request: RunRequest) -> RunRequest:
        """Ranks merge through the store; a request for another transport raises `BadInputError`."""
        return merged_through_store(request, "Dask")

    def check(self, manifest: Manifest) -> None:
        """Refuse scripts whose ranks must run at once, and workers with another perseid."""
        if manifest.talks:
            raise BadInputError(
                "the ranks of this script talk to each other and must run at once, which Dask does "
                "not promise: use --engine local"
            )
        found = self.client.run(_version)
        if not found:
            raise RunError("the Dask cluster has no workers: start some, or scale it up")
        other = {worker: version for worker, version in found.items() if version != _version()}
        if other:
            worker, version = next(iter(other.items()))
            raise RunError(
                f"{len(other)} of {len(found)} Dask workers have another perseid than this process "
                f"(first {worker}: {version or 'none'}, here {_version()}): install the same "
                "version in their environment and start them again"
            )

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> DaskRun:
        """Submit tasks to the cluster; each works on a block of the ranks."""
        options = options_of(RunRequest.parse({**manifest.request, **self._limits}))
        wanted = list(range(manifest.world_size) if ranks is None else ranks)
        former = {} if ranks is None else attempts_before(manifest, wanted)
        options = LocalOptions(
            workers=1,
            threads=options.threads,
            memory_mb=options.memory_mb,
            timeout=options.timeout,
            retry=RetryPolicy(options.retry.retries),
            command=tuple(self._command or WORKER),
            environment=dict(self._environment),
        )
        step = self._ranks_per_task
        blocks = [tuple(wanted[at : at + step]) for at in range(0, len(wanted), step)]
        return DaskRun(self.client, manifest, blocks, former, options, self._resources)

    def locate(self, name: str) -> str:
        """Runs on a Dask cluster have no other name than their place."""
        return LocalEngine().locate(name)

    def attach(self, manifest: Manifest) -> AttachedRun:
        """A run that another process of this machine works on, or worked on."""
        return AttachedRun(manifest)


class DaskRun:
    """The futures of a run."""

    def __init__(
        self,
        client: Any,
        manifest: Manifest,
        blocks: Sequence[tuple[int, ...]],
        former: Mapping[int, int],
        options: LocalOptions,
        needed: Mapping[str, float],
    ) -> None:
        self._client, self._manifest = client, manifest
        self._store = Storage(manifest.results_url)
        self._attached = AttachedRun(manifest)
        self._began = time.time()
        self._stopped_at: float | None = None
        with ExitStack() as resources:
            resources.enter_context(Owner(self._store))
            resources.enter_context(_model_keeper(client, manifest.run_id))
            self._futures = {
                client.submit(
                    work_on_ranks, manifest.results_url, block,
                    {rank: former.get(rank, 0) for rank in block}, options,
                    manifest.allow_model_change,
                    key=f"perseid-{manifest.run_id}-{block[0]}-{uuid.uuid4().hex[:8]}",
                    pure=False, retries=0, resources=dict(needed) or None,
                ): block
                for block in blocks
            }  # fmt: skip
            self._resources = resources.pop_all()

    @property
    def futures(self) -> Sequence[Any]:
        """One a task, for `distributed.progress` and the like."""
        return list(self._futures)

    @property
    def ended(self) -> bool:
        """Whether no task waits or runs; of a stopped run, whether its tasks had time to end."""
        if self._stopped_at is not None and time.time() - self._stopped_at > STOP_SECONDS:
            return True
        return all(future.done() for future in self._futures)

    def poll(self) -> Sequence[Event]:
        """New records in the store, and how many ranks stand where."""
        events = self._attached.poll()
        ranks = [rank for block in self._futures.values() for rank in block]
        done = len([rank for rank in ranks if rank in self._attached.seen])
        count = CountEvent(
            "map", time.time() - self._began, len(ranks), len(ranks) - done, 0, done,
            ended=self.ended,
        )  # fmt: skip
        return (*events, count)

    def wait(self, report: Report, timeout: float | None = None) -> None:
        """Until all tasks have ended; SIGINT and SIGTERM stop them meanwhile."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with StopRequests() as stop:
            while True:
                ended = self.ended
                for event in self.poll():
                    report(event)
                if ended:
                    return
                if stop.count and self._stopped_at is None:
                    self.stop()
                if deadline is not None and time.monotonic() > deadline:
                    raise RunError(f"the run has not ended within {timeout:g} s")
                time.sleep(LOOK_SECONDS)

    def stop(self) -> bool:
        """End the ranks that are worked on and begin no other."""
        if self.ended:
            return False
        self._stopped_at = time.time()
        waiting = [future for future in self._futures if future.status == "pending"]
        self._client.run(stop_ranks, self._manifest.run_id)
        self._client.cancel(waiting)
        return True

    def leave(self) -> str:
        """Nothing: a run of this engine ends with its process."""
        return ""

    def report(self) -> EngineReport:
        """What all tasks did, and why ranks have no record."""
        if not self.ended:
            raise RunError("the run has not ended: wait for it first")
        reports: list[EngineReport] = []
        lost: dict[int, str] = {}
        for future, block in self._futures.items():
            try:
                reports.append(EngineReport.from_json(future.result(timeout=10)))
            except Exception as error:  # of Dask, or of the task itself
                lost |= dict.fromkeys(block, _why(error))
        records, _ = read_records(self._store, self._manifest)
        failures = {rank: text for one in reports for rank, text in one.failures.items()}
        failures = {r: text for r, text in {**lost, **failures}.items() if r not in records}
        ranks = {rank for block in self._futures.values() for rank in block}
        stopped = self._stopped_at is not None
        missing = ranks - set(records)
        if not stopped:
            failures |= dict.fromkeys(missing - set(failures), "its task left no record")
        attempts = [attempt for one in reports for attempt in one.attempts]
        return EngineReport(
            tuple(sorted(attempts, key=lambda one: one.started + one.duration_ms / 1000)),
            {} if stopped else failures,
            time.time() - self._began,
            max(1, sum(self._client.nthreads().values())),
            tuple(sorted(ranks & set(records))),
            stopped=stopped and bool(missing),
        )

    def logs(self, rank: int | None = None, *, follow: bool = False) -> Iterator[tuple[int, str]]:
        """What the ranks logged so far."""
        return self._attached.logs(rank, follow=follow)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._resources:
            if not self.ended:
                with suppress(Exception):  # the cluster may be gone already
                    self.stop()


def work_on_ranks(
    url: str,
    ranks: Sequence[int],
    former: Mapping[int, int],
    options: LocalOptions,
    allow_model_change: bool,
) -> EngineDocument:
    """The task, in a Dask worker: some ranks of the run at this URL; the report as JSON.

    Dask calls it again elsewhere where the worker was lost: ranks that are done are left out.
    """
    manifest = Manifest.load(Storage(url))
    manifest = with_current_model(manifest, allow_model_change=allow_model_change)
    left = [rank for rank in ranks if not done_since(manifest, rank, former[rank])]
    if not left:
        return EngineReport().to_json()
    stop = StopRequests()
    _stops.setdefault(manifest.run_id, []).append(stop)
    try:
        items = [manifest.item(rank) for rank in left]
        kept = _kept.get(manifest.run_id)
        return work_on_block(items, options, lambda event: None, stop, kept=kept).to_json()
    finally:
        _stops[manifest.run_id].remove(stop)


class ModelKeeper:
    """A plugin of Dask workers: the processes of a run stand by from task to task.

    Workers that come while the run lasts get it, too; the processes end with the run, or with
    their Dask worker.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self.name = f"perseid-{run_id}"

    def setup(self, worker: object) -> None:
        """In a Dask worker, before its first task."""
        _kept[self._run_id] = KeptWorkers()

    def teardown(self, worker: object) -> None:
        """In a Dask worker, when the run or the worker ends."""
        kept = _kept.pop(self._run_id, None)
        if kept is not None:
            kept.close()


@contextmanager
def _model_keeper(client: Any, run_id: str) -> Iterator[None]:
    """Have the cluster's workers keep the run's model while the block lasts."""
    keeper = _keeper_class()(run_id)
    client.register_plugin(keeper)
    try:
        yield
    finally:
        with suppress(Exception):  # the cluster may be gone already
            client.unregister_worker_plugin(keeper.name)


def _keeper_class() -> type[ModelKeeper]:
    """As Dask wants it: a kind of its own `WorkerPlugin`."""
    plugin = _distributed().WorkerPlugin
    return type("ModelKeeper", (ModelKeeper, plugin), {})


def stop_ranks(run_id: str) -> None:
    """In a Dask worker: end the ranks of a run."""
    for stop in _stops.get(run_id, []):
        stop.count += 1


def _version() -> str:
    """Version of perseid, to the minor number, in the process that this is called in."""
    return ".".join(perseid.__version__.split(".")[:2])


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise NotInstalledError(
            "the engine dask needs Dask's distributed: pip install 'perseid[dask]'"
        ) from error


def _why(error: Exception) -> str:
    name = type(error).__name__
    if name == "KilledWorker":
        return f"its Dask worker was lost each time that it was tried: {error}"
    if name == "CancelledError":
        return "its Dask task was canceled"
    return f"its Dask task failed: {name}: {error}"
