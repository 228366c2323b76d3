"""One DNS question (RFC 1035): the time to live of a name's addresses, which the system hides."""

from __future__ import annotations

import secrets
import socket
import struct
from pathlib import Path

TYPE_A, TYPE_AAAA = 1, 28
_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")


class DnsError(ValueError):
    """An answer that cannot be read."""


def pack_query(name: str, kind: int, ident: int) -> bytes:
    """One question, with recursion desired.

    Raises
    ------
    DnsError
        A label of the name is empty or longer than 63 bytes.
    """
    labels = [label.encode("idna") for label in name.rstrip(".").split(".")]
    if any(not 0 < len(label) < 64 for label in labels):
        raise DnsError(f"{name!r} is no domain name")
    question = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return _HEADER.pack(ident, 0x0100, 1, 0, 0, 0) + question + struct.pack("!HH", kind, 1)


def unpack_ttl(answer: bytes, kind: int, ident: int) -> int | None:
    """The smallest time to live, in seconds, of the records of one type; None: there is none.

    Raises
    ------
    DnsError
        It is no answer to this question, or cut off.
    """
    try:
        found, flags, questions, records, _, _ = _HEADER.unpack_from(answer)
        if found != ident or not flags & 0x8000:
            raise DnsError("this answers another question")
        pos = _HEADER.size
        for _ in range(questions):
            pos = _skip_name(answer, pos) + 4
        lives: list[int] = []
        for _ in range(records):
            pos = _skip_name(answer, pos)
            record, _, life, length = _RECORD.unpack_from(answer, pos)
            pos += _RECORD.size + length
            if record == kind:
                lives.append(life)
    except (struct.error, IndexError):
        raise DnsError("the answer is cut off") from None
    return min(lives, default=None)


def _skip_name(data: bytes, pos: int) -> int:
    while True:
        length = data[pos]
        if length >= 0xC0:
            return pos + 2
        pos += 1 + length
        if not length:
            return pos


def time_to_live(name: str, family: int, seconds: float = 1.0) -> int | None:
    """Seconds that the name's addresses may be cached, as the system's resolver says.

    None where it cannot be known: a numeric address, a name from /etc/hosts, no answer.
    """
    kind = TYPE_AAAA if family == socket.AF_INET6 else TYPE_A
    ident = secrets.randbelow(1 << 16)
    try:
        server = _first_resolver()
        with socket.socket(_family_of(server), socket.SOCK_DGRAM) as sock:
            sock.settimeout(seconds)
            sock.connect((server, 53))
            sock.send(pack_query(name, kind, ident))
            return unpack_ttl(sock.recv(4096), kind, ident)
    except (OSError, ValueError):
        return None


def _family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _first_resolver() -> str:
    for line in Path("/etc/resolv.conf").read_text().splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            return words[1]
    raise OSError("no name server is configured")
