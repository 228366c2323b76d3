"""Where a rendezvous server is, as the user writes it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from perseid.errors import BadInputError

DEFAULT_PORT = 10000
"""TCP port of a rendezvous unless another is given."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Host name or address, and port, of a server."""

    host: str
    """Name or numeric address, without brackets."""
    port: int = DEFAULT_PORT
    """TCP port, 1 to 65535."""
    fingerprint: str = ""
    """SHA-256 of the server's certificate, 64 hexadecimal digits: registrations go to a server that
    has exactly this one, in TLS. Empty: they are plain."""

    @classmethod
    def parse(cls, text: str, default_port: int = DEFAULT_PORT) -> Endpoint:
        """Read ``host``, ``host:port``, ``[v6]`` or ``[v6]:port``, and ``#FINGERPRINT`` behind it.

        Raises
        ------
        BadInputError
            It is none of these; a URL has a sentence of its own.
        """
        whole, (text, pinned, fingerprint) = text, text.strip().partition("#")
        found = _ENDPOINT.fullmatch(text)
        if pinned and not _FINGERPRINT.fullmatch(fingerprint):
            raise BadInputError(
                f"{whole!r} has no fingerprint of a certificate behind the #: it is 64 hexadecimal "
                "digits, which the server logs when it starts."
            )
        if "://" in text:
            raise BadInputError(
                f"{text!r} is a URL, but a rendezvous server is given as HOST or HOST:PORT "
                f"({_without_url(text)!r}, perhaps)."
            )
        if found is None:
            raise BadInputError(f"{text!r} is not a server; write HOST, HOST:PORT or [IPV6]:PORT.")
        host = found["v6"] or found["bare_v6"] or found["host"]
        port = int(found["port"] or default_port)
        if not 0 < port < 65536:
            raise BadInputError(f"The port in {text!r} must be 1 to 65535, not {port}.")
        if not _is_host(host):
            raise BadInputError(f"{host!r} in {text!r} is neither a host name nor an IP address.")
        return cls(host, port, fingerprint.lower())

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_ENDPOINT = re.compile(
    r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^:\[\]]+)|(?P<bare_v6>[^\[\]]*:[^\[\]]*:[^\[\]]*))"
    r"(?::(?P<port>[0-9]{0,9}))?"
)
_FINGERPRINT = re.compile(r"[0-9a-fA-F]{64}")
_NAME = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?")
"""Labels of 1 to 63 characters (RFC 1035, section 2.3.4); underscores occur in practice."""


def _is_host(text: str) -> bool:
    if ":" in text:
        try:
            ipaddress.IPv6Address(text)
        except ValueError:
            return False
        return True
    if not _NAME.fullmatch(text):
        return False
    # Loading the codec for international names takes half of the processor time of joining a job.
    if text.isascii():
        return len(text) < 254
    try:
        return len(text.encode("idna")) < 254
    except UnicodeError:
        return False


def _without_url(text: str) -> str:
    """What the user probably meant by a URL."""
    return re.sub(r"^\w*://(?:[^/@]*@)?", "", text.strip()).partition("/")[0]
