"""Limits that keep one client from using up the server: connection rate and time."""

from __future__ import annotations

from perseid.rendezvous.server.client_connection import ClientConnection


class RateLimit:
    """A token bucket for each address that connects.

    Parameters
    ----------
    rate
        New connections per second; 0: unlimited.
    burst
        New connections at once.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: dict[str, tuple[float, float]] = {}

    def admits(self, host: str, now: float) -> bool:
        """Whether one more connection from this address is accepted; loopback always is."""
        if not self._rate or host == "127.0.0.1" or host == "::1":
            return True
        tokens, at = self._buckets.get(host, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        self._buckets[host] = (max(0.0, tokens - 1), now)
        return tokens >= 1

    def forget_idle(self, now: float) -> None:
        """Drop the buckets that are full again."""
        if self._rate:
            # A full bucket says the same as none. Without this, each address ever seen would stay.
            refill = self._burst / self._rate
            full = [host for host, (_, at) in self._buckets.items() if now - at > refill]
            for host in full:
                del self._buckets[host]


class Deadlines:
    """Connections with the same time allowance, in the order in which it ends.

    Parameters
    ----------
    seconds
        The allowance of each connection, from ``add`` on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._due: dict[ClientConnection, float] = {}

    def add(self, connection: ClientConnection, now: float) -> None:
        """Start a connection's time; if it is running already, start it again."""
        self._due.pop(connection, None)
        self._due[connection] = now + self.seconds

    def drop(self, connection: ClientConnection) -> None:
        """Cancel: the connection met its deadline or closed."""
        self._due.pop(connection, None)

    def pop_due(self, now: float) -> list[ClientConnection]:
        """Take out the connections whose time is over."""
        due: list[ClientConnection] = []
        # All have the same allowance, so a dict in order of insertion is in order of time: no heap.
        for connection, when in self._due.items():
            if when > now:
                break
            due.append(connection)
        for connection in due:
            del self._due[connection]
        return due
