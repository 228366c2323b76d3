"""Cleans up when the driver is gone, however it went: the workers' processes, their folder.

Run as a program by `perseid.engines.local.process`: reads ``+GROUP`` and ``-GROUP`` lines from its
standard input and, at the end of the stream, kills every process group that is still on its list,
then removes the folder that it was given. The kernel's parent-death signal ends the workers
themselves; this ends what they started, too. Standard library only, no imports of ours: it must
start in milliseconds and stay small.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from typing import BinaryIO


def watch(lines: BinaryIO) -> None:
    """Follow the list until the stream ends, then kill what is on it."""
    groups: set[int] = set()
    for line in iter(lines.readline, b""):
        if not line.endswith(b"\n"):
            break
        change = groups.add if line.startswith(b"+") else groups.discard
        change(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    watch(sys.stdin.buffer)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
