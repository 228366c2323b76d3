"""A reverse proxy that makes a good S3 server slow, or refuse requests in bursts."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Flaky:
    """How the proxy behaves, and what it did."""

    endpoint: str = ""
    delay: float = 0.0
    """Seconds put before each request."""
    refuse: int = 0
    """Refuse the first so many requests of each (method, path)…"""
    status: int = 503
    """… with this status."""
    rewrite: tuple[bytes, bytes] = (b"", b"")
    """Put the second in place of the first in every answer."""
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def admits(self, method: str, path: str) -> bool:
        """Delay and count a request; whether it goes through."""
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        with self.lock:
            self.at_once -= 1
            self.seen[method, path] += 1
            if self.seen[method, path] > self.refuse:
                return True
            self.refused += 1
            return False


@contextmanager
def flaky_proxy(upstream: str, **how: Any) -> Iterator[Flaky]:
    """Serve in front of `upstream` (``http://host:port``) on a free port."""
    flaky = Flaky(**how)
    target = urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not flaky.admits(self.command, self.path.split("?")[0]):
                self.answer(flaky.status, [], b"<Error><Code>SlowDown</Code></Error>")
                return
            upstream_ = http.client.HTTPConnection(target, timeout=30)
            try:
                upstream_.request(self.command, self.path, body, dict(self.headers))
                reply = upstream_.getresponse()
                body = reply.read()
                if flaky.rewrite[0]:
                    body = body.replace(*flaky.rewrite)
                self.answer(reply.status, reply.getheaders(), body)
            finally:
                upstream_.close()

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    flaky.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield flaky
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
