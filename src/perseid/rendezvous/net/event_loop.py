"""A thread with a selector and timers: the worker's side of the rendezvous runs in it.

It is not an asyncio loop, so that the blocking client can be used from any thread, inside or
outside a running asyncio loop.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

log = logging.getLogger("perseid.rendezvous.client")


class Timer:
    """A call that is due later unless it is canceled."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Drop the call; harmless once it was made."""
        self._call = None

    def fire(self) -> None:
        """Make the call now, unless it was made or canceled before."""
        call, self._call = self._call, None
        if call is not None:
            call()


class EventLoopThread:
    """A daemon thread that waits for sockets and timers.

    Only ``call_threadsafe``, ``start`` and ``stop`` may be used from other threads.

    Parameters
    ----------
    name
        Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        # One descriptor instead of a pipe's two. Not inherited: a child must not wake this thread.
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, READ, self._woken)
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        # Breaks ties between timers of one moment: a heap would otherwise compare the Timer
        # objects.
        self._order = itertools.count()
        self._stopping = False
        self._ended = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, deadline: float = 5.0) -> None:
        """End the thread, waiting at most ``deadline`` seconds; later calls are dropped."""

        def end() -> None:
            self._stopping = True

        self.call_threadsafe(end)
        # A callback of the loop may stop it; a thread cannot wait for its own end.
        if threading.current_thread() is not self._thread:
            self._thread.join(deadline)

    def close_in_child(self) -> None:
        """After a fork, in the child, where the thread does not run: close all that was watched.

        Nothing is unregistered: parent and child share what the kernel watches.
        """
        if self._ended:  # its numbers may be other files' by now
            return
        self._ended = True
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        os.close(self._wake)
        self._selector.close()

    def call_threadsafe(self, call: Callable[[], None]) -> None:
        """Run a function in the loop's thread, soon; may be called from any thread."""
        with self._lock:
            if self._ended:
                return
            self._calls.append(call)
            # The loop looks at its calls before it sleeps again, so it need not wake itself.
            if threading.current_thread() is not self._thread:
                os.eventfd_write(self._wake, 1)

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Run a function after ``seconds``."""
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def watch(self, sock: socket.socket, events: int, call: Callable[[int], None]) -> None:
        """Call with the events (``READ``, ``WRITE``) that happen on a socket.

        A second call for the same socket replaces the first.
        """
        if sock.fileno() in self._selector.get_map():
            self._selector.modify(sock, events, call)
        else:
            self._selector.register(sock, events, call)

    def unwatch(self, sock: socket.socket) -> None:
        """Stop watching; call it before the socket is closed or given away."""
        # A socket that was closed without this has no number left to look it up by.
        if sock.fileno() >= 0 and sock.fileno() in self._selector.get_map():
            self._selector.unregister(sock)

    def _woken(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _run(self) -> None:
        try:
            while not self._stopping:
                happened = self._selector.select(self._pause())
                # Socket events are handled before timers of the same round. If this thread was
                # late, an answer that has arrived in time must not lose against its own time-out.
                now = time.monotonic()
                for key, events in happened:
                    self._guarded(lambda key=key, events=events: key.data(events))  # type: ignore[misc]
                self._fire_due(now)
                while self._calls:
                    self._guarded(self._calls.popleft())
        finally:
            # After this no thread may write to the descriptor: its number can be reused by
            # another file.
            with self._lock:
                self._ended = True
            self._selector.close()
            os.close(self._wake)

    def _pause(self) -> float | None:
        if self._calls:
            return 0.0
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _fire_due(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            self._guarded(heapq.heappop(self._timers)[2].fire)

    @staticmethod
    def _guarded(call: Callable[[], None]) -> None:
        # One connection's failure must not end the thread that keeps all others alive.
        try:
            call()
        except Exception:
            log.exception("a callback failed")
