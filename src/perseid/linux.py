"""What needs Linux says so: workers, the rendezvous and the communicator use epoll and /proc."""

from __future__ import annotations

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
