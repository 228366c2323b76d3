"""Punching through NATs: workers as processes in namespaces, a real server on a public address."""

from __future__ import annotations

import contextlib
import socket
import statistics
import time

import pytest
from nat_lab import Lab
from rendezvous_processes import ServerProcess, all_do, workers

from perseid.cli.ping import nat_words
from perseid.rendezvous.client import connectivity
from perseid.rendezvous.net import Endpoint, dialing

pytestmark = pytest.mark.nat

SECONDS = 25
"""For one command: a SYN lost costs the kernel's 1 s, three 7 s; the relay comes after 5 s."""


@contextlib.contextmanager
def run(lab: Lab, sites, *options, transport="auto", job="job", register=True):
    """Workers of all sites' hosts, registered in one job with a server on a public address."""
    six = any(":" in site.address for site in sites)
    where = lab.site("v6" if six else "public", "open")
    hosts = [host for site in sites for host in site.hosts]
    server = ServerProcess(
        "--open", *options, host="", ports=(10000, 10001), preexec=where.gateway.enter
    )
    name = f"[{where.address}]:10000" if six else f"{where.address}:10000"
    with server, workers(len(hosts), preexec=lambda index: hosts[index].enter) as ones:
        more = {"server": name, "job": job, "world": len(hosts), "transport": transport}
        if register:
            answers = all_do(ones, "register", SECONDS, rank=lambda i: i, deadline=20, **more)
            assert all("port" in answer for answer in answers), answers
        yield ones, more


def mesh(ones, deadline=20):
    """All connect to all and say who they are: {pair: way}, and each one's seconds."""
    ranks = list(range(len(ones)))
    answers = all_do(ones, "connect", SECONDS, ranks=ranks, deadline=deadline)
    assert all("ways" in answer for answer in answers), answers
    for rank, answer in enumerate(all_do(ones, "talk", SECONDS)):
        expected = {str(other): other for other in ranks if other != rank}
        assert answer["heard"] == expected, f"rank {rank}"
    transports = {
        (rank, int(other)): way
        for rank, answer in enumerate(answers)
        for other, way in answer["ways"].items()
    }
    assert all(transports[one, two] == transports[two, one] for one, two in transports)
    return transports, [answer["seconds"] for answer in answers]


def kinds(ones, seconds=3.0):
    """What each worker found out about its NAT."""
    return [(a["mapping"], a["filter"]) for a in all_do(ones, "nat", SECONDS, within=seconds)]


def test_the_laboratory_has_the_delay_that_was_asked_for(lab):
    net = lab(delay=0.005)
    one, two = net.site("public", "open"), net.site("public", "open")
    listener = one.gateway.inside(lambda: socket.create_server((one.address, 7)))

    def trips():
        with socket.create_connection((one.address, 7), 5) as sock:
            other, _ = listener.accept()
            times = []
            for _ in range(10):
                began = time.perf_counter()
                sock.sendall(b"x")
                other.recv(1)
                other.sendall(b"x")
                sock.recv(1)
                times.append(time.perf_counter() - began)
            other.close()
            return times

    assert 0.0099 < statistics.median(two.gateway.inside(trips)) < 0.03
    listener.close()


@pytest.mark.parametrize(
    ("kind", "inbound", "expected"),
    [
        ("public", "open", ("NONE", "OPEN")),
        ("public", "drop", ("NONE", "FILTERED")),
        ("preserving", "drop", ("INDEPENDENT", "FILTERED")),
        ("independent", "drop", ("INDEPENDENT", "FILTERED")),
        ("independent", "reset", ("INDEPENDENT", "FILTERED")),
        ("symmetric", "drop", ("SYMMETRIC", "FILTERED")),
    ],
)
def test_the_kind_of_nat_is_recognized(lab, kind, inbound, expected):
    net = lab()
    with run(net, [net.site(kind, inbound)]) as (ones, _):
        assert kinds(ones) == [expected]


