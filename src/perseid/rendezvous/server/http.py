"""The little of HTTP/1.1 (RFC 9112) that health checks and Prometheus need; no I/O."""

from __future__ import annotations

MAX_REQUEST = 8192
"""Longest request head that is accepted, in bytes; a health check's is below 500."""
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 503: "Service Unavailable"}


def request_path(head: bytes) -> str | None:
    """The path of a complete GET or HEAD request; None while more bytes must come.

    Raises
    ------
    ValueError
        It is another request, or too long.
    """
    if b"\r\n\r\n" not in head and b"\n\n" not in head:
        if len(head) > MAX_REQUEST:
            raise ValueError("the request is too long")
        return None
    words = head.split(b"\r\n", 1)[0].split()
    if len(words) != 3 or words[0] not in (b"GET", b"HEAD") or not words[2].startswith(b"HTTP/"):
        raise ValueError("only GET and HEAD are answered")
    return words[1].partition(b"?")[0].decode("ascii", "replace")


def response(status: int, body: str, kind: str = "text/plain; charset=utf-8") -> bytes:
    """A complete response; the connection closes after it."""
    raw = body.encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(raw)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + raw
