"""How fast a worker is on this machine: a short measurement in a process of its own.

``python -m perseid.engines.worker_speed BATCH SECONDS`` reads a setup (JSON) from its standard
input and writes a `Pace` (JSON) to its standard output.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import asdict, replace

from perseid.engines import memory
from perseid.engines.worker_command import worker_environment
from perseid.engines.worker_messages import WorkerSetup, from_text, to_text
from perseid.errors import BadInputError, BadModelError, PerseidError
from perseid.measure.calibration import Pace
from perseid.pipeline.items import WorkItem

SECONDS = 1.0
"""How long rows are put through the model."""
BATCH = 128
TIMEOUT = 120.0
SMALL_MB = 1024
"""Memory of a rank below which it is worth a second to see whether the model fits at all."""


def refuse_small_memory(item: WorkItem, threads: int, memory_mb: int) -> None:
    """Raise `BadInputError` if a worker takes more than a rank may before its second row.

    The same would end every attempt at every rank.
    """
    if memory_mb < SMALL_MB and item.options.script is None:
        refuse_beyond(measure(item, threads, batch=1, seconds=0.0), memory_mb)


def refuse_beyond(pace: Pace, memory_mb: int) -> None:
    """Raise `BadInputError` if a worker of this pace takes more memory than a rank may."""
    if pace.peak_mb > memory_mb:
        raise BadInputError(
            f"a worker takes {pace.peak_mb:.0f} MB with this model, but a rank may take "
            f"{memory_mb} MB: give --memory {math.ceil(pace.peak_mb / 64 + 1) * 64}"
        )


def measure(item: WorkItem, threads: int, *, batch: int = BATCH, seconds: float = SECONDS) -> Pace:
    """Start a process, load the item's model, and time it for about a second.

    Parameters
    ----------
    item
        One of the run's.
    threads
        Of the worker.
    batch
        Rows a call.
    seconds
        How long to time it; one call is made in any case.

    Raises
    ------
    BadModelError
        The model cannot be loaded, or no answer came within two minutes.
    """
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
    except subprocess.TimeoutExpired as error:
        raise BadModelError(
            f"the model {item.model_url} did not answer in {TIMEOUT:.0f} s"
        ) from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise BadModelError(f"the model {item.model_url} cannot be timed: {last[0]}")
    return Pace(**json.loads(done.stdout.splitlines()[-1]))


def at_rate(pace: Pace, rows_per_second: float) -> Pace:
    """The same worker at another rate; raises `BadInputError` for one that is not above 0."""
    if not rows_per_second > 0:
        raise BadInputError(f"--rate is {rows_per_second}: give rows per second, above 0")
    return replace(pace, rows_per_second=rows_per_second)


def main() -> int:
    """Measure as the standard input says."""
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
    from perseid.pipeline.work import load_runtime

    options = replace(setup.item.options, threads=setup.threads)
    runtime = load_runtime(replace(setup.item, options=options))
    ready = time.time() - setup.started
    rows_of = runtime.some_rows(batch)
    runtime.predict(*rows_of)
    rows, began = 0, time.perf_counter()
    while rows == 0 or time.perf_counter() - began < seconds:
        runtime.predict(*rows_of)
        rows += batch
    row_bytes = 4 * math.prod(runtime.signature.shape)
    rate = rows / (time.perf_counter() - began)
    return Pace(rate, ready, memory.peak(), row_bytes + 8 * (runtime.signature.bands + 1))


if __name__ == "__main__":
    sys.exit(main())
