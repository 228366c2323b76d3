"""A communicator for programs whose calls come from several threads, or go on in the background.

Faces of other libraries (mpi4py, torch.distributed) are made of it: messages of any length that
match by source and tag, and collectives that run one after the other in a thread of their group.
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
from perseid.comm.lane import (
    Receive,
    ReceiveAnswer,
    ReceiveMessage,
    Send,
    answer_signature,
    message_signature,
)
from perseid.comm.objects import Blob
from perseid.comm.shared_progress import Operation, SharedProgress
from perseid.errors import PerseidError

T = TypeVar("T")
BACKGROUND = 1 << 30
"""Added to a group's id: the group of its collectives in the background."""
CLOSE_SECONDS = 5.0
"""How long closing waits for messages that were begun and not waited for."""


class Message(NamedTuple):
    """A message that came and that nobody has received yet."""

    source: int
    """Rank in the group."""
    tag: int
    nbytes: int


class SharedWorld:
    """One registration of a rank that several threads use at once.

    Parameters
    ----------
    comm
        A communicator that ``Communicator.join`` made and that has made no call yet; it belongs to
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
        """Join a job; the arguments are those of ``Communicator.join``, and what it finds in the
        environment counts where they are missing."""
        return cls(Communicator.from_environment(**arguments))

    @property
    def rank(self) -> int:
        """Of this process in the world."""
        return self.engine.rank

    @property
    def error(self) -> PerseidError | None:
        """What ended the communicator, if anything did."""
        return self.engine.failure.error

    def turn(self) -> AbstractContextManager[None]:
        """While it lasts no other thread sends or receives, unless this one waits."""
        return self.progress.turn()

    def group(self, ident: int, ranks: Sequence[int]) -> SharedGroup:
        """The group of some ranks of the world, under an id that they all give and no other group
        has; no message is needed for it."""
        group = SharedGroup(self, ident, ranks)
        self._groups.append(group)
        return group

    def renew_in_child(self) -> None:
        """After a fork, in the child: no thread holds a lock or works any more, and every call
        raises ``ClosedError``, for the membership stays the parent's."""
        self.progress.renew_in_child()
        for group in self._groups:
            group.renew_locks()

    def token(self) -> int:
        """A number that no other message of this rank has."""
        return next(self._tokens)

    def finish(self, error: BaseException | None = None) -> None:
        """Do what was begun, unless there is an error; no call may follow."""
        if error is not None or self._finished:
            return
        self._finished = True
        for group in self._groups:
            group.stop()
        with contextlib.suppress(PerseidError), self.turn():
            self.progress.finish(CLOSE_SECONDS)

    def close(self, error: BaseException | None = None) -> None:
        """Leave, after what was begun is done; with an error the others are told of it."""
        self.finish(error)
        self.progress.close()
        self.engine.owner = threading.get_ident()
        self._comm.close(error)


