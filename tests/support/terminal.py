"""A program at a terminal (a pseudo-terminal of the kernel): keys go in, its screen comes out."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

CTRL_C = "\x03"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Terminal:
    """The terminal's other side."""

    process: subprocess.Popen[bytes]
    side: int
    data: bytes = field(default=b"")

    @property
    def text(self) -> str:
        """All that was shown so far, without cursor movements and colors."""
        return _CONTROL.sub("", self.data.decode("utf-8", "replace"))

    def type(self, keys: str) -> None:
        """As if someone pressed them."""
        os.write(self.side, keys.encode())

    def until(self, words: str, seconds: float = 60.0) -> str:
        """Read until the words are shown; all text so far."""
        deadline = time.monotonic() + seconds
        while words not in self.text:
            assert time.monotonic() < deadline, f"no {words!r} in {seconds} s:\n{self.text}"
            assert self._read(0.1) or self.process.poll() is None, self.text
        return self.text

    def end(self, seconds: float = 60.0) -> int:
        """Read until the program ends; its exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on after {seconds} s:\n{self.text}"
            self._read(0.1)
        while self._read(0.1):
            pass
        return int(self.process.returncode)

    def _read(self, seconds: float) -> bool:
        if not select.select([self.side], [], [], seconds)[0]:
            return False
        try:
            more = os.read(self.side, 65536)
        except OSError:  # the program closed its side
            return False
        self.data += more
        return bool(more)


@contextmanager
def terminal(words: Sequence[object], **options: object) -> Iterator[Terminal]:
    """Run a program whose standard streams and controlling terminal are a new terminal."""
    side, other = pty.openpty()
    process = subprocess.Popen(
        [str(word) for word in words], stdin=other, stdout=other, stderr=other,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **options,
    )  # fmt: skip
    os.close(other)
    try:
        yield Terminal(process, side)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        os.close(side)
