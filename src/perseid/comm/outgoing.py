"""Frames that do not go at once: sending the rest while receiving, so that no two senders block
each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perseid.comm.objects import Buffer

if TYPE_CHECKING:
    from perseid.comm.channel import Channel, Want
    from perseid.comm.frames import Frame


class Outgoing:
    """A frame that is partly sent, because the peer does not take it yet."""

    __slots__ = ("channel", "pieces")

    def __init__(self, channel: Channel, pieces: list[Buffer], sent: int) -> None:
        self.channel = channel
        self.pieces = [memoryview(piece) for piece in pieces if len(piece)]
        self._skip(sent)

    def _skip(self, sent: int) -> None:
        pieces = self.pieces
        while pieces and sent >= len(pieces[0]):
            sent -= len(pieces.pop(0))
        if sent:
            pieces[0] = pieces[0][sent:]

    def push(self) -> bool:
        """Send what goes without waiting; whether all is sent."""
        if self.pieces:
            self._skip(self.channel.start(list(self.pieces)))
        return not self.pieces

    def finish(self) -> None:
        """Send the rest; what other peers send meanwhile is kept, so that no two senders block
        each other."""
        if not self.pieces:
            return
        self.channel.sending = True
        self.channel.engine.drive(self, None, None)
        self.channel.sending = False


def swap(out: Channel, pieces: list[Buffer], total: int, source: Channel, want: Want) -> Frame:
    """Send a frame to one peer and receive one from another (or the same), both at once."""
    sent = out.start(pieces)
    if sent == total:
        return source.wait(want)
    if source.way == "store":
        Outgoing(out, pieces, sent).finish()
        return source.wait(want)
    out.sending = True
    out.engine.drive(Outgoing(out, pieces, sent), source, want)
    out.sending = False
    assert want.frame is not None
    return want.frame
