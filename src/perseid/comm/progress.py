"""Sends and receives for a program with one thread: what the socket does not take at once, and what
has not arrived yet. With several threads, `shared_progress` does this.

A waiting rank does not hold up the others: a blocked sender reads what all others send, so that no
two senders block each other, and a receiver checks regularly for a rank that failed or is in
another call.
"""

from __future__ import annotations

import select
from typing import Protocol

from perseid.comm.channel import (
    Channel,
    ChannelError,
    PartlySent,
    PendingReceive,
)
from perseid.comm.connection_pool import POLL_SECONDS, ConnectionPool
from perseid.comm.frames import Frame, header
from perseid.comm.objects import Blob, Buffer
from perseid.comm.socket_channel import SocketChannel
from perseid.comm.wait_loop import WaitLoop

DRAIN_AFTER = 0.02
"""Seconds that a sender is blocked before it reads what ranks other than its source send."""


class Progress(Protocol):
    """How the calls of a group send and receive."""

    def send(self, channel: Channel, signature: bytes, step: int, data: Buffer) -> None:
        """Send raw bytes."""
        ...

    def send_blob(self, channel: Channel, signature: bytes, step: int, blob: Blob) -> None:
        """Send the pieces of a payload."""
        ...

    def receive_into(self, channel: Channel, signature: bytes, step: int, into: memoryview) -> None:
        """Receive raw bytes of exactly the length of ``into``."""
        ...

    def receive(
        self, channel: Channel, signature: bytes, step: int, any_step: bool = False
    ) -> Blob:
        """Receive a payload of any length into fresh memory, in one piece."""
        ...

    def exchange(
        self,
        out: Channel,
        signature: bytes,
        step: int,
        blob: Blob,
        source: Channel,
        pending: PendingReceive,
    ) -> Blob:
        """Send a payload to one peer and receive from another (or the same), both at once."""
        ...


class ProgressEngine:
    """Sends and receives on the channels of a pool, waiting until each operation is done.

    Every method may raise the error that ended the communicator: ``PeerLostError``,
    ``MismatchedCollectiveError``, ``RendezvousTimeoutError``, ``ClosedError``.
    """

    __slots__ = ("_engine", "_failure", "_loop")

    def __init__(self, engine: ConnectionPool) -> None:
        self._engine, self._failure, self._loop = engine, engine.failure, WaitLoop(engine)

    # --- one direction -----------------------------------------------------------------------

    def send(self, channel: Channel, signature: bytes, step: int, data: Buffer) -> None:
        try:
            rest = channel.send(signature, step, data)
            if rest is not None:
                self._send_rest(channel, rest)
        except ChannelError as error:
            self._failure.channel_failed(error)

    def send_blob(self, channel: Channel, signature: bytes, step: int, blob: Blob) -> None:
        """Send the pieces of a payload."""
        try:
            rest = channel.send_blob(signature, step, blob)
            if rest is not None:
                self._send_rest(channel, rest)
        except ChannelError as error:
            self._failure.channel_failed(error)

    def receive_into(self, channel: Channel, signature: bytes, step: int, into: memoryview) -> None:
        """Receive raw bytes of exactly the length of ``into``."""
        try:
            if not channel.receive_into(signature, step, into):
                self._wait(channel, PendingReceive(signature, step, into))
        except ChannelError as error:
            self._failure.channel_failed(error)

    def receive(
        self, channel: Channel, signature: bytes, step: int, any_step: bool = False
    ) -> Blob:
        """Receive a payload of any length into fresh memory."""
        try:
            blob = channel.receive(signature, step, any_step)
            if blob is None:
                blob = self._wait(channel, PendingReceive(signature, step, None, any_step))
        except ChannelError as error:
            self._failure.channel_failed(error)
        return blob

    def _receive(self, channel: Channel, pending: PendingReceive) -> Blob:
        """Receive the pending frame, of which some bytes may have come already."""
        into = pending.into
        if into is not None and channel.receive_into(pending.signature, pending.step, into):
            pending.frame = Frame(pending.signature, pending.step, 0, into)
            return pending.blob
        return self._wait(channel, pending)

    def _wait(self, channel: Channel, pending: PendingReceive) -> Blob:
        """Receive the pending frame; other frames are kept for later."""

        def done() -> bool:
            # Look at the buffered bytes first: the wanted frame may have come with an earlier one.
            complete = channel.process_buffered(pending)
            # An ABORT that came before the wanted frame wins.
            if channel.control_frames:
                self._engine.handle_control_frames(channel)
            return complete

        self._loop.until(
            done, channel.read_some, lambda checks: self._check_stalled(channel, pending, checks)
        )
        return pending.blob

    def _check_stalled(self, channel: Channel, pending: PendingReceive, checks: int) -> None:
        """Check what is wrong, after nothing has come for so many polling intervals."""
        engine, loop = self._engine, self._loop
        loop.check_host(channel)
        late = checks * engine.poll_seconds
        loop.check_time(late, [channel.rank], f"did not come to {pending.call}")
        call = pending.signature
        if (waiting := loop.waiting(call, checks)) is not None:
            channel.send_control(header(waiting, 0, 0, len(call)) + call)
        # News of a failure may come on a connection that this call does not wait for, or on one
        # that a peer has only just opened.
        engine.adopt_incoming()
        for other in engine.readable():
            if other is not channel:
                self.take_in(other)

    def take_in(self, channel: SocketChannel) -> bool:
        """Read what another peer sent; returns False once it will send nothing more."""
        more = channel.read_available()
        if channel.control_frames:
            self._engine.handle_control_frames(channel)
        if not more:
            # A stream at its end stays readable forever: every poll would return at once.
            self._engine.unwatch(channel)
        return more

    # --- both directions ---------------------------------------------------------------------

    def exchange(
        self,
        out: Channel,
        signature: bytes,
        step: int,
        blob: Blob,
        source: Channel,
        pending: PendingReceive,
    ) -> Blob:
        """Send a payload to one peer and receive from another (or the same), both at once."""
        try:
            # The kernel takes the whole frame unless it is large; then there is nothing to
            # interleave.
            if (rest := out.send_blob(signature, step, blob)) is not None:
                # A store has no descriptor to poll: the two directions go one after the other.
                both = isinstance(source, SocketChannel)
                self._send_rest(out, rest, *((source, pending) if both else ()))
            return pending.blob if pending.frame is not None else self._receive(source, pending)
        except ChannelError as error:
            self._failure.channel_failed(error)

    def _send_rest(
        self,
        out: Channel,
        rest: PartlySent,
        source: SocketChannel | None = None,
        pending: PendingReceive | None = None,
    ) -> None:
        """Send the rest of a frame, while receiving the pending frame if there is one."""
        assert isinstance(out, SocketChannel), "a store takes whole frames"
        # No control frame may be sent in the middle of this one: it would be taken for payload.
        out.sending = True
        poller = _BlockedSender(self, out, source)

        def done() -> bool:
            nonlocal source
            # Send first in each round, then read: both directions make progress, so two ranks that
            # send to each other never stop because both buffers are full.
            sent = rest.send_more()
            if source is not None:
                complete = source.process_buffered(pending)
                if source.control_frames:
                    self._engine.handle_control_frames(source)
                if complete:
                    poller.drop_source()
                    source = None
            # The pending frame may still be on its way; waiting for it alone needs no poller.
            return sent

        def stalled(checks: int) -> None:
            self._loop.check_host(out)
            self._loop.check_time(checks * POLL_SECONDS, [out.rank], self._loop.not_taken())

        self._loop.until(done, lambda: poller.wait(self._engine.channels), stalled)
        out.sending = False


