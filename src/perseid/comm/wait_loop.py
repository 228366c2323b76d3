"""The only loop in which a rank waits for other ranks, and what it checks while nothing comes.

`progress` uses it for a program with one thread, `shared_progress` for several: they differ in how
they wait for bytes and in what is done with them, not in what a silence means.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from perseid.comm.channel import Channel, ChannelEndedError
from perseid.comm.connection_pool import ConnectionPool
from perseid.comm.frames import FrameKind, Signature
from perseid.errors import RendezvousTimeoutError


class WaitLoop:
    """Waits for other ranks.

    Parameters
    ----------
    engine
        The connections of this process.
    """

    __slots__ = ("_engine", "_failure")

    def __init__(self, engine: ConnectionPool) -> None:
        self._engine, self._failure = engine, engine.failure

    def until(
        self,
        done: Callable[[], bool],
        advance: Callable[[], bool],
        stalled: Callable[[int], None],
    ) -> None:
        """Wait until a condition holds that depends on other ranks.

        Parameters
        ----------
        done
            The condition. It uses what has come, and may raise what that shows.
        advance
            Waits for bytes, at most for a polling interval. False: nothing came, so that it is time
            to check for failures.
        stalled
            Raises if something is wrong; called with the number of checks so far, this one
            included.
        """
        checks = 0
        while not done():
            if not advance():
                checks += 1
                self._failure.check()
                stalled(checks)

    def check_host(self, channel: Channel) -> None:
        """Raise if the peer's host no longer answers.

        Raises
        ------
        ChannelEndedError
            It has not answered for too long.
        """
        silent = channel.unanswered_for()
        if silent > self._engine.losses.link:
            cause = OSError(f"its host has not answered for {silent:.0f} s")
            raise ChannelEndedError(channel.rank, cause)

    def check_time(self, seconds: float, ranks: Sequence[int], what: str) -> None:
        """Raise if an operation with one of these ranks has taken longer than a call may."""
        if seconds >= self._engine.timeout:
            self._timed_out(ranks, what)

    def _timed_out(self, ranks: Sequence[int], what: str) -> NoReturn:
        who = f"Rank {ranks[0]}" if len(ranks) == 1 else f"One of the ranks {list(ranks)}"
        message = f"{who} {what} within {self._engine.timeout:g} s."
        self._failure.fail(RendezvousTimeoutError(message, ranks))

    def not_taken(self) -> str:
        """Build the error for a peer that does not take a message."""
        return f"did not take what rank {self._engine.rank} sent"

    def waiting(self, signature: bytes, checks: int) -> bytes | None:
        """The signature of a frame that tells a peer which call this rank waits in; None if it is
        not time for it.

        Its body is the signature of that call. The peer compares it with its own calls, and both
        find out if they disagree.
        """
        call = Signature.unpack(signature)
        # At checks 1, 2, 4, 8, …: soon enough to find a mismatch, rarely enough not to flood a peer
        # that only computes. A plain receive cannot mismatch: its sender may still come.
        if call.kind == FrameKind.POINT or checks & (checks - 1):
            return None
        return Signature(FrameKind.WAITING, call.comm, self._engine.generation).pack()


class Watch:
    """How long a thread has been waiting, and when it has to check for failures."""

    __slots__ = ("_began", "_interval", "_last")

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._began = self._last = time.monotonic()

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
        return True
