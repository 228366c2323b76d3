"""How a worker process is started: its program and its environment variables."""

from __future__ import annotations

import os
import sys

WORKER = (sys.executable, "-P", "-m", "perseid.engines.worker_program")
"""The program of a worker; gets the number of its socket and of its parent process.

``-P``: a file in the current folder is not a module of it."""


def worker_environment(threads: int) -> dict[str, str]:
    """Our variables, one thread count for every library that has its own, nothing buffered."""
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    # faulthandler writes a traceback when a worker crashes, and when a hung one is ended.
    extra = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    if path := os.environ.get("PYTHONPATH"):  # an empty part of it is the current folder
        extra["PYTHONPATH"] = os.pathsep.join(part for part in path.split(os.pathsep) if part)
    return {**os.environ, **dict.fromkeys(counts, str(threads)), **extra}
