"""Script mode: run the user's own program in the way that the existing executor runs it."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from perseid.compat.scripts.private_path import entering
from perseid.compat.scripts.script_folder import ScriptFolder, script_folder, script_key
from perseid.errors import BadInputError, NotFoundError, RunError, WorkerFailedError
from perseid.jsontext import json_bytes
from perseid.lifetime import bound_to_parent
from perseid.pipeline import layout
from perseid.pipeline.events import RankEvent, RankState, Report
from perseid.pipeline.items import WorkItem, data_path
from perseid.pipeline.recordcheck import amount, parse_result
from perseid.pipeline.records import RankRecord
from perseid.pipeline.timeline import Timeline, peak_memory_mb
from perseid.storage import Storage

with contextlib.suppress(ImportError):  # missing on Windows, where runs can only be read
    import resource

DEFAULT_TIMEOUT = 900.0
"""Time limit of a script in seconds if the work item states none; this is Lambda's limit."""
FMI_PATH = Path(__file__).parents[1] / "path"
"""The folder with our ``fmi`` module; it is on a script's path right after its own folder."""
TAIL_LINES = 3
"""Number of last lines of a failed script's output that the error quotes."""
LINE_CHARACTERS = 200
"""Maximum number of characters of each quoted line."""


def run_script(
    item: WorkItem,
    storage: Storage | None = None,
    *,
    attempt: int = 1,
    report: Report | None = None,
    cold: bool = True,
    init_seconds: float = 0.0,
) -> RankRecord:
    """Run the script for one rank; its output goes to the standard output of this process.

    Parameters
    ----------
    item
        Work item of the rank. Its ``options.script`` has the item keys of the existing executor,
        all strings, and ``options.bucket_url`` is the location of the script's folder.
    storage
        The store at the run's prefix, where the script writes ``<rank>.json``.
    attempt, report, cold, init_seconds
        As in `perseid.pipeline.work.work`.

    Returns
    -------
    The measurements, which are also written to ``ranks/<rank>/script.json`` and added to the keys
    of the script's ``<rank>.json``, if it wrote one.

    Raises
    ------
    BadInputError
        The script or its folder is missing, or the script is outside its folder.
    WorkerFailedError
        The script failed, took too long, or wrote no result although the rank has data.
    """
    storage = storage or Storage(item.results_url)
    if report is not None:
        report(RankEvent(item.rank, RankState.RUNNING, attempt))
    clock = Timeline()
    _measure(item, storage, clock)
    record = leave_records(item, storage, ScriptMeasurement(clock, attempt, cold, init_seconds))
    if report is not None:
        report(RankEvent(item.rank, RankState.DONE, attempt, record.rows))
    return record


def _measure(item: WorkItem, storage: Storage, clock: Timeline) -> None:
    """Fetch the script's folder and run the script; each is a stage of the clock."""
    environment = item.options.script or {}
    prefix = environment["S3_OBJECT_NAME"]
    inner = script_key(prefix, environment["SCRIPT"])
    bucket = Storage(item.options.bucket_url or "")
    for key in (layout.script_record(item.rank), layout.record(item.rank)):
        storage.delete([key])  # a former attempt's record must not be taken for this one's
    with ExitStack() as stack:
        with clock.stage("fetch"):
            folder = stack.enter_context(script_folder(bucket, prefix))
        # Checked after the copy too, since the folder may have changed after the run was submitted.
        if not (folder.copy / inner).is_file():
            raise BadInputError(
                f"script {environment['SCRIPT']!r} is not there: {bucket.where(prefix)} holds no "
                f"{inner!r}; check `script` and `S3_object_name`"
            )
        with clock.stage("inference"):
            _run(item, folder, inner, environment)


@dataclass(frozen=True)
class ScriptMeasurement:
    """Measurements of a script, taken from outside."""

    clock: Timeline
    attempt: int
    cold: bool
    init_seconds: float


def leave_records(item: WorkItem, storage: Storage, measured: ScriptMeasurement) -> RankRecord:
    """Write our record of a rank, and complete the script's own; a rank without data has only ours.

    Our record, which states that the rank is done, is written last. In ``<rank>.json`` everything
    that the script wrote stays as it is, even under our keys; our own record does not use it.
    """
    theirs = _result(item, storage)
    ours = _record(item, theirs or {}, measured)
    mine = ours.to_json()
    if theirs is not None:
        storage.put(layout.record(item.rank), json_bytes({**mine, **theirs}))
    # Last, since this record states that the rank is done.
    storage.put(layout.script_record(item.rank), json_bytes(mine))
    return ours


def _run(item: WorkItem, folder: ScriptFolder, inner: str, environment: Mapping[str, str]) -> None:
    seconds = _limit(item)
    # Only the last lines are kept: a script may print gigabytes.
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with tempfile.TemporaryDirectory(prefix=f"perseid-rank-{item.rank}-") as own:
        process = _start(item, folder, inner, {**environment, "TMPDIR": own})
        # In a thread, so that the wait below has its time limit.
        reader = threading.Thread(target=_pass_on, args=(process, tail), daemon=True)
        reader.start()
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise WorkerFailedError(
                f"rank {item.rank}: the script took more than {seconds:g} s and was stopped: give "
                "the run a longer `timeout`, or the rank less data"
            ) from None
        finally:
            # In any case: a script that outlives its rank would write into the next attempt.
            process.kill()
            process.wait(10)
            reader.join(10)
    if status:
        # Popen gives the number of a signal as a negative status.
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        said = " / ".join(line[:LINE_CHARACTERS] for line in tail) or "nothing"
        raise WorkerFailedError(f"rank {item.rank}: the script {how}; its last words: {said}")


