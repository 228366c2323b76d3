"""What a rendezvous must survive: strange clients, dead clients, many clients, its own death.

The check is always that others are served meanwhile, with the right answer, in bounded time.
"""

from __future__ import annotations

import contextlib
import gc
import random
import resource
import signal
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from rendezvous_processes import (
    RawWorker,
    ServerProcess,
    WorkerProcess,
    all_do,
    free_ports,
    hello,
    read_address,
    tcpunch_connect,
    tcpunch_pair,
    workers,
)
from waiting import eventually

from perseid.errors import (
    JobKeyRefusedError,
    PeerLostError,
    RendezvousRefusedError,
    RendezvousUnreachableError,
)
from perseid.rendezvous import Client, EmbeddedServer, job_key
from perseid.rendezvous.net import dialing
from perseid.rendezvous.protocol import (
    MAGIC,
    Challenge,
    Complete,
    Deregister,
    Proof,
    RefusalCode,
    Refused,
    Superseded,
    Welcome,
)
from perseid.rendezvous.protocol.auth import client_proof
from perseid.rendezvous.protocol.tcpunch import ReplyStatus, unpack_v2
from perseid.rendezvous.protocol.wire import MAX_SERVER_FRAME, Address, FrameReader
from perseid.rendezvous.server.client_connection import ClientConnection
from perseid.rendezvous.server.registry import Member

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close with RST."""


@pytest.fixture(scope="module")
def server():
    with ServerProcess() as running:
        yield running


def serves(server) -> None:
    """Two workers register and reach each other, in bounded time."""
    job, within = f"alive-{random.random()}", 10.0
    with (
        Client.register(server.address, job, 0, 2, deadline=within) as one,
        Client.register(server.address, job, 1, 2, deadline=within) as two,
    ):
        one.wait_complete(within)
        link, other = one.connect([1], within)[1], two.connect([0], within)[0]
        with link.sock, other.sock:
            link.sock.sendall(b"x")
            assert other.sock.recv(1) == b"x"


# 1 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
def test_a_thousand_connections_without_a_byte(server, reset):
    for _ in range(1000):
        sock = socket.create_connection(("127.0.0.1", server.port))
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
    serves(server)
    eventually(lambda: server.metric("clients") < 20)


# 2 ------------------------------------------------------------------------------------------------


def test_a_silent_and_a_slow_client_do_not_hold_up_others(server):
    slow = RawWorker(server)
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        data = MAGIC + hello("slow", 0, 1).pack()
        began = time.monotonic()
        closed = None
        for byte in data:
            serves(server)
            try:
                slow.sock.send(bytes((byte,)))
                if time.monotonic() - began > 1 and slow.sock.recv(1, socket.MSG_DONTWAIT) == b"":
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            except OSError:
                closed = time.monotonic() - began
                break
            time.sleep(0.9)
        slow.sock.close()
        assert closed is not None
        assert closed > 8, "the time for a hello is 10 s"
        silent.settimeout(10)
        assert silent.recv(1) == b""


# 3 ------------------------------------------------------------------------------------------------

TLS_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(range(160))
GARBAGE = {
    "half a registration": MAGIC + hello().pack()[:20],
    "oversize frame": MAGIC + b"\x01\xff\xff\xff\xff" + b"x" * 1000,
    "oversize name": b"x" * 120,
    "far oversize name": b"x" * 100_000,
    "not UTF-8": b"\xff\xfe\xfd",
    "TLS": TLS_HELLO,
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "wrong magic": b"\x93PERSONS" + bytes(50),
    "unknown frame": MAGIC + b"\xee\0\0\0\0",
    "proof first": MAGIC + Proof(bytes(32)).pack(),
    "server's frame": MAGIC + Complete(3).pack(),
    "empty registration": MAGIC + b"\x01\0\0\0\0",
    "version 2 with an empty name": bytes(141),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_nonsense_is_closed_and_others_are_served(server, name):
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.settimeout(30)
        with contextlib.suppress(ConnectionError):
            sock.sendall(GARBAGE[name])
        serves(server)
        if "half" not in name and name != "oversize name":  # these may still go on
            data = b""
            with contextlib.suppress(ConnectionError):
                while part := sock.recv(1000):
                    data += part
            assert len(data) in (0, 50)
    serves(server)


def test_random_bytes(server):
    chance = random.Random(7)
    for _ in range(300):
        with contextlib.suppress(ConnectionError), socket.socket() as sock:
            sock.connect(("127.0.0.1", server.port))
            start = chance.choice([b"", MAGIC, MAGIC + b"\x01\0\0\0\x40"])
            sock.sendall(start + chance.randbytes(chance.randrange(1, 300)))
            if chance.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    serves(server)


# 4 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["FIN", "RST", "bytes and FIN"])
def test_a_dead_waiter_is_never_handed_out(end):
    """The server hears of its newcomer before it hears of the death."""
    request = b"name".ljust(100, b"\0") + bytes(41)
    with ServerProcess() as server:
        dead = tcpunch_connect(server.port)
        dead.sendall(request)
        assert unpack_v2(dead.recv(50))[0] is ReplyStatus.WAITING
        server.signal(signal.SIGSTOP)
        newcomer = tcpunch_connect(server.port)
        newcomer.sendall(request)
        if end == "RST":
            dead.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        elif end == "bytes and FIN":
            dead.sendall(b"x")
        dead.close()
        server.signal(signal.SIGCONT)
        assert unpack_v2(newcomer.recv(50))[0] is ReplyStatus.WAITING
        with tcpunch_connect(server.port) as partner:
            partner.sendall(request)
            assert unpack_v2(partner.recv(50))[2] == Address(*newcomer.getsockname())
        newcomer.close()


def test_a_dead_rank_is_not_handed_out(server):
    with RawWorker(server, hello("dead-rank", 0)) as dead:
        dead.until(Welcome)
    with Client.register(server.address, "dead-rank", 1, 2) as late:
        eventually(lambda: late.missing() == [0])
        assert 0 not in late.peers()


# 5 ------------------------------------------------------------------------------------------------


def test_a_third_tcpunch_client_waits_for_the_fourth(server):
    socks = [tcpunch_connect(server.port) for _ in range(4)]
    for sock in socks[:3]:
        sock.sendall(b"third")
        read_address(sock)
    assert read_address(socks[0]) == socks[1].getsockname()
    socks[2].settimeout(0.3)
    with pytest.raises(TimeoutError):
        socks[2].recv(8)
    socks[2].settimeout(5)
    socks[3].sendall(b"third")
    read_address(socks[3])
    assert read_address(socks[2]) == socks[3].getsockname()
    for sock in socks:
        sock.close()


def test_the_same_rank_twice_the_newer_wins_and_the_older_is_told(server):
    with RawWorker(server, hello("twice")) as older:
        older.until(Welcome)
        with RawWorker(server, hello("twice")) as newer:
            newer.until(Welcome)
            assert older.until(Superseded) == Superseded(0)
            assert older.next() is None
            with Client.register(server.address, "twice", 1, 2) as other:
                other.wait_complete(5)
                eventually(lambda: 0 in other.peers())
                assert other.peers()[0].public.port == newer.sock.getsockname()[1]


# 6 ------------------------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors():
    """This process may have 2,000 connections, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def many_ranks(server, world):
    """Seconds until all of a world are registered and have heard that all are."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        job = f"many-{world}"
        ranks = [stack.enter_context(RawWorker(server, hello(job, r, world))) for r in range(world)]
        for one in ranks:
            assert one.until(Complete, 30).world == world
        return time.monotonic() - began


@pytest.mark.parametrize("world", [517, 2000])
@pytest.mark.usefixtures("many_descriptors")
def test_many_ranks_at_once(server, world):
    assert many_ranks(server, world) < 20
    eventually(lambda: server.metric("ranks") == 0)


def test_the_descriptor_limit_is_reached_and_the_server_goes_on():
    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))

    with ServerProcess(preexec=few) as server:
        assert [line["event"] for line in server.log[:2]] == ["few descriptors", "listening"]
        with contextlib.ExitStack() as stack:
            kept = [stack.enter_context(RawWorker(server, hello("fd", r, 400))) for r in range(200)]
            answered = [one.next(5) for one in kept]
            welcome = [one for one in answered if isinstance(one, Welcome)]
            assert 50 < len(welcome) < 160
            assert answered.count(None) == 200 - len(welcome)  # closed at once, not left hanging
        eventually(lambda: server.get("/healthz")[0] == 200)
        serves(server)


# 7 ------------------------------------------------------------------------------------------------


def test_killed_and_restarted_while_ranks_wait():
    with ServerProcess() as server:
        first = Client.register(server.address, "restart", 0, 3)
        second = Client.register(server.address, "restart", 1, 3)
        link = first.connect([1], 5)[1]
        port = first.port
        heard = []
        first.subscribe(heard.append)
        server.kill()
        link.sock.sendall(b"links live on")
        assert second.connect([0], 1)[0].sock.recv(100) == b"links live on"
        server.start()
        third = Client.register(server.address, "restart", 2, 3)
        for client in (first, second, third):
            client.wait_complete(10)
        assert first.port == port
        assert [one.kind for one in heard if "server" in one.kind] == ["server-lost", "server-back"]
        assert first.lost() == {}
        assert first.connect([2], 5)[2].transport == "direct"
        for client in (first, second, third):
            client.close()


def test_tcpunch_waiters_see_the_end_of_a_killed_server():
    with ServerProcess() as server, tcpunch_connect(server.port) as sock:
        sock.sendall(b"waiter")
        read_address(sock)
        server.kill()
        assert sock.recv(1) == b""


@pytest.mark.parametrize("silence", [1.3, 0.4])
def test_a_stopped_server_blames_nobody_when_it_goes_on(silence):
    """Its own sleep is not the clients' silence, and no reason for them to hang up."""
    with ServerProcess() as server, contextlib.ExitStack() as stack:
        ones = [
            stack.enter_context(
                Client.register(server.address, "asleep", r, 3, silence_timeout=silence)
            )
            for r in range(3)
        ]
        heard = []
        for one in ones:
            one.wait_complete(5)
            one.subscribe(heard.append)
        server.signal(signal.SIGSTOP)
        time.sleep(2.5)
        server.signal(signal.SIGCONT)
        time.sleep(1.0)
        assert heard == [], "nobody was lost, nobody hung up"
        assert all(one.lost() == {} for one in ones)
        assert ones[0].missing() == []


