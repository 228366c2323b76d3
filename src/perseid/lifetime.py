"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def bound_to_parent() -> Callable[[], None] | None:
    """What a child calls to be killed by the kernel when the thread that started it ends.

    For ``subprocess.Popen(preexec_fn=...)``: everything is loaded here, since after the fork only
    a system call is safe. None if the system has no such call (prctl(2) is Linux's).
    """
    if not sys.platform.startswith("linux"):
        return None
    # Loaded before the fork: loading a library in the child could wait for a lock that a thread of
    # the parent held, and wait forever.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