@pytest.mark.parametrize(
    ("kind", "one_address", "two_addresses"),
    [
        (
            "independent",
            "a single address cannot show",
            "both ports and 2 addresses of the server see",
        ),
        ("by-address", "a single address cannot show", "symmetric (address-dependent)"),
        ("symmetric", "symmetric: each port", "symmetric: each port"),
    ],
)
def test_ping_compares_ports_and_addresses(lab, monkeypatch, kind, one_address, two_addresses):
    net = lab()
    sites = [net.site("public", "open") for _ in range(2)]
    (host,) = net.site(kind).hosts
    with contextlib.ExitStack() as stack:
        for site in sites:
            enter = site.gateway.enter
            one = ServerProcess("--open", host="", ports=(10000, 10001), preexec=enter)
            stack.enter_context(one)
        for count, words in ((1, one_address), (2, two_addresses)):
            found = [(socket.AF_INET, site.address) for site in sites[:count]]
            monkeypatch.setattr(connectivity, "resolve", lambda _, found=found: found)
            monkeypatch.setattr(
                dialing, "resolve", lambda to, found=found: [(socket.AF_INET, to.host)]
                if to.host[0].isdigit() else found
            )  # fmt: skip
            seen = host.inside(lambda: connectivity.ping(Endpoint("rendezvous.example"), 10))
            assert words in nat_words(seen.views[0])


COMBINATIONS = [
    (("public", "open"), ("public", "open")),
    (("public", "open"), ("independent", "drop")),
    (("public", "drop"), ("public", "drop")),
    (("public", "drop"), ("preserving", "reset")),
    (("preserving", "drop"), ("preserving", "drop")),
    (("preserving", "reset"), ("preserving", "reset")),
    (("preserving", "kernel"), ("preserving", "kernel")),
    (("independent", "drop"), ("independent", "drop")),
    (("independent", "reset"), ("independent", "reset")),
    (("independent", "kernel"), ("preserving", "drop")),
    (("independent", "reset"), ("preserving", "kernel")),
    (("symmetric", "drop"), ("public", "open")),
]


@pytest.mark.parametrize(
    ("one", "two"), COMBINATIONS, ids=["-".join((*a, *b)) for a, b in COMBINATIONS]
)
def test_pairs_that_can_be_punched_are(lab, one, two):
    net = lab()
    with run(net, [net.site(*one), net.site(*two)]) as (ones, _):
        transports, _ = mesh(ones)
        assert set(transports.values()) == {"direct"}


def test_one_side_alone_asks_and_the_other_is_called(lab):
    net = lab()
    with run(net, [net.site("independent"), net.site("independent")]) as (ones, _):
        answer = ones[1].do("connect", SECONDS, ranks=[0], deadline=15)
        assert answer["ways"] == {"0": "direct"}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("symmetric", "drop"), ("symmetric", "drop")),
        (("symmetric", "drop"), ("independent", "drop")),
        (("preserving", "reset"), ("symmetric", "reset")),
    ],
)
def test_symmetric_nats_take_the_relay_at_once(lab, one, two):
    net = lab()
    with run(net, [net.site(*one), net.site(*two)]) as (ones, _):
        kinds(ones)
        transports, seconds = mesh(ones)
        assert set(transports.values()) == {"relay"}
        assert max(seconds) < 4, "both know by class; nobody waits for the 5 s of punching"


def test_without_a_relay_symmetric_nats_are_told_to_use_the_store(lab):
    net = lab()
    with run(net, [net.site("symmetric"), net.site("symmetric")], "--no-relay") as (ones, _):
        kinds(ones)
        for answer in all_do(ones, "connect", SECONDS, ranks=[0, 1], deadline=15):
            assert answer["error"] == "NoPathError"
            assert "use the object store" in answer["text"]


@pytest.mark.parametrize("kind", ["preserving", "independent", "symmetric"])
def test_two_behind_one_nat_meet_inside(lab, kind):
    net = lab()
    with run(net, [net.site(kind, hosts=2)]) as (ones, _):
        transports, _ = mesh(ones)
        assert set(transports.values()) == {"direct"}


