"""Polls the connections of a rank whose operations several threads have begun."""

from __future__ import annotations

import os
import select

from perseid.comm.channel import Channel, ChannelEndedError
from perseid.comm.connection_pool import ConnectionPool
from perseid.comm.lane import AnyLane, PeerLane, SelfLane, Send
from perseid.comm.socket_channel import SocketChannel
from perseid.errors import BadInputError

LARGE_BYTES = 256 * 1024
"""Missing bytes of a payload from which on it is read by one blocking system call, provided that no
other thread needs the connections."""
Event = tuple[int, int]
"""A descriptor, and the events that epoll reports for it."""


class LanePoller:
    """The lanes of a rank, and one epoll object for all their connections.

    It has no lock: only the thread whose turn it is may call its methods, except for ``wait`` and
    ``wake``, and only one thread waits. Failures of a lane are raised as a `ChannelError`.
    """

    def __init__(self, engine: ConnectionPool) -> None:
        self._engine = engine
        self._poll = select.epoll()
        self._lanes: dict[int, PeerLane] = {}
        """Lanes by the descriptor of their connection."""
        self._by_rank: dict[int, PeerLane] = {}
        self._own = SelfLane(engine.rank)
        # Makes epoll return when another thread has something for the one that polls.
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)
        self._blocked: set[int] = set()
        """Descriptors of connections with unsent bytes."""

    # --- lanes -------------------------------------------------------------------------------

    def lane(self, rank: int) -> AnyLane:
        """The lane to a world rank; it must be connected already."""
        if rank == self._engine.rank:
            return self._own
        channel = self._engine.channels[rank]
        assert channel is not None
        return self.peer_lane(channel)

    def peer_lane(self, channel: Channel) -> PeerLane:
        """The lane of a channel, which is polled from now on."""
        found = self._by_rank.get(channel.rank)
        if found is not None:
            return found
        if not isinstance(channel, SocketChannel):
            raise BadInputError(
                "Operations at the same time need connections; through a store there are none."
            )
        lane = PeerLane(channel)
        self._by_rank[channel.rank] = self._lanes[channel.fileno()] = lane
        self._poll.register(channel.fileno(), select.EPOLLIN)
        # The end of the TLS handshake may have brought bytes that polling does not show.
        if channel.connection.pending:
            lane.read()
        return lane

    def adopt(self) -> None:
        """Adopt the channels that other ranks opened, and poll them as well."""
        self._engine.adopt_incoming()
        for channel in self._engine.channels:
            if channel is not None and not channel.closed:
                self.peer_lane(channel)

    def sending(self, sent: Send) -> Send:
        """Poll until the peer takes the rest of a message, if there is any; returns the message."""
        if sent.rest is not None:
            fd = self._by_rank[sent.rank].channel.fileno()
            self._blocked.add(fd)
            self._poll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        return sent

    @property
    def blocked(self) -> bool:
        """Whether any message still has unsent bytes."""
        return bool(self._blocked)

    def forget_blocked(self) -> None:
        """Give up all messages that are partly sent."""
        self._blocked.clear()

    def large(self) -> PeerLane | None:
        """The lane that receives a large payload, if there is nothing else to do meanwhile."""
        if self._blocked:
            return None
        found = [lane for lane in self._by_rank.values() if lane.missing >= LARGE_BYTES]
        return found[0] if len(found) == 1 else None

    def needed(self) -> list[PeerLane]:
        """The lanes to peers that an operation needs."""
        return [lane for lane in self._by_rank.values() if lane.needed]

    # --- bytes -------------------------------------------------------------------------------

    def wait(
        self, seconds: float, large: PeerLane | None
    ) -> tuple[list[Event], ChannelEndedError | None]:
        """Wait for events on any connection, or for the bytes of one lane alone.

        Returns the events, and the error if that one lane ended.
        """
        if large is None:
            return self._poll.poll(seconds), None
        try:
            large.channel.read_some()
        except ChannelEndedError as error:
            return [], error
        return [], None

    def move(
        self, events: list[Event], large: PeerLane | None, ended: ChannelEndedError | None
    ) -> bool:
        """Send and receive what is possible; returns whether an operation is now done."""
        finished = False
        if large is not None:
            finished = large.sort() if ended is None else large.end(ended)
            if ended is None and large.channel.connection.pending:
                finished = large.read() or finished
        for fd, event in events:
            finished = self._move_lane(fd, event) or finished
        return finished

    def _move_lane(self, fd: int, event: int) -> bool:
        lane = self._lanes.get(fd)
        # Not a connection, but the event by which another thread woke this one.
        if lane is None:
            # Reset it, or epoll would return at once from now on.
            os.eventfd_read(self._wake)
            return True
        finished = False
        if event & select.EPOLLOUT:
            finished = lane.flush()
            if not lane.outgoing:
                self._blocked.discard(fd)
                self._poll.modify(fd, select.EPOLLIN)
        # Errors and hang-ups, too: reading finds out what happened.
        if event & ~select.EPOLLOUT:
            finished = lane.read() or finished
            if lane.queue.control_frames:
                self._engine.handle_control_frames(lane.channel)
            if lane.channel.ended:
                self._blocked.discard(fd)
                # A stream at its end stays readable forever.
                self._poll.unregister(fd)
                del self._lanes[fd]
        return finished

    # --- the end -----------------------------------------------------------------------------

    def wake(self) -> None:
        """Make the thread that waits return."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close the epoll object; nothing may be polled afterwards."""
        self._poll.close()
        os.close(self._wake)
