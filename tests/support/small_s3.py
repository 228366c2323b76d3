"""A small S3 server over real sockets whose answers a test may replace by others of S3's own.

It keeps objects, lists them on one page, reads ranges and writes conditionally; it checks no
signatures. The errors are worded as AWS documents them.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; HEAD gets it without the body, as S3 does."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    key: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""

    @property
    def region(self) -> str:
        """In which it was signed; empty without a signature."""
        found = re.search(r"/\d{8}/([\w-]+)/\w+/aws4", self.headers.get("authorization", ""))
        return found[1] if found else ""

    @property
    def access_key(self) -> str:
        """Whose signature it is."""
        found = re.search(r"Credential=([^/]+)/", self.headers.get("authorization", ""))
        return found[1] if found else ""


Drop = object()
"""In place of an answer: the connection is closed."""


class SmallS3(ThreadingHTTPServer):
    """Objects of one bucket; `answer` may say something else, None lets the server work."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Answer | object | None] = lambda asked: None

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, method: str, key: str) -> int:
        """Requests of a method for a key."""
        return sum((a.method, a.key) == (method, key) for a in list(self.asked))


@contextlib.contextmanager
def serving() -> Iterator[SmallS3]:
    """A server for the time of a test."""
    with SmallS3() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


def error(status: int, code: str, message: str = "", extra: str = "", **headers: str) -> Answer:
    """S3's error document, https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message>{extra}"
        "<RequestId>4442587FB7D0A2F9</RequestId><HostId>c2FtcGxl</HostId></Error>"
    )
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, body.encode(), {"Content-Type": "application/xml", **named})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SmallS3

    def _do(self) -> None:
        body = self._body()
        parts = urlsplit(self.path)
        key = unquote(parts.path).removeprefix(f"/{BUCKET}").lstrip("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, key, parse_qs(parts.query, True), headers, body)
        self.server.asked.append(asked)
        answer = self.server.answer(asked)
        if answer is Drop:
            self.close_connection = True
            self.connection.close()
            return
        self._send(answer if isinstance(answer, Answer) else self._work(asked, body))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {"x-amz-request-id": "4442587FB7D0A2F9", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _work(self, asked: Asked, body: bytes) -> Answer:
        objects = self.server.objects
        if asked.method == "PUT":
            if "if-none-match" in asked.headers and asked.key in objects:
                return error(412, "PreconditionFailed", "At least one of the pre-conditions failed")
            seen = asked.headers.get("if-match")
            if seen is not None and seen != _etag(objects.get(asked.key, b"")):
                return error(412, "PreconditionFailed", "At least one of the pre-conditions failed")
            objects[asked.key] = body
            return Answer(200, headers={"ETag": _etag(body)})
        if "delete" in asked.query:
            keys = re.findall(r"<Key>([^<]*)</Key>", body.decode())
            for key in keys:
                objects.pop(key, None)
            done = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return Answer(200, f"<DeleteResult>{done}</DeleteResult>".encode())
        if "list-type" in asked.query:
            return self._listing(asked.query.get("prefix", [""])[0], "delimiter" in asked.query)
        if asked.key not in objects:
            return error(404, "NoSuchKey", "The specified key does not exist.")
        return self._object(asked, objects[asked.key])

    def _listing(self, prefix: str, here_only: bool) -> Answer:
        found = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(data)}</Size><ETag>{_etag(data)}</ETag>"
            "<LastModified>2026-11-01T00:00:00.000Z</LastModified></Contents>"
            for key, data in sorted(self.server.objects.items())
            if key.startswith(prefix) and not (here_only and "/" in key.removeprefix(prefix))
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        return Answer(200, text.encode(), {"Content-Type": "application/xml"})

    def _object(self, asked: Asked, data: bytes) -> Answer:
        kind = "text/html" if asked.key.endswith(".html") else "binary/octet-stream"
        headers = {"ETag": _etag(data), "Content-Type": kind}
        headers["Last-Modified"] = "Sun, 01 Nov 2026 00:00:00 GMT"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.headers.get("range", ""))
        if wanted is None:
            return Answer(200, data, headers)
        start, end = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return Answer(206, data[start : end + 1], headers)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def stopwatch() -> Callable[[], float]:
    """Seconds since it was made."""
    began = time.monotonic()
    return lambda: time.monotonic() - began
