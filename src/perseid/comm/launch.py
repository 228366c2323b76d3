"""Starts a program on several ranks of this machine, as ``mpirun`` does."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from perseid.comm.certificates import make_certificate
from perseid.comm.ranks_output import RanksOutput
from perseid.errors import BadInputError
from perseid.lifetime import bound_to_parent
from perseid.linux import need_linux
from perseid.rendezvous import Config, EmbeddedServer, job_key

GRACE_SECONDS = 5.0
"""Seconds that ranks get to end by themselves: after one has failed, and after SIGTERM."""
POLL_SECONDS = 0.02
MOST_RANKS = 4096
"""Most ranks on one machine: a mistyped number shall not fill its process table."""
"""Seconds between two checks whether ranks have ended."""


def run_local(
    command: Sequence[str],
    ranks: int,
    *,
    timeout: float | None = None,
    encrypt: bool = False,
    environment: Mapping[str, str] | None = None,
    stopped: Callable[[], object] = lambda: False,
    output: RanksOutput | None = None,
) -> dict[int, int]:
    """Run a Python program on every rank, with an embedded rendezvous and a new key.

    The programs find each other by ``Communicator.from_environment()``. ``RANK`` and ``WORLD_SIZE``
    are set as well, for programs that do not use perseid.

    Parameters
    ----------
    command
        Arguments of the Python interpreter: a script and its arguments.
    ranks
        Number of processes.
    timeout
        Time limit for all ranks together, in seconds; None: no limit.
    encrypt
        Whether to make a certificate for the job, so that connections between ranks are encrypted.
    environment
        Variables to add to those of this process.
    stopped
        Called repeatedly; once it returns a true value, all ranks are ended.
    output
        Receives what the ranks print, and shows it with the rank in front of each line. None: the
        ranks share the output of this process.

    Returns
    -------
    dict
        Exit status by rank; a negative one is the signal that ended the process.

    Raises
    ------
    BadInputError
        There is not even one rank, or the time limit is not above 0.
    """
    need_linux("A program of several ranks")
    if ranks < 1:
        raise BadInputError(f"at least 1 rank is needed, not {ranks}")
    if ranks > MOST_RANKS:
        raise BadInputError(
            f"{ranks:,} ranks are too many for one machine: at most {MOST_RANKS:,} are started"
        )
    if timeout is not None and not timeout > 0:
        raise BadInputError(f"the time limit must be above 0 s, not {timeout:g} s")
    secret = secrets.token_bytes(32)
    # Without the second port, ranks do not test for NATs, of which there are none on one machine.
    config = Config(host="127.0.0.1", port=0, http_port=None, tcpunch=False, secret=secret)
    processes: list[subprocess.Popen[bytes]] = []
    with EmbeddedServer(config) as server:
        variables = {
            **os.environ,
            **(environment or {}),
            **_job_variables(server.address, ranks, secret),
            "PERSEID_JOB_CERTIFICATE": make_certificate() if encrypt else "",
            # Into a pipe, Python would buffer lines: they are to be shown as they are printed.
            **({"PYTHONUNBUFFERED": "1"} if output else {}),
        }
        try:
            for rank in range(ranks):
                variables["PERSEID_RANK"] = variables["RANK"] = str(rank)
                processes.append(_start(command, variables, ranks, piped=output is not None))
            with _shown(processes, output):
                try:
                    _wait(processes, timeout, stopped)
                finally:  # before leaving the context, which waits for the end of their streams
                    _end(processes)
        finally:
            _end(processes)
    return {rank: process.returncode for rank, process in enumerate(processes)}


def _start(
    command: Sequence[str], variables: Mapping[str, str], ranks: int, *, piped: bool
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, *command],
            env=dict(variables),
            # The ranks end with this process, even if it is killed.
            preexec_fn=bound_to_parent(),
            stdout=subprocess.PIPE if piped else None,
            stderr=subprocess.PIPE if piped else None,
        )
    except OSError as error:
        raise BadInputError(
            f"rank {variables['RANK']} of {ranks:,} could not be started ({error.strerror}), so "
            "the others were ended: ask for fewer ranks with -n, or raise the limits of this shell "
            "(ulimit -n, ulimit -u)"
        ) from error


def _job_variables(rendezvous: str, ranks: int, secret: bytes) -> dict[str, str]:
    """Environment variables by which the ranks of a new job find each other."""
    job = f"local-{os.getpid()}-{secrets.token_hex(4)}"
    return {
        "PERSEID_JOB": job,
        "PERSEID_WORLD_SIZE": str(ranks),
        "PERSEID_RENDEZVOUS": rendezvous,
        "PERSEID_JOB_KEY": job_key(secret, job).hex(),
        "PERSEID_JOB_SECRET": secret.hex(),  # lets ranks derive keys for further jobs here
        "WORLD_SIZE": str(ranks),
        # The cores that this process may use, which a scheduler may have limited.
        "PERSEID_OVERSUBSCRIBED": str(int(ranks > len(os.sched_getaffinity(0)))),
    }


def _shown(
    processes: Sequence[subprocess.Popen[bytes]], output: RanksOutput | None
) -> AbstractContextManager[object]:
    """A context in which the output of the processes is passed on."""
    if output is None:
        return nullcontext()
    for rank, process in enumerate(processes):
        if process.stdout is not None and process.stderr is not None:
            output.add(rank, process.stdout, process.stderr)
    return output


def _wait(
    processes: Sequence[subprocess.Popen[bytes]],
    timeout: float | None,
    stopped: Callable[[], object],
) -> None:
    end = None if timeout is None else time.monotonic() + timeout
    failed = False
    while None in (statuses := [process.poll() for process in processes]):
        # Ranks that lose a peer end by themselves, with a better error than a signal gives.
        if not failed and any(statuses):
            failed = True
            grace = time.monotonic() + GRACE_SECONDS
            end = grace if end is None else min(end, grace)
        if stopped() or (end is not None and time.monotonic() > end):
            return
        time.sleep(POLL_SECONDS)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End every process that is still running: first SIGTERM, then SIGKILL."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    end = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
