"""How a worker process is started: its program and its environment variables."""

from __future__ import annotations

import os
import sys

WORKER = (sys.executable, "-P", "-m", "perseid.engines.worker_program")
"""Command line of a worker; the numbers of its socket and of its parent process are appended.

``-P`` keeps files in the current folder from being imported as modules."""


def worker_environment(threads: int) -> dict[str, str]:
    """Our own variables, a thread count for each numeric library, and unbuffered output."""
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    # faulthandler writes a traceback when a worker crashes, and when a hung one is ended.
    extra = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    # An empty part of PYTHONPATH would put the current folder on the path again.
    if path := os.environ.get("PYTHONPATH"):
        extra["PYTHONPATH"] = os.pathsep.join(part for part in path.split(os.pathsep) if part)
    return {**os.environ, **dict.fromkeys(counts, str(threads)), **extra}