# 8 ------------------------------------------------------------------------------------------------


def test_a_name_that_points_to_a_dead_address_first(server, monkeypatch):
    """Each attempt resolves the name again: the record is mended while the worker tries."""
    asked = []

    def resolve(endpoint):
        asked.append(endpoint.host)
        address = "127.0.0.1" if asked.count(name) > 2 else "127.0.0.99"
        return [(socket.AF_INET, address)]

    name = "rendezvous.example"
    monkeypatch.setattr(dialing, "resolve", resolve)
    with Client.register(f"{name}:{server.port}", "dns", 0, 1, deadline=10) as client:
        client.wait_complete(5)
    assert asked.count(name) == 3


def test_the_first_of_two_addresses_is_dead(server, monkeypatch):
    monkeypatch.setattr(
        dialing,
        "resolve",
        lambda _: [(socket.AF_INET, "127.0.0.99"), (socket.AF_INET, "127.0.0.1")],
    )
    with Client.register(f"x.example:{server.port}", "dns2", 0, 1, deadline=5) as client:
        client.wait_complete(5)


# 9 ------------------------------------------------------------------------------------------------

SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "secret"
    path.write_bytes(SECRET)
    with ServerProcess("--key-file", str(path)) as running:
        yield running


def test_two_runs_with_colliding_names(server, keyed):
    refused = pytest.raises(RendezvousRefusedError, match="do two runs use the same name")
    with Client.register(server.address, "same", 0, 2), refused:
        Client.register(server.address, "same", 1, 3)
    with pytest.raises(JobKeyRefusedError):  # with keys, another job's workers stay outside
        Client.register(keyed.address, "same", 0, 2, key=job_key(SECRET, "other"))


