"""A rendezvous server with a certificate of its own, which its clients know by fingerprint."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
from packets import captured

from perseid.comm import Communicator, make_certificate
from perseid.errors import (
    BadInputError,
    JobKeyRefusedError,
    PerseidError,
    RendezvousRefusedError,
    RendezvousUnreachableError,
)
from perseid.rendezvous import Client, Config, EmbeddedServer, Endpoint, job_key

CERTIFICATE = make_certificate()
SECRET = b"the secret of this server" * 2
NAME = "a job whose name is told to nobody"


def server(**settings):
    return EmbeddedServer(Config(host="127.0.0.1", port=0, http_port=None, **settings))


def together(addresses, function, **options):
    """A rank for each address; what each returned, or the error."""
    found = {}

    def work(rank):
        try:
            key = job_key(SECRET, NAME)
            with Communicator.join(
                NAME, rank, len(addresses), addresses[rank], key, **options
            ) as comm:
                found[rank] = function(comm)
        except PerseidError as error:
            found[rank] = error

    threads = [
        threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(len(addresses))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found.get(rank) for rank in range(len(addresses))]


@pytest.mark.parametrize("transport", ["direct", "relay"])
def test_the_wire_shows_neither_the_jobs_name_nor_what_is_sent(transport):
    """In TLS with the server and, by the job's certificate, through it."""
    payload = "what rank 0 says to rank 1 " * 3
    with server(certificate=CERTIFICATE, secret=SECRET) as running, captured() as packets:
        assert "#" in running.address
        found = together(
            [running.address] * 3,
            lambda comm: (comm.bcast(payload), comm.transports),
            certificate=make_certificate(),
            transport=transport,
        )
    assert [one[0] for one in found] == [payload] * 3, found
    assert set(found[1][1].values()) == {transport}
    assert NAME.encode() not in packets
    assert payload.encode() not in packets
    assert len(packets) > 10_000, "the capture saw the connections"


def test_plain_clients_are_served_beside_the_others():
    with server(certificate=CERTIFICATE, secret=SECRET) as running:
        plain = running.address.partition("#")[0]
        found = together([running.address, plain], lambda comm: comm.allgather(comm.rank))
    assert found == [[0, 1], [0, 1]]


def test_another_certificate_or_none_is_refused_by_a_sentence():
    with server(certificate=make_certificate(), secret=SECRET) as running, server() as plain:
        host = running.address.partition("#")[0]
        with pytest.raises(RendezvousRefusedError, match="another certificate than the one"):
            Client.register(f"{host}#{'0' * 64}", "job", 0, 1)
        with pytest.raises(JobKeyRefusedError):
            Client.register(running.address, "job", 0, 1, key=bytes(32))
        with pytest.raises(RendezvousUnreachableError, match="does not answer in TLS"):
            Client.register(f"{plain.address}#{'0' * 64}", "job", 0, 1, deadline=8)
        with Client.register(running.address, NAME, 0, 1, key=job_key(SECRET, NAME)) as client:
            client.wait_complete(5)


def test_a_rank_finds_a_server_that_comes_again_with_its_certificate():
    with server(certificate=CERTIFICATE) as first:
        port, address = first.server.port, first.address
        client = Client.register(address, "job", 0, 2, silence_timeout=5)
    with (
        client,
        EmbeddedServer(Config("127.0.0.1", port, None, certificate=CERTIFICATE)),
        Client.register(address, "job", 1, 2) as other,
    ):
        client.wait_complete(30)
        other.wait_complete(30)


@pytest.mark.parametrize("text", ["host:1#", "host:1#12", "host:1#" + "g" * 64])
def test_what_is_no_fingerprint(text):
    with pytest.raises(BadInputError, match="fingerprint"):
        Endpoint.parse(text)


def test_the_command_line_has_it_all(tmp_path):
    perseid = [sys.executable, "-m", "perseid"]
    made = subprocess.run([*perseid, "comm", "certificate"], capture_output=True, text=True)
    (tmp_path / "server.pem").write_text(made.stdout)
    serve = [
        "rendezvous",
        "serve",
        "--open",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--http-port",
        "0",
    ]
    with subprocess.Popen(
        [*perseid, *serve, "--certificate", str(tmp_path / "server.pem"), "--log", "json"],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        said = json.loads(process.stdout.readline())
        said |= said.get("data", {})
        with Client.register(f"127.0.0.1:{said['port']}#{said['fingerprint']}", "job", 0, 1) as one:
            one.wait_complete(5)
        process.terminate()
    for text, sentence in (
        ("nonsense", "one certificate and its private key"),
        (make_certificate(b"k" * 32), "is no certificate with its key"),  # which nobody can open
        (None, "cannot be read"),
    ):
        if text:
            (tmp_path / "bad.pem").write_text(text)
        path = tmp_path / ("bad.pem" if text else "none.pem")
        done = subprocess.run(
            [*perseid, *serve, "--certificate", path], capture_output=True, text=True
        )
        assert done.returncode != 0
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
