"""Ranks that die, stop, fail, disagree or do not come: a typed error everywhere, and soon."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time

import numpy as np
import pytest
from ranks import ranks, run_ranks, run_threads

from perseid.comm import Communicator, abort
from perseid.comm.channel import PendingReceive
from perseid.comm.connection import SocketConnection
from perseid.comm.connection_pool import ConnectionPool
from perseid.comm.frames import FrameKind, Signature, header
from perseid.comm.objects import Blob
from perseid.comm.progress import ProgressEngine
from perseid.comm.socket_channel import SocketChannel
from perseid.errors import (
    JobKeyRefusedError,
    MismatchedCollectiveError,
    PeerLostError,
    PerseidError,
    RendezvousTimeoutError,
)
from perseid.rendezvous import Config, EmbeddedServer, job_key
from perseid.rendezvous.protocol import MAX_REPORT_BYTES

SILENCE = 1.3
"""A silence short enough to be waited for."""
SOON = 2.0
"""Within this many seconds all ranks must know, where the machine lets threads run at all."""


def _loop(comm, name, ready):
    array = np.ones(300_000)
    into = np.empty_like(array)
    calls = {
        "barrier": comm.barrier,
        "allreduce": lambda: comm.allreduce(1.0),
        "Allreduce": lambda: comm.Allreduce(array, into),
        "Bcast": lambda: comm.Bcast(array, 1),
        "gather": lambda: comm.gather(array, 2),
        "alltoall": lambda: comm.alltoall([comm.rank] * comm.world_size),
    }
    ready.release()
    expected = {"allreduce": comm.world_size}
    while True:
        got = calls[name]()
        assert name not in expected or got == expected[name], "a wrong value"
        if name == "Allreduce":
            assert into[0] == into[-1] == comm.world_size, "a wrong value"


def _blamed(running, victim, since):
    for rank, (kind, error, when) in running.outcomes(20, without=(victim,)).items():
        assert kind == "error", (rank, kind, error)
        assert isinstance(error, PeerLostError), (rank, error)
        assert error.rank == victim, (rank, error)
        limit = SOON + running.starved(rank)
        assert when - since < limit, (rank, error, when - since, limit)


@pytest.mark.parametrize("name", ["barrier", "allreduce", "Allreduce", "Bcast", "gather"])
def test_a_killed_rank_is_named_by_all_others(name):
    import multiprocessing

    ready = multiprocessing.get_context("fork").Semaphore(0)
    victim = 3
    with ranks(5, _loop, name, ready, silence_timeout=SILENCE) as running:
        for _ in range(5):
            assert ready.acquire(timeout=30)
        time.sleep(0.05 + 0.01 * len(name))
        running.mark()
        since = time.monotonic()
        running.processes[victim].kill()
        _blamed(running, victim, since)


@pytest.mark.parametrize("name", ["barrier", "Allreduce"])
def test_a_stopped_rank_is_named_though_it_never_closed_its_connections(name):
    import multiprocessing

    ready = multiprocessing.get_context("fork").Semaphore(0)
    victim = 1
    with ranks(4, _loop, name, ready, silence_timeout=SILENCE) as running:
        for _ in range(4):
            assert ready.acquire(timeout=30)
        time.sleep(0.1)
        running.mark()
        since = time.monotonic()
        os.kill(running.processes[victim].pid, signal.SIGSTOP)
        _blamed(running, victim, since)


def _one_fails(comm, victim):
    comm.barrier()
    if comm.rank == victim:
        raise ValueError("no such star")
    comm.allreduce(1)
    comm.barrier()


def test_a_rank_that_raises_is_named_with_its_error():
    with ranks(5, _one_fails, 2) as running:
        outcomes = running.outcomes(20)
    assert isinstance(outcomes[2][1], ValueError)
    others = [outcomes[rank][1] for rank in (0, 1, 3, 4)]
    assert all(isinstance(error, PeerLostError) and error.rank == 2 for error in others), others
    assert all("no such star" in str(error) for error in others), others


def _one_leaves(comm):
    comm.barrier()
    if comm.rank == 0:
        return
    comm.barrier()


def test_a_rank_that_leaves_early_is_lost_to_those_who_need_it():
    with ranks(3, _one_leaves) as running:
        outcomes = running.outcomes(20)
    for rank in (1, 2):
        assert isinstance(outcomes[rank][1], PeerLostError), outcomes
        assert outcomes[rank][1].rank == 0


def _give_and_go(comm):
    return comm.gather(comm.rank, comm.world_size - 1)


def _join_and_give(address, rank, given):
    # Longer than a rank waits at a time for all the connections of a call.
    time.sleep(1.5 if rank == 2 else 0.0)
    with Communicator.join("late", rank, 3, address, wait=False) as comm:
        given[rank] = comm.gather(rank, 0)


def test_a_rank_that_gave_its_part_and_left_while_others_were_awaited_is_not_missed():
    given = {}
    with EmbeddedServer() as server:
        threads = [
            threading.Thread(target=_join_and_give, args=(server.address, rank, given), daemon=True)
            for rank in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert given == {0: [0, 1, 2], 1: None, 2: None}


def test_ranks_that_give_their_part_and_leave_at_once_are_not_missed():
    for _ in range(6):
        assert run_threads(9, _give_and_go)[8] == list(range(9))


def _sleeper(comm):
    """Rank 0 computes while another dies: its next call says so."""
    comm.barrier()
    if comm.rank == 2:
        os._exit(1)
    if comm.rank == 0:
        time.sleep(1.0)
    comm.allreduce(1)


def test_a_rank_that_was_computing_hears_of_it_at_its_next_call():
    with ranks(4, _sleeper) as running:
        outcomes = running.outcomes(20, without=(2,))
    assert all(error.rank == 2 for _, error, _ in outcomes.values()), outcomes


# --- ranks that disagree ---------------------------------------------------------------------

ARRAY = np.ones(100)
DISAGREEMENTS = {
    "operation": (lambda c: c.bcast(1), lambda c: c.barrier()),
    "root": (lambda c: c.bcast(c.rank, root=0), lambda c: c.bcast(c.rank, root=1)),
    "gather-root": (lambda c: c.gather(1, root=0), lambda c: c.gather(1, root=1)),
    "shape": (
        lambda c: c.Allreduce(ARRAY, np.empty(100)),
        lambda c: c.Allreduce(ARRAY[:99], np.empty(99)),
    ),
    "small-and-large": (
        lambda c: c.Allreduce(np.ones(50_000), np.empty(50_000)),
        lambda c: c.Allreduce(ARRAY, np.empty(100)),
    ),
    "dtype": (
        lambda c: c.Allreduce(ARRAY, np.empty(100)),
        lambda c: c.Allreduce(ARRAY.astype("i8"), np.empty(100, "i8")),
    ),
    "reduction": (lambda c: c.allreduce(1, "sum"), lambda c: c.allreduce(1, "max")),
    "case": (lambda c: c.bcast(ARRAY), lambda c: c.Bcast(ARRAY.copy())),
    "order": (
        lambda c: (c.allreduce(1), c.barrier()),
        lambda c: (c.barrier(), c.allreduce(1)),
    ),
    "one-call-more": (
        lambda c: (c.allreduce(1), c.allreduce(2), c.barrier()),
        lambda c: (c.allreduce(1), c.barrier()),
    ),
    "point-size": (
        lambda c: c.Send(ARRAY, 1) if c.rank == 0 else c.barrier(),
        lambda c: c.Recv(np.empty(50), 0),
    ),
}


def _disagree(comm, name, odd):
    comm.barrier()
    DISAGREEMENTS[name][comm.rank == odd](comm)
    comm.barrier()  # who only gave its part finds out here at the latest


CASES = [(name, size, odd) for name in DISAGREEMENTS for size, odd in ((2, 1), (5, 3))]


@pytest.mark.parametrize(("name", "size", "odd"), [c for c in CASES if c[:2] != ("point-size", 5)])
def test_ranks_that_make_different_calls_get_an_error_and_no_value(name, size, odd):
    with ranks(size, _disagree, name, odd) as running:
        outcomes = running.outcomes(30)
    errors = [error for kind, error, _ in outcomes.values() if kind == "error"]
    assert any(isinstance(error, MismatchedCollectiveError) for error in errors), outcomes
    for error in errors:
        assert isinstance(error, (MismatchedCollectiveError, PeerLostError)), error
    told = next(error for error in errors if isinstance(error, MismatchedCollectiveError))
    assert told.mine != told.theirs
    assert 0 <= told.rank < size
    assert len(errors) == size, outcomes


# --- ranks that do not come ------------------------------------------------------------------


def test_joining_names_the_ranks_that_did_not_come():
    with EmbeddedServer() as server:
        errors = {}

        def join(rank):
            try:
                Communicator.join("lonely", rank, 5, server.address, deadline=0.7)
            except RendezvousTimeoutError as error:
                errors[rank] = error

        threads = [threading.Thread(target=join, args=(rank,)) for rank in (0, 2, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert sorted(errors) == [0, 2, 4]
    # Who gives up a moment later does not blame those who had come.
    assert [list(error.missing) for error in errors.values()] == [[1, 3]] * 3


def _late(comm):
    if comm.rank == 1:
        time.sleep(3)
    comm.barrier()


def test_a_rank_that_does_not_come_to_a_call_is_named_after_the_timeout():
    with ranks(2, _late, timeout=1.0) as running:
        _, error, _ = running.outcomes(20)[0]
    assert isinstance(error, RendezvousTimeoutError)
    assert error.missing == [1]


def _patient(comm):
    if comm.rank == 1:
        time.sleep(2)
    return comm.allreduce(comm.rank)


def test_a_late_rank_is_waited_for():
    assert run_ranks(3, _patient) == [3, 3, 3]


def test_a_wrong_key_is_refused():
    secret = b"s" * 32
    config = Config(host="127.0.0.1", port=0, http_port=0, tcpunch=False, secret=secret)
    with EmbeddedServer(config) as server:
        with pytest.raises(JobKeyRefusedError):
            Communicator.join("job", 0, 1, server.address, key=b"x" * 32)
        with pytest.raises(JobKeyRefusedError):
            Communicator.join("job", 0, 1, server.address)
        right = job_key(secret, "job")
        for key in (right, right.hex()):
            with Communicator.join("job", 0, 1, server.address, key=key) as comm:
                assert comm.allreduce(3) == 3


# --- one connection --------------------------------------------------------------------------


def _engine(rank, sock):
    """A rank of two whose channel to the other is over a socket; what moves its bytes."""
    engine = ConnectionPool(None, rank, 2, 0, timeout=10.0)
    channel = SocketChannel(1 - rank, SocketConnection(sock, "direct", engine.poll_seconds, 15.0))
    engine.adopt(channel)
    return ProgressEngine(engine), channel


def _pair(small_buffers: bool = False):
    ours, theirs = socket.socketpair()
    if small_buffers:
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4608)
    return *_engine(0, ours), theirs


SIGNATURE = Signature(FrameKind.BCAST, 0, 0, 1, 0).pack()


@pytest.mark.parametrize("size", [0, 1, 1000, 50_000])
def test_bytes_that_come_one_by_one(size):
    progress, channel, peer = _pair()
    body = np.random.default_rng(size).bytes(size)
    data = header(SIGNATURE, 0, 0, size) + body

    def trickle():
        for at in range(0, min(200, len(data))):
            peer.send(data[at : at + 1])
        peer.sendall(data[200:])

    thread = threading.Thread(target=trickle)
    thread.start()
    into = bytearray(size)
    progress.receive_into(channel, SIGNATURE, 0, memoryview(into))
    thread.join(10)
    assert into == body


def test_short_writes_are_continued_while_both_sides_send():
    first, channel, theirs = _pair(small_buffers=True)
    second, other = _engine(1, theirs)
    size = 3_000_000
    sent = {0: np.random.default_rng(0).bytes(size), 1: np.random.default_rng(1).bytes(size)}
    got = {0: bytearray(size), 1: bytearray(size)}

    def exchange(rank, progress, mine):
        pending = PendingReceive(SIGNATURE, 0, memoryview(got[rank]))
        progress.exchange(mine, SIGNATURE, 0, Blob(0, [sent[rank]], size), mine, pending)

    threads = [
        threading.Thread(target=exchange, args=pair, daemon=True)
        for pair in ((0, first, channel), (1, second, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert got[0] == sent[1]
    assert got[1] == sent[0]


@pytest.mark.parametrize("cut", [0, 1, 31, 32, 47, 48, 49, 1000, 1047, 1048])
@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_ends_at_any_byte_is_a_lost_peer(cut, reset):
    server = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(server.getsockname())
    peer, _ = server.accept()
    server.close()
    progress, channel = _engine(0, ours)
    data = header(SIGNATURE, 0, 0, 1000) + bytes(1000)
    peer.sendall(data[:cut])
    if reset:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    into = memoryview(bytearray(1000))
    if cut == len(data):
        progress.receive_into(channel, SIGNATURE, 0, into)
    with pytest.raises(PeerLostError) as caught:
        progress.receive_into(channel, SIGNATURE, 0, into)
    assert caught.value.rank == 1
    with pytest.raises(PeerLostError):
        progress.receive_into(channel, SIGNATURE, 0, into)


@pytest.mark.parametrize("rubbish", [b"GET / HTTP/1.1\r\n" * 10, bytes(100), b"\xff" * 4096])
def test_rubbish_on_a_connection_ends_it(rubbish):
    progress, channel, peer = _pair()
    peer.sendall(rubbish)
    with pytest.raises(PeerLostError):
        progress.receive(channel, SIGNATURE, 0)


def _much_meanwhile(comm):
    """The GIL is free while a rank waits: a thread beside it gets on."""
    counted = 0
    stop = threading.Event()

    def count():
        nonlocal counted
        while not stop.is_set():
            counted += 1
            time.sleep(0.001)

    if comm.rank == 0:
        thread = threading.Thread(target=count)
        thread.start()
        comm.barrier()
        stop.set()
        thread.join()
        return counted
    time.sleep(0.5)
    comm.barrier()
    return 0


def test_the_interpreter_lock_is_free_while_waiting():
    assert run_ranks(2, _much_meanwhile)[0] > 30


def _many_groups(comm):
    """Two groups that overlap in rank 0 do not see each other's messages."""
    everyone = comm.split(0)
    pairs = comm.split(comm.rank // 2)
    results = []
    for round_ in range(5):
        results.append((pairs.allreduce(comm.rank), everyone.allreduce(round_)))
    return results


def test_communicators_do_not_mix():
    results = run_threads(4, _many_groups)
    for rank, result in enumerate(results):
        pair = 1 if rank < 2 else 5
        assert result == [(pair, 4 * round_) for round_ in range(5)]


# --- a rank's own reason reaches all -----------------------------------------------------------


def _one_fails_early(comm, victim, how):
    """Nobody has a connection to the victim, nor it to anybody."""
    if comm.rank != victim:
        comm.barrier()
    elif how == "raises":
        raise ValueError("no such star")
    elif how == "late":
        comm.recv((victim + 1) % comm.world_size)
    return comm.allreduce(1)


@pytest.mark.parametrize("size", [3, 9])
@pytest.mark.parametrize("how", ["raises", "late"])
def test_a_failing_ranks_own_reason_reaches_all_others(size, how):
    with ranks(size, _one_fails_early, size - 2, how, timeout=2.0 if how == "late" else 60) as many:
        outcomes = many.outcomes(40)
    said = {str(outcomes[rank][1]) for rank in range(size) if rank != size - 2}
    if how == "raises":
        assert said == {f"Rank {size - 2} failed with ValueError: no such star"}, outcomes
    else:
        assert all(isinstance(error, RendezvousTimeoutError) for _, error, _ in outcomes.values())


def test_a_reason_of_any_length_fits_a_report():
    for text in ("x" * 5000, "\u2606" * 5000, '"\\' * 3000, ""):
        for error in (
            PeerLostError(text, 3),
            MismatchedCollectiveError(text, text, text, 2),
            RendezvousTimeoutError(text, range(10**6 - 10**3, 10**6)),
            ValueErrorOfOurs(text),
        ):
            body = abort.to_bytes(error, 5)
            assert len(body) <= MAX_REPORT_BYTES
            back = abort.from_frame(body, 5, 0)
            assert "cannot be read" not in str(back)
            if not isinstance(error, ValueErrorOfOurs):
                assert type(back) is type(error)


class ValueErrorOfOurs(PerseidError):
    """An error that the others do not know."""


@pytest.mark.parametrize("forced", [0, 1, 2])
def test_relay_is_forced_whatever_the_others_say(forced):
    """Also where the other end is the one that decides, or that connects first."""
    jobs, found = f"forced-{forced}", {}

    def work(rank, address):
        transport = "relay" if rank == forced else "auto"
        with Communicator.join(jobs, rank, 3, address, transport=transport) as comm:
            comm.alltoall([0] * 3)
            found[rank] = comm.transports

    with EmbeddedServer() as server:
        threads = [threading.Thread(target=work, args=(rank, server.address)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
    for rank, routes in found.items():
        for other, way in routes.items():
            assert way == ("relay" if forced in (rank, other) else "direct"), found
    assert sorted(found) == [0, 1, 2]
