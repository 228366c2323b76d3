"""The rendezvous server: one asyncio process, IPv4 and IPv6, standard library only.

``Server`` puts the parts together and runs the timers. ``Acceptor`` takes connections; the role
that their first bytes ask for serves them: a worker's registration, a relay, a probe, or a
TCPunch client.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from perseid.rendezvous.net.listen import raise_descriptor_limit
from perseid.rendezvous.protocol import Draining
from perseid.rendezvous.server.acceptor import Acceptor
from perseid.rendezvous.server.admission_role import AdmissionRole
from perseid.rendezvous.server.client_connection import ClientConnection
from perseid.rendezvous.server.context import Clock, ServerContext
from perseid.rendezvous.server.http_role import HttpRole
from perseid.rendezvous.server.limits import Deadlines
from perseid.rendezvous.server.member_role import MemberRole
from perseid.rendezvous.server.poller import Poller
from perseid.rendezvous.server.prometheus import Counters, render
from perseid.rendezvous.server.registry import Registry
from perseid.rendezvous.server.relay import RelayedPair
from perseid.rendezvous.server.relay_role import RelayRole
from perseid.rendezvous.server.server_config import Config
from perseid.rendezvous.server.tcpunch_role import TcpunchRole

if TYPE_CHECKING:  # OpenSSL takes its time to load, and few servers have a certificate
    from perseid.rendezvous.net.tls import ServerCertificate

SWEEP_SECONDS = 0.1
"""Interval at which deadlines are checked."""
LATE_SECONDS = 0.5
"""A sweep later than this was the server's own fault (stopped, starved of CPU): heartbeats that
seem late then are not held against the workers."""

log = logging.getLogger("perseid.rendezvous")


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
        self.port = 0
        """The port that workers connect to, once listening."""
        self.http_port = 0
        """The HTTP and probe port; 0: none."""
        self.fingerprint = ""
        """SHA-256 of its certificate, hexadecimal; empty without one."""
        self._swept = 0.0

    async def __aenter__(self) -> Server:
        loop = asyncio.get_running_loop()
        context = self._context = ServerContext(
            self.config,
            self.counters,
            self.registry,
            Poller(loop),
            Clock(loop),
            Deadlines(self.config.hello_seconds),
            certificate=self._certificate(),
        )
        self._relays = RelayRole(context)
        self._members = MemberRole(context, self._relays.cut)
        self._tcpunch = TcpunchRole(context)
        admission = AdmissionRole(context, self._members, self._relays, self._tcpunch)
        self._acceptor = Acceptor(context, self.config.clients or raise_descriptor_limit())
        try:
            self.port = self._acceptor.listen(self.config.port, admission)
            if self.config.http_port is not None:
                http = HttpRole(context, self._metrics)
                self.http_port = self._acceptor.listen(self.config.http_port, http)
        except BaseException:
            self._close_all()
            raise
        context.probe_port = self.http_port
        self._swept = context.clock.now()
        self._sweeper = context.clock.call_later(SWEEP_SECONDS, self._sweep)
        self._log_listening()
        return self

    def _certificate(self) -> ServerCertificate | None:
        if self.config.certificate is None:
            return None
        from perseid.rendezvous.net.tls import ServerCertificate

        found = ServerCertificate(self.config.certificate)
        self.fingerprint = found.fingerprint
        return found

    async def __aexit__(self, *exc: object) -> None:
        self._sweeper.cancel()
        self._close_all()

    def _log_listening(self) -> None:
        data = {
            "host": self.config.host or "*",
            "port": self.port,
            "http_port": self.http_port,
            "keys": self.config.secret is not None,
            "fingerprint": self.fingerprint,
            "tcpunch": self.config.tcpunch,
            "relay": self.config.relay,
            "max_clients": self._acceptor.max_clients,
        }
        log.info("listening", extra={"data": data})

    def _close_all(self) -> None:
        poller = self._context.poller
        for owner in poller.owners():
            if isinstance(owner, ClientConnection):
                owner.close()
        for pair in self._relays.pairs:
            pair.close()
        self._acceptor.close()
        poller.close()

    @property
    def relays(self) -> frozenset[RelayedPair]:
        """Relayed streams that are open now."""
        return frozenset(self._relays.pairs)

    @property
    def relay_kept_bytes(self) -> int:
        """Bytes that the relay keeps for receivers that are slow to read."""
        return self._relays.kept_bytes

    def _sweep(self) -> None:
        context = self._context
        now = context.clock.now()
        late = now - self._swept - SWEEP_SECONDS
        # Measured before the work of this sweep, so that a long sweep does not count as a pause.
        self._swept = now
        self._sweeper = context.clock.call_later(SWEEP_SECONDS, self._sweep)
        for connection in context.hello_deadlines.pop_due(now):
            if not connection.closed:
                # A closing connection only waits for the client to read its answer; that is not a
                # slow request.
                self.counters.slow_hello += not connection.closing
                connection.close()
        self._relays.sweep(now)
        self._tcpunch.sweep(now)
        self._members.sweep(now, late if late > LATE_SECONDS else 0.0)
        self._acceptor.sweep(now)

    async def drain(self, seconds: float) -> None:
        """Refuse new jobs, let those that assemble finish, tell the rest; then return.

        Parameters
        ----------
        seconds
            Longest time to wait for incomplete jobs, TCPunch waiters and relayed streams.
        """
        context = self._context
        context.draining = True
        log.info("draining", extra={"data": {"seconds": seconds, "ranks": self.registry.members}})
        end = context.clock.now() + seconds
        while context.clock.now() < end and self._busy():
            await asyncio.sleep(SWEEP_SECONDS)
        self._members.broadcast(Draining().pack())
        log.info("drained", extra={"data": {"ranks": self.registry.members}})

    def _busy(self) -> bool:
        assembling = any(len(job.members) < job.world for job in self.registry.jobs.values())
        return assembling or bool(self._relays.pairs) or len(self._tcpunch) > 0

    def _metrics(self) -> str:
        context, registry = self._context, self.registry
        gauges = {
            "clients": (float(len(context.poller)), "Open descriptors in the poller."),
            "max_clients": (float(self._acceptor.max_clients), "Most connections accepted."),
            "jobs": (float(len(registry.jobs)), "Jobs with registered ranks."),
            "ranks": (float(registry.members), "Registered ranks."),
            "tcpunch_waiting": (float(len(self._tcpunch)), "TCPunch clients without a partner."),
            "relays": (float(len(self._relays.pairs)), "Pairs in the relay now."),
            "relay_kept_bytes": (float(self.relay_kept_bytes), "Bytes kept for slow receivers."),
            "draining": (float(context.draining), "1 while the server shuts down."),
        }
        return render(self.counters, gauges)
