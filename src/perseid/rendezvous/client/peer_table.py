"""What one worker knows of the others: who is there, lost, reached, and how it heard.

The registration's thread writes it, the user's threads wait for it; ``changed`` guards all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from perseid.errors import RendezvousError
from perseid.rendezvous.protocol import Departure, DepartureReason, PeerRecord
from perseid.rendezvous.punch.links import Link

DEPARTURE_TEXT = {
    DepartureReason.LEFT: "it said goodbye",
    DepartureReason.CLOSED: "its connection to the rendezvous ended",
    DepartureReason.SILENT: "its process gave no sign of life for its silence_timeout",
    DepartureReason.REPLACED: "a newer registration of this rank took over",
}
"""Why a rank is gone, as a clause for people."""

log = logging.getLogger("perseid.rendezvous.client.client")


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to the job; given to subscribers in the registration's thread."""

    kind: str
    """``lost``, ``failed``, ``left``, ``joined``, ``complete``, ``linked``, ``no-path``,
    ``replaced``, ``server-lost``, ``server-back`` or ``refused``."""
    rank: int = -1
    """The rank it is about; -1: none."""
    reason: str = ""
    """One clause for people; of ``failed``, the rank's report as it gave it."""


class PeerTable:
    """The state that the registration's thread and its callers share."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.peers: dict[int, PeerRecord] = {}
        """Registered ranks that this one was told of."""
        self.lost: dict[int, str] = {}
        """Ranks that are gone without a goodbye, with the reason."""
        self.failures: dict[int, str] = {}
        """What ranks that gave up reported; the first report of each."""
        self.left: set[int] = set()
        self.unreachable: set[int] = set()
        """Ranks that left so long ago that no connection of theirs is still on its way."""
        self.links: dict[int, Link] = {}
        self.handed_out: set[int] = set()
        """Ranks whose links were handed out: their sockets belong to the caller."""
        self.transports: dict[int, str] = {}
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

    def add(self, peer: PeerRecord) -> None:
        """A rank is registered."""
        with self.changed:
            joined = peer.rank not in self.peers
            self.peers[peer.rank] = peer
            self.lost.pop(peer.rank, None)
            self.left.discard(peer.rank)
            self.unreachable.discard(peer.rank)
        if joined:
            self.notify(Notice("joined", peer.rank))

    def remove(self, departure: Departure) -> None:
        """A rank is no longer registered; links of lost ones that nobody took are closed."""
        left, reason = departure.reason is DepartureReason.LEFT, DEPARTURE_TEXT[departure.reason]
        with self.changed:
            self.peers.pop(departure.rank, None)
            if left:
                self.left.add(departure.rank)
            else:
                self.lost[departure.rank] = reason
                self.close_unless_handed_out(self.links.pop(departure.rank, None))
            self.changed.notify_all()
        self.notify(Notice("left" if left else "lost", departure.rank, reason))

    def set_failure(self, rank: int, report: str) -> None:
        """A rank gave up, and said why."""
        with self.changed:
            self.failures.setdefault(rank, report)
        self.notify(Notice("failed", rank, report))

    def set_unreachable(self, rank: int) -> None:
        """A rank left so long ago that it will not be reached any more."""
        with self.changed:
            if rank in self.left:
                self.unreachable.add(rank)
                self.changed.notify_all()

    def linked(self, link: Link) -> None:
        """A rank is connected."""
        with self.changed:
            self.links[link.rank] = link
            self.transports[link.rank] = link.transport
            self.changed.notify_all()
        self.notify(Notice("linked", link.rank, link.transport))

    def no_path(self, rank: int, reason: str) -> None:
        """A rank cannot be reached."""
        with self.changed:
            self.failed[rank] = reason
            self.changed.notify_all()
        self.notify(Notice("no-path", rank, reason))

    def set_complete(self) -> None:
        """All ranks are registered."""
        with self.changed:
            self.complete = True
            self.changed.notify_all()
        self.notify(Notice("complete"))

    def set_missing(self, ranks: list[int]) -> None:
        """The server's answer: who is missing."""
        with self.changed:
            self.missing = ranks
            self.changed.notify_all()

    def end(self, error: RendezvousError) -> None:
        """The registration is over."""
        with self.changed:
            self.fatal = error
            self.changed.notify_all()

    def close_unless_handed_out(self, link: Link | None) -> None:
        """Close a link that belongs to nobody."""
        if link is not None and link.rank not in self.handed_out:
            link.sock.close()
        elif link is not None:
            self.handed_out.discard(link.rank)

    def subscribe(self, call: Callable[[Notice], None]) -> None:
        """Call with each notice from now on."""
        with self.changed:
            self._subscribers.append(call)

    def notify(self, notice: Notice) -> None:
        """Give a notice to all subscribers."""
        for call in list(self._subscribers):
            try:
                call(notice)
            except Exception:
                log.exception("a subscriber failed")
