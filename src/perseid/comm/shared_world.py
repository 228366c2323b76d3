"""A communicator for programs that call it from several threads, or in the background.

The interfaces of other libraries (mpi4py, torch.distributed) build on it: messages of any length
that match by source and tag, and collectives that run one after another in a thread of their group.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Self, TypeVar

from perseid.comm.background import Background
from perseid.comm.communicator import Communicator
from perseid.comm.frames import Frame
from perseid.comm.group import Group
from perseid.comm.helper_thread import Operation
from perseid.comm.lane import (
    Receive,
    ReceiveAnswer,
    ReceiveMessage,
    Send,
    answer_signature,
    message_signature,
)
from perseid.comm.objects import Blob
from perseid.comm.shared_progress import SharedProgress
from perseid.errors import PerseidError

T = TypeVar("T")
BACKGROUND = 1 << 30
"""Bit that is added to a group's id for its background collectives, so that their frames are
independent of those of other calls."""
CLOSE_SECONDS = 5.0
"""Seconds that closing waits for messages that were begun and not waited for."""


class Message(NamedTuple):
    """A message that has arrived and that nobody has received yet."""

    source: int
    """Sender's rank in the group."""
    tag: int
    nbytes: int
    """Length in bytes."""


class SharedWorld:
    """One registration of a rank that several threads use at once.

    Parameters
    ----------
    comm
        A communicator from ``Communicator.join`` on which no call has been made yet; it belongs to
        this object from now on.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.engine = comm.group.engine
        self.progress = SharedProgress(self.engine)
        self._tokens = itertools.count(1)
        self._finished = False
        self._groups: list[SharedGroup] = []
        self.world = self.group(0, range(comm.world_size))
        _WORLDS.add(self)

    @classmethod
    def join(cls, **arguments: Any) -> Self:
        """Join a job. The arguments are those of ``Communicator.join``; missing ones are taken from
        the environment."""
        return cls(Communicator.from_environment(**arguments))

    @property
    def rank(self) -> int:
        """Rank of this process in the world."""
        return self.engine.rank

    @property
    def error(self) -> PerseidError | None:
        """The error that ended the communicator; None while it works."""
        return self.engine.failure.error

    def turn(self) -> AbstractContextManager[None]:
        """A context in which no other thread sends or receives, except while this one waits."""
        return self.progress.turn()

    def group(self, ident: int, ranks: Sequence[int]) -> SharedGroup:
        """Make a group of some world ranks; no message is needed for this.

        All its ranks give the same ``ident``, which no other group may have.
        """
        group = SharedGroup(self, ident, ranks)
        self._groups.append(group)
        return group

    def renew_in_child(self) -> None:
        """Start again in a forked child, which has none of the threads that may hold a lock.

        Every call raises ``ClosedError``, since the membership stays with the parent.
        """
        self.progress.renew_in_child()
        for group in self._groups:
            group.renew_locks()

    def token(self) -> int:
        """A number that identifies a message of this rank."""
        return next(self._tokens)

    def finish(self, error: BaseException | None = None) -> None:
        """Complete what was begun, unless there is an error; no call may follow."""
        if error is not None or self._finished:
            return
        self._finished = True
        # Collectives first: they send messages, which are flushed afterwards.
        for group in self._groups:
            group.stop()
        with contextlib.suppress(PerseidError), self.turn():
            self.progress.finish(CLOSE_SECONDS)

    def close(self, error: BaseException | None = None) -> None:
        """Complete what was begun, then leave; with an error, the others are told of it."""
        self.finish(error)
        self.progress.close()
        # Closing is a call like any other, so this thread must be the owner.
        self.engine.owner = threading.get_ident()
        self._comm.close(error)


class SharedGroup:
    """Ranks that communicate among themselves, from any thread; see `SharedWorld.group`.

    Attributes
    ----------
    calls
        A communicator for the collectives; call it within a ``turn``.
    """

    def __init__(self, world: SharedWorld, ident: int, ranks: Sequence[int]) -> None:
        self._world, self.ident, self._ranks = world, ident, list(ranks)
        self._progress = world.progress
        engine = world.engine
        self._group = Group(engine, ident, self._ranks, self._progress)
        self.calls = Communicator(self._group, owner=False)
        self.rank, self.size = self._group.rank, self._group.size
        self._signature = message_signature(ident, engine.generation)
        self._generation = engine.generation
        ident |= BACKGROUND
        self._in_order = Communicator(Group(engine, ident, ranks, self._progress), owner=False)
        self.renew_locks()

    def renew_locks(self) -> None:
        """Begin with new locks, no thread, and no collective started."""
        # Collectives of a group must start in the same order on all ranks: one at a time.
        self._order = threading.Lock()
        self._counting = threading.Lock()
        self._pending = 0
        """Number of background collectives that have been started and have not ended."""
        self._jobs: queue.SimpleQueue[Background[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def world(self) -> SharedWorld:
        """The world that the group belongs to."""
        return self._world

    @property
    def ranks(self) -> Sequence[int]:
        """World ranks, by rank within the group."""
        return self._ranks

    def turn(self) -> AbstractContextManager[None]:
        return self._progress.turn()

    def split(self, color: int | str | None, key: int) -> SharedGroup | None:
        """Make the group of the ranks that gave the same color; see ``Communicator.split``."""
        with self.turn():
            found = self.calls.split(color, key)
        if found is None:
            return None
        return self._world.group(found.group.comm, found.group.ranks)

    # --- messages ----------------------------------------------------------------------------

    def send(self, blob: Blob, dest: int, tag: int = 0, answered: bool = False) -> None:
        """Send a message, and return when `start_send` would report it as done."""
        with self.turn():
            self._progress.wait(self._send(blob, dest, tag, answered))

    def start_send(self, blob: Blob, dest: int, tag: int = 0, answered: bool = False) -> Send:
        """Begin to send a message.

        Parameters
        ----------
        answered
            Whether the send is done only when the receiver has asked for the message.
        """
        with self.turn():
            sent = self._send(blob, dest, tag, answered)
            self._progress.in_background(sent)
        return sent

    def _send(self, blob: Blob, dest: int, tag: int, answered: bool) -> Send:
        self._connect([dest])
        rank, signature, answer = self._ranks[dest], self._signature, None
        if answered:
            signature = message_signature(self.ident, self._generation, self._world.token())
            wanted = answer_signature(signature)
            assert wanted is not None
            # Posted before the message is sent, so that the answer cannot come too early.
            answer = self._progress.post(ReceiveAnswer((rank,), wanted, 0))
        sent = self._progress.start_send(rank, signature, tag, blob)
        sent.answer = answer
        return sent

    def receive(
        self, source: int | None, tag: int | None, room: memoryview | None = None
    ) -> ReceiveMessage:
        """Receive a message, and wait until it has arrived."""
        with self.turn():
            want = self._post(source, tag, room)
            self._progress.wait(want)
        return want

    def post(
        self, source: int | None, tag: int | None, room: memoryview | None = None
    ) -> ReceiveMessage:
        """Begin to receive a message; None stands for any source or any tag."""
        with self.turn():
            want = self._post(source, tag, room)
            self._progress.in_background(want)
        return want

    def _post(self, source: int | None, tag: int | None, room: memoryview | None) -> ReceiveMessage:
        sources = range(self.size) if source is None else [source]
        self._connect(sources)
        ranks = [self._ranks[rank] for rank in sources]
        want = ReceiveMessage(ranks, self._signature, tag, room)
        self._progress.post(want)
        return want

    def cancel(self, want: ReceiveMessage) -> bool:
        """Cancel a receive; returns False if its message has begun to arrive."""
        with self.turn():
            return self._progress.cancel(want)

    def source_of(self, want: Receive) -> int:
        """The rank in the group of the sender of a message."""
        return self._ranks.index(want.source)

    def probe(self, source: int | None, tag: int | None) -> Message | None:
        """The first matching message that has arrived, or None; the message is not received."""
        with self.turn():
            sources = range(self.size) if source is None else [source]
            self._connect(sources)
            self._progress.poke()
            return self._arrived(sources, tag)

    def wait_for_message(self, source: int | None, tag: int | None) -> Message:
        """`probe`, but wait until there is a matching message."""
        with self.turn():
            sources = range(self.size) if source is None else [source]
            self._connect(sources)
            self._progress.wait_until(lambda: self._arrived(sources, tag) is not None)
            found = self._arrived(sources, tag)
            assert found is not None
            return found

    def _arrived(self, sources: Sequence[int], tag: int | None) -> Message | None:
        # Never posted: only its rule for matching is used.
        wanted = ReceiveMessage((), self._signature, tag)
        for source in sources:
            for frame in self._progress.lane(self._ranks[source]).queue.frames:
                if wanted.matches(frame, source):
                    return Message(source, frame.step, len(frame.body))
        return None

    def _connect(self, peers: Sequence[int]) -> None:
        missing = [p for p in peers if p != self.rank and self._group.channels[p] is None]
        if missing:
            self._group.connect(missing)

    # --- collectives in the background -------------------------------------------------------

    def start(self, call: Callable[[Communicator], T]) -> Background[T]:
        """Make a collective call in the thread of this group, after those started before."""
        job = Background(call)
        with self._counting:
            self._pending += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="perseid-group", daemon=True)
            self._thread.start()
        self._jobs.put(job)
        return job

    def now(self, call: Callable[[Communicator], T]) -> Background[T]:
        """`start` a call and wait for its end.

        If no earlier call is in progress, it is made in this thread, which is faster.
        """
        with self._counting:
            idle = self._pending == 0
        if not idle:
            job = self.start(call)
            job.join()
            return job
        job = Background(call)
        self._run(job)
        return job

    def _run(self, job: Background[Any]) -> None:
        """Make the call of a job; the jobs of a group run one after another."""
        try:
            with self._order, self.turn():
                job.run(self._in_order)
        # `turn` raises if the communicator has failed already.
        except PerseidError as error:
            job.error = error
        job.end()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._run(job)
            with self._counting:
                self._pending -= 1
            # A thread may wait for this job, which no message completes.
            self._progress.tell()

    def stop(self) -> None:
        """End the thread once it has made the calls that were started."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(CLOSE_SECONDS)

    # --- waiting -----------------------------------------------------------------------------

    def wait(self, *operations: Operation) -> None:
        """Wait until all operations are done."""
        with self.turn():
            self._progress.wait(*operations)

    def wait_any(self, operations: Sequence[Operation]) -> None:
        """Wait until one of the operations is done."""
        with self.turn():
            self._progress.wait_until(lambda: any(one.done for one in operations), operations)

    def test(self, operation: Operation) -> bool:
        """Whether an operation is done by now; makes progress without waiting."""
        if not operation.done:
            with self.turn():
                self._progress.poke()
        return operation.done


_WORLDS: weakref.WeakSet[SharedWorld] = weakref.WeakSet()
"""All worlds of this process, for `_renew_in_child`."""


def _renew_in_child() -> None:
    for world in list(_WORLDS):
        world.renew_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_in_child)


def payload(frame: Frame, room: memoryview | None) -> int:
    """Copy a message into ``room``, as far as it fits; returns the message's length in bytes."""
    size = len(frame.body)
    if room is not None and size:
        fits = min(size, len(room))
        # A message that fits was received into the room already.
        if not (size <= len(room) and frame.body.obj is room.obj):
            room[:fits] = frame.body[:fits]
    return size