@pytest.mark.parametrize("key", [None, bytes(32), job_key(SECRET, "other")])
def test_a_missing_or_wrong_key(keyed, key):
    with pytest.raises(JobKeyRefusedError):
        Client.register(keyed.address, "keyed", 0, 1, key=key)


def test_a_replayed_hello_is_refused(keyed):
    key, opening = job_key(SECRET, "replay"), hello("replay", 0, 1)
    with RawWorker(keyed, opening) as honest:
        nonce = honest.until(Challenge).nonce
        proof = Proof(client_proof(key, opening.pack(), nonce))
        honest.sock.sendall(proof.pack())
        honest.until(Welcome)
    with RawWorker(keyed, opening) as replay:
        assert replay.until(Challenge).nonce != nonce
        replay.sock.sendall(proof.pack())
        assert replay.until(Refused).code is RefusalCode.KEY
        assert replay.next() is None
    with socket.create_connection(("127.0.0.1", keyed.port), 5) as blind:
        blind.sendall(MAGIC + opening.pack() + proof.pack())  # before any challenge was read
        reader, kinds = FrameReader(MAX_SERVER_FRAME), []
        while data := blind.recv(1000):
            kinds += [kind for kind, _ in reader.feed(data)]
    assert kinds == [Challenge.KIND, Refused.KIND]


