"""Messages between the driver and one worker over a socket, one message per line.

The end of the stream means that the other side has ended.
"""

from __future__ import annotations

import socket
from typing import Self

from perseid.engines.worker_messages import Message, from_text, to_text
from perseid.errors import RunError

SEND_SECONDS = 10.0
"""Longest wait for the other side to take a message. Items take kilobytes; the socket buffers
hold 200 kB, so a wait means that the other side has stopped reading."""
LONGEST = 64 * 1024 * 1024
"""Maximum size of a message, in bytes; an item of 100,000 partitions takes about 10 MB."""


class MessageStream:
    """One end of the connection; a context manager that closes it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self.ended = False
        """Whether the other side has closed the connection."""

    def fileno(self) -> int:
        """The socket's descriptor, so that a selector can wait for it."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send one message; raises `OSError` if the other side has ended or does not read."""
        self._socket.settimeout(SEND_SECONDS)
        self._socket.sendall(to_text(message).encode() + b"\n")

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message, or None at the end of the stream.

        Raises
        ------
        TimeoutError
            Nothing arrived within `timeout` seconds (None: wait until the stream ends).
        """
        self._socket.settimeout(timeout)
        while (message := self._take()) is None:
            if not self._read():
                return None
        return message

    def drain(self) -> list[Message]:
        """Return every complete message that has arrived, without waiting."""
        self._socket.settimeout(0)
        try:
            while self._read():
                pass
        except (BlockingIOError, InterruptedError):
            pass
        messages = []
        while (message := self._take()) is not None:
            messages.append(message)
        return messages

    def close(self) -> None:
        """Close this end; the other side reads the end of the stream."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> bool:
        try:
            data = self._socket.recv(65536)
        except ConnectionError:  # a reset by a killed process is an end, too
            data = b""
        # 0 bytes mean that the other side closed: each side learns of the other's end this way.
        self.ended = not data
        self._buffer += data
        # Bounded: a script that writes to the wrong descriptor must not fill the driver's memory.
        if len(self._buffer) > LONGEST:
            raise RunError(f"the worker sent a message of more than {LONGEST} bytes")
        return bool(data)

    def _take(self) -> Message | None:
        # JSON escapes line feeds, so one ends a message.
        line, end, rest = self._buffer.partition(b"\n")
        if not end:
            return None
        self._buffer = rest
        return from_text(bytes(line))
