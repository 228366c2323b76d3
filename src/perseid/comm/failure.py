"""How a communicator ends: who finds the failure, who is told, and what every later call raises.

The communicating thread finds failures itself. The registration's thread brings news of failures of
other ranks and shuts the connections down, so that a blocked call returns at once and raises.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import NoReturn

from perseid.comm import abort
from perseid.comm.channel import (
    Channel,
    ChannelEndedError,
    ChannelError,
    UnexpectedFrameError,
)
from perseid.comm.frames import FrameError, FrameKind, Signature, header
from perseid.errors import (
    ClosedError,
    MismatchedCollectiveError,
    PeerLostError,
    PerseidError,
    RendezvousError,
    ReplacedError,
)
from perseid.rendezvous import Client, LossTimeouts, Notice

BLAME_SHARE = 0.2
"""Share of `LossTimeouts.death` that a rank waits, after a connection ended, for the rendezvous to
say which rank ended first."""


class Failure:
    """Keeps the first error of a communicator, and tells the other ranks about it.

    Parameters
    ----------
    client
        The registration, or None if there is no rendezvous.
    channels
        Channels by rank: the connection pool's own list.
    """

    def __init__(
        self,
        client: Client | None,
        rank: int,
        generation: int,
        channels: Sequence[Channel | None],
        losses: LossTimeouts,
    ) -> None:
        self._client, self._rank, self._generation = client, rank, generation
        self._channels, self._losses = channels, losses
        self.error: PerseidError | None = None
        """Error that ended the communicator; every later call raises it. None while it works."""
        self._by_notice = False
        """Whether the error is only the news from the rendezvous that a rank is lost."""
        self._untold: PeerLostError | None = None
        """Error about an interruption that the other ranks have not been told yet."""
        self._left: dict[int, str] = {}
        """Ranks that said goodbye, each with the reason for messages."""
        self._news = threading.Condition()

    # --- the first error ---------------------------------------------------------------------

    def check(self) -> None:
        """Raise the error that ended the communicator, if there is one."""
        # Without the lock, which would cost time in every call: once set, an error is never
        # removed.
        if self.error is None:
            return
        self._tell_untold()
        if self._by_notice and isinstance(self.error, PeerLostError):
            self._ask_why(self._channels[self.error.rank])
        raise self.error

    def _ask_why(self, channel: Channel | None) -> None:
        """Look for the peer's own reason: the news of its loss may have overtaken it."""
        # Ask once: the answer, if there is one, is already in the socket's buffer.
        self._by_notice = False
        if channel is None:
            return
        # A peer that fails sends the reason, then closes. The rendezvous may be faster than that
        # frame.
        channel.drain_to_eof()
        for frame in channel.control_frames:
            if frame.signature[2] == FrameKind.ABORT:
                error = abort.from_frame(bytes(frame.body), channel.rank, self._rank)
                # A reason that concerns another rank is about a later failure.
                if abort.same_loss(self.error, error):
                    self.error = error

    # --- found by this rank ------------------------------------------------------------------

    def fail(self, error: PerseidError, own: bool = True) -> NoReturn:
        """Tell the others, end all connections, and raise the error.

        Parameters
        ----------
        own
            Whether this rank found the failure itself: it then also reports it to the rendezvous.
        """
        with self._news:
            known = self.error
            first = known is None
            # The first error stays: later ones are mostly its consequences.
            if first or (abort.same_loss(known, error) and self._by_notice):
                self.error, self._by_notice = error, False  # the peer's own reason says more
        # Closing is not a failure; after the first error, the others have been told already.
        if first and not isinstance(error, ClosedError):
            self._tell_all(error, own)
        self._interrupt_all()
        raise self.error or error

    def channel_failed(self, error: ChannelError) -> NoReturn:
        """Raise the error of the communicator that a channel's error means."""
        if isinstance(error, UnexpectedFrameError):
            self.mismatched(error.rank, error.mine, error.theirs)
        self._ended(error.rank, error.cause if isinstance(error, ChannelEndedError) else None)

    def mismatched(self, rank: int, mine: str, theirs: str) -> NoReturn:
        """Raise because a peer is in another call than this rank."""
        message = (
            f"Rank {self._rank} is in {mine}, but rank {rank} is in {theirs}: all ranks must make "
            "the same calls in the same order with fitting arguments."
        )
        self.fail(MismatchedCollectiveError(message, mine, theirs, rank))

    def _ended(self, rank: int, cause: Exception | None) -> NoReturn:
        """Raise because a connection ended; the error names the rank that ended first.

        A peer that failed sent the reason before it closed. Otherwise the rendezvous may know
        which rank was the first.
        """
        channel = self._channels[rank]
        if channel is not None and not isinstance(cause, FrameError):
            channel.drain_to_eof()
            self.aborts(channel)
        with self._news:
            # One death ends many connections: survivors that close theirs look lost, too. The
            # rendezvous saw the order, so it is worth waiting for its news for a moment.
            self._news.wait_for(lambda: self.error is not None, BLAME_SHARE * self._losses.death)
            self.check()
            left = self._left.get(rank)
        reason = left or (f"its connection broke ({cause})" if cause else "its connection ended")
        self.fail(PeerLostError(f"Rank {rank} is lost: {reason}.", rank))

    def aborts(self, channel: Channel) -> None:
        """Raise the failure that a peer reported, if one is among the frames that came."""
        for frame in channel.control_frames:
            if frame.signature[2] == FrameKind.ABORT:
                error = abort.from_frame(bytes(frame.body), channel.rank, self._rank)
                self.fail(error, own=False)

    def interrupted(self, cause: BaseException) -> None:
        """End the communicator because a foreign exception interrupted a call halfway.

        Messages may be lost, and the other ranks may wait for this one.
        """
        what = described(cause)
        error = ClosedError(
            f"A call of rank {self._rank} was interrupted by {what}; messages may be lost, so "
            "this communicator can no longer be used: close it, and join again."
        )
        untold = PeerLostError(f"Rank {self._rank} failed with {what}", self._rank)
        with self._news:
            if self.error is None:
                # In one statement: another interruption (Ctrl-C) should not come between the two.
                self._untold, self.error = untold, error
        self._tell_untold()

    def _tell_untold(self) -> None:
        """Tell the others of an interruption; if that is interrupted, the next call repeats it."""
        if self._untold is not None:
            self._tell_all(self._untold)
            self._interrupt_all()
            self._untold = None

    def close(self, cause: BaseException | None) -> bool:
        """Close the communicator, with a cause if this rank failed; returns whether it says
        goodbye.

        A rank that failed itself closes without a goodbye, so that its peers report it as lost. A
        rank that only learned of a loss says goodbye, so that nobody takes it for the one that
        failed.
        """
        with self._news:
            failed = self.error is not None
            if not failed:
                self.error = ClosedError(f"The communicator of rank {self._rank} is closed.")
        if cause is not None and not failed:
            what = described(cause)
            self._tell_all(PeerLostError(f"Rank {self._rank} failed with {what}", self._rank))
        self._tell_untold()
        return cause is None or failed

    # --- brought by the registration's thread ------------------------------------------------

    def notice(self, notice: Notice) -> None:
        """Handle news about another rank, or about the registration."""
        error: PerseidError
        by_notice = True
        # A goodbye is no failure: the rank may have finished, and nothing more may be needed from
        # it.
        if notice.kind == "left":
            with self._news:
                self._left[notice.rank] = notice.reason
            return
        if notice.kind == "lost":
            error = PeerLostError(f"Rank {notice.rank} is lost: {notice.reason}.", notice.rank)
        elif notice.kind == "failed":
            error = abort.from_frame(notice.reason.encode(), notice.rank, self._rank)
            by_notice = False  # this is the rank's own reason
        elif notice.kind == "replaced":
            error = ReplacedError(notice.reason)
        elif notice.kind == "refused":
            error = RendezvousError(notice.reason)
        else:
            return
        with self._news:
            if self.error is None:
                self.error, self._by_notice = error, by_notice
            # `_ended` may be waiting for this news.
            self._news.notify_all()
        self._interrupt_all()

    # --- telling the others -------------------------------------------------------------------

    def _interrupt_all(self) -> None:
        for channel in self._channels:
            if channel is not None:
                channel.interrupt()

    def _tell_all(self, error: PerseidError, own: bool = True) -> None:
        body = abort.to_bytes(error, self._rank)
        if own and self._client is not None:
            self._client.report_failure(body)
        # The communicator id is 0 for all: a failure ends every communicator of the job.
        signature = Signature(FrameKind.ABORT, 0, self._generation).pack()
        frame = header(signature, 0, 0, len(body)) + body
        for channel in self._channels:
            if channel is not None:
                # A peer that cannot be told is lost anyway, and the others still have to be told.
                with contextlib.suppress(PerseidError):
                    channel.send_control(frame)

    def forget_client(self, error: PerseidError) -> None:
        """Give up the registration, which belongs to another process: no peer is told from here."""
        self._client, self.error, self._by_notice = None, error, False


def described(error: BaseException) -> str:
    """An exception as text for the other ranks: its class, and at most 400 characters."""
    try:
        said = str(error)
    # The other ranks are told even where the program's own exception cannot be shown.
    except Exception:
        said = ""
    return f"{type(error).__name__}: {said[:400]}" if said else type(error).__name__
