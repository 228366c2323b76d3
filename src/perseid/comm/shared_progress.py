"""Sends and receives for several threads of one rank, and for operations that nobody waits for yet.

One lock guards everything. One of the waiting threads polls all connections without holding the
lock, and sends and receives for all of them. While operations are in progress and no thread waits,
a helper thread does this.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from perseid.comm.call_guard import Turn
from perseid.comm.channel import Channel, ChannelEndedError, ChannelError, PendingReceive
from perseid.comm.connection_pool import ConnectionPool
from perseid.comm.helper_thread import HelperThread, Operation
from perseid.comm.lane import AnyLane, PeerLane, Receive, Send
from perseid.comm.lane_poller import Event, LanePoller
from perseid.comm.objects import Blob, Buffer
from perseid.comm.socket_channel import JOINED_BYTES
from perseid.comm.wait_loop import WaitLoop, Watch


class SharedProgress:
    """`progress.ProgressEngine` for several threads.

    Methods are called within a ``turn``, unless they take the lock themselves (``turn``, ``tell``,
    ``close``), and may raise the error that ended the communicator.
    """

    def __init__(self, engine: ConnectionPool) -> None:
        self._engine, self._failure, self._loop = engine, engine.failure, WaitLoop(engine)
        self._begin_without_threads()
        self._lanes = LanePoller(engine)

    def _begin_without_threads(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        """Notified when an operation may be done, or when another thread has to start polling."""
        self._polling = False
        """Whether a thread is polling the connections."""
        self._waiting = 0
        """Number of threads that wait while another one polls."""
        self._helper = HelperThread(
            self._lock,
            lambda: self._polling,
            lambda done: self._lead(done, Watch(self._engine.poll_seconds)),
        )
        self._turn = Turn(self._engine, self._lock)

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
                self._receive_direct(lane, want, into)
        except ChannelError as error:
            self._failure.channel_failed(error)
        if not want.done:
            self.wait(want if want.posted else self.post(want))

    def _comes_next(self, lane: PeerLane) -> bool:
        """Wait at most for a polling interval until a peer sends its next frame.

        Returns False if none came, or if another thread or operation also needs a connection.
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

    def _receive_direct(self, lane: PeerLane, want: Receive, into: memoryview) -> None:
        """Read the frame whose first bytes have come directly into its place."""
        self._polling = True
        self._lock.release()
        try:
            complete = lane.channel.receive_direct(want.signature, want.step, into)
        finally:
            self._lock.acquire()
            self._engine.owner = threading.get_ident()
            self._polling = False
            if self._waiting:
                self._changed.notify_all()
        lane.begun(want, complete)
        if lane.queue.control_frames:
            self._engine.handle_control_frames(lane.channel)

    def receive(
        self, channel: Channel, signature: bytes, step: int, any_step: bool = False
    ) -> Blob:
        """Receive a payload of any length into fresh memory."""
        want = self.post(Receive((channel.rank,), signature, step, None, any_step))
        self.wait(want)
        return want.blob

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
        sent = self.start_send(out.rank, signature, step, blob)
        into = pending.into
        if sent.done and into is not None and not pending.any_step:
            self.receive_into(source, pending.signature, pending.step, into)
            return Blob(0, [into], len(into))
        want = self.post(
            Receive((source.rank,), pending.signature, pending.step, into, pending.any_step)
        )
        self.wait(want)
        if not sent.done:
            self.wait(sent)
        return want.blob

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
        watch = Watch(self._engine.poll_seconds)

        def advance() -> bool:
            self._failure.check()
            if self._polling:
                self._follow()
            else:
                self._lead(done, watch)
            return not watch.due()

        self._loop.until(
            done, advance, lambda checks: self._check_stalled(operations, watch.seconds, checks)
        )

    def _follow(self) -> None:
        """Wait while another thread polls for this one as well."""
        self._waiting += 1
        try:
            # At most for an interval, so that this thread checks its own operations for a time-out.
            self._changed.wait(self._engine.poll_seconds)
        finally:
            self._waiting -= 1
            self._engine.owner = threading.get_ident()

    def _lead(self, done: Callable[[], bool], watch: Watch) -> None:
        """Poll for all threads until the condition holds, or a check for failures is due."""

        def advance() -> bool:
            self._failure.check()
            # What was moved may have completed an operation of another thread.
            if self.move(self._engine.poll_seconds) and self._waiting:
                self._changed.notify_all()
            return True

        self._polling = True
        try:
            self._loop.until(lambda: done() or watch.over, advance, lambda _: None)
            if watch.over:
                self._look_around()
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
            for lane in self._lanes.needed():
                self._loop.check_host(lane.channel)
            self._lanes.adopt()
        except ChannelError as error:
            self._failure.channel_failed(error)

    def _check_stalled(self, operations: Sequence[Operation], seconds: float, checks: int) -> None:
        """Raise if an operation has timed out; tell its peer which call this rank waits in."""
        loop = self._loop
        for operation in operations:
            if operation.done:
                continue
            if isinstance(operation, Send):
                loop.check_time(seconds, [operation.rank], loop.not_taken())
            if isinstance(operation, Receive):
                loop.check_time(seconds, operation.ranks, f"did not come to {operation.call}")
                self._tell_waiting(operation, checks)

    def _tell_waiting(self, want: Receive, checks: int) -> None:
        call = want.signature
        if (waiting := self._loop.waiting(call, checks)) is not None:
            self.start_send(want.ranks[0], waiting, 0, Blob(0, [call], len(call)))

    # --- while no thread waits ---------------------------------------------------------------

    def in_background(self, operation: Operation) -> None:
        """Let an operation make progress although no thread waits for it."""
        self._helper.care_for(operation)

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
            self.wake()
            self._helper.close()
        self._helper.join()
        self._lanes.close()
