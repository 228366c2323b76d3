"""Worker processes: started, listened to, and ended with everything that they started."""

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
from types import TracebackType
from typing import Self

from perseid.engines import memory
from perseid.engines.local.scratch import ScratchFolder
from perseid.engines.message_stream import MessageStream
from perseid.engines.worker_messages import WorkerSetup
from perseid.errors import RunError

OUTPUT_LIMIT = 1024 * 1024
"""Bytes of a rank's output that its log keeps; what comes after is counted and dropped."""

DUMP_SECONDS = 0.5
"""How long a hung worker may take to write its traceback before it is killed."""

KILL_SECONDS = 30.0
"""How long the kernel may take to end a killed process."""


class Reaper:
    """A process that cleans up if this one dies. See `perseid.engines.local.reaper`.

    Raises `RunError` where there is no place for temporary files.
    """

    def __init__(self) -> None:
        try:
            self._scratch = ScratchFolder()
        except OSError as error:
            raise RunError(
                f"no temporary folder can be made in {tempfile.gettempdir()} ({error.strerror}): "
                "free some space there, or point TMPDIR elsewhere"
            ) from error
        self.folder = self._scratch.path
        program = Path(__file__).with_name("reaper.py")
        # In a session of its own, so that Ctrl-C in the terminal does not end it before the
        # workers; isolated (-I -S), so that no user's site-packages can break it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(program), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def add(self, group: int) -> None:
        """From now on the group dies with this process."""
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        # A reaper that somebody killed is no reason to lose a run: the workers still have the
        # parent-death signal.
        with contextlib.suppress(OSError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


class Output:
    """What a worker printed, up to a limit."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        self._text = bytearray()
        self._dropped = 0
        self.ended = False

    def fileno(self) -> int:
        """The pipe's descriptor, so that a selector can wait for it."""
        return self._descriptor

    def read(self) -> None:
        """Take what has arrived, without waiting."""
        while not self.ended:
            try:
                data = os.read(self._descriptor, 65536)
            except BlockingIOError:
                return
            self.ended = not data
            room = OUTPUT_LIMIT - len(self._text)
            self._text += data[:room]
            self._dropped += max(0, len(data) - room)

    def take(self) -> str:
        """Everything since the last call, ending with a newline where there is anything."""
        self.read()
        text = self._text.decode("utf-8", "replace")
        if text and not text.endswith("\n"):
            text += "\n"
        if self._dropped:
            text += f"[{self._dropped} more bytes of output were dropped]\n"
        self._text, self._dropped = bytearray(), 0
        return text

    def close(self) -> None:
        os.close(self._descriptor)


class WorkerProcess:
    """One execution environment: a process that works on one rank after the other.

    Parameters
    ----------
    command
        The program with its arguments; the socket's number and our process id are appended.
    setup
        The first message, made of the time of its start (seconds since the epoch).
    reaper
        Told of the process' group.
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
        # A socket and not pipes: the worker's standard streams belong to what it runs.
        ours, theirs = socket.socketpair()
        self.started = time.monotonic()
        self.started_epoch = time.time()
        try:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # its group: the worker and all that it starts
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
        # A duplicate of our own: Popen would close its file whenever the object is collected.
        self.output = Output(os.dup(self._process.stdout.fileno()))
        self._process.stdout.close()
        with contextlib.suppress(OSError):  # it is gone already: that is seen and named later
            self.channel.send(setup(self.started_epoch))

    def exit_status(self) -> int | None:
        """As `subprocess.Popen.returncode`; None while it runs. Leaves the zombie for `end`."""
        if self._process.returncode is not None:
            return self._process.returncode
        # WNOWAIT: the process stays a zombie, so its number cannot be given to another one
        # meanwhile.
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        state = os.waitid(os.P_PID, self.pid, flags)
        if state is None:
            return None
        return state.si_status if state.si_code == os.CLD_EXITED else -state.si_status

    def resident(self) -> float:
        """Resident memory of the worker and its children now, MiB."""
        return memory.resident_tree(self.pid)

    def dump(self) -> None:
        """Ask a hung worker for the traceback of each thread (faulthandler), then let it die."""
        with contextlib.suppress(ProcessLookupError):
            # SIGABRT has faulthandler print the stack of each thread before the process dies.
            os.kill(self.pid, signal.SIGABRT)
        deadline = time.monotonic() + DUMP_SECONDS
        while self.exit_status() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        self.output.read()

    def terminate(self) -> None:
        """Ask the whole group to end."""
        self._signal_group(signal.SIGTERM)

    def end(self) -> int:
        """Kill the whole group, collect the process, close everything; the exit status."""
        if self._process.returncode is None:
            # The group is signaled while its leader is at least a zombie: until it is collected,
            # no other process can have its number.
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
            shutil.rmtree(self._folder, ignore_errors=True)  # what a killed one left
        return int(self._process.returncode or 0)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
