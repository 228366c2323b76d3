"""The listening sockets: accept, refuse what exceeds a limit, hand the rest to a role."""

from __future__ import annotations

import errno
import logging
import socket

from perseid.rendezvous.net.listen import listening_sockets
from perseid.rendezvous.server.client_connection import ClientConnection, Handler
from perseid.rendezvous.server.context import ServerContext
from perseid.rendezvous.server.limits import RateLimit

ACCEPTS_A_ROUND = 128
"""Connections accepted before other events are handled."""
ACCEPT_PAUSE = 0.2
"""Seconds without accepting after file descriptors ran out."""
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger("perseid.rendezvous")


class Listener:
    """One listening socket in the poller."""

    __slots__ = ("_acceptor", "handler", "sock")

    def __init__(self, sock: socket.socket, acceptor: Acceptor, handler: Handler) -> None:
        self.sock, self._acceptor, self.handler = sock, acceptor, handler

    def on_event(self, mask: int) -> None:
        """Accept what is pending."""
        self._acceptor.accept(self)


class Acceptor:
    """Listens on the server's ports.

    Parameters
    ----------
    max_clients
        Open descriptors above which new connections are closed at once.
    """

    def __init__(self, context: ServerContext, max_clients: int) -> None:
        self.max_clients = max_clients
        self._context = context
        self._rate = RateLimit(context.config.rate, context.config.burst)
        self._listeners: list[Listener] = []
        self._accepting = True

    def listen(self, port: int, handler: Handler) -> int:
        """Listen on a port in all address families; the port, chosen by the kernel if it was 0.

        Parameters
        ----------
        handler
            First role of the connections to this port.

        Raises
        ------
        RendezvousError
            The address or port cannot be listened on.
        """
        socks = listening_sockets(
            self._context.config.host, port, self._context.config.link_timeout
        )
        for sock in socks:
            listener = Listener(sock, self, handler)
            self._listeners.append(listener)
            self._context.poller.add(sock.fileno(), listener)
        chosen: int = socks[0].getsockname()[1]
        return chosen

    def accept(self, listener: Listener) -> None:
        """Take new connections; each is read at once, for most bring their first bytes along."""
        for _ in range(ACCEPTS_A_ROUND):
            try:
                sock, name = listener.sock.accept()
            # Nothing more is pending, or a client gave up between its SYN and now.
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._accept_failed(error)
                return
            self._admit(sock, name, listener.handler)

    def _admit(self, sock: socket.socket, name: tuple[str, int], handler: Handler) -> None:
        context = self._context
        # A link-local IPv6 address has its interface behind a %.
        host = name[0].partition("%")[0]
        context.counters.connections += 1
        if len(context.poller) >= self.max_clients:
            context.counters.refused_limit += 1
            # Closed without a word: composing an answer would be work for whoever floods the
            # server.
            sock.close()
        elif not self._rate.admits(host, context.clock.now()):
            context.counters.refused_rate += 1
            sock.close()
        else:
            connection = ClientConnection(sock, host, name[1], context.poller, handler)
            context.restart_deadline(connection)
            connection.read()

    def _accept_failed(self, error: OSError) -> None:
        self._context.counters.accept_errors += 1
        # Of one connection only, such as a network that went down; the next accept may do.
        if error.errno not in _OUT_OF_RESOURCES:
            return
        log.warning("accepting paused", extra={"data": {"reason": error.strerror}})
        # Without descriptors the listener stays readable, and the loop would spin. Established
        # connections go on; the pause gives some of them time to end.
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._context.poller.remove(listener.sock.fileno())
            self._context.clock.call_later(ACCEPT_PAUSE, self._accept_again)

    def _accept_again(self) -> None:
        self._accepting = True
        for listener in self._listeners:
            if listener.sock.fileno() >= 0:
                self._context.poller.add(listener.sock.fileno(), listener)

    def sweep(self, now: float) -> None:
        """Forget addresses that have not connected for long."""
        self._rate.forget_idle(now)

    def close(self) -> None:
        for listener in self._listeners:
            listener.sock.close()
