"""Busy machines: peers, servers and whole jobs that are slow are waited for, not given up."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import threading
import time

import pytest
from rendezvous_processes import ServerProcess, workers

from perseid.errors import RendezvousTimeoutError, RendezvousUnreachableError
from perseid.rendezvous import Client
from perseid.rendezvous.protocol import FROM_CLIENT, MAGIC, Register, decode
from perseid.rendezvous.protocol.wire import FrameReader


@pytest.fixture(scope="module")
def server():
    with ServerProcess("--open", "--no-relay") as running:
        yield running


def test_a_worker_listens_before_the_server_hears_of_it():
    """Who is told of a worker and connects at once is not refused, however slow the worker is."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        errors = []

        def register():
            try:
                Client.register(f"127.0.0.1:{door.getsockname()[1]}", "early", 0, 2, deadline=5)
            except RendezvousUnreachableError as error:
                errors.append(error)

        thread = threading.Thread(target=register)
        thread.start()
        control, address = door.accept()
        control.settimeout(5)
        frames, data = [], b""
        while not frames:
            data += control.recv(1000)
            frames = FrameReader(1 << 16).feed(data[len(MAGIC) :])
        hello = decode(FROM_CLIENT, *frames[0])
        assert isinstance(hello, Register)
        # No welcome was sent: the worker cannot have gone on.
        assert hello.candidates == (address,)
        socket.create_connection(hello.candidates[0], 1).close()
        control.close()
        thread.join(10)
    assert len(errors) == 1


@pytest.mark.parametrize("stopped", [0, 1], ids=["lower", "higher"])
def test_a_peer_that_is_slow_to_greet_is_waited_for(server, monkeypatch, stopped):
    """Its kernel accepts at once; there is no relay to fall back to."""
    monkeypatch.setattr("perseid.rendezvous.punch.peer_attempts.DIRECT_SECONDS", 0.3)
    # On a busy machine it may have greeted before it was stopped; then another job is tried.
    assert any(_is_waited_for(server, f"slow-{stopped}-{job}", stopped) for job in range(5))


def _is_waited_for(server, job, stopped):
    mine = 1 - stopped
    with (
        workers(1) as (slow,),
        Client.register(server.address, job, mine, 2, silence_timeout=0) as client,
    ):
        told = {"server": server.address, "job": job, "rank": stopped, "world": 2}
        slow.do("register", silence_timeout=0, **told)
        client.wait_complete(20)
        slow.signal(signal.SIGSTOP)
        threading.Timer(2.0, slow.signal, [signal.SIGCONT]).start()
        began = time.monotonic()
        link = client.connect([stopped], 40)[stopped]
        took = time.monotonic() - began
        assert link.transport == "direct"
        link.sock.close()
        return took > 1.5


def test_a_server_that_does_not_say_who_is_missing_is_still_a_timeout(monkeypatch):
    monkeypatch.setattr("perseid.rendezvous.client.client.ANSWER_SECONDS", 0.3)
    with ServerProcess() as server:
        client = Client.register(server.address, "silent", 0, 2)
        server.signal(signal.SIGSTOP)
        try:
            with pytest.raises(RendezvousTimeoutError, match="the server did not say") as late:
                client.wait_complete(0.2)
            assert late.value.missing == []
        finally:
            server.signal(signal.SIGCONT)
            client.close()


def spin():
    while True:
        sum(range(100_000))


def connect_all(address, ranks, world, met, results):
    """Ranks as threads of one process: each reaches those at powers of two from it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    threading.stack_size(1 << 20)
    failed = []

    def one(rank):
        try:
            with Client.register(
                address, "busy", rank, world, silence_timeout=30, deadline=60, transport="direct"
            ) as client:
                client.wait_complete(60)
                peers = {(rank + (1 << k)) % world for k in range(0, 10, 3)}
                links = client.connect(peers, 60)
                met.wait(150)  # nobody leaves while others still connect to it
                for link in links.values():
                    link.sock.close()
        except Exception as error:
            failed.append(f"rank {rank}: {type(error).__name__}: {error}")
            met.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(failed)


@pytest.mark.slow
def test_517_ranks_reach_each_other_while_others_use_the_cores(server):
    """Two processes with a rank a thread, and eight times as many that compute."""
    context = multiprocessing.get_context("spawn")
    busy = [context.Process(target=spin, daemon=True) for _ in range(8 * (os.cpu_count() or 1))]
    met, results = context.Barrier(517), context.Queue()
    ranks = [range(which, 517, 2) for which in range(2)]
    ones = [
        context.Process(target=connect_all, args=(server.address, list(some), 517, met, results))
        for some in ranks
    ]
    for process in (*busy, *ones):
        process.start()
    try:
        failed = [line for _ in ones for line in results.get(timeout=200)]
        assert not failed, "\n".join(line for line in failed if "Broken" not in line)
    finally:
        for process in busy:
            process.kill()
        for process in ones:
            process.join(20)
