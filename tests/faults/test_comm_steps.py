"""A rank that is killed, stopped or cut off at each of its steps: everyone else names it, soon."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import struct
import threading
import time

import numpy as np
import pytest
from ranks import ranks

from perseid.comm import Communicator
from perseid.comm.socket_channel import SocketChannel
from perseid.errors import PeerLostError, RendezvousTimeoutError
from perseid.rendezvous import Client, EmbeddedServer

SIZE, VICTIM = 4, 2
SOON = 2.0
SILENCE = 1.3
CALLS = ("start", "send", "send_blob", "receive", "receive_into")
"""Where a channel begins to send or to receive: between two of them lies a message's boundary."""


def reset(channels) -> None:
    """End every connection with RST, as a crashed machine's successor would."""
    for channel in channels:
        if channel is not None:
            linger = struct.pack("ii", 1, 0)
            sock = channel.connection._sock
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            os.close(sock.detach())


def die(how: str, channels, told) -> None:
    told.send(time.monotonic())
    if how == "reset":
        reset(channels)
        os._exit(1)
    os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)


def program(comm) -> None:
    """Small and large collectives of all shapes; the last one needs everybody."""
    small, large = np.ones(3), np.ones(40_000)
    into = np.empty_like(large)
    for root in range(comm.world_size):
        comm.gather(comm.rank, root)
        comm.Bcast(large, root)
    comm.Allreduce(large, into)
    comm.alltoall([comm.rank] * comm.world_size)
    comm.Allreduce(small, into[:3])
    comm.allgather(bytes(30_000))
    comm.barrier()


def rank(comm, how, step, told) -> int:
    """The program, over and over; the victim dies at its so manieth step. The number of steps."""
    taken = 0

    def counted(real):
        def call(channel, *given):
            nonlocal taken
            if taken == step:
                die(how, comm._group.engine.channels, told)
            taken += 1
            return real(channel, *given)

        return call

    if comm.rank == VICTIM:
        for name in CALLS:
            setattr(SocketChannel, name, counted(getattr(SocketChannel, name)))
    program(comm)
    if step is not None:
        for _ in range(100):  # whatever the number of steps is, the victim comes to this one
            program(comm)
    return taken


@pytest.fixture(scope="module")
def steps() -> int:
    """How many steps the victim takes in one round of the program."""
    with ranks(SIZE, rank, "never", None, None) as running:
        taken: int = running.outcomes(20)[VICTIM][1]
    assert taken > 20
    return taken


@pytest.mark.parametrize(
    ("how", "stride"),
    [("kill", 1), ("reset", 1), ("stop", 12)],
    ids=["killed", "reset", "stopped"],
)
def test_a_rank_that_dies_at_any_step_is_named_by_all_others(how, stride, steps):
    for step in range(0, steps, stride):
        hears, told = multiprocessing.get_context("fork").Pipe(False)
        with ranks(SIZE, rank, how, step, told, silence_timeout=SILENCE) as running:
            assert hears.poll(60), f"it never came to step {step}"
            since = hears.recv()
            running.mark()
            outcomes = running.outcomes(20, without=(VICTIM,))
        for other, (kind, error, when) in outcomes.items():
            where = f"step {step}, rank {other}: {error!r}"
            assert kind == "error", where
            assert isinstance(error, PeerLostError), where
            assert error.rank == VICTIM, where
            assert when - since < SOON + running.starved(other), where


# --- before the first message ----------------------------------------------------------------


def registers_and_dies(address: str, ready) -> None:
    client = Client.register(address, "stages", VICTIM, 3, silence_timeout=1.0)
    client.wait_complete(0.0) if ready is None else ready.set()
    time.sleep(60)


@pytest.mark.parametrize("when", ["alone", "all are there"])
def test_a_rank_killed_before_its_first_message(when):
    """After it registered, before the others have; and when all have, before it connects."""
    fork = multiprocessing.get_context("fork")
    errors = {}
    deadline = 1.5 if when == "alone" else 30

    def join(rank, address):
        try:
            with Communicator.join("stages", rank, 3, address, deadline=deadline) as comm:
                joined.set()
                if when != "alone":
                    time.sleep(0.3)
                comm.allreduce(1)
        except (PeerLostError, RendezvousTimeoutError) as error:
            errors[rank] = error

    joined = threading.Event()
    with EmbeddedServer() as server:
        ready = fork.Event()
        victim = fork.Process(target=registers_and_dies, args=(server.address, ready))
        victim.start()
        assert ready.wait(20)
        if when == "alone":
            victim.kill()
            victim.join(10)
        threads = [threading.Thread(target=join, args=(r, server.address)) for r in range(2)]
        for thread in threads:
            thread.start()
        if when != "alone":
            assert joined.wait(10)
            victim.kill()
        for thread in threads:
            thread.join(30)
        victim.kill()
        victim.join(10)
    assert sorted(errors) == [0, 1]
    for error in errors.values():
        blamed = error.missing if isinstance(error, RendezvousTimeoutError) else [error.rank]
        assert blamed == [VICTIM], error
