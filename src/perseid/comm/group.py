"""A set of ranks that communicate among themselves, and the numbering of their calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from perseid.comm.call import Array, Call
from perseid.comm.channel import Channel
from perseid.comm.engine import HISTORY, Engine
from perseid.comm.frames import SIGNATURE, Kind, Signature
from perseid.errors import BadInputError


class Group:
    """The ranks of one communicator.

    Parameters
    ----------
    engine
        This process' connections.
    comm
        The communicator's id, the same on all its ranks.
    ranks
        World ranks of the group, by rank within it.
    """

    def __init__(self, engine: Engine, comm: int, ranks: Sequence[int]) -> None:
        self.engine, self.comm, self.ranks = engine, comm, list(ranks)
        self.rank = self.ranks.index(engine.rank)
        self.size = len(self.ranks)
        self.channels: list[Channel | None] = [engine.channels[r] for r in self.ranks]
        self._points: dict[int, bytes] = {}
        self._sequence = 0
        self._history = engine.history(comm)
        self._scratch = np.empty(0, np.uint8)

    def point(self, dtype: int) -> bytes:
        """The signature of messages of one type from rank to rank."""
        found = self._points.get(dtype)
        if found is None:
            generation = self.engine.generation
            found = Signature(Kind.POINT, self.comm, generation, dtype=dtype).pack()
            self._points[dtype] = found
        return found

    def call(
        self, kind: int, root: int = -1, reduction: int = 0, dtype: int = 0, count: int = 0
    ) -> Call:
        """Begin the next collective call."""
        engine = self.engine
        engine.begun += 1
        self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF
        signature = SIGNATURE.pack(
            b"Pc", kind, reduction, dtype, 1, 0, self.comm, engine.generation, sequence, root, count
        )
        self._history[sequence % HISTORY] = signature
        return Call(self, signature)

    def scratch(self, count: int, dtype: np.dtype[Any]) -> Array:
        """Memory for the time of one call, kept for the next: fresh pages cost more than sums."""
        nbytes = count * dtype.itemsize
        if self._scratch.size < nbytes:
            self._scratch = np.empty(nbytes, np.uint8)
        return self._scratch[:nbytes].view(dtype)

    def connect(self, peers: Iterable[int]) -> None:
        """Have channels to these ranks of the group."""
        peers = list(peers)
        self.engine.connect([self.ranks[peer] for peer in peers])
        for peer in peers:
            self.channels[peer] = self.engine.channels[self.ranks[peer]]

    def connect_one(self, peer: int) -> Channel:
        """The channel to one rank, made now if need be.

        Raises
        ------
        BadInputError
            It is this rank itself, or not in the group.
        """
        if peer == self.rank or not 0 <= peer < self.size:
            raise BadInputError(f"rank {self.rank} of {self.size} cannot send to rank {peer}")
        self.connect([peer])
        channel = self.channels[peer]
        assert channel is not None
        return channel
