"""Many descriptors on one asyncio loop, at little cost.

An epoll object of our own watches all connections, and is itself one reader of the asyncio loop.
So a registration needs no task, transport, handle or context of asyncio. Timers and signals are
asyncio's.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Protocol

EVENTS_A_ROUND = 512
"""Most events handled before the loop runs its timers."""
# Only Linux has them, where a server can run; this module is imported elsewhere, too.
EPOLLIN: int = getattr(select, "EPOLLIN", 1)
EPOLLOUT: int = getattr(select, "EPOLLOUT", 4)


class Pollable(Protocol):
    """What a `Poller` watches."""

    def on_event(self, mask: int) -> None:
        """Handle events of the descriptor (``select.EPOLL*`` bits)."""
        ...


class Poller:
    """One epoll object inside an asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._owners: dict[int, Pollable] = {}
        self._soon: list[Callable[[], None]] = []
        self._in_round = False
        self.backlog = 0
        """Unsent bytes of all connections."""
        loop.add_reader(self._epoll.fileno(), self._ready)

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, fd: int, owner: Pollable, mask: int = EPOLLIN) -> None:
        """Watch a descriptor."""
        self._owners[fd] = owner
        self._epoll.register(fd, mask)

    def change(self, fd: int, mask: int) -> None:
        """Watch for other events."""
        self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """Stop watching; call it before the descriptor is closed."""
        if self._owners.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call a function after this round of events; cheaper than the loop's ``call_soon``."""
        # Within a round the end of the round runs them; only outside asyncio has to be asked.
        if not self._in_round and not self._soon:
            self._loop.call_soon(self._call_soon)
        self._soon.append(call)

    def _call_soon(self) -> None:
        # Swapped first: a call may ask for another, which belongs to the next round.
        calls, self._soon = self._soon, []
        for call in calls:
            call()

    def _ready(self) -> None:
        owners = self._owners
        self._in_round = True
        try:
            for fd, mask in self._epoll.poll(0, EVENTS_A_ROUND):
                # An earlier event of this round may have closed the descriptor.
                owner = owners.get(fd)
                if owner is not None:
                    owner.on_event(mask)
        finally:
            self._in_round = False
            if self._soon:
                self._call_soon()

    def owners(self) -> list[Pollable]:
        """The owners of all watched descriptors."""
        return list(self._owners.values())

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._owners.clear()
