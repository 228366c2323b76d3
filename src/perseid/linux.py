"""The error on systems other than Linux, and how its C library returns memory.

Workers, the rendezvous and the communicator need Linux, because they use epoll and /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import select

from perseid.errors import UnsupportedPlatformError


def need_linux(what: str) -> None:
    """Raise `UnsupportedPlatformError` on another system; `what` begins the sentence."""
    if not hasattr(select, "epoll"):
        raise UnsupportedPlatformError(
            f"{what} needs Linux, and this is {platform.system() or 'another system'}: use a Linux "
            "machine or a container; runs on AWS can be started, and all runs read, from here"
        )


_MMAP_THRESHOLD = -3
"""``M_MMAP_THRESHOLD`` of glibc's ``malloc.h``."""
_MAPPED_BYTES = 1 << 20


def map_large_blocks() -> None:
    """Make glibc return every freed block of 1 MB or more to the system at once; without effect
    elsewhere.

    By default, glibc keeps blocks of up to 32 MB for reuse as soon as one was freed, and blocks of
    pixels of different sizes leave holes: a worker that reads Parquet from an object store then
    needs 50 MB more.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)


def trim_memory() -> None:
    """Return freed memory to the system (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
