"""Frames and pickled objects as bytes: no socket anywhere."""

from __future__ import annotations

import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseid.comm import abort
from perseid.comm.frames import (
    HEADER_BYTES,
    MAX_PAYLOAD,
    TAIL,
    Frame,
    FrameError,
    FrameKind,
    Receiver,
    Signature,
    dtype_code,
    header,
)
from perseid.comm.objects import Blob, bundle, dumps, loads, unbundle
from perseid.errors import MismatchedCollectiveError, PeerLostError, RendezvousTimeoutError

SIGNATURES = st.builds(
    Signature,
    kind=st.sampled_from(sorted(FrameKind)),
    comm=st.integers(0, 2**32 - 1),
    generation=st.integers(0, 2**32 - 1),
    sequence=st.integers(0, 2**32 - 1),
    root=st.integers(-(2**31), 2**31 - 1),
    reduction=st.integers(0, 255),
    dtype=st.integers(0, 255),
    elements=st.integers(0, 2**64 - 1),
)


def feed(receiver: Receiver, data: bytes, cuts: list[int]) -> list[Frame]:
    """Give a receiver bytes in the given portions, as a socket would."""
    frames, at = [], 0
    sizes = [*cuts, len(data)]
    while at < len(data):
        room = receiver.room()
        count = min(len(room), max(1, sizes.pop(0) if len(sizes) > 1 else len(data)))
        count = min(count, len(data) - at)
        room[:count] = data[at : at + count]
        receiver.arrived(count)
        at += count
        while receiver.parse() and receiver.accept():
            frames.append(receiver.finish())
    return frames


@settings(deadline=None)
@given(SIGNATURES)
def test_signature_survives_the_journey(signature):
    data = signature.pack()
    assert len(data) == 32
    assert Signature.unpack(data) == signature
    assert str(signature)


@settings(deadline=None)
@given(
    st.lists(st.tuples(SIGNATURES, st.integers(-5, 5), st.binary(max_size=400)), max_size=8),
    st.lists(st.integers(1, 200), max_size=60),
    st.sampled_from([48, 100, 65536]),
)
def test_frames_come_out_as_they_went_in_however_they_are_cut(messages, cuts, staging):
    data = b"".join(header(s.pack(), step, 0, len(body)) + body for s, step, body in messages)
    frames = feed(Receiver(staging=staging), data, cuts)
    assert [(f.signature, f.step, bytes(f.body)) for f in frames] == [
        (s.pack(), step, body) for s, step, body in messages
    ]


def test_one_byte_at_a_time():
    signature = Signature(FrameKind.BCAST, 0, 0, 1, 0).pack()
    data = 3 * (header(signature, 0, 0, 1000) + bytes(range(250)) * 4)
    frames = feed(Receiver(), data, [1] * len(data))
    assert [bytes(frame.body) for frame in frames] == [bytes(range(250)) * 4] * 3


def test_a_large_payload_lands_where_it_is_wanted():
    wanted = bytearray(200_000)
    body = np.random.default_rng(1).bytes(200_000)
    receiver = Receiver()
    data = header(Signature(FrameKind.BCAST, 0, 0).pack(), 0, 0, len(body)) + body
    receiver.room()[:1000] = data[:1000]
    receiver.arrived(1000)
    assert receiver.parse()
    assert not receiver.accept(memoryview(wanted))
    at = 1000
    while not receiver.accept():
        room = receiver.room()
        count = min(len(room), 30_000)
        room[:count] = data[at : at + count]
        receiver.arrived(count)
        at += count
    assert wanted == body
    assert receiver.finish().body.obj is wanted
    assert receiver.idle


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(1, 50), max_size=20))
def test_rubbish_is_refused_or_waited_on(data, cuts):
    receiver = Receiver(limit=4096)
    if len(data) < HEADER_BYTES:
        assert feed(receiver, data, cuts) == []
    else:
        with pytest.raises(FrameError):
            feed(receiver, data, cuts)


