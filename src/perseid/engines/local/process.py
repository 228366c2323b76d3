"""Worker processes: start them, read their output, and end them with all their children."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from perseid.engines import memory
from perseid.engines.local.scratch import ScratchFolder
from perseid.engines.message_stream import MessageStream
from perseid.engines.worker_messages import WorkerSetup
from perseid.errors import RunError
from perseid.libraries import not_started

OUTPUT_LIMIT = 1024 * 1024
"""Maximum output of an attempt that its log keeps, in bytes; the rest is counted and dropped."""

DUMP_SECONDS = 0.5
"""Seconds that a hung worker may take to write its traceback before it is killed."""

KILL_SECONDS = 30.0
"""Seconds that the kernel may take to end a killed process."""


class Reaper:
    """A process that cleans up if this one dies. See `perseid.engines.local.reaper`.

    Raises `RunError` if no temporary folder can be created, or no process started.
    """

    def __init__(self) -> None:
        try:
            self._scratch = ScratchFolder()
        except OSError as error:
            raise RunError(
                f"no temporary folder can be created in {tempfile.gettempdir()} "
                f"({error.strerror}): free some space there, or point TMPDIR elsewhere"
            ) from error
        # Temporary folders of all workers are inside, so that one removal clears them.
        self.folder = self._scratch.path
        program = Path(__file__).with_name("reaper.py")
        # In a session of its own, so that Ctrl-C in the terminal does not end it before the
        # workers; isolated (-I -S), so that no user's site-packages can break it.
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(program), str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._scratch.release()
            raise RunError(not_started(error)) from error

    def add(self, group: int) -> None:
        """Have a process group killed if this process dies."""
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        """Forget a process group that has ended."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """End the reaper; it removes the folder."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=5)
        self._scratch.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        # If the reaper was killed, the run goes on: the workers still have the parent-death
        # signal.
        with contextlib.suppress(OSError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


class Output:
    """The output of a worker, up to a limit."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # The event loop must not wait for a worker that prints nothing.
        os.set_blocking(descriptor, False)
        self._text = bytearray()
        self._dropped = 0
        self.ended = False

    def fileno(self) -> int:
        """The pipe's descriptor, so that a selector can wait for it."""
        return self._descriptor

    def read(self) -> None:
        """Read the output that has arrived, without waiting."""
        while not self.ended:
            try:
                data = os.read(self._descriptor, 65536)
            except BlockingIOError:
                return
            self.ended = not data
            room = OUTPUT_LIMIT - len(self._text)
            self._text += data[:room]
            # Output beyond the limit is still read, since a full pipe would block the worker.
            self._dropped += max(0, len(data) - room)

    def take(self) -> str:
        """Return the output since the last call; unless empty, it ends with a newline."""
        self.read()
        text = self._text.decode("utf-8", "replace")
        if text and not text.endswith("\n"):
            text += "\n"
        if self._dropped:
            text += f"[{self._dropped} more bytes of output were dropped]\n"
        # A new buffer, since each attempt's log gets only its own output.
        self._text, self._dropped = bytearray(), 0
        return text

    def close(self) -> None:
        os.close(self._descriptor)


class WorkerProcess:
    """One execution environment: a process that works on one rank after the other.

    Parameters
    ----------
    command
        The program and its arguments; the number of the socket and our process id are appended.
    setup
        Makes the first message from the time of the start, in seconds since the epoch.
    reaper
        Learns of the process group, to kill it if this process dies.
    environment
        The worker's environment variables.
    """

    def __init__(
        self,
        command: Sequence[str],
        setup: Callable[[float], WorkerSetup],
        reaper: Reaper,
        environment: dict[str, str],
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="worker-", dir=reaper.folder))
        # A socket, since the worker's standard streams belong to the code that it runs.
        ours, theirs = socket.socketpair()
        self.started = time.monotonic()
        self.started_epoch = time.time()
        try:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                # A worker must not read what the user types to the driver.
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                # One pipe, so that the log has both streams in the order of writing.
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # one process group for the worker and its children
                env={**environment, "TMPDIR": str(self._folder)},
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._reaper = reaper
        reaper.add(self.pid)
        self.channel = MessageStream(ours)
        assert self._process.stdout is not None
        # Our own duplicate: Popen closes its file when the object is garbage-collected.
        self.output = Output(os.dup(self._process.stdout.fileno()))
        self._process.stdout.close()
        # If the worker has already ended, the caller finds out by its exit status.
        with contextlib.suppress(OSError):
            self.channel.send(setup(self.started_epoch))

    def exit_status(self) -> int | None:
        """Like `subprocess.Popen.returncode`, None while running; leaves the zombie for `end`."""
        if self._process.returncode is not None:
            return self._process.returncode
        # WNOWAIT keeps the process a zombie, so that its number cannot be reused meanwhile.
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        state = os.waitid(os.P_PID, self.pid, flags)
        if state is None:
            return None
        return state.si_status if state.si_code == os.CLD_EXITED else -state.si_status

    def resident(self) -> float:
        """Current resident memory of the worker and its descendants, in MiB."""
        return memory.resident_tree(self.pid)

    def dump(self) -> None:
        """Ask a hung worker for the traceback of each thread (faulthandler), then let it die."""
        with contextlib.suppress(ProcessLookupError):
            # SIGABRT has faulthandler print the stack of each thread before the process dies.
            os.kill(self.pid, signal.SIGABRT)
        # Bounded, since a process in a system call may not handle the signal.
        deadline = time.monotonic() + DUMP_SECONDS
        while self.exit_status() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        self.output.read()

    def terminate(self) -> None:
        """Send SIGTERM to the whole group."""
        self._signal_group(signal.SIGTERM)

    def end(self) -> int:
        """Kill the whole group, collect the process, close its files; return the exit status."""
        if self._process.returncode is None:
            # The group is signaled before its leader is collected: until then, no other process
            # can have its number.
            self._signal_group(signal.SIGKILL)
            try:
                self._process.wait(timeout=KILL_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise RunError(
                    f"worker process {self.pid} cannot be killed: it waits for a disk or a "
                    "network file system that does not answer"
                ) from error
            self._reaper.remove(self.pid)
            self.channel.close()
            self.output.close()
            shutil.rmtree(self._folder, ignore_errors=True)  # a killed worker leaves files
        return int(self._process.returncode or 0)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