class SharedGroup:
    """Ranks that communicate among themselves, from any thread; made by `SharedWorld.group`.

    Attributes
    ----------
    calls
        The collectives, to be called within a ``turn``.
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
        """Begin without a thread and with nothing started."""
        self._order = threading.Lock()
        self._counting = threading.Lock()
        self._pending = 0
        """Jobs that were started and have not come to an end."""
        self._jobs: queue.SimpleQueue[Background[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def world(self) -> SharedWorld:
        """What it is part of."""
        return self._world

    @property
    def ranks(self) -> Sequence[int]:
        """World ranks, by rank within the group."""
        return self._ranks

    def turn(self) -> AbstractContextManager[None]:
        return self._progress.turn()

    def split(self, color: int | str | None, key: int) -> SharedGroup | None:
        """As ``Communicator.split``: the group of the ranks that gave the same color."""
        with self.turn():
            found = self.calls.split(color, key)
        if found is None:
            return None
        return self._world.group(found.group.comm, found.group.ranks)

    # --- messages ----------------------------------------------------------------------------

    def send(self, blob: Blob, dest: int, tag: int = 0, answered: bool = False) -> None:
        """Send a message and wait for it: the end of `start_send` is the end of this."""
        with self.turn():
            self._progress.wait(self._send(blob, dest, tag, answered))

    def start_send(self, blob: Blob, dest: int, tag: int = 0, answered: bool = False) -> Send:
        """Begin to send a message.

        Parameters
        ----------
        answered
            It is done only when the receiver has asked for it.
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
            answer = self._progress.post(ReceiveAnswer((rank,), wanted, 0))
        sent = self._progress.start_send(rank, signature, tag, blob)
        sent.answer = answer
        return sent

    def receive(
        self, source: int | None, tag: int | None, room: memoryview | None = None
    ) -> ReceiveMessage:
        """Want a message and wait for it."""
        with self.turn():
            want = self._post(source, tag, room)
            self._progress.wait(want)
        return want

    def post(
        self, source: int | None, tag: int | None, room: memoryview | None = None
    ) -> ReceiveMessage:
        """Want a message, of any source or tag where None is given."""
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
        """No longer want a message; False if it has begun to come."""
        with self.turn():
            return self._progress.cancel(want)

    def source_of(self, want: Receive) -> int:
        """The rank in the group that a message came from."""
        return self._ranks.index(want.source)

    def probe(self, source: int | None, tag: int | None) -> Message | None:
        """The first message that came and fits, if there is one; it is not received."""
        with self.turn():
            sources = range(self.size) if source is None else [source]
            self._connect(sources)
            self._progress.poke()
            return self._arrived(sources, tag)

    def wait_for_message(self, source: int | None, tag: int | None) -> Message:
        """`probe`, but wait until there is one."""
        with self.turn():
            sources = range(self.size) if source is None else [source]
            self._connect(sources)
            self._progress.wait_until(lambda: self._arrived(sources, tag) is not None)
            found = self._arrived(sources, tag)
            assert found is not None
            return found

    def _arrived(self, sources: Sequence[int], tag: int | None) -> Message | None:
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
        """Make a call of a communicator in the thread of this group, after those before it."""
        job = Background(call)
        with self._counting:
            self._pending += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="perseid-group", daemon=True)
            self._thread.start()
        self._jobs.put(job)
        return job

    def now(self, call: Callable[[Communicator], T]) -> Background[T]:
        """The same, but it has come to an end when this returns: made here, if nothing that was
        started before is under way."""
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
        """Make the call of a job; jobs of a group come one after the other."""
        try:
            with self._order, self.turn():
                job.run(self._in_order)
        except PerseidError as error:
            job.error = error
        job.end()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._run(job)
            with self._counting:
                self._pending -= 1
            self._progress.tell()

    def stop(self) -> None:
        """End the thread, after what it has to do."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(CLOSE_SECONDS)

    # --- waiting -----------------------------------------------------------------------------

    def wait(self, *operations: Operation) -> None:
        """Return when all of them are done."""
        with self.turn():
            self._progress.wait(*operations)

    def wait_any(self, operations: Sequence[Operation]) -> None:
        """Return when one of them is done."""
        with self.turn():
            self._progress.wait_until(lambda: any(one.done for one in operations), operations)

    def test(self, operation: Operation) -> bool:
        """Whether it is done by now."""
        if not operation.done:
            with self.turn():
                self._progress.poke()
        return operation.done


_WORLDS: weakref.WeakSet[SharedWorld] = weakref.WeakSet()
"""Those of this process, for a child that it may fork."""


def _renew_in_child() -> None:
    for world in list(_WORLDS):
        world.renew_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_in_child)


def payload(frame: Frame, room: memoryview | None) -> int:
    """Have the bytes of a message in the room, as far as they fit; how many it has."""
    size = len(frame.body)
    if room is not None and size:
        fits = min(size, len(room))
        if not (size <= len(room) and frame.body.obj is room.obj):
            room[:fits] = frame.body[:fits]
    return size
