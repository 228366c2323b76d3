"""The protocol of TCPunch, versions 1 and 2, so that its clients are paired here as before.

Version 1: the pairing name (at most 100 bytes, no terminator); 8 bytes of reply, IPv4 address,
port and padding. Version 2: a request of 141 bytes, replies of 50 bytes. Neither carries a length
in front, so a short name may be the beginning of a longer one: the server waits ``GRACE`` after
the last byte before it accepts a name (see docs/reference/rendezvous-protocol.md).
"""

from __future__ import annotations

import enum
import ipaddress
import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from perseid.rendezvous.protocol.wire import Address

NAME_BYTES = 100
"""Longest pairing name of both versions."""
REQUEST_BYTES = 141
"""A version 2 request: name 100, token 37, flags 4."""
REPLY_BYTES = 50
"""A version 2 reply as its programs send it (its documentation says 51)."""
GRACE = 0.02
"""Seconds without a further byte after which a version 1 name is complete."""

_V1 = struct.Struct("!4sH2x")
_V2_REQUEST = struct.Struct("!100s37s4s")
_V2_REPLY = struct.Struct("!B4sH4sH37s")


class TcpunchError(ValueError):
    """The bytes are not a request of either version."""


class ReplyStatus(enum.IntEnum):
    """First byte of a version 2 reply."""

    WAITING = 0
    PAIRED = 1
    TIMEOUT = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request to be paired."""

    version: int
    """1 or 2."""
    name: str
    """Pairing name."""
    token: str = ""
    """Version 2: the reconnect token of an earlier try, or empty."""


def request_version(data: bytes) -> int | None:
    """Version of the request that begins with ``data``, as far as it can be known.

    Returns
    -------
    int or None
        2: complete; 1: complete unless more bytes follow within ``GRACE``; None: more must follow.

    Raises
    ------
    TcpunchError
        ``data`` is longer than any request.
    """
    if len(data) == REQUEST_BYTES:
        return 2
    if len(data) > REQUEST_BYTES:
        raise TcpunchError(f"{len(data)} bytes are longer than a request")
    # Too long for a name, or padded with zeros as only version 2 is: more is on its way.
    if len(data) > NAME_BYTES or b"\0" in data:
        return None
    return 1


def _name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise TcpunchError("the pairing name is not UTF-8") from None
    # A program that speaks HTTP or TLS to this port ends here; its line breaks are no name.
    if not name or not name.isprintable():
        raise TcpunchError("the pairing name is empty or holds control characters")
    return name


def parse_v1(data: bytes) -> Request:
    """A version 1 request.

    Raises
    ------
    TcpunchError
        Over 100 bytes, not UTF-8, empty, or with control characters (an HTTP request, say).
    """
    if len(data) > NAME_BYTES:
        raise TcpunchError(f"a pairing name of {len(data)} bytes, at most {NAME_BYTES}")
    return Request(1, _name(data))


def parse_v2(data: bytes) -> Request:
    """A version 2 request of 141 bytes.

    Raises
    ------
    TcpunchError
        The name is empty or not UTF-8, or the token is not a UUID.
    """
    if len(data) != REQUEST_BYTES:
        raise TcpunchError(f"a version 2 request of {len(data)} bytes, not {REQUEST_BYTES}")
    raw_name, raw_token, _flags = _V2_REQUEST.unpack(data)
    name = _name(raw_name.partition(b"\0")[0])
    token = raw_token.partition(b"\0")[0]
    if not token:
        return Request(2, name)
    try:
        return Request(2, name, str(uuid.UUID(token.decode("ascii"))))
    except ValueError:
        raise TcpunchError("the reconnect token is not a UUID") from None


def _packed(address: Address | None) -> tuple[bytes, int]:
    if address is None:
        return bytes(4), 0
    return ipaddress.IPv4Address(address.host).packed, address.port


def pack_v1(address: Address) -> bytes:
    """8 bytes: IPv4 address, port, padding."""
    return _V1.pack(*_packed(address))


def pack_v2(status: ReplyStatus, own: Address | None, peer: Address | None, token: str) -> bytes:
    """50 bytes: status, own address, peer's address or zeros, token."""
    return _V2_REPLY.pack(status, *_packed(own), *_packed(peer), token.encode("ascii"))


def unpack_v1(data: bytes) -> Address:
    """The address in a version 1 reply of 8 bytes."""
    raw, port = _V1.unpack(data)
    return Address(str(ipaddress.IPv4Address(raw)), port)


def unpack_v2(data: bytes) -> tuple[ReplyStatus, Address, Address, str]:
    """Status, own and peer's address, token of a version 2 reply."""
    status, own, own_port, peer, peer_port, token = _V2_REPLY.unpack(data)
    return (
        ReplyStatus(status),
        Address(str(ipaddress.IPv4Address(own)), own_port),
        Address(str(ipaddress.IPv4Address(peer)), peer_port),
        token.partition(b"\0")[0].decode("ascii"),
    )


W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Waiter(Generic[W]):
    """A client that waits for its partner."""

    request: Request
    handle: W
    """The client's connection."""
    since: float
    """When it arrived, on the server's clock."""


class Pairings(Generic[W]):
    """The clients that wait, by name. Versions are kept apart, because their replies differ."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, str], Waiter[W]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(
        self, newcomer: Waiter[W], alive: Callable[[W], bool]
    ) -> tuple[Waiter[W] | None, Waiter[W] | None]:
        """Pair a newcomer, or let it wait.

        Parameters
        ----------
        alive
            Asked right before a waiter is paired: one that has died must never be.

        Returns
        -------
        partner, ousted
            The partner, or None while the newcomer waits; and the waiter that the newcomer
            replaced, if any: it had died, or was an earlier try of the same client by its token.
        """
        key = (newcomer.request.version, newcomer.request.name)
        waiter = self._waiting.get(key)
        if waiter is None:
            self._waiting[key] = newcomer
            return None, None
        # A client that lost its connection comes back with its token: pairing it with its own
        # former self would give it a partner that never answers.
        same_client = (
            bool(newcomer.request.token) and waiter.request.token == newcomer.request.token
        )
        if same_client or not alive(waiter.handle):
            self._waiting[key] = newcomer
            return None, waiter
        del self._waiting[key]
        return waiter, None

    def awaits(self, request: Request) -> bool:
        """Whether a client waits under this name."""
        return (request.version, request.name) in self._waiting

    def withdraw(self, request: Request, handle: W) -> None:
        """Remove a waiter whose connection ended."""
        key = (request.version, request.name)
        waiter = self._waiting.get(key)
        # The name may be waited for by a newer connection, which must stay.
        if waiter is not None and waiter.handle is handle:
            del self._waiting[key]

    def older_than(self, moment: float) -> Iterator[Waiter[W]]:
        """Remove the waiters that arrived before a moment."""
        for key, waiter in list(self._waiting.items()):
            if waiter.since < moment:
                del self._waiting[key]
                yield waiter


def new_token() -> str:
    """A fresh reconnect token of version 2."""
    return str(uuid.uuid4())
