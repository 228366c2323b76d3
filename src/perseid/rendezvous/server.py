"""The rendezvous server: one asyncio process, IPv4 and IPv6, standard library only.

``Server`` owns the listening sockets, the limits and the timers; each accepted connection is
handed to the role that its first bytes ask for (``roles``): a worker's registration, a relay, a
probe, or a TCPunch client.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from dataclasses import dataclass, field

from perseid.rendezvous.connection import Connection, Handler, Poller
from perseid.rendezvous.listen import listening_sockets, raise_descriptor_limit
from perseid.rendezvous.metrics import Counters, render
from perseid.rendezvous.protocol import Draining
from perseid.rendezvous.registry import Limits, Registry
from perseid.rendezvous.relay import Pair, Throttle
from perseid.rendezvous.roles import HttpRole, MemberRole, OpeningRole, RelayRole, TcpunchRole

ACCEPTS_A_ROUND = 128
"""Connections accepted before others get their turn."""
SWEEP_SECONDS = 0.1
"""How often deadlines are looked at."""
LATE_SECONDS = 0.5
"""A sweep later than this was the server's own fault (stopped, starved): nobody is blamed."""
ACCEPT_PAUSE = 0.2
"""Seconds without accepting after the descriptors were used up."""

log = logging.getLogger("perseid.rendezvous")


@dataclass(frozen=True)
class Config:
    """What a server is started with."""

    host: str = ""
    """Address to listen on; empty: all, IPv4 and IPv6."""
    port: int = 10000
    """Workers and TCPunch clients; 0: any free port."""
    http_port: int | None = 10001
    """Health and metrics, and second port for probes; None: none; 0: any free port."""
    secret: bytes | None = None
    """Job keys are derived from it; None: open, no keys."""
    tcpunch: bool = True
    """Whether TCPunch clients are served (they know no keys)."""
    relay: bool = True
    """Whether pairs that cannot punch are relayed."""
    relay_rate: float = 0.0
    """Bytes a second over all relayed pairs; 0: not limited."""
    hello_seconds: float = 5.0
    """Time to the end of the handshake."""
    waiting_seconds: float = 900.0
    """Longest wait of a TCPunch client for its partner (a Lambda's life)."""
    relay_wait_seconds: float = 15.0
    """Longest wait at the relay for the other end."""
    min_heartbeat: float = 0.2
    """Shortest time of silence, in seconds, that a client may ask for."""
    rate: float = 2000.0
    """New connections a second from one address (loopback excepted); 0: not limited."""
    burst: float = 8000.0
    """New connections at once from one address: a whole run behind one NAT gateway."""
    clients: int = 0
    """Most connections; 0: as many as descriptors allow."""
    limits: Limits = field(default_factory=Limits)
    """Jobs and ranks."""


class RateLimit:
    """A token bucket for each address."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: dict[str, tuple[float, float]] = {}

    def admits(self, host: str, now: float) -> bool:
        """Whether one more connection of this address is welcome."""
        if not self._rate or host == "127.0.0.1" or host == "::1":
            return True
        tokens, at = self._buckets.get(host, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        self._buckets[host] = (max(0.0, tokens - 1), now)
        return tokens >= 1

    def forget_idle(self, now: float) -> None:
        """Drop the buckets that are full again."""
        if self._rate:
            refill = self._burst / self._rate
            full = [host for host, (_, at) in self._buckets.items() if now - at > refill]
            for host in full:
                del self._buckets[host]


class Deadlines:
    """Connections in the order in which the same span of time ends for them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._due: dict[Connection, float] = {}

    def add(self, connection: Connection, now: float) -> None:
        """Start its time (again: at the end of the line)."""
        self._due.pop(connection, None)
        self._due[connection] = now + self.seconds

    def drop(self, connection: Connection) -> None:
        """It made it, or is gone."""
        self._due.pop(connection, None)

    def pop_due(self, now: float) -> list[Connection]:
        """Those whose time is over."""
        due: list[Connection] = []
        for connection, when in self._due.items():
            if when > now:
                break
            due.append(connection)
        for connection in due:
            del self._due[connection]
        return due


class Listener:
    """One listening socket in the poller."""

    __slots__ = ("handler", "server", "sock")

    def __init__(self, sock: socket.socket, server: Server, handler: Handler) -> None:
        self.sock, self.server, self.handler = sock, server, handler

    def on_event(self, mask: int) -> None:
        """Accept what waits."""
        self.server.accept(self)


