"""ministack, which reads all that a function printed before it writes that invocation's log.

It takes the log for complete once no line has come for 5 ms. On a busy machine its own reading
thread is later than that: a line such as ``[ERROR] MemoryError`` would be missing, or stand in the
log of the environment's next invocation. Lambda loses none. Runs in ministack's environment.
"""

from __future__ import annotations

import fcntl
import struct
import termios
import time
from typing import Any

from ministack import app
from ministack.core import lambda_runtime

QUIET = 0.05
"""Seconds without a new line, with nothing left in the pipe, after which a log is complete."""
LONGEST = 10.0

within = lambda_runtime.Worker._drain_stderr_bounded


def drained(self: Any, first_line_wait: float = QUIET, **_: float) -> str:
    """The lines of an invocation, once the pipe is empty and no more come."""
    deadline = time.monotonic() + LONGEST
    while unread(self._proc) and time.monotonic() < deadline:
        time.sleep(0.001)
    return str(within(self, max(first_line_wait, QUIET), idle_confirm=QUIET, hard_cap=LONGEST))


def unread(process: Any) -> int:
    """Bytes that the process printed and nobody has read; 0 if it is gone."""
    try:
        answer = fcntl.ioctl(process.stdout.fileno(), termios.FIONREAD, bytes(4))
    except (AttributeError, OSError, ValueError):
        return 0
    return int(struct.unpack("i", answer)[0])


lambda_runtime.Worker._drain_stderr_bounded = drained
app.main()
