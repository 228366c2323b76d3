"""Clean up after the driver has ended in any way: kill its workers and remove their folder.

`perseid.engines.local.process` runs this as a program. It reads ``+GROUP`` and ``-GROUP`` lines
from standard input. At the end of the stream it kills every process group that is still on its
list, then removes the folder given as its argument. The kernel's parent-death signal ends only the
workers; this program also ends what they started. It imports only the standard library, so that it
starts in milliseconds and stays small.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from typing import BinaryIO


def watch(lines: BinaryIO) -> None:
    """Maintain the list of groups until the stream ends, then kill those that remain."""
    groups: set[int] = set()
    for line in iter(lines.readline, b""):
        # The driver died while it was writing: half a number would name another group.
        if not line.endswith(b"\n"):
            break
        change = groups.add if line.startswith(b"+") else groups.discard
        change(int(line[1:]))
    for group in groups:
        # A group may have ended, or its number may belong to another user's group by now.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    watch(sys.stdin.buffer)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
