"""Settings by which the kernel detects that a connection's other end is gone, and its answers.

How long each kind of silence may last is in ``rendezvous.liveness``.
"""

from __future__ import annotations

import contextlib
import socket
import struct

_PROBES = 10
"""Unanswered probes of an idle connection. Ten, a second apart with the default of 15 s, rather
than three: of three, a network that loses 20 % in each direction loses all every 21st time."""
_MOST_SECONDS, _MOST_PROBES = 32_767, 127
"""Linux's MAX_TCP_KEEPIDLE (MAX_TCP_KEEPINTVL is the same) and MAX_TCP_KEEPCNT."""
_THIN_LINEAR_TIMEOUTS = 16
"""Linux's TCP_THIN_LINEAR_TIMEOUTS, which Python does not name: while little is in flight the
first retransmissions do not wait longer each time, so that more of them fit into the deadline."""
_UNACKED, _LAST_ANSWER = 24, 56
"""Offsets in Linux's ``struct tcp_info``: segments in flight; milliseconds since the last ACK."""
_TCP_INFO_BYTES = 104


def watch_link(sock: socket.socket, seconds: float) -> None:
    """Have the kernel probe an idle connection, and break it when nothing answers in that time.

    Unacknowledged data is another matter: see `end_unanswered` and `unanswered_for`.
    """
    # A third of the time before the first probe, the rest spread over the probes.
    idle = min(max(1, round(seconds / 3)), _MOST_SECONDS)
    interval = min(max(1, round((seconds - idle) / _PROBES)), _MOST_SECONDS)
    count = min(max(1, round((seconds - idle) / interval)), _MOST_PROBES)
    with contextlib.suppress(OSError):  # a socket pair has none of these
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
        # Messages here are few and small, which is when exponential back-off hurts most.
        sock.setsockopt(socket.IPPROTO_TCP, _THIN_LINEAR_TIMEOUTS, 1)


def end_unanswered(sock: socket.socket, seconds: float) -> None:
    """Have the kernel break a connection whose data stays unacknowledged for that time; 0: as the
    system does.

    Only for connections whose receiver always reads: Linux counts from a full receive buffer, too
    (RFC 5482 does not), and would break the connection to a process that computes instead of
    reading, although its host answers.
    """
    with contextlib.suppress(OSError):
        milliseconds = round(seconds * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def unanswered_for(sock: socket.socket) -> float:
    """Seconds since the peer's kernel answered last, if data is in flight to it; otherwise 0."""
    # With nothing in flight the peer owes no answer, however long ago its last one was.
    return _tcp_info(sock, _LAST_ANSWER) / 1000 if in_flight(sock) else 0.0


def in_flight(sock: socket.socket) -> int:
    """Number of segments that were sent and that the peer's kernel has not acknowledged; 0 if the
    system does not tell."""
    return _tcp_info(sock, _UNACKED)


def _tcp_info(sock: socket.socket, offset: int) -> int:
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return 0
    if len(info) < offset + 4:
        return 0
    found: int = struct.unpack_from("=I", info, offset)[0]
    return found
