"""All connections of one worker: made when they are first needed, watched, and ended together.

The communicating thread does all sending and receiving (``progress``). ``failure`` handles what
went wrong, and whom to tell.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
import weakref
from collections.abc import Iterable

from perseid.comm.channel import Channel, ChannelEndedError
from perseid.comm.connection import Connection, SocketConnection
from perseid.comm.failure import Failure
from perseid.comm.frames import FrameError, FrameKind, Signature
from perseid.comm.socket_channel import SocketChannel
from perseid.comm.store_channel import ObjectStore, StoreChannel
from perseid.errors import (
    BadInputError,
    ClosedError,
    MismatchedCollectiveError,
    NoPathError,
    PeerLostError,
    RendezvousError,
    RendezvousTimeoutError,
    ReplacedError,
)
from perseid.rendezvous import Client, Link, LossTimeouts, Notice

POLL_SECONDS = 0.25
"""Polling interval of a blocked call. A mismatch is detected within a few intervals."""
CONNECT_SLICE = 0.5
"""Seconds after which a connecting call checks whether a rank was lost."""
MANY_RANKS = 64
"""Number of ranks above which a blocked call polls less often: otherwise hundreds of ranks that
share a few cores would spend their time on polling."""
HISTORY = 64
"""Number of past calls per communicator that are kept for comparison with a waiting peer's call."""


