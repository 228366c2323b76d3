"""All connections of one worker: made when first needed, watched, and ended together.

The communicating thread does all sending and receiving. The registration's own thread only brings
the news that a rank was lost: it remembers the error and shuts the sockets down, so that a
blocked call returns at once and raises.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
import weakref
from collections.abc import Iterable
from typing import NoReturn

from perseid.comm import blame
from perseid.comm.channel import TICK_SECONDS, Channel, Want
from perseid.comm.frames import Frame, FrameError, Kind, Signature, header
from perseid.comm.outgoing import Outgoing
from perseid.comm.store import ObjectStore, StoreChannel
from perseid.comm.watch import Watch
from perseid.errors import (
    BadInputError,
    ClosedError,
    MismatchedCollectiveError,
    NoPathError,
    PeerLostError,
    PerseidError,
    RendezvousError,
    RendezvousTimeoutError,
    ReplacedError,
)
from perseid.rendezvous import Client, LossTimeouts, Notice
from perseid.rendezvous.net.liveness import unanswered_for

BLAME_SHARE = 0.2
"""After a connection ended, the share of `LossTimeouts.death` that the rendezvous may take to say
who was really lost."""
CONNECT_SLICE = 0.5
"""Seconds after which a connecting call looks whether a rank was lost."""
MANY_RANKS = 64
"""Larger worlds look around less often: hundreds of ranks that share few cores would use up their
turns with waiting."""
HISTORY = 64
"""Last calls of a communicator that a waiting peer's call is compared with."""


