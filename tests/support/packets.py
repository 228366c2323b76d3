"""What goes over this machine's loopback, as the kernel shows it to whoever may look."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from perseid.rendezvous import job_key
from perseid.rendezvous.net.tls import job_certificate
from perseid.storage import Storage


@contextmanager
def captured(port: int | None = None) -> Iterator[bytearray]:
    """All packets; with `port`, those of connections to that port of 127.0.0.1."""
    packets, over = bytearray(), threading.Event()
    wanted = None if port is None else port.to_bytes(2, "big")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
        tap.bind(("lo", 0))
        tap.settimeout(0.1)

        def read() -> None:
            while not over.is_set():
                with suppress(TimeoutError):
                    packet = tap.recv(2**17)
                    at = 14 + 4 * (packet[14] & 15)  # behind the frame's header and that of IPv4
                    if wanted is None or wanted in (packet[at : at + 2], packet[at + 2 : at + 4]):
                        packets.extend(packet)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            yield packets
            time.sleep(0.3)
        finally:
            over.set()
            thread.join(10)


def assert_encrypted(packets: bytes, results: str, secret: bytes) -> None:
    """Of a run's ranks: their records went by, and no name in them could be read.

    The private key that opens the connections is encrypted in the run's objects, under a key that
    no object holds.
    """
    manifest = json.loads(Storage(results).get("manifest.json"))
    assert len(packets) > 10_000
    assert b"peak_memory_mb" not in packets  # of the records that rank 0 gathers
    assert b"BEGIN CERTIFICATE" not in packets
    options = manifest["settings"]["options"]
    assert "BEGIN ENCRYPTED PRIVATE KEY" in options["certificate"]
    job_certificate(options["certificate"], job_key(secret, manifest["run_id"]).hex())
