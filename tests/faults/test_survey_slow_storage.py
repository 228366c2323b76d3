"""An object store that is slow, busy, or drops connections: the same bytes, or a sentence.

A proxy stands between the client and a real S3 server and breaks requests by a plan.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from perseid.errors import StorageError
from perseid.storage import Storage
from perseid.survey import open_partition, write_cutouts

pytestmark = pytest.mark.s3


class Plan:
    """What happens to the next requests; when it is used up, they pass."""

    def __init__(self, *faults: str) -> None:
        self.faults, self.lock, self.seen = list(faults), threading.Lock(), 0

    def next(self) -> str:
        with self.lock:
            self.seen += 1
            return self.faults.pop(0) if self.faults else "pass"


@contextmanager
def broken(s3, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The S3 server behind a proxy that follows the plan."""
    target = s3.endpoint.removeprefix("http://")

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            fault = plan.next()
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault.isdecimal():
                self.send_response(int(fault))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault == "reset":
                self.close_connection = True
                self.connection.close()
                return
            if fault == "slow":
                time.sleep(0.7)
            upstream = http.client.HTTPConnection(target, timeout=30)
            upstream.request(self.command, self.path, body or None, dict(self.headers.items()))
            answer = upstream.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.end_headers()
            if fault == "cut":
                self.close_connection = True
                data = data[: len(data) // 2]
            self.wfile.write(data)
            upstream.close()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        yield
    finally:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.mark.parametrize(
    "faults",
    [
        ["500", "503", "429", "502"],
        ["pass", "503", "503", "pass", "503", "429", "pass", "503"],
        ["reset", "pass", "reset", "pass", "reset"],
        ["pass", "pass", "cut", "pass", "cut"],
        ["slow"] * 3,
    ],
    ids=lambda faults: "-".join(faults),
)
def test_a_partition_is_read_through_a_bad_hour(
    faults, s3, make_cutouts, same_bits, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutouts, url = make_cutouts(1000), s3.bucket()
    write_cutouts(cutouts, f"{url}/1.pt")
    plan = Plan(*faults)
    began = time.monotonic()
    with broken(s3, plan, monkeypatch), open_partition(Storage(url), "1.pt") as reader:
        at = 0
        for block in reader.blocks(200):
            assert same_bits(block, cutouts[at : at + 200])
            at += len(block)
    assert at == 1000
    assert not plan.faults  # all of them happened
    assert plan.seen >= len(faults)
    assert time.monotonic() - began < 60


def test_writes_and_claims_survive_a_bad_hour(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    url, plan = s3.bucket(), Plan("503", "429", "503")
    with broken(s3, plan, monkeypatch):
        store = Storage(url)
        store.put("claim", b"mine", new=True)
        assert store.get("claim") == b"mine"
        assert [info.key for info in store.list()] == ["claim"]
    assert not plan.faults


def test_a_store_that_never_recovers_is_given_up_in_a_sentence(
    s3, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3.bucket()
    Storage(url).put("1.pt", b"x")
    began = time.monotonic()
    with (
        broken(s3, Plan(*["503"] * 100), monkeypatch),
        pytest.raises(StorageError, match=r"/1\.pt: .*503"),
    ):
        Storage(url).get("1.pt")
    assert time.monotonic() - began < 60
