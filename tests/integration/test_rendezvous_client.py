"""Registration, peers, links, keys and the relay against an embedded server, over real sockets."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from waiting import eventually, in_parallel

from perseid.errors import (
    BadInputError,
    ClosedError,
    JobKeyRefusedError,
    NoPathError,
    PeerLostError,
    RendezvousRefusedError,
    RendezvousTimeoutError,
    RendezvousUnreachableError,
    ReplacedError,
)
from perseid.rendezvous import Client, Config, EmbeddedServer, job_key
from perseid.rendezvous.protocol import NatMapping

SECRET = b"a secret of the tests, long enough"


@pytest.fixture
def server():
    with EmbeddedServer() as running:
        yield running


@pytest.fixture
def keyed():
    with EmbeddedServer(Config("127.0.0.1", 0, 0, SECRET, tcpunch=False)) as running:
        yield running


def join(server, rank, world, job="job", **more):
    return Client.register(server.address, job, rank, world, **more)


def all_join(server, world, **more):
    return [join(server, rank, world, **more) for rank in range(world)]


def close_all(clients):
    for client in clients:
        client.close()


def pair_up(clients):
    """Both connect to each other at once."""
    first, second = clients
    return in_parallel([lambda: first.connect([1], 5), lambda: second.connect([0], 5)])


def talk(one, two):
    """Bytes pass in both directions and nothing else was in the way."""
    one.sendall(b"from one")
    two.sendall(b"from two")
    assert two.recv(100) == b"from one"
    assert one.recv(100) == b"from two"


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_all_register_and_reach_all(server, world):
    clients = all_join(server, world)
    try:
        for client in clients:
            client.wait_complete(5)
        links = in_parallel([lambda c=c: c.connect(range(world), 10) for c in clients])
        for rank, mine in enumerate(links):
            assert sorted(mine) == [other for other in range(world) if other != rank]
            for other in range(rank + 1, world):
                talk(mine[other].sock, links[other][rank].sock)
        assert all(way == "direct" for client in clients for way in client.transports().values())
    finally:
        close_all(clients)


def test_one_side_alone_may_ask(server):
    clients = all_join(server, 2)
    try:
        link = clients[1].connect([0], 5)[0]
        other = clients[0].connect([1], 5)[1]
        talk(link.sock, other.sock)
    finally:
        close_all(clients)


def test_asking_again_gives_the_same_link(server):
    clients = all_join(server, 2)
    try:
        assert clients[0].connect([1], 5)[1] is clients[0].connect([1], 5)[1]
    finally:
        close_all(clients)


def test_connecting_waits_for_a_rank_that_comes_later(server):
    with join(server, 0, 2) as first:
        late = threading.Timer(0.3, lambda: clients.append(join(server, 1, 2)))
        clients = []
        late.start()
        assert first.connect([1], 20)[1].transport == "direct"
        late.join()
        close_all(clients)


def test_who_is_missing_is_named(server):
    with join(server, 1, 5) as client, join(server, 3, 5):
        assert client.missing() == [0, 2, 4]
        with pytest.raises(RendezvousTimeoutError, match=r"3 of 5 ranks \(0, 2, 4\)") as late:
            client.wait_complete(0.2)
        assert late.value.missing == [0, 2, 4]
        with pytest.raises(RendezvousTimeoutError) as late:
            client.connect([0, 3], 0.3)
        assert late.value.missing == [0]


def test_no_network_address_translation_is_recognized(server):
    with join(server, 0, 1) as client:
        eventually(lambda: client.nat.mapping is NatMapping.NONE)
        assert client.public.host == "127.0.0.1"
        assert client.public.port == client.port


def test_a_process_that_dies_is_told_at_once(server):
    clients = all_join(server, 3)
    heard = []
    clients[0].subscribe(heard.append)
    try:
        clients[0].connect([1, 2], 5)
        clients[1]._loop.call_threadsafe(
            clients[1]._control.close
        )  # as if its kernel had closed it
        eventually(lambda: 1 in clients[0].lost() and 1 in clients[2].lost())
        with pytest.raises(PeerLostError, match="Rank 1 is lost") as lost:
            clients[2].connect([1], 5)
        assert lost.value.rank == 1
        assert ("lost", 1) in [(notice.kind, notice.rank) for notice in heard]
        assert 2 not in clients[0].lost()
    finally:
        close_all(clients)


def test_a_goodbye_is_no_loss(server):
    clients = all_join(server, 2)
    heard = []
    clients[0].subscribe(heard.append)
    clients[0].connect([1], 5)
    clients[1].close()
    eventually(lambda: ("left", 1) in [(one.kind, one.rank) for one in heard])
    assert clients[0].lost() == {}
    assert clients[0].connect([1], 5)[1].rank == 1  # the link that was made lives on
    clients[0].close()


def test_a_rank_that_left_cannot_be_reached_any_more(server):
    with join(server, 0, 2) as stays:
        other = join(server, 1, 2)
        eventually(lambda: 1 in stays.peers())
        other.close()
        with pytest.raises(PeerLostError, match="has finished and left"):
            stays.connect([1], 5)


def test_the_newer_registration_of_a_rank_wins_and_the_older_is_told(server):
    with join(server, 0, 2) as first, join(server, 1, 2) as other, join(server, 0, 2) as newer:
        with pytest.raises(ReplacedError, match="newer registration"):
            first.connect([1], 5)
        talk(newer.connect([1], 5)[1].sock, other.connect([0], 5)[0].sock)


def test_a_newer_generation_ends_the_older(server):
    with join(server, 0, 2) as old, join(server, 1, 2, generation=1) as new:
        with pytest.raises(ReplacedError, match="generation"):
            old.wait_complete(5)
        with pytest.raises(RendezvousRefusedError, match="generation 0 of this job is over"):
            join(server, 0, 2)
        assert new.missing() == [0]


def test_another_world_size_is_refused_with_the_reason(server):
    with join(server, 0, 2), pytest.raises(RendezvousRefusedError, match="2 ranks, not 3"):
        join(server, 1, 3)


def test_jobs_do_not_meet(server):
    with join(server, 0, 2, job="a") as one, join(server, 1, 2, job="b"):
        assert one.missing() == [1]


def test_closing_is_final(server):
    client = join(server, 0, 2)
    client.close()
    client.close()
    with pytest.raises(ClosedError):
        client.connect([1], 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 2},
        {"rank": -1},
        {"world_size": 0},
        {"world_size": 1 << 21},
        {"job": ""},
        {"job": "x" * 201},
        {"generation": -1},
        {"silence_timeout": 6000.0},
        {"silence_timeout": -1.0},
        {"link_timeout": 0.0},
        {"link_timeout": "soon"},
        {"transport": "ftp"},
    ],
    ids=str,
)
def test_bad_input_is_said_before_connecting(wrong):
    given = {"job": "job", "rank": 0, "world_size": 2, "deadline": 0.1} | wrong
    with pytest.raises(BadInputError):
        Client.register("127.0.0.1:9", **given)


def test_nobody_listens():
    with pytest.raises(RendezvousUnreachableError, match="No rendezvous server answers"):
        Client.register("127.0.0.1:9", "job", 0, 1, deadline=0.5)


def test_something_else_listens():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(RendezvousUnreachableError, match="as a rendezvous server does"):
            Client.register(address, "job", 0, 1, deadline=0.5)


# --- keys -----------------------------------------------------------------------------------------


def test_workers_with_the_key_meet(keyed):
    key = job_key(SECRET, "job")
    clients = all_join(keyed, 2, key=key)
    try:
        links = pair_up(clients)
        talk(links[0][1].sock, links[1][0].sock)
    finally:
        close_all(clients)


@pytest.mark.parametrize("key", [None, b"x" * 32, job_key(SECRET, "another job")])
def test_without_the_right_key_nobody_joins(keyed, key):
    with pytest.raises(JobKeyRefusedError):
        join(keyed, 0, 1, key=key)
    assert keyed.server.registry.members == 0


def test_a_server_without_the_key_is_not_trusted(server):
    with pytest.raises(JobKeyRefusedError, match="asks for none"):
        join(server, 0, 1, key=b"k" * 32)


def test_workers_with_another_key_between_them_never_link(server):
    """The server is open, but the two disagree about the job's key: no link, no hang."""
    clients = all_join(server, 2, transport="direct")
    clients[0]._punch._key = b"x" * 32
    try:
        with pytest.raises(RendezvousTimeoutError):
            clients[0].connect([1], 0.7)
    finally:
        close_all(clients)


