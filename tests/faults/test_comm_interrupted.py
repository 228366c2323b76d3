"""Calls that an exception ends halfway, and calls from another thread or process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest
from ranks import ranks, run_ranks, run_threads

from perseid.comm import Op, array_calls, call_guard, object_calls
from perseid.errors import BadInputError, ClosedError, PeerLostError, PerseidError
from perseid.rendezvous import EmbeddedServer

FORK = multiprocessing.get_context("fork")


class Interrupt(Exception):
    """What the signal handler raises, as that of Ctrl-C raises KeyboardInterrupt."""


INSIDE = (array_calls.__file__, call_guard.__file__, object_calls.__file__)


def _raise_inside_a_call(_number, frame):
    """Anywhere else the test itself would lose what the call returned."""
    while frame is not None:
        if frame.f_code.co_filename in INSIDE:
            raise Interrupt
        frame = frame.f_back


RECEIVE = {
    "Recv": lambda comm, into: (comm.Recv(into, 0), int(into[-1]))[1],
    "recv": lambda comm, into: comm.recv(0),
    "Sendrecv": lambda comm, into: (comm.Sendrecv(into[:0], 0, into, 0), int(into[-1]))[1],
    "Bcast": lambda comm, into: (comm.Bcast(into, 0), int(into[-1]))[1],
    "allreduce": lambda comm, into: comm.allreduce(0, "max"),
    "bcast": lambda comm, into: comm.bcast(None, 0),
}


def _send(comm, how, array):
    if how == "recv":
        comm.send(int(array[-1]), 1)
    elif how == "Bcast":
        comm.Bcast(array, 0)
    elif how == "bcast":
        comm.bcast(int(array[-1]), 0)
    elif how == "allreduce":
        comm.allreduce(int(array[-1]), "max")
    else:
        comm.Send(array, 1)
        if how == "Sendrecv":
            comm.Recv(array[:0], 1)


def _many_messages(comm, how, size, count):
    array = np.zeros(size, np.int64)
    if comm.rank == 0:
        for number in range(1, count + 1):
            array[:] = number
            _send(comm, how, array)
        return comm.recv(1)
    signal.signal(signal.SIGALRM, _raise_inside_a_call)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.0013)
    expected = 1
    while expected <= count:
        try:
            value = RECEIVE[how](comm, array)
        except Interrupt:
            continue  # as a notebook's cell that is run again
        except PerseidError as error:
            return "failed", str(error)
        assert value == expected, f"{value - expected} messages are lost"
        expected += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    comm.send("all came", 0)
    return "untouched", ""


@pytest.mark.parametrize("how", list(RECEIVE))
@pytest.mark.parametrize("size", [1, 3000])
def test_an_interrupted_call_loses_no_message_in_silence(how, size):
    with ranks(2, _many_messages, how, size, 20_000) as running:
        outcomes = running.outcomes(60)
    kind, told, _ = outcomes[1]
    assert kind == "value", outcomes
    state, said = told
    if state == "failed":
        assert "interrupted by Interrupt" in said
        assert isinstance(outcomes[0][1], PeerLostError), outcomes
        assert "Rank 1 failed with Interrupt" in str(outcomes[0][1])


def _bad_function(comm):
    def add(left, right):
        if comm.rank == 0:
            raise ZeroDivisionError("no such sum")
        return left + right

    with contextlib.suppress(ZeroDivisionError):
        comm.allreduce(1, Op.custom(add, commutative=True, associative=True))
    comm.allreduce(1)


@pytest.mark.parametrize("size", [2, 5])
def test_an_error_of_the_users_function_in_a_reduction_ends_it_for_all(size):
    with ranks(size, _bad_function) as running:
        outcomes = running.outcomes(30)
    assert isinstance(outcomes[0][1], ClosedError), outcomes
    assert "interrupted by ZeroDivisionError: no such sum" in str(outcomes[0][1])
    for rank in range(1, size):
        assert str(outcomes[rank][1]) == "Rank 0 failed with ZeroDivisionError: no such sum"


class Unreadable:
    """A value that pickles, and raises where it is read."""

    def __reduce__(self):
        return (int, ("no number",))


def _unreadable(comm):
    if comm.rank == 0:
        comm.send(Unreadable(), 1)
    else:
        with pytest.raises(ValueError, match="no number"):
            comm.recv(0)
    comm.barrier()


def test_a_message_that_was_taken_and_cannot_be_read_ends_it():
    with ranks(2, _unreadable) as running:
        outcomes = running.outcomes(30)
    assert isinstance(outcomes[1][1], ClosedError), outcomes
    assert isinstance(outcomes[0][1], PeerLostError), outcomes


def _unpicklable(comm):
    """What cannot be sent changes nothing: nothing was sent."""
    value = threading.Lock()
    everyone = [value] * comm.world_size
    calls = [
        lambda: comm.send(value, 1 - comm.rank),
        lambda: comm.sendrecv(value, 1 - comm.rank, 1 - comm.rank),
        lambda: comm.bcast(value, comm.rank),
        lambda: comm.gather(value),
        lambda: comm.allgather(value),
        lambda: comm.scatter(everyone, comm.rank),
        lambda: comm.alltoall(everyone),
        lambda: comm.reduce_scatter(everyone),
    ]
    for call in calls:
        with pytest.raises((TypeError, pickle.PicklingError)):
            call()
    return comm.allreduce(1)


def test_a_value_that_cannot_be_pickled_leaves_the_communicator_as_it_was():
    assert run_threads(2, _unpicklable) == [2, 2]


# --- threads and forks ---------------------------------------------------------------------------


def _three_threads(comm):
    comm.barrier()
    errors = []

    def use():
        for call in (lambda: comm.allreduce(1), lambda: comm.Send(np.zeros(1), 1 - comm.rank)):
            try:
                call()
            except BadInputError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 6
    assert all("was used from two threads" in error for error in errors), errors
    return comm.allreduce(1)


def test_a_communicator_belongs_to_the_thread_that_uses_it_first():
    assert run_ranks(2, _three_threads) == [2, 2]


def _forks(comm, told):
    comm.barrier()
    child = os.fork()
    if not child:
        said = "nothing"
        try:
            comm.allreduce(1)
        except ClosedError as error:
            said = str(error)
        comm.close()
        told.send(said)
        os._exit(0)
    os.waitpid(child, 0)
    return comm.allreduce(comm.rank)


def test_a_forked_child_gets_a_sentence_and_the_parent_goes_on():
    hears, told = FORK.Pipe(False)
    assert run_ranks(2, _forks, told) == [1, 1]
    for _ in range(2):
        assert "which this process was forked from" in hears.recv()


def _forks_and_dies(comm, told):
    """The child lives on with copies of all that it inherited."""
    comm.allreduce(1)
    if comm.rank == 1:
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
        told.send((child, time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)
    return comm.allreduce(1)


def test_a_child_that_lives_on_does_not_hide_its_parents_end():
    hears, told = FORK.Pipe(False)
    with ranks(2, _forks_and_dies, told) as running:
        assert hears.poll(20)
        child, since = hears.recv()
        running.mark()
        try:
            _, error, when = running.outcomes(20, without=(1,))[0]
        finally:
            os.kill(child, signal.SIGKILL)
    assert isinstance(error, PeerLostError), error
    assert when - since < 2.0 + running.starved(0)


def test_a_url_given_as_rendezvous_is_refused_in_one_sentence():
    from perseid.comm import Communicator

    with EmbeddedServer() as server:
        for url in (f"tcp://{server.address}", f"https://{server.address}/"):
            with pytest.raises(BadInputError, match="is a URL, but a rendezvous"):
                Communicator.join("job", 0, 2, url)
