"""Write a simulated survey to a disk or a bucket, using several processes."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata, resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perseid import __version__
from perseid.errors import AlreadyExistsError, BadInputError, RunError
from perseid.libraries import not_started
from perseid.storage import Storage
from perseid.survey.cutouts import UGRIZ, Cutouts
from perseid.survey.discovery import first_key
from perseid.survey.file_columns import as_cutouts, as_dict
from perseid.survey.formats import format_for
from perseid.survey.kinds import KINDS, SURVEY_FILE
from perseid.survey.reader import write_cutouts
from perseid.survey.simulation import sdss
from perseid.survey.simulation.anomalies import ANOMALY_KINDS
from perseid.survey.simulation.object_rendering import ROUND, held_out, object_ids, render_objects
from perseid.survey.simulation.render import galsim_module

BLOCK = 256
"""Objects per task. A task takes about half a second, so progress is smooth and Ctrl-C acts
promptly."""
BLOCK_DEADLINE = 600.0
"""Seconds to wait for one task before giving up."""


@dataclass(frozen=True)
class Simulated:
    """Result of `simulate`; ``survey.json`` contains the same."""

    url: str
    rows: int
    seed: int
    anomaly_rate: float
    """Probability that an object is given an anomaly."""
    files: dict[str, int]
    """Name and rows of each file, in order."""
    labels: dict[str, int]
    """Number of objects of each kind, by name."""
    only_held_out: bool = False
    """Whether all galaxies are ones that the default model never saw in training."""


def simulate(
    dest: str | Path,
    rows: int,
    seed: int,
    *,
    anomaly_rate: float = 0.04,
    processes: int | None = None,
    rows_per_file: int = 5113,
    suffix: str = ".pt",
    only_held_out: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> Simulated:
    """Write a simulated survey: numbered files of cutouts and ``survey.json``.

    The bits depend on `rows`, `seed` and `anomaly_rate` alone, not on the number of processes.
    If it is interrupted or fails, it deletes everything that it wrote and leaves no process behind.

    Parameters
    ----------
    dest
        Folder or URL, empty or nonexistent.
    rows
        Number of objects. Beyond the 19,817 of the table, real galaxies are used again, with
        newly drawn shapes and noise.
    seed
        Not negative.
    anomaly_rate
        Probability that an object is given an anomaly; all kinds are equally likely.
    processes
        Worker processes, by default one per processor. They are spawned, so a script that calls
        this needs the ``__main__`` guard.
    rows_per_file
        Rows per file; the default, 5,113, makes 100 MiB of pixels.
    suffix
        The format, see `perseid.survey.formats`.
    only_held_out
        Draw only galaxies that the default model never saw in training. Only on such a survey
        are its metrics unbiased.
    report
        Called with the number of rows done and the total number of rows.

    Raises
    ------
    BadInputError
        An argument is out of range, or the format is unknown.
    AlreadyExistsError
        `dest` is not empty.
    NotInstalledError
        GalSim, or what the format needs, is missing.
    """
    if processes is None:
        affinity = getattr(os, "sched_getaffinity", None)  # Linux only
        processes = len(affinity(0)) if affinity else os.cpu_count() or 1
    _check(rows, seed, anomaly_rate, processes, rows_per_file)
    format_for(f"1{suffix}")
    galsim_module()
    store = Storage(dest)
    table_rows = len(sdss.load_table())
    ids = object_ids(seed, rows, held_out(table_rows) if only_held_out else table_rows)
    files: dict[str, int] = {}
    counts: Counter[int] = Counter()
    rendered = _rendered(seed, ids, anomaly_rate, processes, rows_per_file)
    with _all_or_nothing(store) as written, closing(rendered) as blocks:
        for whole in _files(blocks, rows, rows_per_file, report):
            written.append(f"{len(files) + 1}{suffix}")
            write_cutouts(whole, store.where(written[-1]))
            files[written[-1]] = len(whole)
            counts.update(np.asarray(whole.label).tolist())
        labels = {name: counts[kind] for kind, name in ANOMALY_KINDS.items()}
        result = Simulated(store.where(), rows, seed, anomaly_rate, files, labels, only_held_out)
        written.append(SURVEY_FILE)
        # Last: a folder that has it contains a complete survey.
        store.put(SURVEY_FILE, json.dumps(_summary(result), indent=2).encode())
    return result


def _check(rows: int, seed: int, anomaly_rate: float, processes: int, rows_per_file: int) -> None:
    if rows < 1:
        raise BadInputError(f"a survey needs at least 1 row, not {rows}")
    if seed < 0:
        raise BadInputError(f"the seed must not be negative, it is {seed}")
    if not 0.0 <= anomaly_rate <= 1.0:
        raise BadInputError(f"the anomaly rate must lie between 0 and 1, it is {anomaly_rate}")
    if processes < 1:
        raise BadInputError(f"simulating needs at least 1 process, not {processes}")
    if rows_per_file < 1:
        raise BadInputError(f"a file needs at least 1 row, not {rows_per_file}")


@contextmanager
def _all_or_nothing(store: Storage) -> Iterator[list[str]]:
    """Refuse a destination that is not empty; delete the listed files if the body fails."""
    folder = store.local_path()
    was_there = folder is not None and folder.exists()
    first = first_key(store)
    if first is not None:
        raise AlreadyExistsError(
            f"{store.where()} already holds {first}: choose an empty folder, or delete it first"
        )
    written: list[str] = []
    try:
        yield written
    except BaseException:
        store.delete(written)
        if folder is not None and folder.exists() and not was_there:
            folder.rmdir()
        raise


def _rendered(
    seed: int, ids: NDArray[np.int64], anomaly_rate: float, processes: int, rows_per_file: int
) -> Generator[Cutouts, None, None]:
    """Blocks in order; no block crosses a file boundary."""
    work = partial(_render_block, seed, anomaly_rate)
    tasks = (
        ids[begin : min(begin + BLOCK, file_begin + rows_per_file)]
        for file_begin in range(0, len(ids), rows_per_file)
        for begin in range(file_begin, min(file_begin + rows_per_file, len(ids)), BLOCK)
    )
    if processes == 1:
        yield from map(work, tasks)
    else:
        yield from _in_processes(work, tasks, min(processes, -(-len(ids) // BLOCK)))


def _render_block(seed: int, anomaly_rate: float, ids: NDArray[np.int64]) -> Cutouts:
    return render_objects(seed, ids, anomaly_rate=anomaly_rate, table=sdss.load_table())


def _files(
    blocks: Iterator[Cutouts],
    rows: int,
    rows_per_file: int,
    report: Callable[[int, int], None] | None,
) -> Iterator[Cutouts]:
    """Join consecutive blocks into whole files."""
    done = 0
    parts: list[Cutouts] = []
    for block in blocks:
        parts.append(block)
        done += len(block)
        if report is not None:
            report(done, rows)
        if done % rows_per_file == 0 or done == rows:
            yield _joined(parts)
            parts = []


def _joined(parts: list[Cutouts]) -> Cutouts:
    each = [as_dict(part) for part in parts]
    return as_cutouts({name: np.concatenate([part[name] for part in each]) for name in each[0]})


def _in_processes(
    work: Callable[[NDArray[np.int64]], Cutouts], tasks: Iterator[NDArray[np.int64]], count: int
) -> Generator[Cutouts, None, None]:
    """Yield results in task order, computed a few tasks ahead; the pool is always closed."""
    waiting: deque[Future[Cutouts]] = deque()
    with _safe_path(), _starting():  # this starts multiprocessing's resource tracker
        pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start_worker)
    try:
        for task in tasks:
            with _no_interrupt(), _safe_path(), _starting():
                waiting.append(pool.submit(work, task))
            # Two tasks per process keep all of them busy without collecting results in memory.
            if len(waiting) > 2 * count:
                yield waiting.popleft().result(BLOCK_DEADLINE)
        while waiting:
            yield waiting.popleft().result(BLOCK_DEADLINE)
    except BrokenProcessPool as error:
        raise RunError(
            "a simulating process was killed (out of memory?) and nothing was kept: "
            "try again, with fewer processes"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _starting() -> Iterator[None]:
    """Raise `RunError` if a process cannot be started; a pipe to it is then broken, too."""
    try:
        # Python notices only a broken pipe, and sometimes not before its semaphores are freed.
        if not os.access(sys.executable, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield
    except OSError as error:
        raise RunError(not_started(error)) from error


@contextmanager
def _safe_path() -> Iterator[None]:
    """Keep processes started meanwhile from importing modules in the current folder.

    They get this process's path later, but import their startup modules before that.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Block SIGINT for a while: worker processes inherit the mask, so only the parent handles
    Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Make a worker process exit when its parent exits, even if the parent is killed."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _summary(result: Simulated) -> dict[str, object]:
    table = resources.files("perseid.survey").joinpath("data/sdss_galaxies.npz").read_bytes()
    return {
        **{name: value for name, value in asdict(result).items() if name != "url"},
        "real": "magnitudes and redshifts, from the Sloan Digital Sky Survey",
        "simulated": "every pixel, the objects' shapes, the neighbors and the anomalies",
        "object_id": f"round * {ROUND} + row of the table; same row: same real galaxy",
        KINDS: {str(kind): name for kind, name in ANOMALY_KINDS.items()},
        "bands": list(UGRIZ),
        "pixel_arcsec": sdss.PIXEL,
        "flux_unit": "nanomaggy",
        "table": {
            "file": "sdss_galaxies.npz",
            "sha256": hashlib.sha256(table).hexdigest(),
            "rows": len(sdss.load_table()),
            "provenance": "SDSS rows distributed with mlz 1.2 and kcorrect 5.1.9",
        },
        "versions": {"perseid": __version__}
        | {name: metadata.version(name) for name in ("galsim", "numpy")},
    }
