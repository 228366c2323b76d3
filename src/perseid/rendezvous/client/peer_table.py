"""What a worker knows of the other ranks: registered, connected, finished, lost.

The background thread writes it, and the user's threads wait for it. ``changed`` guards all fields.
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
    DepartureReason.LEFT: "it has finished and left the job",
    DepartureReason.CLOSED: "its connection to the rendezvous ended",
    DepartureReason.SILENT: "its process gave no sign of life for its silence_timeout",
    DepartureReason.REPLACED: "a newer registration of this rank took over",
}
"""Why a rank is gone, as a clause for people."""

log = logging.getLogger("perseid.rendezvous.client")


@dataclass(frozen=True, slots=True)
class Notice:
    """An event of the job, given to subscribers in the background thread."""

    kind: str
    """``lost``, ``failed``, ``left``, ``joined``, ``complete``, ``linked``, ``no-path``,
    ``replaced``, ``server-lost``, ``server-back`` or ``refused``."""
    rank: int = -1
    """The rank concerned; -1: none."""
    reason: str = ""
    """A clause for people; of ``failed``, the rank's own report."""


class PeerTable:
    """The state that the background thread and the callers share."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.peers: dict[int, PeerRecord] = {}
        """Registered ranks that the server has described."""
        self.lost: dict[int, str] = {}
        """Ranks that are gone without deregistration, with the reason."""
        self.failures: dict[int, str] = {}
        """What ranks that gave up reported; the first report of each."""
        self.left: set[int] = set()
        """Ranks that deregistered."""
        self.unreachable: set[int] = set()
        """Ranks that deregistered so long ago that no connection of theirs can still arrive."""
        self.links: dict[int, Link] = {}
        self.handed_out: set[int] = set()
        """Ranks whose links the caller has: their sockets belong to it."""
        self.transports: dict[int, str] = {}
        """Transport of each link ever made."""
        self.failed: dict[int, str] = {}
        """Ranks that could not be reached, with the reason."""
        self.missing: list[int] | None = None
        """The server's answer to the latest ``MissingRequest``; None: not yet."""
        self.complete = False
        """Whether all ranks were registered at some time."""
        self.closed = False
        self.fatal: RendezvousError | None = None
        """Why the registration ended, if it did."""
        self._subscribers: list[Callable[[Notice], None]] = []

    def add(self, peer: PeerRecord) -> None:
        """Add or update a registered rank."""
        with self.changed:
            joined = peer.rank not in self.peers
            self.peers[peer.rank] = peer
            # It is back: a worker that was restarted, or one whose connection to the server broke.
            self.lost.pop(peer.rank, None)
            self.left.discard(peer.rank)
            self.unreachable.discard(peer.rank)
        if joined:
            self.notify(Notice("joined", peer.rank))

    def remove(self, departure: Departure) -> None:
        """Remove a rank that is no longer registered; an unused link to a lost one is closed."""
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
        """Keep the report of a rank that gave up."""
        with self.changed:
            self.failures.setdefault(rank, report)
        self.notify(Notice("failed", rank, report))

    def set_unreachable(self, rank: int) -> None:
        """No connection of a rank that deregistered can arrive any more."""
        with self.changed:
            if rank in self.left:
                self.unreachable.add(rank)
                self.changed.notify_all()

    def linked(self, link: Link) -> None:
        """Add the link to a rank."""
        with self.changed:
            self.links[link.rank] = link
            self.transports[link.rank] = link.transport
            self.changed.notify_all()
        self.notify(Notice("linked", link.rank, link.transport))

    def no_path(self, rank: int, reason: str) -> None:
        """Record that a rank cannot be reached."""
        with self.changed:
            self.failed[rank] = reason
            self.changed.notify_all()
        self.notify(Notice("no-path", rank, reason))

    def set_complete(self) -> None:
        """Record that all ranks are registered."""
        with self.changed:
            self.complete = True
            self.changed.notify_all()
        self.notify(Notice("complete"))

    def set_missing(self, ranks: list[int]) -> None:
        """Record the server's answer: the missing ranks."""
        with self.changed:
            self.missing = ranks
            self.changed.notify_all()

    def end(self, error: RendezvousError) -> None:
        """Record that the registration has ended."""
        with self.changed:
            self.fatal = error
            self.changed.notify_all()

    def close_unless_handed_out(self, link: Link | None) -> None:
        """Close a link, unless the caller has it."""
        if link is not None and link.rank not in self.handed_out:
            link.sock.close()
        elif link is not None:
            self.handed_out.discard(link.rank)

    def subscribe(self, call: Callable[[Notice], None]) -> None:
        """Call a function with each notice from now on."""
        with self.changed:
            self._subscribers.append(call)

    def notify(self, notice: Notice) -> None:
        """Pass a notice to all subscribers."""
        # Outside the lock: a subscriber may call back into this table.
        for call in list(self._subscribers):
            try:
                call(notice)
            except Exception:
                log.exception("a subscriber failed")
