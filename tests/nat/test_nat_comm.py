"""Communicators behind NATs: each pair takes the best way it can have, the store at the last."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rendezvous_processes import ServerProcess
from small_survey import blobs

from perseid.comm.connection import DONTWAIT, SocketConnection

pytestmark = pytest.mark.nat

PROGRAM = Path(__file__).parent.parent / "support" / "nat_rank.py"
SECONDS = 60


def join_all(
    net, sites, folder, *server_options, size=80_000, seconds=SECONDS, when_ready=None, **options
) -> list[dict]:
    """A rank at each site, a server on a public address; what each rank printed.

    ``when_ready`` is called with the server's address once all ranks have talked.
    """
    where = net.site("public", "open")
    server = ServerProcess(
        "--open", *server_options, host="", ports=(10000, 10001), preexec=where.gateway.enter
    )
    running = []
    with server:
        try:
            for rank, site in enumerate(sites):
                path = folder / f"rank-{rank}.json"
                told = {
                    "job": "behind-nats", "rank": rank, "world_size": len(sites), "size": size,
                    "rendezvous": f"{where.address}:10000", "deadline": 30, "timeout": 30,
                    "silence_timeout": 10, "ready": str(folder / f"ready-{rank}"),
                } | options  # fmt: skip
                path.write_text(json.dumps(told))
                running.append(
                    subprocess.Popen(
                        [sys.executable, str(PROGRAM), str(path)],
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                        preexec_fn=site.hosts[0].enter,
                        env={**os.environ, "OMP_NUM_THREADS": "1"},
                    )
                )
            if when_ready is not None:
                end = time.monotonic() + seconds
                while len(list(folder.glob("ready-*"))) < len(sites):
                    assert time.monotonic() < end, "the ranks did not get going"
                    time.sleep(0.05)
                when_ready(where.address)
            ends = [process.communicate(timeout=seconds) for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait(10)
    assert [process.returncode for process in running] == [0] * len(sites), ends
    return [json.loads(out) for out, _ in ends]


KINDS = [("symmetric", "drop"), ("symmetric", "drop"), ("public", "open"), ("preserving", "drop")]


def test_a_pair_without_any_path_goes_through_the_store_and_the_others_do_not(lab, tmp_path):
    """A symmetric NAT reaches a public rank; nobody else reaches it, and there is no relay."""
    net = lab()
    sites = [net.site(*kind) for kind in KINDS]
    box = tmp_path / "box"
    answers = join_all(net, sites, tmp_path, "--no-relay", store=str(box))
    assert [answer.get("routes") for answer in answers] == [
        {"1": "store", "2": "direct", "3": "store"},
        {"0": "store", "2": "direct", "3": "store"},
        {"0": "direct", "1": "direct", "3": "direct"},
        {"0": "store", "1": "store", "2": "direct"},
    ], answers
    pairs = {path.name for path in (box / "messages" / "behind-nats" / "0").iterdir()}
    assert pairs <= {"0-1", "1-0", "0-3", "3-0", "1-3", "3-1"}, "nobody else wrote there"
    assert not [path for path in box.rglob("*") if path.is_file()], "each was read and deleted"


def test_without_a_store_either_it_is_an_error_that_says_so(lab, tmp_path):
    net = lab()
    answers = join_all(net, [net.site("symmetric") for _ in range(2)], tmp_path, "--no-relay")
    assert {answer["error"] for answer in answers} <= {"NoPathError", "PeerLostError"}
    assert any("cannot be reached" in answer["text"] for answer in answers), answers


def test_a_relay_that_is_limited_is_slow_and_right(lab, tmp_path):
    """Two ranks send each other 1 MB at 1 MB/s over all; the first 0.1 s or so are free."""
    net = lab()
    sites = [net.site("symmetric"), net.site("symmetric")]
    size, rate = 1_000_000, 1e6
    answers = join_all(net, sites, tmp_path, "--relay-rate", "1", size=size)
    assert [answer["routes"] for answer in answers] == [{"1": "relay"}, {"0": "relay"}]
    took = max(answer["seconds"] for answer in answers)
    assert took > 2 * size / rate * 0.6


# Nothing but the link's time-out can end these runs: no silence and no slow call counts.
PATIENT = {"silence_timeout": 0, "timeout": 300, "link_timeout": 2.0}


@pytest.mark.parametrize("idle", [4, 0], ids=["idle", "busy"])
@pytest.mark.parametrize("whole_host", [True, False], ids=["host", "pair"])
def test_a_cut_link_is_a_lost_rank_after_the_link_timeout(lab, tmp_path, whole_host, idle):
    """A host that is gone, or two that reach the server but not each other."""
    net = lab()
    sites = [net.site("public", "open") for _ in range(3)]
    addresses = [site.address for site in sites]

    def cut(server):
        others = [addresses[0]]
        if whole_host:
            others = [addresses[0], addresses[2], server]
        net.cut = {frozenset({addresses[1], other}) for other in others}

    answers = join_all(net, sites, tmp_path, when_ready=cut, idle=idle, **PATIENT)
    assert {answer.get("error") for answer in answers} == {"PeerLostError"}, answers
    named = "Rank 1" if whole_host else "Rank "  # of a pair, either end may be the first to notice
    assert named in answers[0]["text"], answers
    assert named in answers[2]["text"], answers


@pytest.mark.slow
def test_four_workers_behind_nats_train_together(lab, tmp_path):
    """``perseid train`` with the variables of ranks set by hand; two of the NATs are symmetric."""
    net = lab()
    sites = [
        net.site(*kind) for kind in [*KINDS[:2], ("preserving", "drop"), ("preserving", "drop")]
    ]
    where = net.site("public", "open")
    server = ServerProcess("--open", host="", ports=(10000, 10001), preexec=where.gateway.enter)
    (tmp_path / "survey").mkdir()
    survey, running = blobs(tmp_path / "survey"), []
    with server:
        try:
            for rank, site in enumerate(sites):
                command = ["train", str(survey), str(tmp_path / f"out-{rank}"), "--batch", "32",
                           "--pretrain-epochs", "1", "--epochs", "1", "--threads", "1",
                           "--world-size", "4"]  # fmt: skip
                told = {"JOB": "training", "RANK": str(rank), "WORLD_SIZE": "4",
                        "RENDEZVOUS": f"{where.address}:10000"}  # fmt: skip
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "perseid", *command],
                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                        preexec_fn=site.hosts[0].enter,
                        env={**os.environ, **{f"PERSEID_{k}": v for k, v in told.items()}},
                    )
                )  # fmt: skip
            ends = [process.communicate(timeout=600) for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait(10)
    assert [process.returncode for process in running] == [0] * 4, ends
    written = {path.parent.name for path in tmp_path.glob("out-*/weights.npz")}
    assert written == {"out-0"}
    assert "held-out plain objects" in ends[0][0]


def test_what_a_rank_sent_last_survives_a_network_that_loses_it(lab):
    """The peer still sends when the rank has gone: a closed socket would answer with a reset."""
    net = lab()
    here, there = (net.site("public", "open") for _ in range(2))
    listener = there.gateway.inside(lambda: socket.create_server((there.address, 5000)))
    sock = here.gateway.inside(lambda: socket.create_connection((there.address, 5000), 10))
    peer = listener.accept()[0]
    peer.settimeout(30)
    connection = SocketConnection(sock, "direct", 0.1, 15)
    net.deaf.add(there.address)
    connection.send(b"last", DONTWAIT)
    leaving = threading.Thread(target=lambda: connection.finish(wait=True))
    leaving.start()
    peer.sendall(b"still here")
    time.sleep(0.5)
    assert leaving.is_alive()
    net.deaf.clear()
    assert peer.recv(100) == b"last"
    assert peer.recv(100) == b""
    leaving.join(30)
    assert not leaving.is_alive()
    peer.close()
    listener.close()


@pytest.mark.slow
def test_a_fifth_of_all_packets_lost_loses_nobody(lab, tmp_path):
    """In each direction, for 45 s without a message: only probes and heartbeats travel."""
    net = lab(delay=0.01, loss=0.2)
    sites = [net.site("public", "open") for _ in range(3)]
    more = {"silence_timeout": 60, "deadline": 60, "timeout": 120}
    answers = join_all(net, sites, tmp_path, idle=45, seconds=240, size=8000, **more)
    assert all("routes" in answer for answer in answers), answers
