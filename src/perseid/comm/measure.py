"""Measures message passing on this machine: ours, and mpi4py and gloo where they are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from perseid.comm.launch import run_local
from perseid.errors import PerseidError

COMMAND = ("-m", "perseid.comm.peers")
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
    if importlib.util.find_spec("mpi4py") and _mpiexec():
        found.append("mpi4py")
    if importlib.util.find_spec("torch"):
        found.append("gloo")
    return found


def _mpiexec() -> str | None:
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def run_peer(name: str, ranks: int, iterations: int) -> dict[str, float]:
    """Seconds by operation of one library.

    Raises
    ------
    PerseidError
        It did not finish.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [*COMMAND, name, str(out), str(iterations)]
        environment = {"OMP_NUM_THREADS": "1", "PERSEID_GLOO_FILE": f"{folder}/gloo"}
        if name == "mpi4py":
            _run_mpi(command, ranks, environment)
        else:
            run_local(command, ranks, timeout=RUN_SECONDS, environment=environment)
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


def plain_tcp(nbytes: int, iterations: int) -> float:
    """Median seconds of a round trip over a plain blocking socket between two processes."""
    code = (
        "import socket,sys\n"
        "s=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\n"
        "s.setsockopt(socket.IPPROTO_TCP,socket.TCP_NODELAY,1)\n"
        "n=int(sys.argv[2]);b=memoryview(bytearray(n))\n"
        "while True:\n"
        "  k=0\n"
        "  while k<n:\n"
        "    c=s.recv_into(b[k:])\n"
        "    if not c: sys.exit()\n"
        "    k+=c\n"
        "  s.sendall(b)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        child = subprocess.Popen([sys.executable, "-c", code, str(port), str(nbytes)])
        sock, _ = server.accept()
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            times = [_round_trip(sock, nbytes) for _ in range(iterations + 1)][1:]
        child.wait(10)
    return statistics.median(times)


def _round_trip(sock: socket.socket, nbytes: int) -> float:
    buffer = memoryview(bytearray(nbytes))
    began = time.perf_counter()
    sock.sendall(buffer)
    have = 0
    while have < nbytes:
        have += sock.recv_into(buffer[have:])
    return time.perf_counter() - began