class Server:
    """A running server; use it as an async context manager.

    Parameters
    ----------
    config
        See ``Config``.

    Raises
    ------
    RendezvousError
        On entering: an address or port cannot be listened on.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self.registry = Registry(self.config.limits)
        self.counters = Counters()
        self.draining = False
        self.port = 0
        """The port that workers connect to, once listening."""
        self.http_port = 0
        """The HTTP and probe port; 0: none."""
        self.max_clients = 0
        self.relays: set[Pair] = set()
        self.throttle = Throttle(self.config.relay_rate)
        self.hello_deadlines = Deadlines(self.config.hello_seconds)
        self.relay_deadlines = Deadlines(self.config.relay_wait_seconds)
        self._rate = RateLimit(self.config.rate, self.config.burst)
        self._listeners: list[Listener] = []
        self._swept = 0.0
        self._accepting = True

    async def __aenter__(self) -> Server:
        self.loop = asyncio.get_running_loop()
        self.poller = Poller(self.loop)
        self.members = MemberRole(self)
        self.relaying = RelayRole(self)
        self.tcpunch = TcpunchRole(self)
        opening, http = OpeningRole(self), HttpRole(self)
        try:
            self.port = self._listen(self.config.port, opening)
            if self.config.http_port is not None:
                self.http_port = self._listen(self.config.http_port, http)
        except BaseException:
            self._close_all()
            raise
        self.max_clients = self.config.clients or raise_descriptor_limit()
        self._swept = self.loop.time()
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)
        log.info(
            "listening",
            extra={
                "data": {
                    "host": self.config.host or "*",
                    "port": self.port,
                    "http_port": self.http_port,
                    "keys": self.config.secret is not None,
                    "tcpunch": self.config.tcpunch,
                    "relay": self.config.relay,
                    "max_clients": self.max_clients,
                }
            },
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._sweeper.cancel()
        self._close_all()

    def _close_all(self) -> None:
        for owner in list(self.poller._owners.values()):
            if isinstance(owner, Connection):
                owner.close()
        for pair in list(self.relays):
            pair.close()
        for listener in self._listeners:
            listener.sock.close()
        self.poller.close()

    def _listen(self, port: int, handler: Handler) -> int:
        socks = listening_sockets(self.config.host, port)
        for sock in socks:
            listener = Listener(sock, self, handler)
            self._listeners.append(listener)
            self.poller.add(sock.fileno(), listener)
        chosen: int = socks[0].getsockname()[1]
        return chosen

    def now(self) -> float:
        """The loop's clock, in seconds."""
        return self.loop.time()

    def accept(self, listener: Listener) -> None:
        """Take new connections; each is read at once, for most bring their first bytes along."""
        for _ in range(ACCEPTS_A_ROUND):
            try:
                sock, name = listener.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._accept_failed(error)
                return
            self._admit(sock, name, listener.handler)

    def _admit(self, sock: socket.socket, name: tuple[str, int], handler: Handler) -> None:
        now = self.loop.time()
        host = name[0].partition("%")[0]
        self.counters.connections += 1
        if len(self.poller) >= self.max_clients:
            self.counters.refused_limit += 1
            sock.close()
        elif not self._rate.admits(host, now):
            self.counters.refused_rate += 1
            sock.close()
        else:
            connection = Connection(sock, host, name[1], self.poller, handler)
            self.hello_deadlines.add(connection, now)
            connection.read()

    def _accept_failed(self, error: OSError) -> None:
        self.counters.accept_errors += 1
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            return
        log.warning("accepting paused", extra={"data": {"reason": error.strerror}})
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self.poller.remove(listener.sock.fileno())
            self.loop.call_later(ACCEPT_PAUSE, self._accept_again)

    def _accept_again(self) -> None:
        self._accepting = True
        for listener in self._listeners:
            if listener.sock.fileno() >= 0:
                self.poller.add(listener.sock.fileno(), listener)

    def _sweep(self) -> None:
        now = self.loop.time()
        late = now - self._swept - SWEEP_SECONDS
        self._swept = now
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)
        for connection in self.hello_deadlines.pop_due(now):
            if not connection.closed:
                self.counters.slow_hello += not connection.closing
                connection.close()
        for connection in self.relay_deadlines.pop_due(now):
            self.relaying.expired(connection)
        self.tcpunch.expire(now)
        self.members.sweep(now, late if late > LATE_SECONDS else 0.0)
        self._rate.forget_idle(now)

    async def drain(self, seconds: float) -> None:
        """Refuse new jobs, let those that assemble finish, tell the rest; then return.

        Parameters
        ----------
        seconds
            Longest time to wait for incomplete jobs, TCPunch waiters and relayed streams.
        """
        self.draining = True
        log.info("draining", extra={"data": {"seconds": seconds, "ranks": self.registry.members}})
        end = self.now() + seconds
        while self.now() < end and self.busy():
            await asyncio.sleep(SWEEP_SECONDS)
        self.members.tell_all(Draining().pack())
        log.info("drained", extra={"data": {"ranks": self.registry.members}})

    def busy(self) -> bool:
        """Whether somebody still needs this server to get going."""
        assembling = any(len(job.members) < job.world for job in self.registry.jobs.values())
        return assembling or bool(self.relays) or len(self.tcpunch) > 0

    def metrics(self) -> str:
        """Prometheus' text."""
        gauges = {
            "clients": (float(len(self.poller)), "Open descriptors in the poller."),
            "max_clients": (float(self.max_clients), "Most connections that are taken."),
            "jobs": (float(len(self.registry.jobs)), "Jobs with registered ranks."),
            "ranks": (float(self.registry.members), "Registered ranks."),
            "tcpunch_waiting": (float(len(self.tcpunch)), "TCPunch clients without a partner."),
            "relays": (float(len(self.relays)), "Pairs in the relay now."),
            "draining": (float(self.draining), "1 while the server goes down."),
        }
        return render(self.counters, gauges)
