"""The communicator's bytes on the wire, as version 0.1.0 wrote them: they must not change."""

from __future__ import annotations

import numpy as np
import pytest

from perseid.comm.frames import (
    HEADER_BYTES,
    MAX_PARTS,
    MAX_PAYLOAD,
    STAGING_BYTES,
    TAIL,
    FrameError,
    FrameKind,
    Receiver,
    Signature,
    allocate,
    dtype_code,
    header,
    reduction_code,
)

FULL = Signature(FrameKind.ALLREDUCE, 3, 2, 7, -1, 1, 13, 1_000_000)
FULL_BYTES = (
    "5063" "08" "01" "0d" "01" "0000" "03000000" "02000000" "07000000" "ffffffff" "40420f0000000000"
)  # fmt: skip
KINDS = {
    "POINT": 1, "BARRIER": 2, "BCAST": 3, "GATHER": 4, "ALLGATHER": 5, "SCATTER": 6, "REDUCE": 7,
    "ALLREDUCE": 8, "REDUCE_SCATTER": 9, "ALLTOALL": 10, "SCAN": 11, "EXSCAN": 12, "SPLIT": 13,
    "ABORT": 64, "WAITING": 65,
}  # fmt: skip
TYPES = {
    "bool": 2, "int8": 3, "int16": 4, "int32": 5, "int64": 6, "uint8": 7, "uint16": 8, "uint32": 9,
    "uint64": 10, "float16": 11, "float32": 12, "float64": 13, "complex64": 14, "complex128": 15,
}  # fmt: skip
REDUCTIONS = {"sum": 1, "prod": 2, "max": 3, "min": 4, "and": 5, "or": 6, "minloc": 7, "maxloc": 8}


def test_the_bytes_of_a_header():
    assert FULL.pack().hex() == FULL_BYTES
    assert Signature.unpack(bytes.fromhex(FULL_BYTES)) == FULL
    whole = header(FULL.pack(), -2, 3, 0x0102030405)
    assert whole.hex() == FULL_BYTES + "feffffff" + "03000000" + "0504030201000000"
    assert len(whole) == HEADER_BYTES == 48


def test_what_a_signature_says_that_is_told_nothing():
    assert Signature(FrameKind.BARRIER, 0, 0).pack().hex() == "5063020000010000" + (
        "00000000" * 3 + "ffffffff" + "00" * 8
    )


def test_the_numbers_of_kinds_types_and_reductions():
    assert {kind.name: kind.value for kind in FrameKind} == KINDS
    assert {name: dtype_code(np.dtype(name)) for name in TYPES} == TYPES
    assert dtype_code(np.dtype("U3")) is None
    assert {name: reduction_code(name) for name in REDUCTIONS} == REDUCTIONS
    assert reduction_code("a function of the user") == 255


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0x51), (1, 0x62), (2, 0), (2, 14), (2, 63), (2, 66), (5, 0), (5, 2), (6, 1), (7, 1)],
)
def test_a_signature_with_one_wrong_byte_is_refused(at, value):
    data = bytearray.fromhex(FULL_BYTES)
    data[at] = value
    with pytest.raises(FrameError, match="signature"):
        Signature.unpack(data)


def test_a_signature_may_be_followed_by_more_and_not_be_shorter():
    data = bytes.fromhex(FULL_BYTES)
    assert Signature.unpack(data + b"more") == FULL
    with pytest.raises(FrameError, match="31 bytes instead of 32"):
        Signature.unpack(data[:-1])


@pytest.mark.parametrize(
    ("parts", "nbytes", "fits"),
    [(MAX_PARTS, 100, True), (MAX_PARTS + 1, 100, False), (0, 101, False), (0, 100, True)],
)
def test_the_limits_of_a_payload(parts, nbytes, fits):
    receiver = Receiver(limit=100)
    data = FULL.pack() + TAIL.pack(0, parts, nbytes)
    receiver.room()[: len(data)] = data
    receiver.arrived(len(data))
    if fits:
        assert receiver.parse()
        assert (receiver.parts, receiver.nbytes) == (parts, nbytes)
    else:
        with pytest.raises(FrameError, match="at most 100"):
            receiver.parse()


def test_the_limits_are_what_the_page_says():
    assert MAX_PARTS == 2**20
    assert MAX_PAYLOAD == 2**36
    assert STAGING_BYTES == 65536
    assert Receiver().limit == MAX_PAYLOAD


def test_a_length_without_memory_is_a_sentence():
    with pytest.raises(FrameError, match="for which there is no memory"):
        allocate(2**60)


@pytest.mark.parametrize("held", [0, 10, 40])
@pytest.mark.parametrize("more", [0, 1, 24, 100, 1000])
def test_bytes_that_are_put_back_come_after_those_that_are_held(held, more):
    """Whether they fit into the staging buffer, fill it, or do not fit."""
    receiver = Receiver(staging=64)
    body = bytes(range(256)) * 5
    data = (header(FULL.pack(), 1, 0, 1100 + held - 48) + body)[: held + more]
    receiver.room()[:held] = data[:held]
    receiver.arrived(held)
    receiver.put_back(memoryview(data[held:]))
    assert receiver.idle is (not data)
    if len(data) < HEADER_BYTES:
        assert not receiver.parse()
        assert bytes(receiver.view[receiver.start : receiver.end]) == data
        return
    assert receiver.parse()
    whole = receiver.accept()
    assert whole is (len(data) - HEADER_BYTES == receiver.nbytes)
    while not receiver.accept():
        room = receiver.room()
        at = receiver.nbytes - len(room)
        room[:] = body[at : receiver.nbytes]
        receiver.arrived(len(room))
    assert bytes(receiver.finish().body) == body[: receiver.nbytes]


def test_an_incomplete_payload_is_never_given_out():
    receiver = Receiver()
    data = header(FULL.pack(), 0, 0, 10) + b"12345"
    receiver.room()[: len(data)] = data
    receiver.arrived(len(data))
    with pytest.raises(FrameError, match="payload"):
        receiver.finish()
    assert receiver.parse()
    assert not receiver.accept()
    with pytest.raises(FrameError, match="payload"):
        receiver.finish()
    assert not receiver.idle
