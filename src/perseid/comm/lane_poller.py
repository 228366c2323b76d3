"""The connections of a rank whose operations several threads began: which of them can go on."""

from __future__ import annotations

import os
import select

from perseid.comm.channel import Channel, ChannelEndedError
from perseid.comm.connection_pool import ConnectionPool
from perseid.comm.lane import AnyLane, PeerLane, SelfLane, Send
from perseid.comm.socket_channel import SocketChannel
from perseid.errors import BadInputError

LARGE_BYTES = 256 * 1024
"""A payload of which as much is missing is waited for in one system call where no other thread
needs the connections."""
Event = tuple[int, int]
"""A descriptor, and what epoll says of it."""


class LanePoller:
    """The lanes of a rank, and one epoll object for all their connections.

    It has no lock: all but ``wait`` and ``wake`` is called by the thread whose turn it is, and only
    one thread waits. What a lane cannot do is raised as a `ChannelError`.
    """

    def __init__(self, engine: ConnectionPool) -> None:
        self._engine = engine
        self._poll = select.epoll()
        self._lanes: dict[int, PeerLane] = {}
        """By descriptor."""
        self._by_rank: dict[int, PeerLane] = {}
        self._own = SelfLane(engine.rank)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)
        self._blocked: set[int] = set()
        """Descriptors of connections whose peer has not taken all yet."""

    # --- lanes -------------------------------------------------------------------------------

    def lane(self, rank: int) -> AnyLane:
        """The lane to a rank of the world, which this one is connected to."""
        if rank == self._engine.rank:
            return self._own
        channel = self._engine.channels[rank]
        assert channel is not None
        return self.peer_lane(channel)

    def peer_lane(self, channel: Channel) -> PeerLane:
        """The lane over a channel, which is polled from now on."""
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
        return lane

    def adopt(self) -> None:
        """Poll the channels that others opened, too."""
        self._engine.adopt_incoming()
        for channel in self._engine.channels:
            if channel is not None and not channel.closed:
                self.peer_lane(channel)

    def sending(self, sent: Send) -> Send:
        """Poll for the moment that the peer takes more of a message."""
        if sent.rest is not None:
            fd = self._by_rank[sent.rank].channel.fileno()
            self._blocked.add(fd)
            self._poll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        return sent

    @property
    def blocked(self) -> bool:
        """Whether a peer has not taken all that was sent to it."""
        return bool(self._blocked)

    def forget_blocked(self) -> None:
        """Send nothing more of what was begun."""
        self._blocked.clear()

    def large(self) -> PeerLane | None:
        """The lane of a large payload, if nothing else is to be done meanwhile."""
        if self._blocked:
            return None
        found = [lane for lane in self._by_rank.values() if lane.missing >= LARGE_BYTES]
        return found[0] if len(found) == 1 else None

    def check_hosts(self) -> None:
        """Raise if the host of a peer that an operation needs does not answer any more."""
        for lane in self._by_rank.values():
            silent = lane.channel.unanswered_for() if lane.needed else 0.0
            if silent > self._engine.losses.link:
                cause = OSError(f"its host has not answered for {silent:.0f} s")
                raise ChannelEndedError(lane.channel.rank, cause)

    # --- bytes -------------------------------------------------------------------------------

    def wait(
        self, seconds: float, large: PeerLane | None
    ) -> tuple[list[Event], ChannelEndedError | None]:
        """Wait until a connection can go on, or for the bytes of one alone; how that one ended."""
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
        """Send and receive what can be; whether an operation is done that was not."""
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
        if lane is None:  # only to wake this thread
            os.eventfd_read(self._wake)
            return True
        finished = False
        if event & select.EPOLLOUT:
            finished = lane.flush()
            if not lane.outgoing:
                self._blocked.discard(fd)
                self._poll.modify(fd, select.EPOLLIN)
        if event & ~select.EPOLLOUT:
            finished = lane.read() or finished
            if lane.queue.control_frames:
                self._engine.handle_control_frames(lane.channel)
            if lane.channel.ended:
                self._blocked.discard(fd)
                self._poll.unregister(fd)
                del self._lanes[fd]
        return finished

    # --- the end -----------------------------------------------------------------------------

    def wake(self) -> None:
        """Have the thread that waits return."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Poll no more."""
        self._poll.close()
        os.close(self._wake)