# --- relay ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [None, 0], ids=["keeping what is slow", "keeping nothing"])
def test_the_relay_carries_large_streams_both_ways(server, monkeypatch, kept):
    if kept is not None:
        monkeypatch.setattr("perseid.rendezvous.server.relay.MAX_KEPT", kept)
    clients = all_join(server, 2, transport="relay")
    size = 8 << 20
    data = bytes(range(256)) * (size // 256)
    try:
        links = pair_up(clients)
        one, two = links[0][1], links[1][0]
        assert (one.transport, two.transport) == ("relay", "relay")
        got = in_parallel(
            [
                lambda: one.sock.sendall(data),
                lambda: two.sock.sendall(data[::-1]),
                lambda: read(one.sock, size),
                lambda: read(two.sock, size),
            ]
        )
        assert got[2] == data[::-1]
        assert got[3] == data
        one.sock.shutdown(socket.SHUT_WR)
        assert two.sock.recv(10) == b""
        two.sock.sendall(b"still open")
        assert one.sock.recv(100) == b"still open"
        two.sock.close()
        assert one.sock.recv(10) == b""
        eventually(lambda: not server.server.relays)
        assert server.server.counters.relay_bytes >= 2 * size
    finally:
        close_all(clients)


def test_names_of_version_0_1_still_work(server):
    clients = all_join(server, 2)
    try:
        link = pair_up(clients)[0][1]
        with pytest.warns(DeprecationWarning, match="transport"):
            assert link.way == link.transport
        with pytest.warns(DeprecationWarning, match="transports"):
            assert clients[0].ways() == clients[0].transports() == {1: link.transport}
    finally:
        close_all(clients)


def ended(sock):
    """Whether the other side closed or reset the connection."""
    try:
        return sock.recv(10) == b""
    except ConnectionError:
        return True


def read(sock, count):
    data = bytearray()
    while len(data) < count:
        data += sock.recv(1 << 20)
    return bytes(data)


def test_one_side_alone_may_ask_for_the_relay(server):
    clients = all_join(server, 3, transport="relay")
    try:
        first = clients[2].connect([0], 5)[0]
        second = clients[0].connect([2], 5)[2]
        talk(first.sock, second.sock)
    finally:
        close_all(clients)


def test_the_relay_with_keys(keyed):
    clients = all_join(keyed, 2, key=job_key(SECRET, "job"), transport="relay")
    try:
        links = pair_up(clients)
        talk(links[0][1].sock, links[1][0].sock)
    finally:
        close_all(clients)


def test_the_relay_keeps_to_its_rate():
    rate, size = 4e6, 3 << 20
    config = Config("127.0.0.1", 0, 0, tcpunch=False, relay_rate=rate)
    with EmbeddedServer(config) as server:
        clients = all_join(server, 2, transport="relay")
        try:
            links = pair_up(clients)
            began = time.monotonic()
            in_parallel(
                [
                    lambda: links[0][1].sock.sendall(bytes(size)),
                    lambda: read(links[1][0].sock, size),
                ]
            )
            took = time.monotonic() - began
            assert took > size / rate * 0.8
        finally:
            close_all(clients)


def test_without_a_relay_there_is_no_path():
    with EmbeddedServer(Config("127.0.0.1", 0, 0, tcpunch=False, relay=False)) as server:
        clients = all_join(server, 2, transport="relay")
        try:
            with pytest.raises(NoPathError, match="use the object store") as none:
                clients[0].connect([1], 5)
            assert none.value.ranks == [1]
        finally:
            close_all(clients)


def test_a_lost_rank_ends_its_relayed_streams(server):
    clients = all_join(server, 2, transport="relay")
    try:
        links = pair_up(clients)
        clients[1]._loop.call_threadsafe(clients[1]._control.close)
        links[0][1].sock.settimeout(3)
        assert links[0][1].sock.recv(10) == b""
    finally:
        close_all(clients)


# --- strangers, IPv6, speed -----------------------------------------------------------------------


def test_strangers_are_dropped_and_harm_nobody(server):
    clients = all_join(server, 2)
    strangers = []
    try:
        for client in clients:
            for data in (b"", b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100, bytes(96), b"PPH1"):
                sock = socket.create_connection(("127.0.0.1", client.port))
                sock.sendall(data)
                strangers.append((sock, len(data) >= 96))
        links = pair_up(clients)
        talk(links[0][1].sock, links[1][0].sock)
        for sock, dropped in strangers:
            sock.settimeout(2)
            if dropped:
                assert ended(sock)
    finally:
        for sock, _ in strangers:
            sock.close()
        close_all(clients)


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
def test_ipv6():
    with EmbeddedServer(Config("::1", 0, 0, tcpunch=False)) as server:
        clients = all_join(server, 2)
        try:
            links = pair_up(clients)
            talk(links[0][1].sock, links[1][0].sock)
            assert links[0][1].remote.host == "::1"
        finally:
            close_all(clients)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
def test_workers_of_two_address_families_meet_at_the_relay():
    with EmbeddedServer(Config("", 0, 0, tcpunch=False)) as server:
        port = server.server.port
        with (
            Client.register(f"127.0.0.1:{port}", "job", 0, 2) as four,
            Client.register(f"[::1]:{port}", "job", 1, 2) as six,
        ):
            links = pair_up([four, six])
            assert links[0][1].transport == "relay"
            talk(links[0][1].sock, links[1][0].sock)


def test_a_pair_on_loopback_takes_about_a_millisecond(server):
    """The fastest of many: the machine may be busy, but nothing may sleep."""
    times = []
    for number in range(15):
        with (
            join(server, 0, 2, job=f"j{number}") as low,
            join(server, 1, 2, job=f"j{number}") as up,
        ):
            low.wait_complete(5)
            up.wait_complete(5)
            began = time.perf_counter()
            pair_up([low, up])
            times.append(time.perf_counter() - began)
    assert min(times) < 0.005, times