def test_overlapping_private_networks_do_not_connect_to_themselves(lab):
    """Two sites, each with 10.0.0.2 and 10.0.0.3: everyone reaches the right peer."""
    net = lab()
    sites = [net.site("preserving", hosts=2), net.site("independent", hosts=2)]
    with run(net, sites) as (ones, _):
        transports, _ = mesh(ones)
        assert set(transports.values()) == {"direct"}


@pytest.mark.parametrize("delay", [0.0025, 0.05, 0.1], ids=["5 ms", "100 ms", "200 ms"])
def test_round_trips(lab, delay):
    net = lab(delay=delay)
    sites = [net.site("independent"), net.site("preserving", "reset"), net.site("public", "drop")]
    with run(net, sites) as (ones, _):
        transports, _ = mesh(ones)
        assert set(transports.values()) == {"direct"}


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.2])
def test_loss(lab, loss):
    """A lost SYN costs a second; at 20 % a pair may fall back to the relay, none may fail."""
    net = lab(delay=0.01, loss=loss)
    sites = [net.site("independent"), net.site("preserving"), net.site("public", "drop")]
    with run(net, sites) as (ones, _):
        transports, _ = mesh(ones)
        if loss < 0.02:
            assert set(transports.values()) == {"direct"}


def test_ranks_that_start_seconds_apart(lab):
    net = lab()
    sites = [net.site("independent"), net.site("preserving", "reset"), net.site("independent")]
    with run(net, sites, register=False) as (ones, more):
        for rank, one in enumerate(ones):
            one.do("register", SECONDS, rank=rank, deadline=20, **more)
            one.ask("connect", ranks=[0, 1, 2], deadline=20)
            time.sleep(1.5)
        answers = [one.answer(SECONDS) for one in ones]
        assert all(set(answer["ways"].values()) == {"direct"} for answer in answers), answers


@pytest.mark.slow
def test_ranks_that_start_a_minute_apart(lab):
    net = lab()
    sites = [net.site("independent"), net.site("preserving")]
    with run(net, sites, register=False) as (ones, more):
        ones[0].do("register", SECONDS, rank=0, deadline=20, **more)
        ones[0].ask("connect", ranks=[1], deadline=90)
        time.sleep(60)
        ones[1].do("register", SECONDS, rank=1, deadline=20, **more)
        ones[1].ask("connect", ranks=[0], deadline=20)
        assert ones[0].answer(90)["ways"] == {"1": "direct"}
        assert ones[1].answer(30)["ways"] == {"0": "direct"}


def test_both_at_once_one_connection_survives(lab):
    """Many pairs at the same instant; each talks on one connection and hears its peer."""
    net = lab()
    sites = [net.site("public", "open") for _ in range(6)]
    with run(net, sites) as (ones, _):
        transports, _ = mesh(ones)
        assert len(transports) == 30


def test_a_stranger_at_the_door(lab):
    net = lab()
    one, two, bad = (net.site("public", "open") for _ in range(3))
    with run(net, [one, two]) as (ones, _):
        ports = [answer["port"] for answer in all_do(ones, "port")]

        def knock():
            socks = []
            for site, port in zip((one, two), ports, strict=True):
                for data in (b"", b"PPH1" + bytes(200), b"GET / HTTP/1.0\r\n\r\n"):
                    sock = socket.create_connection((site.address, port), 5)
                    sock.sendall(data)
                    socks.append(sock)
            return socks

        socks = bad.gateway.inside(knock)
        transports, _ = mesh(ones)
        assert transports == {(0, 1): "direct", (1, 0): "direct"}
        for sock in socks:
            sock.close()


def test_ipv6_with_stateful_firewalls(lab):
    net = lab()
    sites = [net.site("v6", "drop") for _ in range(4)]
    with run(net, sites) as (ones, _):
        transports, _ = mesh(ones)
        assert set(transports.values()) == {"direct"}


