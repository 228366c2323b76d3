"""How the NAT in front of a worker behaves: what its server and a probe say of it."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

from perseid.errors import RendezvousError
from perseid.rendezvous.client.connections import observe
from perseid.rendezvous.net.endpoint import Endpoint
from perseid.rendezvous.net.event_loop import EventLoopThread
from perseid.rendezvous.protocol import (
    ControlFrame,
    NatBehavior,
    NatFiltering,
    NatMapping,
    NatReport,
    PeerRecord,
    ReachabilityRequest,
    Register,
)
from perseid.rendezvous.protocol.wire import Address
from perseid.rendezvous.punch.nat import mapping_kind
from perseid.rendezvous.punch.punch import HolePuncher

PROBE_SECONDS = 3.0
"""Time for the probe that detects the mapping of the NAT."""

log = logging.getLogger("perseid.rendezvous.client")


class NatDetection:
    """Detects the NAT of one worker and tells the server and the hole puncher what it finds.

    Used in the event loop's thread only.

    Parameters
    ----------
    hello
        The worker's registration.
    punch
        Told this worker's own record whenever more is known.
    listener
        On the registered port, of the address family of the registration.
    send
        Sends a frame to the server.
    """

    def __init__(
        self,
        loop: EventLoopThread,
        hello: Register,
        punch: HolePuncher,
        listener: socket.socket,
        send: Callable[[ControlFrame], None],
    ) -> None:
        self._loop, self._hello, self._punch, self._send = loop, hello, punch, send
        self._port: int = listener.getsockname()[1]
        self._family = listener.family
        self.behavior = NatBehavior()
        """As far as it is known yet."""

    def registered(self, local: Address, public: Address) -> None:
        """The worker has registered, for the first time or again.

        Parameters
        ----------
        local
            Its end of the connection to the server.
        public
            The same end as the server sees it.
        """
        self._local, self._public = local, public
        self._describe()

    def _describe(self) -> None:
        mapping = mapping_kind(self._local, self._public, None)
        if mapping is not NatMapping.UNKNOWN:
            self.behavior = self.behavior._replace(mapping=mapping)
        hello, own = self._hello, (self._local, *self._hello.candidates)
        self._punch.self_updated(
            PeerRecord(hello.rank, hello.instance, self.behavior, self._public, own)
        )

    def detect(self, host: str, probe_port: int) -> None:
        """Tell the server what is known, and find out what is not.

        Parameters
        ----------
        host
            The server's.
        probe_port
            Its second port; 0 where it has none.
        """
        self._send(NatReport(self.behavior))
        if self.behavior.filter is NatFiltering.UNKNOWN and not _loopback(self._public):
            self._send(ReachabilityRequest())
        # One port of the server shows only that there is a NAT; which kind takes a second port.
        if self.behavior.mapping is not NatMapping.UNKNOWN or not probe_port:
            return
        target, local, public = Endpoint(host, probe_port), self._local, self._public

        def probe() -> None:
            try:
                seen = observe(target, self._port, self._family, PROBE_SECONDS)
            except RendezvousError as error:
                log.debug("no second observation: %s", error)
                return
            kind = mapping_kind(local, public, seen.address)
            self._loop.call_threadsafe(lambda: self.detected(mapping=kind))

        # A thread of its own: probing blocks, and the loop must go on answering peers.
        threading.Thread(target=probe, name="perseid-probe", daemon=True).start()

    def detected(
        self, mapping: NatMapping | None = None, filtering: NatFiltering | None = None
    ) -> None:
        """A part of the NAT's behavior is known."""
        known = self.behavior
        self.behavior = NatBehavior(mapping or known.mapping, filtering or known.filter)
        self._describe()
        self._send(NatReport(self.behavior))


def _loopback(address: Address) -> bool:
    return address.host == "::1" or address.host.startswith("127.")
