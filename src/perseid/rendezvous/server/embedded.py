"""A rendezvous server in a thread of this process, for runs on one machine and for tests."""

from __future__ import annotations

import asyncio
import threading

from perseid.errors import RendezvousError
from perseid.linux import need_linux
from perseid.rendezvous.server.server import Server
from perseid.rendezvous.server.server_config import Config

START_SECONDS = 10.0
"""Time for the thread to start listening."""


class EmbeddedServer:
    """A server that lives as long as its ``with`` block.

    Parameters
    ----------
    config
        By default: loopback, any free ports, open, without TCPunch.

    Examples
    --------
    >>> from perseid.rendezvous import Client, EmbeddedServer
    >>> with EmbeddedServer() as server:
    ...     with Client.register(server.address, "job", 0, 1) as client:
    ...         client.wait_complete(5.0)
    """

    def __init__(self, config: Config | None = None) -> None:
        self._config = config or Config(host="127.0.0.1", port=0, http_port=0, tcpunch=False)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="perseid-server", daemon=True)

    @property
    def address(self) -> str:
        """``HOST:PORT`` for clients on this machine, with the fingerprint of its certificate, if it
        has one."""
        host = self._config.host or "127.0.0.1"
        pinned = f"#{self.server.fingerprint}" if self.server.fingerprint else ""
        host = f"[{host}]" if ":" in host else host
        return f"{host}:{self.server.port}{pinned}"

    def _repr_html_(self) -> str:
        # Not at the top: the package of the small Lambda functions has the server without it.
        from perseid.plaintext import html_table

        state = self.address if self._started.is_set() and self._failure is None else "not running"
        return html_table(("rendezvous server", state), ())

    def __enter__(self) -> EmbeddedServer:
        need_linux("A rendezvous server")
        self._thread.start()
        if not self._started.wait(START_SECONDS):
            raise RendezvousError(f"The rendezvous did not start within {START_SECONDS:g} s.")
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(START_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:
            self._failure = failure
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with Server(self._config) as self.server:
            self._started.set()
            await self._stop.wait()
