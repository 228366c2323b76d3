"""Links between ranks in TLS: what is sent arrives, nothing of it is plain, strangers stay out."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from packets import captured

from perseid.comm import Communicator, make_certificate
from perseid.errors import BadInputError, NoPathError, PeerLostError, PerseidError
from perseid.rendezvous import Config, EmbeddedServer, job_key

SECRET = b"the plaintext of this test " * 40
CERTIFICATE = make_certificate()


def ranks(size, function, certificates=None, secret=None, **options):
    """Run a function on threads with communicators; results and errors by rank."""
    results, errors = {}, {}
    options = {"timeout": 20.0, "certificate": CERTIFICATE, **options}

    def work(rank):
        given = options if certificates is None else {**options, "certificate": certificates[rank]}
        try:
            with Communicator.join("job", rank, size, address, **given) as comm:
                results[rank] = function(comm)
        except BaseException as error:
            errors[rank] = error

    with EmbeddedServer(Config(host="127.0.0.1", port=0, http_port=None, secret=secret)) as server:
        address = server.address
        threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    return results, errors


def everything(comm):
    """Calls of all sizes, which cross and overlap; each is checked against NumPy."""
    size, rank = comm.world_size, comm.rank
    for n in (1, 1000, 5000, 300_000):
        mine = np.arange(n, dtype=np.float64) + rank
        into = np.empty(n)
        comm.Allreduce(mine, into)
        assert np.array_equal(into, size * np.arange(n) + size * (size - 1) / 2)
    assert comm.allgather(SECRET * (rank + 1)) == [SECRET * (one + 1) for one in range(size)]
    # Everyone sends before anyone receives: more than all buffers of the kernel hold.
    parts = [np.full(400_000, rank * size + to, np.float64) for to in range(size)]
    back = comm.alltoall(parts)
    assert [int(part[-1]) for part in back] == [one * size + rank for one in range(size)]
    for _ in range(50):
        comm.barrier()
    right, left = (rank + 1) % size, (rank - 1) % size
    for tag in range(20):
        comm.send((tag, rank, b"x" * 3000), right, tag)
    assert [comm.recv(left, tag)[:2] for tag in range(20)] == [(tag, left) for tag in range(20)]
    return comm.transports


@pytest.mark.parametrize("transport", ["direct", "relay"])
def test_every_kind_of_call_is_right_over_tls(transport):
    results, errors = ranks(4, everything, transport=transport)
    assert not errors
    assert set(results[0].values()) == {transport}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may capture packets")
@pytest.mark.parametrize("transport", ["direct", "relay"])
@pytest.mark.parametrize(
    ("certificate", "plain"),
    [(None, True), (CERTIFICATE, False)],
    ids=["plain", "encrypted"],
)
def test_a_packet_capture_finds_no_payload_of_an_encrypted_link(transport, certificate, plain):
    secret = f"payload {os.urandom(16).hex()}"
    with captured() as packets:
        results, errors = ranks(
            2, lambda comm: comm.allgather(secret), certificate=certificate, transport=transport
        )
    assert not errors
    assert results[1] == [secret, secret]
    assert (secret.encode() in packets) is plain


def other(text):
    return [CERTIFICATE, text]


@pytest.mark.parametrize("theirs", [make_certificate(), None], ids=["another", "none"])
def test_a_rank_without_the_jobs_certificate_stays_out(theirs, monkeypatch):
    monkeypatch.setattr("perseid.rendezvous.punch.encryption.TLS_SECONDS", 2.0)
    results, errors = ranks(2, lambda comm: comm.allgather(1), other(theirs), timeout=8.0)
    assert not results
    assert set(errors) == {0, 1}
    assert isinstance(errors[0], (NoPathError, PeerLostError)), errors[0]
    said = " ".join(map(str, errors.values()))
    assert "give all ranks the same certificate" in said, said


@pytest.mark.parametrize(
    "pem",
    ["", "nonsense", CERTIFICATE.partition("-----BEGIN PRIV")[0]],
    ids=["empty", "nonsense", "no-key"],
)
def test_a_text_that_is_no_certificate_is_refused(pem):
    with pytest.raises(BadInputError, match="one certificate and its private key"):
        Communicator.join("job", 0, 2, "127.0.0.1:1", certificate=pem)


def test_a_certificate_under_a_jobs_key_opens_with_that_key_alone():
    secret = os.urandom(32)
    key = job_key(secret, "job")
    pem = make_certificate(key)
    assert "BEGIN ENCRYPTED PRIVATE KEY" in pem
    given = {"certificate": pem, "key": key.hex(), "secret": secret}
    results, errors = ranks(2, lambda comm: comm.allgather(comm.rank), **given)
    assert not errors
    assert results == {0: [0, 1], 1: [0, 1]}
    for other in (os.urandom(32).hex(), None):
        with pytest.raises(BadInputError, match="not a certificate of a job"):
            Communicator.join("job", 0, 2, "127.0.0.1:1", certificate=pem, key=other)


def test_certificate_and_key_of_two_jobs_do_not_go_together():
    certificate = CERTIFICATE.partition("-----BEGIN PRIV")[0]
    key = "-----BEGIN PRIV" + make_certificate().partition("-----BEGIN PRIV")[2]
    with pytest.raises(BadInputError, match="not a certificate of a job"):
        Communicator.join("job", 0, 2, "127.0.0.1:1", certificate=certificate + key)


def test_a_rank_that_dies_is_named_by_all_others():
    def die(comm):
        comm.barrier()
        if comm.rank == 1:
            raise RuntimeError("the disk is full")
        began = time.monotonic()
        try:
            comm.recv(1)
        except PerseidError as error:
            return str(error), time.monotonic() - began
        return None

    results, errors = ranks(3, die)
    assert set(errors) == {1}
    assert all("the disk is full" in results[rank][0] for rank in (0, 2)), results
    assert all(results[rank][1] < 10 for rank in (0, 2))


def test_the_launcher_encrypts_and_says_so_to_its_ranks(tmp_path):
    """perseid comm run --encrypt; mpi4py's names, whose operations overlap, go through it, too."""
    program = Path(__file__).parents[1] / "support" / "mpi_program.py"
    look = tmp_path / "look.py"
    look.write_text(
        "from perseid.comm import Communicator\n"
        "with Communicator.from_environment() as comm:\n"
        "    print(comm.allreduce(1), comm.encrypted)\n"
    )
    run = [sys.executable, "-m", "perseid", "comm", "run", "--encrypt", "-n", "3"]
    done = subprocess.run([*run, look], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 True") == 3, done.stdout
    run.append(str(program))
    done = subprocess.run(
        [*run, "perseid"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