# --- losses: killed, stopped, left ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGKILL, 1.0), (signal.SIGSTOP, 2.0)], ids=["KILL", "STOP"]
)
def test_a_lost_rank_is_told_to_all_others_within_two_seconds(server, number, seconds):
    with workers(4) as ones:
        job = f"lost-{number}"
        answers = all_do(
            ones, "register", server=server.address, job=job, rank=lambda i: i, world=4,
            silence_timeout=1.3,
        )  # fmt: skip
        assert all("port" in answer for answer in answers)
        all_do(ones, "wait_complete", deadline=10)
        time.sleep(0.3)
        ones[2].signal(number)
        struck = time.time()
        survivors = [ones[0], ones[1], ones[3]]
        answers = all_do(survivors, "events")
        end = time.monotonic() + seconds + 1
        while not all("2" in answer["lost"] for answer in answers):
            assert time.monotonic() < end, answers
            time.sleep(0.02)
            answers = all_do(survivors, "events")
        for answer in answers:
            assert list(answer["lost"]) == ["2"]
            (when,) = [at for at, kind, _ in answer["notices"] if kind == "lost"]
            assert when - struck < seconds
        lost = survivors[0].do("connect", ranks=[2], deadline=5)
        assert lost["error"] == PeerLostError.__name__
        assert lost["rank"] == 2


def test_a_rank_that_comes_back_after_being_stopped_is_told(server):
    one = WorkerProcess().ready()
    try:
        one.do(
            "register", server=server.address, job="zombie", rank=0, world=2, silence_timeout=1.0
        )
        one.signal(signal.SIGSTOP)
        eventually(lambda: server.metric("lost_silent_total") > 0 and server.metric("ranks") == 0)
        with Client.register(server.address, "zombie", 0, 2, generation=1):
            one.signal(signal.SIGCONT)
            eventually(lambda: "error" in one.do("wait_complete", deadline=0.2), 10)
            answer = one.do("wait_complete", deadline=0.2)
            assert answer["error"] == "RendezvousRefusedError"
            assert "generation 0 of this job is over" in answer["text"]
    finally:
        one.stop()


def test_ranks_that_do_not_return_after_a_restart_are_lost(monkeypatch):
    monkeypatch.setattr("perseid.rendezvous.client.membership.RETURN_SECONDS", 0.5)
    with ServerProcess() as server:
        mine = Client.register(server.address, "noreturn", 0, 2, silence_timeout=1.0)
        other = WorkerProcess().ready()
        other.do("register", server=server.address, job="noreturn", rank=1, world=2)
        eventually(lambda: 1 in mine.peers())
        server.kill()
        other.stop()
        server.start()
        eventually(lambda: 1 in mine.lost(), 8)
        mine.close()


def test_a_server_that_never_returns_is_an_error_not_a_hang(monkeypatch):
    monkeypatch.setattr("perseid.rendezvous.client.membership.REJOIN_SECONDS", 0.5)
    with ServerProcess() as server:
        client = Client.register(server.address, "gone", 0, 2)
        server.kill()
        with pytest.raises(RendezvousUnreachableError):
            client.wait_complete(20)
        client.close()


def test_version_1_clients_and_our_own_at_once(server):
    """Drop-in: both kinds of client on one port, at the same time."""
    done = []

    def old():
        sock = tcpunch_pair("both", server.port)
        done.append(sock)

    threads = [threading.Thread(target=old) for _ in range(2)]
    for thread in threads:
        thread.start()
    serves(server)
    for thread in threads:
        thread.join(15)
    assert len(done) == 2
    done[0].sendall(b"hello")
    assert done[1].recv(10) == b"hello"
    for sock in done:
        sock.close()


def test_no_descriptor_is_leaked_by_clients(server):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        serves(server)
    eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)


def test_the_server_keeps_nothing_of_those_who_are_gone():
    """Freed when they end, not when the garbage collector comes round."""

    def kept():
        return [one for one in gc.get_objects() if isinstance(one, Member | ClientConnection)]

    gc.collect()
    gc.disable()
    try:
        with EmbeddedServer() as embedded:
            server = embedded.server
            for rank in range(4):
                with RawWorker(server, hello("ends", rank, 5)) as one:
                    one.until(Welcome)
                    with contextlib.ExitStack() as stack:
                        if rank == 1:
                            one.sock.sendall(Deregister().pack())
                        elif rank == 2:
                            one.sock.sendall(b"\xee\0\0\0\0")
                        elif rank == 3:
                            stack.enter_context(RawWorker(server, hello("ends", 3, 5))).until(
                                Welcome
                            )
                            one.until(Superseded)
            eventually(lambda: server.registry.members == 0)
            eventually(lambda: not kept())
    finally:
        gc.enable()


def test_free_ports_are_free():
    assert len(set(free_ports(3))) == 3
