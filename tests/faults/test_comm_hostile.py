"""Any bytes from a peer, by hypothesis: an error of ours that names it, soon, in bounded memory."""

from __future__ import annotations

import resource

import pytest
from hostile_peer import LARGE, MINE, SIGNATURES, SIZE, read_message, read_stream, told, waiting
from hypothesis import given, settings
from hypothesis import strategies as st

from perseid.comm import failure
from perseid.comm.frames import MAX_PAYLOAD, TAIL, header
from perseid.errors import (
    MismatchedCollectiveError,
    PeerLostError,
    PerseidError,
    RendezvousTimeoutError,
)

CHOICES = st.binary(min_size=1, max_size=1)
LENGTHS = st.integers(0, 200) | st.integers(0, 2**64 - 1)


@pytest.fixture(autouse=True)
def _nobody_else_to_ask(monkeypatch):
    monkeypatch.setattr(failure, "BLAME_SHARE", 0.0)


@st.composite
def frames(draw):
    """A frame whose header makes sense, with any payload; its length may be a lie."""
    body = draw(st.binary(max_size=200) | st.sampled_from([bytes(SIZE), bytes(LARGE)]))
    signature = draw(st.sampled_from(SIGNATURES))
    length = draw(st.just(len(body)) | st.just(LARGE) | LENGTHS)
    return signature + TAIL.pack(draw(st.integers(-1, 2)), draw(st.integers(0, 3)), length) + body


STREAMS = st.lists(frames() | st.binary(max_size=100), max_size=6).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(STREAMS, CHOICES)
def test_any_stream_ends_in_an_error_that_blames_the_peer(data, choice):
    error = read_stream(data, choice)
    assert error is None or isinstance(error, PerseidError)
    if isinstance(error, MismatchedCollectiveError):
        assert error.mine != error.theirs or error.rank == 1


@settings(max_examples=200, deadline=None)
@given(frames() | st.binary(max_size=200))
def test_any_object_in_the_store_is_a_message_or_an_error(data):
    error = read_message(data)
    assert error is None or isinstance(error, PerseidError)


@pytest.mark.parametrize("length", [1 << 24, 1 << 30, 1 << 33])
def test_a_length_that_lies_takes_no_memory(length):
    """Pages that nothing was received into are never resident."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for choice in range(20):
        read_stream(MINE + TAIL.pack(0, 0, length) + bytes(1000), bytes([choice]))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 16_000, f"{grown} kB for 1,000 bytes that came"


@pytest.mark.parametrize("length", [MAX_PAYLOAD, MAX_PAYLOAD + 1, 2**64 - 1])
def test_a_length_for_which_there_is_no_memory(length):
    """64 GiB may be asked of the kernel; pages that nothing is written to are never given."""
    error = read_stream(MINE + TAIL.pack(0, 0, length) + bytes(100))
    assert isinstance(error, PeerLostError)
    assert error.rank == 1


def test_a_waiting_peer_whose_call_is_no_call():
    error = read_stream(waiting(b"x" * 32))
    assert isinstance(error, PeerLostError)
    assert "is lost" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"x", b"[]", b"[" * 100_000, b'{"error": "PeerLost"}',
        b'{"error": "PeerLost", "message": "m", "rank": 1e999}',
        b'{"error": "PeerLost", "message": "m", "rank": null}',
        b'{"error": "RendezvousTimeout", "message": "m", "missing": [1e999]}',
        b'{"error": "RendezvousTimeout", "message": "m", "missing": 3}',
    ],
    ids=range(9),
)  # fmt: skip
def test_last_words_that_cannot_be_read_are_those_of_a_lost_peer(body):
    error = read_stream(header(SIGNATURES[2], 0, 0, len(body)) + body)
    assert isinstance(error, PeerLostError)
    assert error.rank == 1


def test_last_words_that_can_be_read_are_believed():
    assert isinstance(read_stream(told("PeerLost", rank=1)), PeerLostError)
    error = read_stream(told("RendezvousTimeout", missing=[1]))
    assert isinstance(error, RendezvousTimeoutError)
    assert error.missing == [1]
    error = read_stream(told("MismatchedCollective", rank=0, mine="a", theirs="b"))
    assert isinstance(error, MismatchedCollectiveError)
    assert (error.rank, error.mine, error.theirs) == (1, "b", "a")
