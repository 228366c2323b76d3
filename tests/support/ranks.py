"""Runs one function on several ranks, each a process of its own, around a real rendezvous."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perseid.comm import Communicator
from perseid.rendezvous import EmbeddedServer

_CONTEXT = multiprocessing.get_context("fork")
_JOBS = itertools.count()


def _child(pipe: Any, function: Callable[..., Any], rank: int, size: int, options: Any) -> None:
    job, keywords, arguments = options
    waited: dict[str, float] = {}
    try:
        address = pipe.recv()
        with Communicator.join(job, rank, size, address, **keywords) as comm:
            try:
                result = function(comm, *arguments)
            finally:
                waited = delays(os.getpid())  # before the communicator's threads end
        pipe.send(("value", result, time.monotonic(), waited))
    except BaseException as error:
        try:
            pipe.send(("error", error, time.monotonic(), waited))
        except Exception:
            text = RuntimeError(traceback.format_exc())
            pipe.send(("error", text, time.monotonic(), waited))
    finally:
        pipe.close()
        os._exit(0)


def delays(pid: int) -> dict[str, float]:
    """By thread: seconds in which it could have run and others had the cores."""
    waited = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            waited[thread.name] = int((thread / "schedstat").read_text().split()[1]) * 1e-9
    return waited


def since(before: dict[str, float], after: dict[str, float]) -> float:
    """What came to it, in all threads that there were in the end."""
    return sum(seconds - before.get(thread, 0.0) for thread, seconds in after.items())


class Ranks:
    """The running processes; ``outcomes`` waits for what each returned or raised."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._before: dict[int, dict[str, float]] = {}
        self._after: dict[int, dict[str, float]] = {}
        self.processes: list[Any] = []
        self.pipes: list[Any] = []

    def mark(self) -> None:
        """From now on ``starved`` counts."""
        self._before = {rank: delays(one.pid) for rank, one in enumerate(self.processes)}
        self._before[-1] = delays(os.getpid())

    def starved(self, rank: int) -> float:
        """Seconds since the mark that this rank and the server were denied a core: what a test
        with a limit may add to it, and next to nothing on a machine that is not busy."""
        mine = since(self._before[rank], self._after[rank])
        return mine + since(self._before[-1], delays(os.getpid()))

    def outcomes(self, seconds: float = 240.0, without: tuple[int, ...] = ()) -> dict[int, Any]:
        """(kind, value or error, monotonic time) by rank."""
        end = time.monotonic() + seconds
        found = {}
        for rank, pipe in enumerate(self.pipes):
            if rank in without:
                continue
            if not pipe.poll(max(0.0, end - time.monotonic())):
                raise TimeoutError(f"rank {rank} of {self.size} hangs")
            try:
                *found[rank], self._after[rank] = pipe.recv()
            except EOFError:
                found[rank] = ("died", None, time.monotonic())
        return found


@contextmanager
def ranks(
    size: int, function: Callable[..., Any], *arguments: Any, **keywords: Any
) -> Iterator[Ranks]:
    """Start ``function(comm, *arguments)`` on every rank; kills what is left at the end."""
    running = Ranks(size)
    options = (f"job-{os.getpid()}-{next(_JOBS)}", keywords, arguments)
    try:
        # Before there is a server: a child that inherits one of its connections keeps it open.
        for rank in range(size):
            mine, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_child, args=(theirs, function, rank, size, options))
            process.start()
            theirs.close()
            running.processes.append(process)
            running.pipes.append(mine)
        with EmbeddedServer() as server:
            for pipe in running.pipes:
                pipe.send(server.address)
            yield running
    finally:
        for process in running.processes:
            process.kill()
            process.join()


def run_threads(size: int, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> list:
    """`run_ranks` with threads of this process: quicker to start, the same sockets."""
    job = f"threads-{os.getpid()}-{next(_JOBS)}"
    results: list[Any] = [None] * size
    errors: dict[int, BaseException] = {}

    def work(rank: int, address: str) -> None:
        try:
            with Communicator.join(job, rank, size, address, **keywords) as comm:
                results[rank] = function(comm, *arguments)
        except BaseException as error:
            errors[rank] = error

    with EmbeddedServer() as server:
        threads = [
            threading.Thread(target=work, args=(rank, server.address), daemon=True)
            for rank in range(size)
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        hanging = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
    if errors:
        raise errors[min(errors)]
    if hanging:
        raise TimeoutError(f"ranks {hanging} of {size} hang")
    return results


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> list:
    """What every rank returned; the first error is raised."""
    with ranks(size, function, *arguments, **keywords) as running:
        outcomes = running.outcomes()
    for rank in sorted(outcomes):
        kind, value, _ = outcomes[rank]
        if kind != "value":
            raise value if kind == "error" else RuntimeError(f"rank {rank} died")
    return [outcomes[rank][1] for rank in range(size)]
