"""All connections of one worker: made when first needed, watched, and ended together.

The communicating thread does all sending and receiving (``progress``). What went wrong, and who is
told, is in ``failure``.
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
"""Larger worlds poll less often: hundreds of ranks that share few cores would use up their turns
with waiting."""
HISTORY = 64
"""Last calls of a communicator that a waiting peer's call is compared with."""


class ConnectionPool:
    """The connections of one rank of the world.

    Parameters
    ----------
    client
        The registration, or None for a world of one rank.
    generation
        Attempt of the job; part of every frame.
    timeout
        Seconds that one call may wait for another rank.
    losses
        After how long a rank counts as lost.
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
        """Polling interval of a blocked call, seconds."""
        self.oversubscribed = False
        """Whether more ranks than cores run here: small collectives then take few messages rather
        than few rounds."""
        self.store: ObjectStore | None = None
        """Where pairs without a connection exchange messages, if anywhere."""
        self.prefix = ""
        """Below which key of the store."""
        self.encrypted = False
        """Whether connections are encrypted."""
        self.only_store = False
        """Whether no connection is tried at all."""
        self.channels: list[Channel | None] = [None] * world_size
        self.transports: dict[int, str] = {}
        """How each pair is connected, by rank: ``direct``, ``relay`` or ``store``."""
        self.owner: int | None = None
        """The thread that made the first call; no other may."""
        self.interruption: BaseException | None = None
        """What ended a call halfway, and with it the communicator."""
        self.begun = 0
        """Calls that have begun to send or receive."""
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
        """Subscribe to news of the other ranks, and take in what has already happened."""
        notice = self.failure.notice
        # Subscribe first, then ask for the past: the other way round, news in between would be
        # lost.
        client.subscribe(notice)
        for rank in client.left():
            notice(Notice("left", rank, "it said goodbye"))
        for rank, report in client.failures().items():
            notice(Notice("failed", rank, report))
        for rank, reason in client.lost().items():
            notice(Notice("lost", rank, reason))

    # --- connecting --------------------------------------------------------------------------

    def connect(self, ranks: Iterable[int]) -> None:
        """Have a channel to each of these ranks, made in parallel.

        Raises
        ------
        PeerLostError, NoPathError, RendezvousTimeoutError, ReplacedError, ClosedError
            Some of the channels cannot be made.
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
                # In slices, so that a rank that is lost meanwhile raises its own error and not a
                # time-out.
                links = self.client.connect(missing, max(CONNECT_SLICE, self.poll_seconds))
                break
            except RendezvousTimeoutError as error:
                self.failure.check()
                self._check_connecting(missing, error, end)
            except NoPathError as error:
                if self.store is None or not error.ranks:
                    self.failure.fail(error)
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

    def _check_connecting(
        self, missing: list[int], error: RendezvousTimeoutError, end: float
    ) -> None:
        for rank, reason in self.failure.left_of(missing).items():
            self.failure.fail(PeerLostError(f"Rank {rank} has left: {reason}.", rank))
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
        """Take a channel into use."""
        self.channels[channel.rank] = channel
        self.transports[channel.rank] = channel.transport
        if isinstance(channel, SocketChannel):
            self._by_fd[channel.fileno()] = channel
            self._poller.register(channel.fileno(), select.POLLIN)
            if self.failure.error is not None:
                # The news of a failure came while the link was being made: do not let a call block
                # on it.
                channel.interrupt()

    def adopt_incoming(self) -> None:
        """Adopt channels that others opened: their frames may say that something is wrong."""
        if self.client is None:
            return
        transports = self.client.transports()
        # Somebody connected although this rank looks into the store only: both would wait forever.
        if self.only_store and transports:
            self._disagreed(min(transports), transports[min(transports)])
        fresh = [rank for rank in transports if self.channels[rank] is None]
        if fresh:
            with contextlib.suppress(RendezvousError):
                for link in self.client.connect(fresh, CONNECT_SLICE).values():
                    self._adopt_link(link)

    def _disagreed(self, rank: int, transport: str) -> None:
        """A peer connects to this rank, which looks into the store alone."""
        message = (
            f"Rank {self.rank} goes through the store, but rank {rank} connects to it "
            f"({transport}): give all ranks the same transport, hint, expectation and constants."
        )
        mine, theirs = "transport store", f"transport {transport}"
        self.failure.fail(MismatchedCollectiveError(message, mine, theirs, rank))

    def readable(self) -> list[SocketChannel]:
        """Channels on which something lies to be read, or that ended."""
        found = [self._by_fd[fd] for fd, _ in self._poller.poll(0)]
        for channel in self._by_fd.values():
            if channel.connection.pending and not channel.ended and channel not in found:
                found.append(channel)
        return found

    def unwatch(self, channel: SocketChannel) -> None:
        """The peer will send no more."""
        with contextlib.suppress(KeyError, OSError):
            self._poller.unregister(channel.fileno())

    # --- frames that are not the caller's ----------------------------------------------------

    def handle_control_frames(self, channel: Channel) -> None:
        """ABORT and WAITING frames came: raise the failure or the disagreement that they show."""
        # Taken out first: handling one may raise, and must not leave the others to be handled
        # twice.
        frames, channel.control_frames = channel.control_frames, []
        for frame in frames:
            if frame.signature[2] == FrameKind.WAITING:
                self._compare(channel, bytes(frame.body))
            else:
                channel.control_frames = [frame]
                self.failure.aborts(channel)

    def history(self, comm: int) -> list[bytes]:
        """The last calls of a communicator, which are compared with those of waiting peers: the
        signature of call n at ``n % HISTORY``."""
        return self._histories.setdefault(comm, [b""] * HISTORY)

    def _compare(self, channel: Channel, theirs: bytes) -> None:
        """A peer waits for this rank in a call: is it the one that was made here?"""
        try:
            call = Signature.unpack(theirs)
        except FrameError as error:
            self.failure.channel_failed(ChannelEndedError(channel.rank, error))
        calls = self._histories.get(call.comm)
        # No entry means that this rank has not come to that call yet: late is not wrong.
        mine = calls[call.sequence % HISTORY] if calls else b""
        if not mine or mine == theirs:
            return
        here = Signature.unpack(mine)
        # A slot that was overwritten since belongs to a later call, and proves nothing.
        if here.sequence == call.sequence:
            self.failure.mismatched(channel.rank, str(here), str(call))

    # --- whose it is, and the end ------------------------------------------------------------

    def enter(self) -> None:
        """Begin a call. Only the owner may, which is the thread that made the first call.

        Raises
        ------
        BadInputError
            Another thread owns the communicator.
        PerseidError
            What ended the communicator.
        """
        # Before anything else: the previous call may have been interrupted before it could say so.
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
        """End all connections; with a cause the others are told that this rank failed."""
        self.end_interrupted()
        # Tell the peers before the connections close: a bare end of stream would look like a crash.
        in_peace = self.failure.close(cause)
        for channel in self.channels:
            if channel is not None:
                channel.close()
        if self.client is not None:
            self.client.close(goodbye=in_peace)

    def close_in_child(self) -> None:
        """After a fork, in the child: close its copies of the connections silently, so that the
        others see the parent's end of the stream and no byte from the child."""
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
"""Two threads may make the first call at once."""
_ENGINES: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()
"""Those of this process, for a child that it may fork."""


def _close_in_child() -> None:
    global _CLAIMS
    _CLAIMS = threading.Lock()
    for engine in list(_ENGINES):
        engine.close_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_in_child)
