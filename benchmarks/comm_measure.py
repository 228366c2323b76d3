"""Runs the measurement of one library: ours, and mpi4py and gloo where they are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from perseid.comm.launch import run_local
from perseid.errors import PerseidError

COMMAND = ("-P", str(Path(__file__).with_name("comm_libraries.py")))
ENCRYPTED = "perseid, TLS"
"""Our own library, its links encrypted."""
RUN_SECONDS = 300.0
"""Longest time of one library at one number of ranks."""
MPI_OPTIONS = (
    "--allow-run-as-root", "--oversubscribe", "--mca", "btl", "tcp,self",
    "--mca", "pml", "ob1",
)  # fmt: skip
"""OpenMPI over TCP, as ours goes; not through shared memory."""


def installed() -> list[str]:
    """The libraries that can be measured here."""
    found = ["perseid"]
    if importlib.util.find_spec("cryptography"):
        found.append(ENCRYPTED)
    if importlib.util.find_spec("mpi4py") and _mpiexec():
        found.append("mpi4py")
    if importlib.util.find_spec("torch"):
        found.append("gloo")
    return found


def _mpiexec() -> str | None:
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def run_library(name: str, ranks: int, iterations: int) -> dict[str, float]:
    """Seconds by operation of one library.

    Raises
    ------
    PerseidError
        It did not finish.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        library = "perseid" if name == ENCRYPTED else name
        command = [*COMMAND, library, str(out), str(iterations)]
        environment = {"OMP_NUM_THREADS": "1", "PERSEID_GLOO_FILE": f"{folder}/gloo"}
        if name == "mpi4py":
            _run_mpi(command, ranks, environment)
        else:
            encrypt = name == ENCRYPTED
            run_local(command, ranks, timeout=RUN_SECONDS, encrypt=encrypt, environment=environment)
        if not out.exists():
            raise PerseidError(f"{name} on {ranks} ranks gave no result; run it alone to see why")
        found: dict[str, float] = json.loads(out.read_text())
        return found


def _run_mpi(command: Sequence[str], ranks: int, environment: dict[str, str]) -> None:
    line = [str(_mpiexec()), *MPI_OPTIONS, "-n", str(ranks), sys.executable, *command]
    try:
        subprocess.run(
            line, env={**os.environ, **environment}, timeout=RUN_SECONDS, check=False,
            capture_output=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PerseidError(f"mpi4py on {ranks} ranks took over {RUN_SECONDS:g} s") from None
