"""Is a worker's public address open to unsolicited connections? One try, from another port."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from perseid.rendezvous.protocol import NatFiltering
from perseid.rendezvous.protocol.wire import Address
from perseid.rendezvous.server.context import Clock
from perseid.rendezvous.server.poller import Poller

CHECK_SECONDS = 1.0
"""Time for the connection; a filtering NAT drops the SYN in silence."""


class ReachabilityCheck:
    """One connection from a free local port to a worker's public address.

    Parameters
    ----------
    report
        Called once with the result.
    """

    def __init__(
        self,
        poller: Poller,
        clock: Clock,
        target: Address,
        family: socket.AddressFamily | int,
        report: Callable[[NatFiltering], None],
    ) -> None:
        self._poller, self._report = poller, report
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._sock.connect_ex((target.host, target.port))
        self._poller.add(self._sock.fileno(), self, select.EPOLLOUT)
        self._timer = clock.call_later(CHECK_SECONDS, self._done, NatFiltering.FILTERED)

    def on_event(self, mask: int) -> None:
        """The connection was made or failed."""
        failed = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._done(NatFiltering.FILTERED if failed else NatFiltering.OPEN)

    def _done(self, result: NatFiltering) -> None:
        if self._sock.fileno() >= 0:
            self._timer.cancel()
            self._poller.remove(self._sock.fileno())
            self._sock.close()
            self._report(result)