class ConnectionPool:
    """The connections of one rank of the world.

    Parameters
    ----------
    client
        The registration at the rendezvous; None without one.
    generation
        Number of the attempt at the job; part of every frame.
    timeout
        Seconds that one call may wait for another rank.
    losses
        Times after which a rank counts as lost.
    """

    def __init__(
        self,
        client: Client | None,
        rank: int,
        world_size: int,
        generation: int,
        timeout: float,
        losses: LossTimeouts | None = None,
    ) -> None:
        self.client, self.rank, self.world_size = client, rank, world_size
        self.generation, self.timeout = generation, timeout
        self.losses = losses or LossTimeouts()
        # See MANY_RANKS: the total number of wake-ups per second stays the same in larger worlds.
        self.poll_seconds = POLL_SECONDS * max(1.0, world_size / MANY_RANKS)
        """Polling interval of a blocked call, in seconds."""
        self.oversubscribed = False
        """Whether more ranks than cores run here. Small collectives are then optimized for few
        messages rather than few rounds."""
        self.store: ObjectStore | None = None
        """Store through which pairs without a connection exchange messages; None: there is none."""
        self.prefix = ""
        """Key prefix of these messages in the store."""
        self.encrypted = False
        """Whether connections are encrypted."""
        self.only_store = False
        """Whether all messages go through the store, and no connection is tried."""
        self.channels: list[Channel | None] = [None] * world_size
        self.transports: dict[int, str] = {}
        """Transport to each connected rank, by world rank: ``direct``, ``relay`` or ``store``."""
        self.owner: int | None = None
        """Id of the thread that made the first call; no other thread may make calls."""
        self.interruption: BaseException | None = None
        """Exception that interrupted a call halfway, and so ended the communicator."""
        self.begun = 0
        """Number of calls that have begun to send or receive."""
        self.next_comm = 1
        """The lowest communicator id that this rank has not seen in use."""
        self.failure = Failure(client, rank, generation, self.channels, self.losses)
        self._poller = select.poll()
        self._by_fd: dict[int, SocketChannel] = {}
        self._histories: dict[int, list[bytes]] = {}
        _ENGINES.add(self)
        if client is not None:
            self._subscribe(client)

    def _subscribe(self, client: Client) -> None:
        """Subscribe to news of the other ranks, and handle what has already happened."""
        notice = self.failure.notice
        # Subscribe first, then ask for the past: in the other order, news in between would be lost.
        client.subscribe(notice)
        for rank in client.left():
            notice(Notice("left", rank, "it said goodbye"))
        for rank, report in client.failures().items():
            notice(Notice("failed", rank, report))
        for rank, reason in client.lost().items():
            notice(Notice("lost", rank, reason))

    # --- connecting --------------------------------------------------------------------------

    def connect(self, ranks: Iterable[int]) -> None:
        """Make sure that each of these ranks has a channel; missing ones are made in parallel.

        Raises
        ------
        PeerLostError, NoPathError, RendezvousTimeoutError, ReplacedError, ClosedError
            At least one of the channels cannot be made.
        """
        missing = [r for r in ranks if r != self.rank and self.channels[r] is None]
        if not missing:
            return
        self.failure.check()
        if self.client is None or self.only_store:
            self._connect_through_store(missing)
            return
        end = time.monotonic() + self.timeout
        while True:
            try:
                # In slices, so that the loss of a rank raises an error that names it, rather than
                # a time-out.
                links = self.client.connect(missing, max(CONNECT_SLICE, self.poll_seconds))
                break
            except RendezvousTimeoutError as error:
                self.failure.check()
                self._check_connecting(error, end)
            except NoPathError as error:
                if self.store is None or not error.ranks:
                    self.failure.fail(error)
                # Pairs that cannot connect use the store; the loop goes on with the others.
                self._connect_through_store(error.ranks)
                missing = [rank for rank in missing if rank not in error.ranks]
            except (PeerLostError, ReplacedError) as error:
                self.failure.fail(error)
        for link in links.values():
            self._adopt_link(link)

    def _connect_through_store(self, ranks: Iterable[int]) -> None:
        if self.store is None:
            raise ClosedError(
                "This communicator has neither a rendezvous nor a store to go through."
            )
        for rank in ranks:
            self.adopt(StoreChannel(self.rank, rank, self.store, self.prefix, self.poll_seconds))

    def _check_connecting(self, error: RendezvousTimeoutError, end: float) -> None:
        # That a rank has left is no reason: its link may be there while others are awaited. The
        # client says which ranks left without one.
        if time.monotonic() >= end:
            self.failure.fail(
                RendezvousTimeoutError(
                    f"Ranks {error.missing} were not reached within {self.timeout:g} s.",
                    error.missing,
                )
            )

    def _adopt_link(self, link: Link) -> None:
        connection: Connection = SocketConnection(
            link.sock, link.transport, self.poll_seconds, self.losses.link
        )
        if link.tls is not None:
            from perseid.comm.tls_connection import TlsConnection

            connection = TlsConnection(link.sock, link.tls, connection)
        self.adopt(SocketChannel(link.rank, connection))

    def adopt(self, channel: Channel) -> None:
        """Add a channel to the pool."""
        self.channels[channel.rank] = channel
        self.transports[channel.rank] = channel.transport
        if isinstance(channel, SocketChannel):
            self._by_fd[channel.fileno()] = channel
            self._poller.register(channel.fileno(), select.POLLIN)
            if self.failure.error is not None:
                # News of a failure came while the link was being made: no call may block on it.
                channel.interrupt()

    def adopt_incoming(self) -> None:
        """Adopt channels that other ranks opened: their frames may report a failure."""
        if self.client is None:
            return
        transports = self.client.transports()
        # A rank connected although this one uses the store only: both would wait for each other
        # forever.
        if self.only_store and transports:
            self._disagreed(min(transports), transports[min(transports)])
        fresh = [rank for rank in transports if self.channels[rank] is None]
        if fresh:
            # Best effort: a link that is not ready yet is adopted at the next check.
            with contextlib.suppress(RendezvousError):
                for link in self.client.connect(fresh, CONNECT_SLICE).values():
                    self._adopt_link(link)

    def _disagreed(self, rank: int, transport: str) -> None:
        """Fail because a peer connects to this rank, which uses the store only."""
        message = (
            f"Rank {self.rank} uses the store only, but rank {rank} connects to it "
            f"({transport}): give all ranks the same transport, hint, expectation and constants."
        )
        mine, theirs = "transport store", f"transport {transport}"
        self.failure.fail(MismatchedCollectiveError(message, mine, theirs, rank))

    def readable(self) -> list[SocketChannel]:
        """Channels with bytes to read, or at the end of their stream."""
        found = [self._by_fd[fd] for fd, _ in self._poller.poll(0)]
        # Decrypted bytes inside a TLS session do not make the socket readable.
        for channel in self._by_fd.values():
            if channel.connection.pending and not channel.ended and channel not in found:
                found.append(channel)
        return found

    def unwatch(self, channel: SocketChannel) -> None:
        """Poll a channel no longer, since its peer will send nothing more."""
        with contextlib.suppress(KeyError, OSError):
            self._poller.unregister(channel.fileno())

    # --- control frames ----------------------------------------------------------------------

    def handle_control_frames(self, channel: Channel) -> None:
        """Handle ABORT and WAITING frames: raise the failure or mismatch that they report."""
        # Taken out first: handling one may raise, and then no other may be handled twice.
        frames, channel.control_frames = channel.control_frames, []
        for frame in frames:
            if frame.signature[2] == FrameKind.WAITING:
                self._compare(channel, bytes(frame.body))
            else:
                channel.control_frames = [frame]
                self.failure.aborts(channel)

    def history(self, comm: int) -> list[bytes]:
        """Signatures of the last calls of a communicator, to compare them with those of waiting
        peers; that of call n is at index ``n % HISTORY``."""
        return self._histories.setdefault(comm, [b""] * HISTORY)

    def _compare(self, channel: Channel, theirs: bytes) -> None:
        """Raise if a waiting peer is in another call than the one that was made here."""
        try:
            call = Signature.unpack(theirs)
        except FrameError as error:
            self.failure.channel_failed(ChannelEndedError(channel.rank, error))
        calls = self._histories.get(call.comm)
        # No entry means that this rank has not made that call yet: being late is no mismatch.
        mine = calls[call.sequence % HISTORY] if calls else b""
        if not mine or mine == theirs:
            return
        here = Signature.unpack(mine)
        # A slot that was overwritten meanwhile belongs to a later call and proves nothing.
        if here.sequence == call.sequence:
            self.failure.mismatched(channel.rank, str(here), str(call))

    # --- ownership and the end ---------------------------------------------------------------

    def enter(self) -> None:
        """Begin a call. Only the thread that made the first call, the owner, may do so.

        Raises
        ------
        BadInputError
            Another thread owns the communicator.
        PerseidError
            The error that ended the communicator.
        """
        # Before anything else: the previous call may have been interrupted before it could end the
        # communicator.
        self.end_interrupted()
        with _CLAIMS:
            if self.owner is None:
                self.owner = threading.get_ident()
        if self.owner != threading.get_ident():
            raise BadInputError(
                f"The communicator of rank {self.rank} was used from two threads, but belongs to "
                "one: make all calls from the thread that made the first, or give each thread a "
                "communicator of its own."
            )
        self.failure.check()

    def end_interrupted(self) -> None:
        """End the communicator if an exception ended a call halfway."""
        if self.interruption is not None:
            self.failure.interrupted(self.interruption)

    def close(self, cause: BaseException | None = None) -> None:
        """End all connections; with a cause, the others are told that this rank failed."""
        self.end_interrupted()
        # Tell the peers before the connections close: the mere end of a stream looks like a crash.
        # After a failure nothing is owed to the peers, and one of them may be gone.
        wait = cause is None and self.failure.error is None
        in_peace = self.failure.close(cause)
        for channel in self.channels:
            if channel is not None:
                channel.close(wait=wait)
        if self.client is not None:
            # Without a goodbye, the rendezvous tells all others that this rank is lost.
            self.client.close(goodbye=in_peace)

    def close_in_child(self) -> None:
        """Close a forked child's copies of the connections silently.

        The other ranks then get no byte from the child, and still see it when the parent ends its
        streams.
        """
        self.owner = None
        self.failure.forget_client(
            ClosedError(
                f"This communicator belongs to process {os.getppid()}, which this process was "
                "forked from: join with a rank of its own, or use the parent's."
            )
        )
        for channel in self.channels:
            if channel is not None:
                channel.discard()
        if self.client is not None:
            self.client.close_in_child()
            self.client = None


_CLAIMS = threading.Lock()
"""Guards the choice of the owner: two threads may make the first call at the same time."""
_ENGINES: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()
"""All pools of this process, for `_close_in_child`."""


def _close_in_child() -> None:
    global _CLAIMS
    # The lock may have been held by another thread at the time of the fork: that thread does not
    # exist in the child, so nobody would release it.
    _CLAIMS = threading.Lock()
    for engine in list(_ENGINES):
        engine.close_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_in_child)
