"""What one worker knows of the others: who is there, lost, reached, and how it heard.

The registration's thread writes it, the user's threads wait for it; ``changed`` guards all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from perseid.errors import RendezvousError
from perseid.rendezvous.protocol import Departure, Gone, Peer
from perseid.rendezvous.punch.links import Link

WHY = {
    Departure.LEFT: "it said goodbye",
    Departure.CLOSED: "its connection to the rendezvous ended",
    Departure.SILENT: "its heartbeat stopped",
    Departure.REPLACED: "a newer registration of this rank took over",
}
"""Why a rank is gone, as a clause for people."""

log = logging.getLogger("perseid.rendezvous.client.client")


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to the job; given to subscribers in the registration's thread."""

    kind: str
    """``lost``, ``left``, ``joined``, ``complete``, ``linked``, ``no-path``, ``replaced``,
    ``server-lost``, ``server-back`` or ``refused``."""
    rank: int = -1
    """The rank it is about; -1: none."""
    reason: str = ""
    """One clause for people."""


class Roster:
    """The state that the registration's thread and its callers share."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.peers: dict[int, Peer] = {}
        """Registered ranks that this one was told of."""
        self.lost: dict[int, str] = {}
        """Ranks that are gone without a goodbye, with the reason."""
        self.left: set[int] = set()
        self.out_of_reach: set[int] = set()
        """Ranks that left so long ago that no connection of theirs is still on its way."""
        self.links: dict[int, Link] = {}
        self.taken: set[int] = set()
        """Ranks whose links were handed out: their sockets belong to the caller."""
        self.ways: dict[int, str] = {}
        self.failed: dict[int, str] = {}
        """Ranks that could not be reached, with the reason."""
        self.missing: list[int] | None = None
        """The server's answer to the last question; None: not yet."""
        self.complete = False
        """Whether all ranks were registered at one time."""
        self.closed = False
        self.fatal: RendezvousError | None = None
        """Why the registration is over."""
        self._subscribers: list[Callable[[Notice], None]] = []

    def add(self, peer: Peer) -> None:
        """A rank is registered."""
        with self.changed:
            joined = peer.rank not in self.peers
            self.peers[peer.rank] = peer
            self.lost.pop(peer.rank, None)
            self.left.discard(peer.rank)
            self.out_of_reach.discard(peer.rank)
        if joined:
            self.tell(Notice("joined", peer.rank))

    def remove(self, gone: Gone) -> None:
        """A rank is no longer registered; links of lost ones that nobody took are closed."""
        left, reason = gone.reason is Departure.LEFT, WHY[gone.reason]
        with self.changed:
            self.peers.pop(gone.rank, None)
            if left:
                self.left.add(gone.rank)
            else:
                self.lost[gone.rank] = reason
                self.close_unless_taken(self.links.pop(gone.rank, None))
            self.changed.notify_all()
        self.tell(Notice("left" if left else "lost", gone.rank, reason))

    def no_more_of(self, rank: int) -> None:
        """A rank left so long ago that it will not be reached any more."""
        with self.changed:
            if rank in self.left:
                self.out_of_reach.add(rank)
                self.changed.notify_all()

    def linked(self, link: Link) -> None:
        """A rank is connected."""
        with self.changed:
            self.links[link.rank] = link
            self.ways[link.rank] = link.way
            self.changed.notify_all()
        self.tell(Notice("linked", link.rank, link.way))

    def no_path(self, rank: int, reason: str) -> None:
        """A rank cannot be reached."""
        with self.changed:
            self.failed[rank] = reason
            self.changed.notify_all()
        self.tell(Notice("no-path", rank, reason))

    def all_came(self) -> None:
        """All ranks are registered."""
        with self.changed:
            self.complete = True
            self.changed.notify_all()
        self.tell(Notice("complete"))

    def not_here(self, ranks: list[int]) -> None:
        """The server's answer: who is missing."""
        with self.changed:
            self.missing = ranks
            self.changed.notify_all()

    def end(self, error: RendezvousError) -> None:
        """The registration is over."""
        with self.changed:
            self.fatal = error
            self.changed.notify_all()

    def close_unless_taken(self, link: Link | None) -> None:
        """Close a link that belongs to nobody."""
        if link is not None and link.rank not in self.taken:
            link.sock.close()
        elif link is not None:
            self.taken.discard(link.rank)

    def subscribe(self, call: Callable[[Notice], None]) -> None:
        """Call with each notice from now on."""
        with self.changed:
            self._subscribers.append(call)

    def tell(self, notice: Notice) -> None:
        """Give a notice to all subscribers."""
        for call in list(self._subscribers):
            try:
                call(notice)
            except Exception:
                log.exception("a subscriber failed")
