"""The server of the live page: a socket, a thread, and an address that contains a token."""

from __future__ import annotations

import re
import socket
import threading
import time
from typing import Any, Self

from perseid.errors import BadInputError, PerseidError
from perseid.explore.explored_run import ExploredRun
from perseid.explore.live import LiveRun
from perseid.libraries import library_error

LOOPBACK = "127.0.0.1"
START_SECONDS = 30.0
"""Seconds that the server may take to start."""
STOP_SECONDS = 10.0
"""Seconds that the server may take to stop, after which its thread is left to end by itself."""


class ExploreServer:
    """Serves the page of one run from a thread; a context manager.

    Parameters
    ----------
    explored
        Catalogue and pictures of the run.
    live
        Follows the run while it goes on.
    host, port
        Address to listen on; port 0 takes a free one.
    token
        First part of every path; None to create one. Listening on an address other than loopback
        requires a chosen token.
    framed
        Whether the page may be framed by a notebook on this machine.
    name
        Name stored with each rating; empty for none.

    Raises
    ------
    BadInputError
        The host is not loopback and no token was given, or the address cannot be listened on.
    NotInstalledError
        The extra ``explore`` is not installed.
    """

    def __init__(
        self, explored: ExploredRun, live: LiveRun, *, host: str = LOOPBACK, port: int = 0,
        token: str | None = None, framed: bool = False, name: str = "",
    ) -> None:  # fmt: skip
        try:
            import uvicorn

            from perseid.explore.app import make_app
            from perseid.explore.security import Guard, new_token
        except ImportError as error:
            raise library_error(
                error, f"the live page needs {error.name}: pip install 'perseid[explore]'"
            ) from error
        check_token(host, token)
        self._explored, self._live = explored, live
        # The catalogue is written when the run ends, so what was read before is outdated.
        live.when_ended(explored.forget)
        self._token = token or new_token()
        # Listening at once: a port that is taken is reported here, not in the thread.
        self._socket = _listen(host, port)
        app = make_app(explored, live, rater=name)
        guard: Any = Guard(app, self._token, host, framed=framed)
        self._server = uvicorn.Server(
            uvicorn.Config(
                # No log of requests: it would contain the token.
                guard, log_level="critical", access_log=False, lifespan="off", loop="asyncio",
                timeout_graceful_shutdown=1, server_header=False,
            )
        )  # fmt: skip
        # A daemon, so that an open connection of a browser cannot keep the process alive.
        self._thread = threading.Thread(target=self._serve, name="explore", daemon=True)
        self._host = host

    @property
    def address(self) -> str:
        """Address of the page, including the token."""
        host, port = self._socket.getsockname()[:2]
        shown = self._host if host in ("0.0.0.0", "::") else host
        if shown in ("0.0.0.0", "::"):  # "any address" is none that a browser can open
            shown = socket.gethostname()
        name = f"[{shown}]" if ":" in shown else shown
        return f"http://{name}:{port}/{self._token}/"

    @property
    def serving(self) -> bool:
        """Whether the server answers requests."""
        return self._thread.is_alive() and self._server.started

    def wait(self) -> None:
        """Wait until the server ends or the process is interrupted."""
        while self._thread.is_alive():
            self._thread.join(0.5)  # with a time-out, Ctrl-C comes through on every platform

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise PerseidError("the server of the page did not start: try again")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.close()  # ends the streams of events, for which the server would wait
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)
        self._socket.close()
        self._explored.close()

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])


def check_token(host: str, token: str | None) -> None:
    """Raise `BadInputError` for an invalid token, or for none where other machines need one."""
    if token is not None and not re.fullmatch("[A-Za-z0-9_-]{8,128}", token):
        raise BadInputError(
            "the token must be 8 to 128 letters, digits, - or _: it is a part of the address"
        )
    if host not in (LOOPBACK, "localhost", "::1") and token is None:
        raise BadInputError(
            f"--host {host} lets other machines reach the page: choose a --token, which they need"
        )


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 65536:
        raise BadInputError(f"there is no port {port}: choose one from 1 to 65535, or 0 for any")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(found[0], socket.SOCK_STREAM)
        # Otherwise a restart on the same port fails for a minute after a stop.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
        listening.listen(128)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInputError(f"the page cannot be served on {host}:{port}: {reason}") from error
    return listening