class Engine:
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
        self.tick_seconds = TICK_SECONDS * max(1.0, world_size / MANY_RANKS)
        """How often a blocked call looks around."""
        self.shared_cores = False
        """Whether small collectives take few messages rather than few rounds."""
        self.store: ObjectStore | None = None
        """Where pairs without a connection exchange messages, if anywhere."""
        self.prefix = ""
        """Below which key of the store."""
        self.only_store = False
        """Whether no connection is tried at all."""
        self.channels: list[Channel | None] = [None] * world_size
        self.routes: dict[int, str] = {}
        """Which way each pair took, by rank: ``direct``, ``relay`` or ``store``."""
        self.error: PerseidError | None = None
        """Why nothing more can be sent; every later call raises it."""
        self.owner: int | None = None
        """The thread that made the first call; no other may."""
        self.begun = 0
        """Calls that have begun to send or receive."""
        self.next_comm = 1
        """The lowest communicator id that this rank has not seen in use."""
        self._by_notice = False
        """Whether the error is what the rendezvous told."""
        self._untold: PeerLostError | None = None
        """What the others have to be told of an interruption."""
        self._left: dict[int, str] = {}
        self._news = threading.Condition()
        self._poller = select.poll()
        self._by_fd: dict[int, Channel] = {}
        self._histories: dict[int, list[bytes]] = {}
        _ENGINES.add(self)
        if client is not None:
            client.subscribe(self._notice)
            for gone in client.left():
                self._notice(Notice("left", gone, "it said goodbye"))
            for gone, report in client.failures().items():
                self._notice(Notice("failed", gone, report))
            for gone, reason in client.lost().items():
                self._notice(Notice("lost", gone, reason))

    # --- connecting --------------------------------------------------------------------------

    def connect(self, ranks: Iterable[int]) -> None:
        """Have a channel to each of these ranks, made in parallel.

        Raises
        ------
        PeerLostError, NoPathError, RendezvousTimeoutError, ReplacedError, ClosedError
            Some cannot be had.
        """
        missing = [r for r in ranks if r != self.rank and self.channels[r] is None]
        if not missing:
            return
        self.check()
        if self.client is None or self.only_store:
            self._through_store(missing)
            return
        end = time.monotonic() + self.timeout
        while True:
            try:
                links = self.client.connect(missing, max(CONNECT_SLICE, self.tick_seconds))
                break
            except RendezvousTimeoutError as error:
                self.check()
                self._connect_failed(missing, error, end)
            except NoPathError as error:
                if self.store is None or not error.ranks:
                    self.fail(error)
                self._through_store(error.ranks)
                missing = [rank for rank in missing if rank not in error.ranks]
            except (PeerLostError, ReplacedError) as error:
                self.fail(error)
        for rank, link in links.items():
            self.adopt(Channel(rank, link.sock, self, link.transport))

    def _through_store(self, ranks: Iterable[int]) -> None:
        if self.store is None:
            raise ClosedError(
                "This communicator has neither a rendezvous nor a store to go through."
            )
        for rank in ranks:
            self.adopt(StoreChannel(rank, self.store, self.prefix, self))

    def _connect_failed(
        self, missing: list[int], error: RendezvousTimeoutError, end: float
    ) -> None:
        with self._news:
            left = [rank for rank in missing if rank in self._left]
        if left:
            self.fail(PeerLostError(f"Rank {left[0]} has left: {self._left[left[0]]}.", left[0]))
        if time.monotonic() >= end:
            self.fail(
                RendezvousTimeoutError(
                    f"Ranks {error.missing} were not reached within {self.timeout:g} s.",
                    error.missing,
                )
            )

    def adopt(self, channel: Channel) -> None:
        """Take a channel into use."""
        self.channels[channel.rank] = channel
        self.routes[channel.rank] = channel.way
        if channel.way == "store":
            return
        self._by_fd[channel.sock.fileno()] = channel
        self._poller.register(channel.sock, select.POLLIN)
        if self.error is not None:
            channel.interrupt()

    # --- whose it is ------------------------------------------------------------------------

    def claim(self) -> None:
        """A thread that is not the owner makes a call: the first one owns the connections.

        Raises
        ------
        BadInputError
            It is another thread than the owner.
        """
        with self._news:
            if self.owner is None:
                self.owner = threading.get_ident()
        if self.owner != threading.get_ident():
            raise BadInputError(
                f"The communicator of rank {self.rank} was used from two threads, but belongs to "
                "one: make all calls from the thread that made the first, or give each thread a "
                "communicator of its own."
            )

    def close_in_child(self) -> None:
        """After a fork, in the child: its copies of the connections are closed without a word, so
        that the others see the parent's end, and no byte of the child's comes between."""
        self.owner = None
        self.error = ClosedError(
            f"This communicator belongs to process {os.getppid()}, which this process was forked "
            "from: join with a rank of its own, or use the parent's."
        )
        for channel in self.channels:
            if channel is not None and not channel.closed:
                channel.closed = True
                if channel.way != "store":
                    channel.sock.close()
        if self.client is not None:
            self.client.close_in_child()
            self.client = None

    # --- failing -----------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what has gone wrong already."""
        if self.error is None:
            return
        self._tell_untold()
        if self._by_notice and isinstance(self.error, PeerLostError):
            channel = self.channels[self.error.rank]
            if channel is not None:
                self._ask_why(channel)
        raise self.error

    def _ask_why(self, channel: Channel) -> None:
        """The news of a loss may have overtaken the peer's own words."""
        with contextlib.suppress(PerseidError):
            channel.last_words()
        self._by_notice = False

    def fail(self, error: PerseidError, own: bool = True) -> NoReturn:
        """Tell the others, end all connections, and raise the error.

        ``own``: this rank found it, so the others hear of it from the rendezvous, too.
        """
        with self._news:
            known = self.error
            first = known is None
            if first or (blame.same_loss(known, error) and self._by_notice):
                self.error, self._by_notice = error, False  # the peer's own words say more
        if first and not isinstance(error, ClosedError):
            self._tell_all(error, own)
        self._interrupt_all()
        raise self.error or error

    def interrupted(self, cause: BaseException) -> None:
        """A call ended halfway by an exception that is not ours: messages may be lost, and the
        others may wait for this rank."""
        with self._news:
            if self.error is not None:
                return
            what = described(cause)
            self.error = ClosedError(
                f"A call of rank {self.rank} was interrupted by {what}; messages may be lost, so "
                "this communicator cannot be used any more: close it, and join again."
            )
            self._untold = PeerLostError(f"Rank {self.rank} failed with {what}", self.rank)
        self._tell_untold()

    def _tell_untold(self) -> None:
        """Tell the others of an interruption; what was interrupted itself is done again later."""
        if self._untold is not None:
            self._tell_all(self._untold)
            self._interrupt_all()
            self._untold = None

    def broken(self, channel: Channel, cause: Exception | None) -> NoReturn:
        """A connection ended; raise the error that names the rank which is to blame.

        A peer that failed said why before it closed; else the rendezvous may know better whose
        loss started it.
        """
        if not isinstance(cause, FrameError):
            channel.last_words()
        with self._news:
            self._news.wait_for(lambda: self.error is not None, BLAME_SHARE * self.losses.death)
            self.check()
            why = self._left.get(channel.rank)
        reason = why or (f"its connection broke ({cause})" if cause else "its connection ended")
        self.fail(PeerLostError(f"Rank {channel.rank} is lost: {reason}.", channel.rank))

    def mismatch(self, channel: Channel, mine: Signature, theirs: Signature) -> NoReturn:
        """The peer is in another call."""
        self._mismatched(channel.rank, str(mine), str(theirs))

    def mismatched_size(
        self, channel: Channel, what: Signature, mine: int, theirs: int
    ) -> NoReturn:
        """The peer sends another number of bytes than is expected of it."""
        self._mismatched(channel.rank, f"{what} of {mine} bytes", f"one of {theirs} bytes")

    def _mismatched(self, rank: int, mine: str, theirs: str) -> NoReturn:
        message = (
            f"Rank {self.rank} is in {mine}, but rank {rank} is in {theirs}: all ranks must make "
            "the same calls in the same order with fitting arguments."
        )
        self.fail(MismatchedCollectiveError(message, mine, theirs, rank))

    def _notice(self, notice: Notice) -> None:
        """News from the registration's thread."""
        error: PerseidError
        by_notice = True
        if notice.kind == "left":
            with self._news:
                self._left[notice.rank] = notice.reason
            return
        if notice.kind == "lost":
            error = PeerLostError(f"Rank {notice.rank} is lost: {notice.reason}.", notice.rank)
        elif notice.kind == "failed":
            error = blame.from_frame(notice.reason.encode(), notice.rank, self.rank)
            by_notice = False  # it is the rank's own word
        elif notice.kind == "replaced":
            error = ReplacedError(notice.reason)
        elif notice.kind == "refused":
            error = RendezvousError(notice.reason)
        else:
            return
        with self._news:
            if self.error is None:
                self.error, self._by_notice = error, by_notice
            self._news.notify_all()
        self._interrupt_all()

    def _interrupt_all(self) -> None:
        for channel in self.channels:
            if channel is not None:
                channel.interrupt()

    def _tell_all(self, error: PerseidError, own: bool = True) -> None:
        body = blame.to_bytes(error, self.rank)
        if own and self.client is not None:
            self.client.report_failure(body)
        signature = Signature(Kind.ABORT, 0, self.generation).pack()
        frame = header(signature, 0, 0, len(body)) + body
        for channel in self.channels:
            if channel is not None:
                with contextlib.suppress(PerseidError):
                    channel.control_frame(frame)

    # --- frames that are not the caller's ----------------------------------------------------

    def control(self, channel: Channel, frame: Frame) -> None:
        """An ABORT or WAITING frame came."""
        signature = Signature.unpack(frame.signature)
        if signature.kind == Kind.WAITING:
            self._compare(channel, bytes(frame.body))
            return
        error = blame.from_frame(bytes(frame.body), channel.rank, self.rank)
        self.fail(error, own=False)

    def history(self, comm: int) -> list[bytes]:
        """The last calls of a communicator, which are compared with those of waiting peers: the
        signature of call n at ``n % HISTORY``."""
        return self._histories.setdefault(comm, [b""] * HISTORY)

    def _compare(self, channel: Channel, theirs: bytes) -> None:
        """A peer waits for this rank in a call: is it the one that was made here?"""
        try:
            call = Signature.unpack(theirs)
        except FrameError as error:
            self.broken(channel, error)
        calls = self._histories.get(call.comm)
        mine = calls[call.sequence % HISTORY] if calls else b""
        if not mine or mine == theirs:
            return
        here = Signature.unpack(mine)
        if here.sequence == call.sequence:
            self.mismatch(channel, here, call)

    # --- waiting -----------------------------------------------------------------------------

    def tick(self, channel: Channel, want: Want, ticks: int) -> None:
        """Nothing came for a while: see whether something is wrong."""
        self.check()
        self._check_link(channel)
        if ticks * self.tick_seconds >= self.timeout:
            self._too_late(channel, want)
        collective = want.what.kind != Kind.POINT
        if collective and ticks & (ticks - 1) == 0:
            signature = Signature(Kind.WAITING, want.what.comm, self.generation).pack()
            body = want.signature
            channel.control_frame(header(signature, 0, 0, len(body)) + body)
        self._adopt_incoming()
        self._drain(skip=channel)

    def _check_link(self, channel: Channel) -> None:
        """Raise if the peer's host has not acknowledged what is in flight to it for too long."""
        if channel.way == "store":
            return
        silent = unanswered_for(channel.sock)
        if silent > self.losses.link:
            self.broken(channel, OSError(f"its host has not answered for {silent:.0f} s"))

    def _too_late(self, channel: Channel, want: Want) -> NoReturn:
        self.fail(
            RendezvousTimeoutError(
                f"Rank {channel.rank} did not come to {want.what} within {self.timeout:g} s.",
                [channel.rank],
            )
        )

    def _adopt_incoming(self) -> None:
        """Channels that others opened: their frames may say that something is wrong."""
        if self.client is None:
            return
        ways = self.client.transports()
        if self.only_store and ways:
            self._disagreed(min(ways), ways[min(ways)])
        fresh = [rank for rank in ways if self.channels[rank] is None]
        if fresh:
            with contextlib.suppress(RendezvousError):
                for rank, link in self.client.connect(fresh, CONNECT_SLICE).items():
                    self.adopt(Channel(rank, link.sock, self, link.transport))

    def _disagreed(self, rank: int, way: str) -> NoReturn:
        """A peer connects to this rank, which looks into the store alone."""
        message = (
            f"Rank {self.rank} goes through the store, but rank {rank} connects to it ({way}): "
            "give all ranks the same transport, hint, expectation and constants."
        )
        self.fail(MismatchedCollectiveError(message, "transport store", f"transport {way}", rank))

    def _drain(self, skip: Channel | None) -> None:
        """Take in what lies in the sockets, without waiting."""
        for fd, _ in self._poller.poll(0):
            channel = self._by_fd[fd]
            if channel is not skip:
                channel.drain()

    def unwatch(self, channel: Channel) -> None:
        """The peer will send no more."""
        with contextlib.suppress(KeyError, OSError):
            self._poller.unregister(channel.sock)

    def drive(self, out: Outgoing, source: Channel | None, want: Want | None) -> None:
        """Send the rest of a frame while receiving what is wanted, if anything is.

        A sender that stays blocked takes in what all others send, so that ranks that send to each
        other at once all get on.
        """
        watch = Watch(out.channel, source)
        quiet = 0.0
        while True:
            sent = out.push()
            if source is not None and source.digest(want):
                watch.drop_source()
                source = None
            if sent:
                break
            if not watch.wait(self.channels):
                quiet += TICK_SECONDS
                self.check()
                self._check_link(out.channel)
                if quiet >= self.timeout:
                    self._not_taken(out.channel)
        if source is not None and want is not None:
            source.wait(want)

    def _not_taken(self, channel: Channel) -> NoReturn:
        self.fail(
            RendezvousTimeoutError(
                f"Rank {channel.rank} did not take what rank {self.rank} sent within "
                f"{self.timeout:g} s.",
                [channel.rank],
            )
        )

    def close(self, cause: BaseException | None = None) -> None:
        """End all connections; with a cause the others are told that this rank failed."""
        with self._news:
            failed = self.error is not None
            if not failed:
                self.error = ClosedError(f"The communicator of rank {self.rank} is closed.")
        if cause is not None and not failed:
            what = described(cause)
            self._tell_all(PeerLostError(f"Rank {self.rank} failed with {what}", self.rank))
        self._tell_untold()
        for channel in self.channels:
            if channel is not None:
                channel.close()
        if self.client is not None:
            # Who fails by itself is lost to all at once; who only heard of a loss leaves in peace,
            # lest it be blamed.
            self.client.close(goodbye=cause is None or failed)


def described(error: BaseException) -> str:
    """An exception as the other ranks are told of it."""
    said = str(error)
    return f"{type(error).__name__}: {said[:400]}" if said else type(error).__name__


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()
"""Those of this process, for a child that it may fork."""


def _close_in_child() -> None:
    for engine in list(_ENGINES):
        engine.close_in_child()


os.register_at_fork(after_in_child=_close_in_child)
