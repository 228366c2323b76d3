"""Measure how fast a worker is on this machine, briefly and in a separate process.

``python -m perseid.engines.worker_speed BATCH SECONDS`` reads a `WorkerSetup` as JSON from
standard input and writes a `Pace` as JSON to standard output.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace

from perseid.engines import memory
from perseid.engines.worker_command import worker_environment
from perseid.engines.worker_messages import WorkerSetup, from_text, to_text
from perseid.errors import BadInputError, BadModelError, PerseidError, RunError
from perseid.jsontext import parse_json
from perseid.libraries import not_started
from perseid.measure.calibration import Pace
from perseid.pipeline.items import WorkItem
from perseid.plaintext import option

SECONDS = 1.0
"""Duration of the measurement, in seconds."""
BATCH = 128
TIMEOUT = 120.0
"""Time limit of the whole measurement, in seconds; loading a large model takes most of it."""
SMALL_MB = 1024
"""Memory limit of a rank, in MB, below which a check that the model fits is worth a second."""


def refuse_small_memory(item: WorkItem, threads: int, memory_mb: int) -> None:
    """Raise `BadInputError` if a worker exceeds the memory of a rank with a single row.

    Otherwise every attempt at every rank would end for this reason.
    """
    if memory_mb < SMALL_MB and item.options.script is None:
        refuse_beyond(measure(item, threads, batch=1, seconds=0.0), memory_mb)


def refuse_beyond(pace: Pace, memory_mb: int) -> None:
    """Raise `BadInputError` if the peak memory of this worker exceeds the limit of a rank."""
    if pace.peak_mb > memory_mb:
        raise BadInputError(
            f"a worker takes {pace.peak_mb:.0f} MB with this model, but a rank may take "
            f"{memory_mb} MB: give "
            f"{option('memory_mb', math.ceil(pace.peak_mb / 64 + 1) * 64)}"
        )


def measure(item: WorkItem, threads: int, *, batch: int = BATCH, seconds: float = SECONDS) -> Pace:
    """Start a process, load the model of the item there, and time it for about a second.

    Parameters
    ----------
    item
        Any work item of the run.
    threads
        Number of threads of the worker.
    batch
        Number of rows per call.
    seconds
        Duration of the measurement; at least one call is made.

    Raises
    ------
    BadModelError
        The model cannot be loaded, or no answer came within two minutes.
    RunError
        No process can be started.
    """
    # A separate process, so that the model and its threads do not stay in this one.
    setup = WorkerSetup(item, threads, TIMEOUT, time.time())
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "perseid.engines.worker_speed"),
                *(str(batch), str(seconds)),
            ],
            input=to_text(setup),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=worker_environment(threads),
            check=False,
        )
    except OSError as error:
        raise RunError(not_started(error)) from error
    except subprocess.TimeoutExpired as error:
        raise BadModelError(
            f"the model {item.model_url} did not answer in {TIMEOUT:.0f} s"
        ) from error
    if done.returncode:
        # The last line of a traceback names the error.
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise BadModelError(f"the model {item.model_url} cannot be timed: {last[0]}")
    # Libraries and models may print while they load, and while they end.
    for line in reversed(done.stdout.splitlines()):
        with suppress(ValueError, TypeError):
            return Pace(**parse_json(line))
    raise BadModelError(f"the model {item.model_url} cannot be timed: its process gave no answer")


def at_rate(pace: Pace, rows_per_second: float) -> Pace:
    """The same pace with another rate; raises `BadInputError` unless the rate is above 0."""
    if not rows_per_second > 0:
        raise BadInputError(f"rate must be above 0 rows per second, not {rows_per_second}")
    return replace(pace, rows_per_second=rows_per_second)


def main() -> int:
    """Measure the worker that is described on standard input."""
    setup = from_text(sys.stdin.read())
    assert isinstance(setup, WorkerSetup)
    try:
        pace = _pace(setup, int(sys.argv[1]), float(sys.argv[2]))
    except PerseidError as error:
        print(error, file=sys.stderr)  # noqa: T201 (a program of its own: its parent reads this)
        return error.exit_code
    print(json.dumps(asdict(pace)))  # noqa: T201
    return 0


def _pace(setup: WorkerSetup, batch: int, seconds: float) -> Pace:
    from perseid.pipeline.cold_start import load_runtime

    # As in a real worker, whose speed is to be measured.
    options = replace(setup.item.options, threads=setup.threads)
    runtime = load_runtime(replace(setup.item, options=options))
    ready = time.time() - setup.started
    # Made-up rows: the speed of a network does not depend on the pixels.
    rows_of = runtime.some_rows(batch)
    runtime.predict(*rows_of)  # the first call allocates buffers and is not timed
    rows, began = 0, time.perf_counter()
    while rows == 0 or time.perf_counter() - began < seconds:
        runtime.predict(*rows_of)
        rows += batch
    row_bytes = 4 * math.prod(runtime.signature.shape)
    rate = rows / (time.perf_counter() - began)
    return Pace(rate, ready, memory.peak(), row_bytes + 8 * (runtime.signature.bands + 1))


if __name__ == "__main__":
    sys.exit(main())
