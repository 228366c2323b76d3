"""ministack, which reads all that a function printed before it writes that invocation's log.

It takes the log for complete once no line has come for 5 ms. On a busy machine its own reading
thread is later than that: a line such as ``[ERROR] MemoryError`` would be missing, or stand in the
log of the environment's next invocation. Lambda loses none. Runs in ministack's environment.
"""

from __future__ import annotations

import fcntl
import os
import queue
import select
import struct
import termios
import threading
import time
from typing import Any

from ministack import app
from ministack.core import lambda_runtime

READING = threading.Lock()
"""Held from before a pipe is read until what was read is in the environment's queue. A function's
runtime prints before it answers, so an empty pipe and a free lock mean that nothing is missing."""
LONGEST = 30.0
"""Seconds that are waited for a pipe to be empty."""


def pumped(self: Any, stream: Any, log_queue: queue.Queue[str]) -> None:
    """Put the lines that an environment prints into its queue until it ends."""
    rest = b""
    try:
        while True:
            select.select([stream], [], [])
            with READING:
                data = os.read(stream.fileno(), 1 << 16)
                *lines, rest = (
                    (rest + data).split(b"\n") if data else ([rest] if rest else []) + [b""]
                )
                for line in lines:
                    put(log_queue, line.decode("utf-8", "replace").rstrip("\r"))
            if not data:
                break
    except (OSError, ValueError):  # it was torn down
        pass
    finally:
        stream.close()


def put(log_queue: queue.Queue[str], line: str) -> None:
    """Add a line; a full queue loses its oldest."""
    while True:
        try:
            return log_queue.put_nowait(line)
        except queue.Full:
            log_queue.get_nowait()


def drained(self: Any, **_: float) -> str:
    """The lines of an invocation that has answered."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        with READING:
            if not unread(self._proc):
                break
        time.sleep(0.001)
    return str(self._drain_stderr())


def unread(process: Any) -> int:
    """Bytes that the process printed and nobody has read; 0 if it is gone."""
    try:
        answer = fcntl.ioctl(process.stdout.fileno(), termios.FIONREAD, bytes(4))
    except (AttributeError, OSError, ValueError):
        return 0
    return int(struct.unpack("i", answer)[0])


lambda_runtime.ProvidedWorker._pump_output = pumped
lambda_runtime.ProvidedWorker._drain_stderr_bounded = drained
app.main()