@settings(max_examples=200, deadline=None)
@given(SIGNATURES, st.integers(0, HEADER_BYTES - 1), st.integers(0, 255))
def test_a_changed_byte_never_crashes_nor_takes_memory(signature, place, value):
    data = bytearray(header(signature.pack(), 0, 0, 100) + bytes(100))
    data[place] = value
    receiver = Receiver(limit=1000)
    tracemalloc.start()
    try:
        for frame in feed(receiver, bytes(data), []):
            assert len(frame.body) <= 1000
    except FrameError:
        pass
    finally:
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def test_a_payload_beyond_the_limit_is_refused_at_its_header():
    signature = Signature(FrameKind.GATHER, 0, 0).pack()
    receiver = Receiver()
    receiver.room()[:HEADER_BYTES] = signature + TAIL.pack(0, 0, MAX_PAYLOAD + 1)
    receiver.arrived(HEADER_BYTES)
    with pytest.raises(FrameError, match="payload"):
        receiver.parse()


def test_descriptions_name_operation_type_and_size():
    float64 = dtype_code(np.dtype("float64"))
    text = str(Signature(FrameKind.ALLREDUCE, 3, 0, 7, -1, 1, float64, 10))
    assert text == "allreduce(sum, 10 float64) on communicator 3, call 7"
    assert str(Signature(FrameKind.BCAST, 0, 0, 2, 5)) == "bcast(root 5, object), call 2"
    assert str(Signature(FrameKind.GATHER, 0, 0, 1, 0)) == "gather(root 0, object), call 1"
    read = Signature.unpack(Signature(FrameKind.POINT, 1, 0, 0).pack())
    assert str(read) == "send(object) on communicator 1"
    read = Signature.unpack(Signature(FrameKind.BARRIER, 0, 0, 3).pack())
    assert str(read) == "barrier, call 3"
    unknown = Signature(FrameKind.REDUCE, 0, 0, 1, 0, 9, 200, 1)
    assert str(unknown) == "reduce(own function, root 0, 1 type 200), call 1"
    assert dtype_code(np.dtype("U5")) is None
    assert dtype_code(np.dtype([("a", "i4")])) is None


OBJECTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@settings(deadline=None)
@given(OBJECTS)
def test_objects_survive(value):
    blob = dumps(value)
    assert loads(blob.parts, bytes(blob.flat())) == value


@pytest.mark.parametrize("sizes", [(0,), (1, 3), (100_000, 7, 0, 33)])
def test_arrays_travel_beside_the_pickle(sizes):
    arrays = [np.arange(size, dtype=np.float32) for size in sizes]
    structured = np.zeros(5, [("name", "U3"), ("z", "f8")])
    blob = dumps({"arrays": arrays, "table": structured})
    assert sum(len(piece) for piece in blob.pieces) == blob.nbytes
    whole = memoryview(bytearray(b"".join(blob.pieces)))
    back = loads(blob.parts, whole)
    for array, copy in zip(arrays, back["arrays"], strict=True):
        np.testing.assert_array_equal(array, copy)
        assert not copy.size or copy.flags.writeable
    assert back["table"].dtype == structured.dtype


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=10))
def test_bundles_hold_their_payloads(payloads):
    blobs = [Blob(index, [data], len(data)) for index, data in enumerate(payloads)]
    whole = bundle(blobs)
    flat = whole.flat()
    assert len(flat) == whole.nbytes
    back = unbundle(flat)
    assert [(b.parts, bytes(b.pieces[0])) for b in back] == list(enumerate(payloads))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_rubbish_is_no_bundle(data):
    try:
        back = unbundle(data)
    except FrameError:
        return
    assert sum(blob.nbytes for blob in back) <= len(data)


@settings(deadline=None)
@given(st.integers(1, 2**20), st.binary(max_size=200))
def test_a_table_that_does_not_fit_is_refused_before_anything_is_unpickled(parts, data):
    lengths = struct.pack("<Q", 1 << 40)
    with pytest.raises(FrameError):
        loads(parts, lengths + data)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (PeerLostError("gone", 2), "PeerLost"),
        (RendezvousTimeoutError("late", [1, 2]), "RendezvousTimeout"),
        (MismatchedCollectiveError("other calls", "bcast", "reduce", 2), "MismatchedCollective"),
    ],
)
def test_an_abort_keeps_its_words_and_comes_back_as_the_same_error(error, word):
    """Ranks of 0.1 read the words; ranks of today raise what the sender raised."""
    body = abort.to_bytes(error, sender=0)
    assert json.loads(body)["error"] == word
    back = abort.from_frame(body, sender=0, me=1)
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))