class _BlockedSender:
    """Polls for a blocked sender: its own two channels at first, all channels after a while."""

    def __init__(
        self, progress: ProgressEngine, sender: SocketChannel, source: SocketChannel | None
    ) -> None:
        self._progress, self._sender, self._source = progress, sender, source
        # Reading from all ranks costs a system call per channel. It is needed only if a circle of
        # senders has formed (A waits for B to read, B for C, C for A), which is rare.
        self._polls_all = False
        self._channels: dict[int, SocketChannel] = {}
        self._poll = select.poll()
        # poll rather than select: a process with many connections has descriptors above 1,023.
        self._poll.register(sender.fileno(), select.POLLOUT)
        if source is not None:
            self._channels[source.fileno()] = source
            both = select.POLLOUT if source is sender else 0
            self._poll.register(source.fileno(), select.POLLIN | both)

    def drop_source(self) -> None:
        """Stop reading from the source, since the pending frame is complete."""
        source, self._source = self._source, None
        if source is None or self._polls_all:
            return
        del self._channels[source.fileno()]
        if source is self._sender:
            self._poll.modify(source.fileno(), select.POLLOUT)
        else:
            self._poll.unregister(source.fileno())

    def wait(self, channels: list[Channel | None]) -> bool:
        """Wait until something moves; False if nothing did for a polling interval."""
        # Decrypted bytes inside a TLS session, which polling the socket does not show.
        hidden = [fd for fd, channel in self._channels.items() if channel.connection.pending]
        # Short at first: a circle of senders should be broken soon.
        seconds = POLL_SECONDS if self._polls_all else DRAIN_AFTER
        events = self._poll.poll(0 if hidden else 1000 * seconds)
        events += [(fd, select.POLLIN) for fd in hidden]
        if not events and not self._polls_all:
            self._poll_all(channels)
            events = self._poll.poll(1000 * POLL_SECONDS)
        for fd, event in events:
            channel = self._channels.get(fd)
            # Only the sender became writable: the caller's next round uses that.
            if channel is None or not event & ~select.POLLOUT:
                continue
            if channel is self._source:
                channel.read_now()
            elif not self._progress.take_in(channel):
                self._forget(fd, channel)
        return bool(events)

    def _forget(self, fd: int, channel: SocketChannel) -> None:
        """Poll a channel no longer for reading, since its peer will send nothing more."""
        del self._channels[fd]
        if channel is self._sender:
            self._poll.modify(fd, select.POLLOUT)
        else:
            self._poll.unregister(fd)

    def _poll_all(self, channels: list[Channel | None]) -> None:
        self._polls_all = True
        for channel in channels:
            if not isinstance(channel, SocketChannel) or channel.closed or channel.ended:
                continue
            self._channels[channel.fileno()] = channel
            out = select.POLLOUT if channel is self._sender else 0
            self._poll.register(channel.fileno(), select.POLLIN | out)
