"""What a sender that is blocked waits for."""

from __future__ import annotations

import select

from perseid.comm.channel import TICK_SECONDS, Channel

DRAIN_AFTER = 0.02
"""Seconds that a sender is blocked before it takes in what others send it."""


class Watch:
    """What a blocked sender polls: first its own two sockets, after a while all."""

    def __init__(self, sender: Channel, source: Channel | None) -> None:
        self._sender, self._source = sender, source
        self._wide = False
        self._channels: dict[int, Channel] = {}
        self._poll = select.poll()
        self._poll.register(sender.sock, select.POLLOUT)
        if source is not None:
            self._channels[source.sock.fileno()] = source
            both = select.POLLOUT if source is sender else 0
            self._poll.register(source.sock, select.POLLIN | both)

    def drop_source(self) -> None:
        """The wanted frame is there; what follows it may stay where it is."""
        source, self._source = self._source, None
        if source is None or self._wide:
            return
        del self._channels[source.sock.fileno()]
        if source is self._sender:
            self._poll.modify(source.sock, select.POLLOUT)
        else:
            self._poll.unregister(source.sock)

    def wait(self, channels: list[Channel | None]) -> bool:
        """Wait until something moves; False if nothing did for a tick."""
        events = self._poll.poll(1000 * (TICK_SECONDS if self._wide else DRAIN_AFTER))
        if not events and not self._wide:
            self._widen(channels)
            events = self._poll.poll(1000 * TICK_SECONDS)
        for fd, event in events:
            channel = self._channels.get(fd)
            if channel is None or not event & ~select.POLLOUT:
                continue
            if channel is self._source:
                channel.pump(True)
            elif not channel.drain():
                del self._channels[fd]
                if channel is not self._sender:
                    self._poll.unregister(fd)
                else:
                    self._poll.modify(fd, select.POLLOUT)
        return bool(events)

    def _widen(self, channels: list[Channel | None]) -> None:
        self._wide = True
        for channel in channels:
            if channel is None or channel.way == "store":
                continue
            if not channel.closed and not channel.ended:
                self._channels[channel.sock.fileno()] = channel
                out = select.POLLOUT if channel is self._sender else 0
                self._poll.register(channel.sock, select.POLLIN | out)
