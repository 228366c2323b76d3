"""Sends and receives for several threads of one rank, and for operations that nobody waits for yet.

One lock guards everything. One of the waiting threads polls all connections without holding the
lock, and sends and receives for all of them. While operations are in progress and no thread waits,
a helper thread does this.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NoReturn, Protocol

from perseid.comm.channel import Channel, ChannelEndedError, ChannelError, PendingReceive
from perseid.comm.connection_pool import ConnectionPool
from perseid.comm.frames import Frame, FrameKind, Signature
from perseid.comm.lane import AnyLane, PeerLane, Receive, Send
from perseid.comm.lane_poller import Event, LanePoller
from perseid.comm.objects import Blob, Buffer
from perseid.comm.socket_channel import JOINED_BYTES
from perseid.errors import PerseidError, RendezvousTimeoutError

HELP_SECONDS = 0.002
"""Seconds without a waiting thread after which the helper thread takes care of operations."""
HELP_SECONDS_MOST = 0.05
"""Longest such pause; it doubles each time that another thread has taken care of them."""


class Operation(Protocol):
    """An operation that may still be in progress."""

    @property
    def done(self) -> bool:
        """Whether the operation has ended."""
        ...


class SharedProgress:
    """`progress.ProgressEngine` for several threads.

    Methods are called within a ``turn``, unless they take the lock themselves (``turn``, ``tell``,
    ``close``), and may raise the error that ended the communicator.
    """

    def __init__(self, engine: ConnectionPool) -> None:
        self._engine, self._failure = engine, engine.failure
        self._begin_without_threads()
        self._lanes = LanePoller(engine)
        self._closed = False

    def _begin_without_threads(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        """Notified when an operation may be done, or when another thread has to start polling."""
        self._called = threading.Condition(self._lock)
        """Notified when the helper thread has something to do."""
        self._idle = False
        """Whether the helper thread waits for something to do."""
        self._polling = False
        """Whether a thread is polling the connections."""
        self._waiting = 0
        """Number of threads that wait while another one polls."""
        self._background: list[Operation] = []
        """Operations in progress that no thread waits for."""
        self._helper: threading.Thread | None = None
        self._turn = _Turn(self._engine, self._lock)

    def renew_in_child(self) -> None:
        """Start again in a forked child: threads, one of which may hold the lock, stay behind."""
        self._begin_without_threads()
        self._lanes.forget_blocked()  # the parent sends the rest

    def turn(self) -> AbstractContextManager[None]:
        """A context in which no other thread sends or receives, except while this one waits."""
        return self._turn

    def tell(self) -> None:
        """Wake the waiting threads, since something has changed without a message."""
        with self._lock:
            self.wake()

    # --- interface of Progress ---------------------------------------------------------------

    def send(self, channel: Channel, signature: bytes, step: int, data: Buffer) -> None:
        try:
            sent = self._lanes.peer_lane(channel).send_bytes(signature, step, data)
        except ChannelError as error:
            self._failure.channel_failed(error)
        if not sent.done:
            self.wait(self._lanes.sending(sent))

    def send_blob(self, channel: Channel, signature: bytes, step: int, blob: Blob) -> None:
        """Send the pieces of a payload."""
        sent = self.start_send(channel.rank, signature, step, blob)
        if not sent.done:
            self.wait(sent)

    def receive_into(self, channel: Channel, signature: bytes, step: int, into: memoryview) -> None:
        """Receive raw bytes of exactly the length of ``into``."""
        try:
            lane = self._lanes.peer_lane(channel)
            comes = self._comes_next(lane)
            # The fast path: a `Receive` and the loop that waits for it cost more than the system
            # calls of a small message.
            if (
                comes
                and len(into) <= JOINED_BYTES
                and self._receive_next(lane, signature, step, into)
            ):
                return
            want = Receive((channel.rank,), signature, step, into)
            if comes and len(into) > JOINED_BYTES:
                self._receive_direct(lane, want)
        except ChannelError as error:
            self._failure.channel_failed(error)
        if not want.done:
            self.wait(want if want.posted else self.post(want))

    def _comes_next(self, lane: PeerLane) -> bool:
        """Wait at most for a polling interval until a peer sends its next frame.

        False if it does not, or if another thread or operation needs a connection, too.
        """
        lanes = self._lanes
        if self._polling or self._waiting or lanes.blocked or not lane.quiet:
            return False
        self._failure.check()
        self._engine.begun += 1
        self._polling = True
        try:
            events, _ = self._wait_unlocked(self._engine.poll_seconds, None)
            # Other threads may have begun operations meanwhile.
            if len(events) == 1 and events[0] == lane.readable and lane.quiet:
                return True
            lanes.move(events, None, None)
        finally:
            self._polling = False
            if self._waiting:
                self._changed.notify_all()
        return False

    def _receive_next(self, lane: PeerLane, signature: bytes, step: int, into: memoryview) -> bool:
        came = lane.receive_next(signature, step, into)
        if lane.queue.control_frames:
            self._engine.handle_control_frames(lane.channel)
        return came

    def _receive_direct(self, lane: PeerLane, want: Receive) -> None:
        """Read the frame whose first bytes have come directly into its place."""
        self._polling = True
        self._lock.release()
        try:
            lane.channel.receive_direct(want)
        finally:
            self._lock.acquire()
            self._engine.owner = threading.get_ident()
            self._polling = False
            if self._waiting:
                self._changed.notify_all()
        lane.begun(want)
        if lane.queue.control_frames:
            self._engine.handle_control_frames(lane.channel)

    def receive(
        self, channel: Channel, signature: bytes, step: int, any_step: bool = False
    ) -> Frame:
        """Receive a payload of any length into fresh memory."""
        want = self.post(Receive((channel.rank,), signature, step, None, any_step))
        self.wait(want)
        assert want.frame is not None
        return want.frame

    def exchange(
        self,
        out: Channel,
        signature: bytes,
        step: int,
        blob: Blob,
        source: Channel,
        pending: PendingReceive,
    ) -> Frame:
        """Send a payload to one peer and receive from another (or the same), both at once."""
        sent = self.start_send(out.rank, signature, step, blob)
        into = pending.into
        if sent.done and into is not None and not pending.any_step:
            self.receive_into(source, pending.signature, pending.step, into)
            return Frame(pending.signature, pending.step, 0, into)
        want = self.post(
            Receive((source.rank,), pending.signature, pending.step, into, pending.any_step)
        )
        self.wait(want)
        if not sent.done:
            self.wait(sent)
        assert want.frame is not None
        return want.frame

    # --- operations that nobody waits for yet ------------------------------------------------

    def start_send(self, rank: int, signature: bytes, step: int, blob: Blob) -> Send:
        """Begin to send to a world rank, which must be connected already."""
        self._failure.check()
        self._engine.begun += 1
        try:
            sent = self._lanes.lane(rank).send(signature, step, blob)
            if rank == self._engine.rank:
                self.wake()
        except ChannelError as error:
            self._failure.channel_failed(error)
        return self._lanes.sending(sent)

    def post(self, want: Receive) -> Receive:
        """Post a receive; its ranks must be connected already."""
        self._failure.check()
        self._engine.begun += 1
        try:
            for rank in want.ranks:
                self._lanes.lane(rank).post(want)
                if want.done:
                    break
        except ChannelError as error:
            self._failure.channel_failed(error)
        return want

    def cancel(self, want: Receive) -> bool:
        """Cancel a receive; returns False if its frame has begun to arrive."""
        if want.claimed:
            return False
        # A claimed receive matches no further frame; `PeerLane.post` removes it later.
        want.claimed = True
        return True

    def lane(self, rank: int) -> AnyLane:
        """The lane to a world rank, which must be connected already."""
        return self._lanes.lane(rank)

    # --- waiting -----------------------------------------------------------------------------

    def wait(self, *operations: Operation) -> None:
        """Wait until all operations are done."""
        if len(operations) == 1:
            only = operations[0]
            self.wait_until(lambda: only.done, operations)
        elif not all(operation.done for operation in operations):
            self.wait_until(lambda: all(one.done for one in operations), operations)

    def wait_until(self, done: Callable[[], bool], operations: Sequence[Operation] = ()) -> None:
        """Wait until a condition holds that depends on messages.

        ``operations`` are those that the condition depends on; they are checked for time-outs.
        """
        if done():
            return
        watch = _Watch(self._engine.poll_seconds)
        while not done():
            self._failure.check()
            if self._polling:
                self._follow()
            else:
                self._lead(done, watch)
            if watch.due():
                self._check_stalled(operations, watch)

    def _follow(self) -> None:
        """Wait while another thread polls for this one as well."""
        self._waiting += 1
        try:
            # At most for an interval, so that this thread checks its own operations for a time-out.
            self._changed.wait(self._engine.poll_seconds)
        finally:
            self._waiting -= 1
            self._engine.owner = threading.get_ident()

    def _lead(self, done: Callable[[], bool], watch: _Watch) -> None:
        """Poll for all threads until the condition holds, or a check for failures is due."""
        self._polling = True
        try:
            while not done():
                self._failure.check()
                # What was moved may have completed an operation of another thread.
                if self.move(self._engine.poll_seconds) and self._waiting:
                    self._changed.notify_all()
                if watch.over:
                    self._look_around()
                    break
        # However the loop ended: one of the waiting threads has to take over.
        finally:
            self._polling = False
            if self._waiting:
                self._changed.notify_all()

    def move(self, seconds: float) -> bool:
        """Wait for events, then send and receive; returns whether an operation is now done.

        Only the thread that polls may call it. ``seconds`` is the longest wait.
        """
        # Wait for one large payload alone only if no other thread waits for something else.
        large = None if self._waiting or not seconds else self._lanes.large()
        events, ended = self._wait_unlocked(seconds, large)
        try:
            return self._lanes.move(events, large, ended)
        except ChannelError as error:
            self._failure.channel_failed(error)

    def _wait_unlocked(
        self, seconds: float, large: PeerLane | None
    ) -> tuple[list[Event], ChannelEndedError | None]:
        # Without the lock while waiting, so that other threads can begin operations meanwhile.
        self._lock.release()
        try:
            return self._lanes.wait(seconds, large)
        finally:
            self._lock.acquire()
            self._engine.owner = threading.get_ident()

    def poke(self) -> None:
        """Send and receive what is possible without waiting."""
        self._failure.check()
        # The thread that polls does it anyway.
        if self._polling:
            return
        self._polling = True
        try:
            if self.move(0) and self._waiting:
                self._changed.notify_all()
        finally:
            self._polling = False

    def _look_around(self) -> None:
        """Check for failures, since nothing may have come because something is wrong."""
        try:
            self._lanes.check_hosts()
            self._lanes.adopt()
        except ChannelError as error:
            self._failure.channel_failed(error)

    def _check_stalled(self, operations: Sequence[Operation], watch: _Watch) -> None:
        """Raise if an operation has timed out; tell its peer which call this rank waits in."""
        for operation in operations:
            if operation.done:
                continue
            late = watch.seconds >= self._engine.timeout
            if isinstance(operation, Send) and late:
                self._timed_out(
                    [operation.rank], f"did not take what rank {self._engine.rank} sent"
                )
            if isinstance(operation, Receive):
                if late:
                    self._timed_out(operation.ranks, f"did not come to {operation.call}")
                self._tell_waiting(operation, watch.looks)

    def _timed_out(self, ranks: Sequence[int], what: str) -> NoReturn:
        who = f"Rank {ranks[0]}" if len(ranks) == 1 else f"One of the ranks {list(ranks)}"
        message = f"{who} {what} within {self._engine.timeout:g} s."
        self._failure.fail(RendezvousTimeoutError(message, ranks))

    def _tell_waiting(self, want: Receive, looks: int) -> None:
        """Tell a peer which call this rank waits in, so that a mismatch is found on both sides."""
        call = want.call
        # At intervals 1, 2, 4, 8, …, and only for collectives: see `ProgressEngine._check_stalled`.
        if call.kind == FrameKind.POINT or looks & (looks - 1):
            return
        waiting = Signature(FrameKind.WAITING, call.comm, self._engine.generation).pack()
        self.start_send(want.ranks[0], waiting, 0, Blob(0, [want.signature], len(want.signature)))

    # --- while no thread waits ---------------------------------------------------------------

    def in_background(self, operation: Operation) -> None:
        """Let an operation make progress although no thread waits for it."""
        if operation.done:
            return
        # Finished ones are dropped here, so that the list stays short.
        self._background = [one for one in self._background if not one.done]
        self._background.append(operation)
        if self._helper is None:
            self._helper = threading.Thread(target=self._help, name="perseid-progress", daemon=True)
            self._helper.start()
        elif self._idle:
            self._called.notify()

    def _under_way(self) -> bool:
        self._background = [one for one in self._background if not one.done]
        return bool(self._background)

    def _help(self) -> None:
        """Main function of the helper thread: poll while operations need it."""
        pause = HELP_SECONDS
        # A failure ends the helper; the next call of any thread raises it.
        with self._lock, contextlib.suppress(PerseidError):
            while not self._closed:
                if not self._under_way():
                    self._idle = True
                    self._called.wait()
                    self._idle = False
                    pause = HELP_SECONDS
                # A thread waits for most operations soon, and then needs no helper: give it time.
                self._called.wait(pause)
                if self._polling or not self._under_way():
                    pause = min(2 * pause, HELP_SECONDS_MOST)
                else:
                    watch = _Watch(self._engine.poll_seconds)
                    self._lead(lambda: self._closed or not self._under_way(), watch)

    def wake(self) -> None:
        """Wake the polling thread, since something has changed without a message."""
        if self._polling:
            self._lanes.wake()
        elif self._waiting:
            self._changed.notify_all()

    def finish(self, seconds: float) -> None:
        """Send what was begun and not waited for, for at most ``seconds``."""
        end = time.monotonic() + seconds

        def over() -> bool:
            return not self._lanes.blocked or time.monotonic() > end

        self.wait_until(over)

    def close(self) -> None:
        """End the helper thread; afterwards nothing is sent or received."""
        with self._lock:
            self._closed = True
            self.wake()
            self._called.notify_all()
        if self._helper is not None:
            self._helper.join()
        self._lanes.close()


class _Turn(AbstractContextManager[None]):
    """The time in which a thread holds the lock. It is the same object for all threads, since a
    generator for each call would show in the time of a small one."""

    def __init__(self, engine: ConnectionPool, lock: threading.Lock) -> None:
        self._engine, self._lock = engine, lock

    def __enter__(self) -> None:
        self._lock.acquire()
        engine = self._engine
        # The checks of `guarded` still apply: each turn makes its thread the owner.
        engine.owner = threading.get_ident()
        if engine.interruption is not None:
            try:
                engine.end_interrupted()
            except BaseException:
                self._lock.release()
                raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class _Watch:
    """How long a thread has been waiting, and when it has to check for failures."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._began = self._last = time.monotonic()
        self.looks = 0
        """Number of checks so far."""

    @property
    def seconds(self) -> float:
        """Seconds since the thread began to wait."""
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        """Whether an interval has passed since the last check."""
        return time.monotonic() - self._last >= self._interval

    def due(self) -> bool:
        """Whether it is time for a check, which then counts as done."""
        if not self.over:
            return False
        self._last = time.monotonic()
        self.looks += 1
        return True
