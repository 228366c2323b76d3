"""Ranks that compute, or are stopped for a while, are not lost; which silence is a loss can be set.

A rank that holds its interpreter answers nothing: none of its threads runs. Its kernel does.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranks import ranks, run_ranks

from perseid.comm import Communicator
from perseid.errors import BadInputError, PeerLostError
from perseid.rendezvous import EmbeddedServer, LossTimeouts
from perseid.rendezvous.liveness import LONGEST_SILENCE, pack_silence, unpack_silence
from perseid.rendezvous.net.keepalive import end_unanswered, unanswered_for, watch_link

FORK = multiprocessing.get_context("fork")


def hold_the_interpreter(seconds: float) -> None:
    """One long call into C that does not release the lock."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def _between_two_calls(comm, seconds):
    comm.barrier()
    if comm.rank == 0:
        hold_the_interpreter(seconds)
    return comm.allreduce(comm.rank), comm.gather(np.full(300_000, comm.rank), 0) is None


@pytest.mark.parametrize("seconds", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_rank_that_holds_its_interpreter_between_two_calls_is_waited_for(seconds):
    assert run_ranks(3, _between_two_calls, seconds) == [(3, False), (3, True), (3, True)]


def _before_the_first_connection(comm, victim, seconds):
    """The handshake of a new connection waits for the other rank's thread, too."""
    if comm.rank == victim:
        hold_the_interpreter(seconds)
    return comm.allreduce(1)


@pytest.mark.parametrize(
    ("seconds", "transport"),
    [
        (4, "auto"),
        # Longer than a direct connection is waited for, and than the relay waits for an end.
        pytest.param(22, "auto", marks=pytest.mark.slow),
        pytest.param(22, "relay", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_holds_its_interpreter_before_its_first_connection_is_waited_for(
    victim, seconds, transport
):
    call = (_before_the_first_connection, victim, seconds)
    assert run_ranks(2, *call, transport=transport) == [2, 2]


def _many_dictionaries(comm, count):
    mine = [{"id": number, "rank": comm.rank} for number in range(count)]
    found = comm.gather(mine)
    if found is None:
        return None
    return [(len(part), part[0], part[-1]) for part in found]


@pytest.mark.slow
def test_a_gather_of_1_5_million_dictionaries_beside_four_busy_processes():
    count = 1_500_000
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        found = run_ranks(2, _many_dictionaries, count)[0]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    ends = [({"id": 0, "rank": rank}, {"id": count - 1, "rank": rank}) for rank in range(2)]
    assert found == [(count, *end) for end in ends]


def _large_to_one_that_is_stopped(comm, ready):
    """The receiver's buffer is full while it is stopped: its kernel still answers."""
    array = np.arange(4_000_000, dtype=np.float64)
    comm.barrier()
    if comm.rank == 0:
        comm.Send(array, 1)
        # What the kernel still holds of a message that was sent is not lost either.
        comm.Send(array[:40_000], 1)
        time.sleep(3)
        return comm.recv(1)
    ready.release()
    time.sleep(0.5)
    into = np.empty_like(array)
    comm.Recv(into, 0)
    comm.Recv(into[:40_000], 0)
    comm.send(bool((into == array).all()), 0)
    return None


def test_a_rank_that_is_stopped_for_longer_than_the_link_timeout_is_not_lost():
    ready = FORK.Semaphore(0)
    with ranks(2, _large_to_one_that_is_stopped, ready, link_timeout=1.5) as running:
        assert ready.acquire(timeout=30)
        os.kill(running.processes[1].pid, signal.SIGSTOP)
        time.sleep(5)
        os.kill(running.processes[1].pid, signal.SIGCONT)
        outcomes = running.outcomes(60)
    assert outcomes[0][:2] == ["value", True], outcomes


def test_a_process_that_computes_does_not_take_the_servers_silence_for_its_own():
    """It sent no heartbeats meanwhile, so none was answered: that blames nobody."""
    with EmbeddedServer() as server, Communicator.join("own", 0, 1, server.address) as comm:
        kept = comm._group.engine.client._control
        hold_the_interpreter(1)
        time.sleep(0.2)
        assert comm._group.engine.client._control is kept


@given(st.floats(0, LONGEST_SILENCE))
def test_a_silence_fits_its_field_and_is_never_shortened(seconds):
    packed = pack_silence(seconds)
    assert 0 <= packed < 1 << 16
    granted = unpack_silence(packed)
    assert seconds - 1e-6 <= granted
    assert granted <= seconds + (0.0011 if seconds <= 65 else 10.0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"silence_timeout": -1}, "silence_timeout must be a number of seconds, not -1"),
        ({"silence_timeout": "long"}, "silence_timeout must be a number of seconds, not 'long'"),
        ({"silence_timeout": 1e6}, "silence_timeout is at most 5350 s"),
        ({"link_timeout": 0}, "above 0 seconds"),
        ({"death_timeout": float("nan")}, "death_timeout must be a number of seconds, not nan"),
        ({"death_timeout": None}, "death_timeout must be a number of seconds, not None"),
    ],
)
def test_a_time_that_makes_no_sense_is_named(wrong, said):
    with pytest.raises(BadInputError, match=said):
        Communicator.join("job", 0, 1, **wrong)


def test_comm_run_sets_all_three(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from perseid.comm import Communicator\n"
        "with Communicator.from_environment() as comm:\n"
        "    print(comm._group.engine.losses)\n"
    )
    asked = ("--death-timeout", "3", "--link-timeout", "7", "--silence-timeout", "90")
    command = [sys.executable, "-m", "perseid", "comm", "run", "-n", "1", *asked, str(program)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.strip() == f"rank 0 | {LossTimeouts(3.0, 7.0, 90.0)}", result.stderr
    command[8] = "-3"
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "--death-timeout: '-3' is not a time" in result.stderr


def test_what_the_kernel_is_told():
    """Ten probes within the time: of three, a network that loses 20 % often loses all."""
    tcp, options = (
        socket.IPPROTO_TCP,
        (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT),
    )
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as sock:
        watch_link(sock, 15.0)
        end_unanswered(sock, 15.0)
        assert [sock.getsockopt(tcp, option) for option in options] == [5, 1, 10]
        assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 15_000
        assert unanswered_for(sock) == 0.0
    left, right = socket.socketpair()
    with left, right:
        watch_link(left, 15.0)
        assert unanswered_for(left) == 0.0


def _waits(comm, ready):
    comm.barrier()
    ready.release()
    comm.recv(1 - comm.rank)


def test_a_silence_of_no_limit_is_waited_for_and_an_end_is_still_noticed():
    ready = FORK.Semaphore(0)
    with ranks(2, _waits, ready, silence_timeout=0) as running:
        for _ in range(2):
            assert ready.acquire(timeout=30)
        os.kill(running.processes[1].pid, signal.SIGSTOP)
        assert not running.pipes[0].poll(3.0), "a stopped rank counts as lost"
        running.processes[1].kill()
        outcome = running.outcomes(20, without=(1,))[0]
    assert isinstance(outcome[1], PeerLostError), outcome