@contextlib.contextmanager
def run_dual(lab, hosts, first):
    """Workers of a job whose server's name gives two addresses, IPv4 or IPv6 first."""
    where = lab.site("public", "open", dual=True)
    gives = [where.address, where.address6] if first == 4 else [where.address6, where.address]
    enter = where.gateway.enter
    server = ServerProcess("--open", host="", ports=(10000, 10001), preexec=enter)
    with server, workers(len(hosts), preexec=lambda index: hosts[index].enter) as ones:
        more = {"server": "dual.example:10000", "gives": gives, "job": "dual", "world": len(hosts)}
        answers = all_do(ones, "register", SECONDS, rank=lambda i: i, deadline=20, **more)
        assert all("port" in answer for answer in answers), answers
        yield ones


@pytest.mark.parametrize("first", [4, 6])
def test_symmetric_nats_of_two_families_meet_by_ipv6(lab, first):
    """IPv4 alone would need the relay; IPv6 is behind firewalls that can be punched."""
    net = lab()
    hosts = [net.site("symmetric", dual=True).hosts[0] for _ in range(2)]
    with run_dual(net, hosts, first) as ones:
        transports, seconds = mesh(ones)
        assert set(transports.values()) == {"direct"}
        assert max(seconds) < 4


def test_a_name_that_promises_ipv6_in_vain_costs_little(lab):
    """Its packets vanish: the worker registers without it, in a fraction of a second."""
    net = lab()
    where, one = net.site("public", "open"), net.site("public", "open", dual=True)
    enter = where.gateway.enter
    server = ServerProcess("--open", host="", ports=(10000, 10001), preexec=enter)
    with server, workers(1, preexec=lambda _: one.gateway.enter) as (worker,):
        gives = [where.address, "2001:db8:ffff::1"]
        more = {"gives": gives, "job": "vain", "rank": 0, "world": 1}
        began = time.monotonic()
        assert "port" in worker.do("register", SECONDS, server="vain.example:10000", **more)
        assert time.monotonic() - began < 5


def test_a_worker_of_both_families_meets_those_of_one(lab):
    """It registers by IPv6; the others have IPv4 alone, behind NATs of their own."""
    net = lab()
    sites = [net.site("independent", dual=True), net.site("preserving"), net.site("independent")]
    with run_dual(net, [site.hosts[0] for site in sites], 6) as ones:
        transports, _ = mesh(ones)
        assert set(transports.values()) == {"direct"}


MIXED = [
    ("public", "open"), ("public", "drop"), ("preserving", "drop"), ("preserving", "reset"),
    ("preserving", "kernel"), ("independent", "drop"), ("independent", "reset"),
    ("symmetric", "drop"), ("symmetric", "reset"),
]  # fmt: skip


def test_sixteen_ranks_behind_nats_of_nine_kinds(lab):
    net = lab()
    chosen = [MIXED[index % len(MIXED)] for index in range(16)]
    with run(net, [net.site(*one) for one in chosen]) as (ones, _):
        found = kinds(ones)
        transports, seconds = mesh(ones, 22)
        symmetric = {rank for rank, (mapping, _) in enumerate(found) if mapping == "SYMMETRIC"}
        opened = {rank for rank, (_, filtering) in enumerate(found) if filtering == "OPEN"}
        assert symmetric == {r for r, one in enumerate(chosen) if one[0] == "symmetric"}
        assert opened == {r for r, one in enumerate(chosen) if one == ("public", "open")}
        for (one, two), way in transports.items():
            relayed = ({one, two} & symmetric) and not ({one, two} & opened)
            assert way == ("relay" if relayed else "direct"), (chosen[one], chosen[two])
        assert max(seconds) < 15


def test_the_relay_behind_nats_carries_data(lab):
    net = lab()
    with run(net, [net.site("symmetric"), net.site("symmetric")]) as (ones, _):
        mesh(ones)
        ones[0].ask("send", rank=1, count=200_000)
        answer = ones[1].do("receive", SECONDS, rank=0, count=200_000)
        assert answer["right"]
        ones[0].answer()
