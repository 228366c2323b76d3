"""Lambda's own bootstrap (awslambdaric) with a Runtime API on loopback: as in AWS' images.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Answer:
    """What a function answered."""

    kind: str
    """``response``, ``error``, ``init`` (it could not start) or ``ended`` (its process went)."""
    body: Any = None

    @property
    def error_type(self) -> str:
        """The name that Step Functions would match."""
        return str(self.body.get("errorType")) if isinstance(self.body, dict) else ""


@dataclass
class Environment:
    """One execution environment."""

    process: subprocess.Popen[bytes]
    log: Path
    events: queue.Queue[tuple[str, bytes, float]] = field(default_factory=queue.Queue)
    answers: queue.Queue[Answer] = field(default_factory=queue.Queue)
    ready: threading.Event = field(default_factory=threading.Event)
    """The handler is imported: it asked for its first event."""

    def invoke(
        self, event: Any, seconds: float = 60.0, wait: float = 60.0, request: str = ""
    ) -> Answer:
        """Hand over an event with so many seconds to live; the answer.

        Raises `TimeoutError` where there is none after `wait` seconds.
        """
        self.events.put((request or str(uuid.uuid4()), json.dumps(event).encode(), seconds))
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            try:
                return self.answers.get(timeout=0.05)
            except queue.Empty:
                if self.process.poll() is not None and self.answers.empty():
                    return Answer("ended", self.process.returncode)
        raise TimeoutError(f"no answer in {wait} s:\n{self.log.read_text()[-2000:]}")


@contextmanager
def environment(
    python: Path, code: Path, handler: str, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[Environment]:
    """Start the bootstrap on an unpacked package; end it afterwards.

    `python` must see awslambdaric and nothing of ours: all else comes from `code`.
    """
    holder: list[Environment] = []
    server = _Server(("127.0.0.1", 0), _handler(holder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "PYTHON"))}
    variables |= {
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{server.server_port}",
        "AWS_LAMBDA_FUNCTION_NAME": "test", "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769", "AWS_LAMBDA_LOG_GROUP_NAME": "group",
        "AWS_LAMBDA_LOG_STREAM_NAME": "stream", "AWS_REGION": "us-east-1",
        "LAMBDA_TASK_ROOT": str(code), "_HANDLER": handler, **(env or {}),
    }  # fmt: skip
    log = folder / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [python, "-m", "awslambdaric", handler], cwd=code, env=variables, stdout=out, stderr=out
        )
    holder.append(Environment(process, log))
    try:
        yield holder[0]
    finally:
        process.kill()
        process.wait(10)
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A bootstrap that ended leaves its connection: nothing to tell."""


def _handler(holder: list[Environment]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            holder[0].ready.set()
            name, event, seconds = holder[0].events.get()
            self._reply(200, event, {
                "Lambda-Runtime-Aws-Request-Id": name,
                "Lambda-Runtime-Deadline-Ms": str(int((time.time() + seconds) * 1000)),
                "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:1:function:test",
                "Content-Type": "application/json",
            })  # fmt: skip

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kind = "init" if self.path.endswith("init/error") else self.path.rpartition("/")[2]
            holder[0].answers.put(Answer(kind, json.loads(body or b"null")))
            self._reply(202, b"{}", {})

        def _reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            lines = [f"HTTP/1.1 {status} OK", f"Content-Length: {len(body)}"]
            lines += [f"{k}: {v}" for k, v in headers.items()]
            self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)  # one segment

        def log_message(self, *words: Any) -> None:
            pass

    return Handler
