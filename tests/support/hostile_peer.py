"""What a rank makes of any bytes that a connected peer sends: frames, or an error of ours."""

from __future__ import annotations

import json
import socket

from perseid.comm.channel import Channel, Want
from perseid.comm.engine import Engine
from perseid.comm.frames import HEADER_BYTES, SIGNATURE_BYTES, Kind, Signature, header
from perseid.comm.group import Group
from perseid.comm.outgoing import swap
from perseid.comm.store import StoreChannel
from perseid.errors import NotFoundError, PerseidError

MINE = Signature(Kind.BCAST, 0, 0, 1, 0).pack()
"""The call that this rank is in."""
POINT = Signature(Kind.POINT, 0, 0).pack()
SIGNATURES = [
    MINE,
    POINT,
    Signature(Kind.ABORT, 0, 0).pack(),
    Signature(Kind.WAITING, 0, 0).pack(),
    Signature(Kind.GATHER, 0, 0, 1, 0).pack(),
    Signature(Kind.BCAST, 0, 0, 2, 0).pack(),
    Signature(Kind.BCAST, 1, 0, 1, 0).pack(),
]
"""Of frames that such a rank may receive."""
SIZE, LARGE = 100, 70_000
"""Bytes that it expects where it expects a number of them."""


class Impatient(Engine):
    """A rank whose peer has said all that it will: whoever waits for more hangs."""

    def tick(self, channel: Channel, want: Want, ticks: int) -> None:
        raise AssertionError(f"it waits for {want.what} after the stream's end")


def begin(rank: Engine) -> None:
    """Have this rank make its call, which a waiting peer's is compared with."""
    assert Group(rank, 0, range(2)).call(Kind.BCAST, 0).signature == MINE


def calls(channel: Channel) -> list:
    """Each way of receiving; the last has no frame to show."""
    into = memoryview(bytearray(SIZE))
    want = Want(MINE, 0, into)

    def swapped():
        head = header(MINE, 0, 0, 0)
        return swap(channel, [head], len(head), channel, want)

    def drained():
        while channel.drain():
            pass

    return [
        lambda: channel.receive(MINE, 0),
        lambda: channel.receive_into(MINE, 0, into),
        lambda: channel.receive_into(MINE, 0, memoryview(bytearray(LARGE))),
        lambda: channel.receive(POINT, 0, True),
        lambda: channel.receive(POINT, 1),
        swapped,
        drained,
    ]


def read_stream(data: bytes, choice: bytes = b"\0") -> PerseidError | None:
    """Give a rank these bytes and the end; the error that its calls came to.

    Every payload that it got was in the bytes.
    """
    ours, theirs = socket.socketpair()
    rank = Impatient(None, 0, 2, 0, timeout=30.0)
    channel = Channel(1, ours, rank, "direct")
    rank.adopt(channel)
    begin(rank)
    theirs.setblocking(False)
    data = data[: theirs.send(data)] if data else data
    theirs.close()
    found = calls(channel)
    call = found[(choice[0] if choice else 0) % len(found)]
    try:
        for _ in range(len(data) // HEADER_BYTES + 2):
            frame = call()
            if frame is None:
                continue
            assert frame.signature in (MINE, POINT), frame
            assert bytes(frame.body) in data, frame
    except PerseidError as error:
        return error
    finally:
        rank.close()
        held = sum(len(kept.body) for kept in channel.frames)
        assert held <= len(data), "it keeps more than came"
    return None


class Box:
    """A store with one message in it, from rank 1 to rank 0; deleted when it was read."""

    def __init__(self, data: bytes) -> None:
        self.data: bytes | None = data

    def put(self, key: str, data: bytes) -> None:
        assert key.startswith("p/0-1/")

    def get(self, key: str) -> bytes:
        if self.data is None or key != "p/1-0/00000000":
            raise NotFoundError(key)
        return self.data

    def delete(self, keys) -> None:
        self.data = None


def read_message(data: bytes) -> PerseidError | None:
    """The same of one message that lies in a store."""
    rank = Engine(None, 0, 2, 0, timeout=0.0)
    channel = StoreChannel(1, Box(data), "p", rank)
    rank.adopt(channel)
    begin(rank)
    try:
        while channel.pump(True):
            if channel.digest(Want(MINE, 0, None)):
                break
    except PerseidError as error:
        return error
    assert all(bytes(kept.body) == data[HEADER_BYTES:] for kept in channel.frames)
    return None


def told(error: str, **more: object) -> bytes:
    """An ABORT frame as a failing rank sends it."""
    body = json.dumps({"error": error, "message": "m", "from": 1, **more}).encode()
    return header(SIGNATURES[2], 0, 0, len(body)) + body


def waiting(body: bytes) -> bytes:
    """A WAITING frame."""
    assert SIGNATURE_BYTES == 32
    return header(SIGNATURES[3], 0, 0, len(body)) + body
