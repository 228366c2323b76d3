"""What hostile or careless clients can cost the server, its other clients, and strangers."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
import threading
import time
from pathlib import Path

import pytest
from rendezvous_processes import RawWorker, ServerProcess, hello
from waiting import eventually

from perseid.rendezvous import Client, Config, EmbeddedServer
from perseid.rendezvous.protocol import (
    Complete,
    ConnectRequest,
    MissingRequest,
    Peers,
    RefusalCode,
    Refused,
    RelayReady,
    RelayRequest,
    Subscribe,
    Welcome,
)
from perseid.rendezvous.protocol.auth import fresh_nonce
from perseid.rendezvous.protocol.wire import MAX_WORLD, Address
from perseid.rendezvous.server.relay import CHUNK


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_mb(server: ServerProcess) -> float:
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def members(stack, server, job, count, world=None, **more):
    """Registered workers that never send a heartbeat and need none."""
    found = [
        stack.enter_context(
            RawWorker(server, hello(job, rank, world or count, heartbeat=0, **more))
        )
        for rank in range(count)
    ]
    for one in found:
        one.until(Welcome)
    return found


def relay_end(stack, server, mine, other) -> RawWorker:
    me = mine.hello
    request = RelayRequest(
        me.job, me.rank, other.hello.rank, me.generation, me.instance, fresh_nonce()
    )
    return stack.enter_context(RawWorker(server, request))


def relayed(stack, server, one, two):
    """The two ends of a relayed stream."""
    ends = relay_end(stack, server, one, two), relay_end(stack, server, two, one)
    for end in ends:
        end.until(RelayReady)
    return ends


# --- the relay ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("many_descriptors")
def test_relayed_pairs_that_nobody_reads_cost_the_server_little_memory():
    with ServerProcess() as server, contextlib.ExitStack() as stack:
        workers = members(stack, server, "unread", 29)
        before = resident_mb(server)
        pairs = list(itertools.islice(itertools.combinations(workers, 2), 400))
        for one, two in pairs:
            for end in relayed(stack, server, one, two):
                end.sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while end.sock.send(bytes(1 << 16)):
                        pass
        assert server.metric("relays") == len(pairs)
        assert resident_mb(server) - before < 30


def test_the_relay_keeps_little_for_slow_readers_and_loses_nothing(monkeypatch):
    most = 64 * 1024
    monkeypatch.setattr("perseid.rendezvous.server.relay.MAX_KEPT", most)
    with EmbeddedServer() as running, contextlib.ExitStack() as stack:
        workers = members(stack, running.server, "slow", 5)
        sent = {}
        for one, two in itertools.combinations(workers, 2):
            source, sink = relayed(stack, running.server, one, two)
            pattern = os.urandom(1 << 16)
            source.sock.settimeout(0.3)  # the relay is done when nothing more fits
            sent[sink] = bytearray()
            with contextlib.suppress(TimeoutError):
                while True:
                    sent[sink] += pattern[: source.sock.send(pattern)]
            source.sock.shutdown(socket.SHUT_WR)
        assert 0 < running.server.relay_kept_bytes <= most + CHUNK
        for sink, data in sent.items():
            assert b"".join(iter(lambda sink=sink: sink.sock.recv(1 << 20), b"")) == data
        assert running.server.relay_kept_bytes == 0


def test_the_relay_takes_no_more_pairs_than_it_is_told():
    config = Config(host="127.0.0.1", port=0, http_port=None, relay_pairs=2)
    with EmbeddedServer(config) as running, contextlib.ExitStack() as stack:
        workers = members(stack, running.server, "few", 4)
        ends = [relayed(stack, running.server, workers[0], other) for other in workers[1:3]]
        refused = relay_end(stack, running.server, workers[0], workers[3]).until(Refused)
        assert refused.code is RefusalCode.LIMIT
        for end in ends[0]:
            end.sock.close()
        eventually(lambda: len(running.server.relays) != 2)
        relayed(stack, running.server, workers[0], workers[3])


def test_a_new_stream_of_a_pair_ends_the_old_one():
    with EmbeddedServer() as running, contextlib.ExitStack() as stack:
        one, two = members(stack, running.server, "again", 2)
        old = relayed(stack, running.server, one, two)
        new = relayed(stack, running.server, one, two)
        assert len(running.server.relays) == 1
        assert [end.next() for end in old] == [None, None]
        new[0].sock.sendall(b"x")
        assert new[1].sock.recv(1) == b"x"


# --- members that ask and never read --------------------------------------------------------------


def test_members_that_ask_and_never_read_do_not_hold_up_a_stranger():
    with ServerProcess() as server, contextlib.ExitStack() as stack:
        askers = members(stack, server, "askers", 50, MAX_WORLD)
        questions = b"".join([MissingRequest().pack(), Subscribe((range(MAX_WORLD),)).pack()] * 500)
        for one in askers:
            one.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.sock.send(questions)
        with (
            Client.register(server.address, "stranger", 0, 2, deadline=20) as first,
            Client.register(server.address, "stranger", 1, 2, deadline=20) as second,
        ):
            first.wait_complete(20)
            assert set(first.connect([1], 20)) == {1}
            assert set(second.connect([0], 20)) == {0}


@pytest.mark.usefixtures("many_descriptors")
def test_members_that_never_read_cost_the_server_little_memory():
    world = 500
    with ServerProcess() as server, contextlib.ExitStack() as stack:
        workers = members(stack, server, "deaf", world)
        before = resident_mb(server)
        ask = Subscribe((range(world),)).pack() * 200
        for one in workers[:100]:
            one.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.sock.send(ask)
        with Client.register(server.address, "other", 0, 1, deadline=20) as client:
            client.wait_complete(20)
        assert resident_mb(server) - before < 60


def test_a_member_that_reads_late_still_gets_every_answer():
    world, questions = 200, 5000  # 28 MB of answers, and at most 4 MiB are kept for a member
    question = Subscribe((range(world),)).pack()
    with ServerProcess() as server, contextlib.ExitStack() as stack:
        late = members(stack, server, "late", world)[0]
        late.until(Complete)
        late.sock.sendall(question)
        answer = late.until(Peers)
        assert len(answer.peers) == world
        asking = threading.Thread(target=late.sock.sendall, args=(question * questions,))
        asking.start()
        time.sleep(1)  # the answers pile up meanwhile
        expected, received = questions * len(answer.pack()), 0
        late.sock.settimeout(20)
        while received < expected:
            data = late.sock.recv(1 << 20)
            assert data, f"dropped after {received} of {expected} bytes"
            received += len(data)
        assert received == expected
        asking.join()


# --- candidates -----------------------------------------------------------------------------------


class Stranger:
    """Listens at several addresses, closes each connection at once, and counts."""

    def __init__(self) -> None:
        self.connections = 0
        hosts = [f"127.0.0.{number}" for number in (2, 2, 3, 3, 4, 4, 5, 5)]
        self._listeners = [socket.create_server((host, 0), backlog=512) for host in hosts]
        self.addresses = tuple(Address(*one.getsockname()) for one in self._listeners)
        for listener in self._listeners:
            threading.Thread(target=self._count, args=(listener,), daemon=True).start()

    def _count(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()
                self.connections += 1

    def close(self) -> None:
        for one in self._listeners:
            one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.mark.parametrize("behavior", ["waits", "registers again", "calls again"])
def test_a_rogue_rank_cannot_make_others_flood_a_stranger(behavior):
    victims = 8
    stranger = Stranger()
    with EmbeddedServer() as running, contextlib.ExitStack() as stack:
        stack.callback(stranger.close)
        for rank in range(1, victims + 1):
            stack.enter_context(Client.register(running.address, "rogue", rank, victims + 1))

        def lie():
            return hello("rogue", 0, victims + 1, heartbeat=0, candidates=stranger.addresses)

        def rogue():
            worker = stack.enter_context(
                RawWorker(running.server, lie())
            )  # fmt: skip
            worker.until(Welcome)
            worker.sock.sendall(ConnectRequest(tuple(range(1, victims + 1))).pack())
            return worker

        worker = rogue()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            time.sleep(0.3)
            if behavior == "registers again":
                worker = rogue()
            elif behavior == "calls again":
                worker.sock.sendall(ConnectRequest(tuple(range(1, victims + 1))).pack())
    assert 0 < stranger.connections <= 12 * victims