def _limit(item: WorkItem) -> float:
    """Time limit of the script, in seconds."""
    return item.options.timeout or DEFAULT_TIMEOUT


def _start(
    item: WorkItem, folder: ScriptFolder, inner: str, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start the script in its own folder, with `environment` added to our own variables."""
    path = folder.path / inner
    variables = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
    variables["PERSEID_SCRIPT_ENDS"] = str(time.time() + _limit(item))
    # Ours first, so that an installed fmi does not hide it.
    paths = (str(FMI_PATH), variables.get("PYTHONPATH"))
    variables["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    before = bound_to_parent()
    if folder.private is not None:
        _refuse_hidden(item, folder)
        variables["TMPDIR"] = str(folder.root)  # which only this rank sees
        before = _in_turn(entering(folder.private, folder.root, path.parent), before)
    try:
        return subprocess.Popen(
            [sys.executable, str(path)],
            cwd=(folder.copy / inner).parent,
            env=variables,
            # A script that waits for input would wait until its time limit.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=before,
        )
    except subprocess.SubprocessError as error:
        raise _not_safe(folder, "this system gives no process a folder of its own there") from error


def _in_turn(first: Callable[[], None], then: Callable[[], None] | None) -> Callable[[], None]:
    def both() -> None:
        # A new user namespace removes the binding to the parent, which is therefore set after it.
        first()
        if then is not None:
            then()

    return both


def _refuse_hidden(item: WorkItem, folder: ScriptFolder) -> None:
    """Raise `RunError` if the script needs a path that its private root hides."""
    urls = (item.results_url, item.data_url, item.options.bucket_url or "")
    places = [Path(sys.executable), *(Storage(url).local_path() for url in urls)]
    for place in places:
        if place is not None and place.is_relative_to(folder.root):
            raise _not_safe(folder, f"the script needs {place}, which is in {folder.root} too")


def _not_safe(folder: ScriptFolder, but: str) -> RunError:
    return RunError(
        f"{folder.why}, so the script's folder would not be safe from other users; and {but}: have "
        f"it removed, or give the folder of the scripts another name"
    )


def _pass_on(process: subprocess.Popen[bytes], tail: deque[str]) -> None:
    """Copy the script's output to ours, which becomes the rank's log."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            text = line.decode("utf-8", "replace")
            sys.stdout.write(text)
            sys.stdout.flush()
            # Empty lines would waste the few lines that the error quotes.
            if text.strip():
                tail.append(text.strip())


def _result(item: WorkItem, storage: Storage) -> dict[str, object] | None:
    """The result that the script wrote; None for a rank without data, which need not write one."""
    key = layout.record(item.rank)
    try:
        return parse_result(storage.get(key), storage.where(key))
    except NotFoundError as error:
        if not item.partitions:
            return None
        raise WorkerFailedError(
            f"rank {item.rank}: the script ended without an error but left no "
            f"{storage.where(key)}: it must write its result there"
        ) from error
    except RunError as error:
        raise WorkerFailedError(f"rank {item.rank}: {error}") from error


def _record(
    item: WorkItem, theirs: Mapping[str, object], measured: ScriptMeasurement
) -> RankRecord:
    clock, init = measured.clock, measured.init_seconds
    seconds = amount(theirs.get("total_cpu_time (seconds)")) or 0.0
    # The peak of the largest child, which is the script; kilobytes on Linux.
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    stages = dict.fromkeys(("rendezvous", "decode", "collectives", "publish"), 0.0)
    stages |= {"init": init, "fetch": clock.seconds("fetch")}
    stages |= {"inference": clock.seconds("inference"), "total": init + clock.elapsed()}
    return RankRecord(
        run_id=item.run_id,
        rank=item.rank,
        world_size=item.world_size,
        attempt=measured.attempt,
        rows=_times(theirs, "sample_persec", seconds),  # rows / model time, by definition
        rows_flagged=0,
        partitions=tuple({"key": p.key, "rows": None, "bytes": p.size} for p in item.partitions),
        failed_partitions=(),
        result_path=item.options.result_path or item.results_url,
        data_path=data_path(item.partitions),
        batch_size=round(amount(theirs.get("batch_size")) or 0) or item.batch_size,
        micro_batch=0,
        num_batches=round(amount(theirs.get("num_batches")) or 0),
        device=_text(theirs.get("device")),
        # What the script computes with is unknown.
        precision="script",
        transport="none",
        stages=stages,
        timeline=clock.joined(),
        model_seconds=seconds,
        allocated_mb=amount(theirs.get("total_cpu_memory (MB)")) or 0.0,
        peak_memory_mb=max(children, peak_memory_mb()),
        cold_start=measured.cold,
        pixel_bits=_times(theirs, "throughput_bps", seconds),
    )


def _times(record: Mapping[str, object], rate: str, seconds: float) -> int:
    """The script's rate multiplied by its seconds; 0 if the rate is no number."""
    # The script may write anything, infinity included.
    product = (amount(record.get(rate)) or 0.0) * seconds
    return round(product) if math.isfinite(product) else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else "unknown"
