"""Shows what the ranks of one machine print, with the rank in front of each line."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Self

DRAIN_SECONDS = 2.0
"""Seconds to wait for the end of the streams after the last rank has ended: a process that a rank
left running may keep them open."""
LONGEST_LINE = 1 << 16
"""Bytes of a line above which it is shown in parts, so that output without line breaks does not
fill the memory."""
_READ_BYTES = 1 << 16
_POLL_SECONDS = 0.2


@dataclass
class _Pipe:
    """One output stream of one rank."""

    source: IO[bytes]
    target: IO[bytes]
    prefix: bytes
    held: bytearray = field(default_factory=bytearray)
    """Beginning of a line whose end has not come yet."""

    def lines(self, data: bytes) -> Iterator[bytes]:
        """Complete lines, without line breaks; at the end of the stream also an incomplete one.

        ``data`` is what was read; empty at the end of the stream.
        """
        self.held += data
        while (end := self.held.find(b"\n")) >= 0 or len(self.held) > LONGEST_LINE:
            end = min(end, LONGEST_LINE) if end >= 0 else LONGEST_LINE
            while len(self.held) > end > LONGEST_LINE - 4 and self.held[end] & 0xC0 == 0x80:
                # Never cut within a character: bytes 10xxxxxx continue one in UTF-8.
                end -= 1
            yield bytes(self.held[:end])
            del self.held[: end + (self.held[end : end + 1] == b"\n")]
        if not data and self.held:
            yield bytes(self.held)
            self.held.clear()


class RanksOutput:
    """Passes on what ranks print, line by line, as ``rank 3 | …``; a context manager.

    Lines of different ranks never mix. Leaving the context waits until all ranks' streams have
    ended, at most `DRAIN_SECONDS`.

    Parameters
    ----------
    out, error
        Binary streams that receive the ranks' standard output and standard error.
    """

    def __init__(self, out: IO[bytes], error: IO[bytes]) -> None:
        self._out, self._error = out, error
        self._selector = selectors.DefaultSelector()
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._pass_on, name="ranks-output", daemon=True)

    def add(self, rank: int, out: IO[bytes], error: IO[bytes]) -> None:
        """Add the streams of a rank; call it before entering the context."""
        prefix = f"rank {rank} | ".encode()
        for source, target in ((out, self._out), (error, self._error)):
            pipe = _Pipe(source, target, prefix)
            self._selector.register(source, selectors.EVENT_READ, pipe)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._deadline = time.monotonic() + DRAIN_SECONDS
        # Longer than the deadline that the thread itself keeps, so that it normally ends by itself.
        self._thread.join(2 * DRAIN_SECONDS)

    def _pass_on(self) -> None:
        try:
            # If nobody reads our output any more, stop reading: the ranks then get SIGPIPE, too.
            with contextlib.suppress(BrokenPipeError):
                while self._selector.get_map() and not self._over():
                    for key, _ in self._selector.select(_POLL_SECONDS):
                        self._read(key.data)
        finally:
            for key in list(self._selector.get_map().values()):
                self._end(key.data)
            self._selector.close()

    def _over(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _read(self, pipe: _Pipe) -> None:
        data = os.read(pipe.source.fileno(), _READ_BYTES)
        for line in pipe.lines(data):
            pipe.target.write(pipe.prefix + line + b"\n")
        # Lines are shown as they come, even if our output is a pipe.
        pipe.target.flush()
        if not data:
            self._end(pipe)

    def _end(self, pipe: _Pipe) -> None:
        self._selector.unregister(pipe.source)
        pipe.source.close()
