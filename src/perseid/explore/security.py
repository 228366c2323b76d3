"""Access control of the server: requests need the token and a host name of this machine.

The token is the first part of every path. So nothing is stored in the browser, two servers share no
cookies, and no other site can make a valid request. If another site makes its own name resolve to
this machine (DNS rebinding), the check of the Host header refuses the request. The content security
policy lets a page load and run only what this server sends.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import PlainTextResponse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'"
)
NOTEBOOK_FRAMES = "http://localhost:* http://127.0.0.1:* https://localhost:* https://127.0.0.1:*"
"""Origins that may frame a page which is shown inside a notebook."""


def new_token() -> str:
    """Create a random token for one server."""
    return secrets.token_urlsafe(24)


class Guard:
    """An ASGI application that refuses requests without the token or with a foreign host name.

    Parameters
    ----------
    app
        The application behind it, which sees paths without the token.
    token
        First part of every path.
    host
        Name that the server listens on, which is allowed besides this machine's own names.
    framed
        Whether a notebook on this machine may frame the pages.
    """

    def __init__(self, app: App, token: str, host: str = "", *, framed: bool = False) -> None:
        self._app, self._prefix = app, f"/{token}/".encode()
        self._names = {"localhost", socket.gethostname().lower(), host.lower()}
        frames = NOTEBOOK_FRAMES if framed else "'none'"
        self._headers = [
            (b"content-security-policy", f"{POLICY}; frame-ancestors {frames}".encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request, and pass it on or refuse it."""
        if scope["type"] != "http":
            # Startup and shutdown of the server pass; websockets are not answered at all.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        guarded = self._with_headers(send)
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        # The slash at the end of the prefix becomes the first of the path.
        path = scope["path"].encode()[len(self._prefix) - 1 :].decode()
        await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, guarded)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if not self.knows(host):
            return PlainTextResponse("This server is not known by that name.\n", 403)
        origin = headers.get(b"origin")
        # Browsers send Origin with such requests. Programs that send none still need the token.
        if scope["method"] not in ("GET", "HEAD") and origin is not None:
            name = origin.decode("latin-1").partition("://")[2]
            if name != host:
                return PlainTextResponse("Another site may not change anything here.\n", 403)
        given = scope["path"].encode()[: len(self._prefix)]
        # In constant time, so that response times do not reveal parts of the token.
        if not secrets.compare_digest(given, self._prefix):
            words = "Open the address that `perseid explore` printed: it holds a token.\n"
            return PlainTextResponse(words, 403)
        return None

    def knows(self, host: str) -> bool:
        """Whether a Host header names this machine: an address, localhost or its host name."""
        name = host.strip().lower()
        # IPv6 addresses are in brackets, before an optional port.
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        # An address in place of a name cannot come from DNS rebinding.
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return bool(name) and name in self._names
        return True

    def _with_headers(self, send: Send) -> Send:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Headers that a page sets itself, such as cache-control of pictures, are kept.
                own = {name for name, _ in message.get("headers", ())}
                extra = [pair for pair in self._headers if pair[0] not in own]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        return guarded
