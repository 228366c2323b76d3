"""A set of ranks that communicate among themselves, and its collective calls.

The algorithms of ``collectives`` use a `Call`: ranks of the group, steps and bytes, never a socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from perseid.comm.channel import Channel, PendingReceive
from perseid.comm.connection_pool import HISTORY, ConnectionPool
from perseid.comm.frames import SIGNATURE, FrameKind, Signature
from perseid.comm.objects import Blob, Buffer
from perseid.comm.ops import Array
from perseid.comm.progress import Progress, ProgressEngine
from perseid.comm.socket_channel import JOINED_BYTES
from perseid.errors import BadInputError


class Group:
    """The ranks of one communicator.

    Parameters
    ----------
    engine
        The connections of this process.
    comm
        The communicator's id, the same on all its ranks.
    ranks
        World ranks, by rank within the group.
    progress
        How its calls send and receive. None: as a program with one thread does.
    """

    def __init__(
        self,
        engine: ConnectionPool,
        comm: int,
        ranks: Sequence[int],
        progress: Progress | None = None,
    ) -> None:
        self.engine, self.comm, self.ranks = engine, comm, list(ranks)
        self.rank = self.ranks.index(engine.rank)
        self.size = len(self.ranks)
        self.channels: list[Channel | None] = [engine.channels[r] for r in self.ranks]
        self.reached: set[object] = set()
        """Plans of algorithms, all peers of which are connected."""
        self.progress: Progress = progress or ProgressEngine(engine)
        self.points: dict[int, bytes] = {}
        """Signatures that `point` has made, by data type."""
        self._sequence = 0
        self._history = engine.history(comm)
        self._scratch = np.empty(0, np.uint8)

    def point(self, dtype: int) -> bytes:
        """The signature of point-to-point messages of one data type."""
        if dtype not in self.points:
            generation = self.engine.generation
            made = Signature(FrameKind.POINT, self.comm, generation, dtype=dtype).pack()
            self.points[dtype] = made
        return self.points[dtype]

    def call(
        self, kind: int, root: int = -1, reduction: int = 0, dtype: int = 0, count: int = 0
    ) -> Call:
        """Begin the next collective call."""
        # Packed here rather than by `Signature.pack`: an intermediate object would show in the time
        # of a small collective.
        engine = self.engine
        engine.begun += 1
        # Four bytes in the signature, so the number wraps around.
        self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF
        signature = SIGNATURE.pack(
            b"Pc", kind, reduction, dtype, 1, 0, self.comm, engine.generation, sequence, root, count
        )
        self._history[sequence % HISTORY] = signature
        return Call(self, signature)

    def scratch(self, count: int, dtype: np.dtype[Any]) -> Array:
        """Memory for one call, kept for the next one: new pages cost more than adding does."""
        nbytes = count * dtype.itemsize
        if self._scratch.size < nbytes:
            self._scratch = np.empty(nbytes, np.uint8)
        return self._scratch[:nbytes].view(dtype)

    def connect(self, peers: Iterable[int]) -> None:
        """Make sure that there are channels to these ranks of the group."""
        peers = list(peers)
        self.engine.connect([self.ranks[peer] for peer in peers])
        for peer in peers:
            self.channels[peer] = self.engine.channels[self.ranks[peer]]

    def connect_one(self, peer: int) -> Channel:
        """The channel to one rank; it is made if there is none yet.

        Raises
        ------
        BadInputError
            The peer is this rank itself, or not a rank of the group.
        """
        if peer == self.rank or not 0 <= peer < self.size:
            raise BadInputError(f"rank {self.rank} of {self.size} cannot send to rank {peer}")
        self.connect([peer])
        channel = self.channels[peer]
        assert channel is not None
        return channel


class Call:
    """A collective call of one group.

    ``rank`` and all peers are numbers within the group. ``step`` distinguishes the frames of one
    pair of ranks; all frames of the call have the same signature.
    """

    __slots__ = ("_progress", "channels", "group", "rank", "signature", "size")

    def __init__(self, group: Group, signature: bytes) -> None:
        self.group = group
        self.rank = group.rank
        self.size = group.size
        self.signature = signature
        self.channels: list[Any] = group.channels
        """Channels by rank of the group; None if ``need`` has not made one yet."""
        self._progress = group.progress

    def need(self, peers: Iterable[int]) -> None:
        """Connect to these peers in parallel, before the first byte is sent."""
        missing = [p for p in peers if self.channels[p] is None and p != self.rank]
        if missing:
            self.group.connect(missing)

    def reach(self, plan: object, peers: Iterable[int]) -> None:
        """`need` for all peers of a plan that many calls share: once is enough."""
        self.need(peers)
        self.group.reached.add(plan)

    # Each method below finds the channel itself: a further call would slow down small messages.

    def send(self, peer: int, data: Buffer, step: int = 0) -> None:
        """Send bytes; the receiver knows how many."""
        channel = self.channels[peer] or self.group.connect_one(peer)
        self._progress.send(channel, self.signature, step, data)

    def receive_into(self, peer: int, into: memoryview, step: int = 0) -> None:
        """Receive exactly as many bytes as ``into`` holds."""
        channel = self.channels[peer] or self.group.connect_one(peer)
        self._progress.receive_into(channel, self.signature, step, into)

    def send_blob(self, peer: int, blob: Blob, step: int = 0) -> None:
        """Send a payload of any length."""
        channel = self.channels[peer] or self.group.connect_one(peer)
        self._progress.send_blob(channel, self.signature, step, blob)

    def receive_blob(self, peer: int, step: int = 0) -> Blob:
        """Receive a payload of any length."""
        channel = self.channels[peer] or self.group.connect_one(peer)
        return self._progress.receive(channel, self.signature, step)

    def exchange(
        self,
        peer: int,
        data: Buffer,
        source: int,
        into: memoryview,
        step: int = 0,
        source_step: int | None = None,
    ) -> None:
        """Send to one peer and receive from another (or the same) at once.

        ``source_step`` is the step of the message to receive, if it is not ``step``.
        """
        out = self.channels[peer] or self.group.connect_one(peer)
        back = self.channels[source] or self.group.connect_one(source)
        size = len(data)
        source_step = step if source_step is None else source_step
        # A small message fits into the socket's buffer, so sending first cannot block both sides.
        if size <= JOINED_BYTES:
            self._progress.send(out, self.signature, step, data)
            self._progress.receive_into(back, self.signature, source_step, into)
            return
        pending = PendingReceive(self.signature, source_step, into)
        self._progress.exchange(out, self.signature, step, Blob(0, [data], size), back, pending)

    def exchange_blob(self, peer: int, blob: Blob, source: int, step: int = 0) -> Blob:
        """`exchange` for payloads of any length."""
        out = self.channels[peer] or self.group.connect_one(peer)
        back = self.channels[source] or self.group.connect_one(source)
        if blob.nbytes <= JOINED_BYTES:
            self._progress.send_blob(out, self.signature, step, blob)
            return self._progress.receive(back, self.signature, step)
        pending = PendingReceive(self.signature, step, None)
        return self._progress.exchange(out, self.signature, step, blob, back, pending)
