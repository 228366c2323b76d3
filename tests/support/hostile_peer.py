"""What a rank makes of any bytes that a connected peer sends: frames, or an error of ours."""

from __future__ import annotations

import json
import socket

from perseid.comm.channel import ChannelError, PendingReceive
from perseid.comm.connection import SocketConnection
from perseid.comm.connection_pool import ConnectionPool
from perseid.comm.frames import HEADER_BYTES, SIGNATURE_BYTES, FrameKind, Signature, header
from perseid.comm.group import Group
from perseid.comm.objects import Blob
from perseid.comm.progress import ProgressEngine
from perseid.comm.socket_channel import SocketChannel
from perseid.comm.store_channel import StoreChannel
from perseid.errors import NotFoundError, PerseidError

MINE = Signature(FrameKind.BCAST, 0, 0, 1, 0).pack()
"""The call that this rank is in."""
POINT = Signature(FrameKind.POINT, 0, 0).pack()
SIGNATURES = [
    MINE,
    POINT,
    Signature(FrameKind.ABORT, 0, 0).pack(),
    Signature(FrameKind.WAITING, 0, 0).pack(),
    Signature(FrameKind.GATHER, 0, 0, 1, 0).pack(),
    Signature(FrameKind.BCAST, 0, 0, 2, 0).pack(),
    Signature(FrameKind.BCAST, 1, 0, 1, 0).pack(),
]
"""Of frames that such a rank may receive."""
SIZE, LARGE = 100, 70_000
"""Bytes that it expects where it expects a number of them."""


class Impatient(ProgressEngine):
    """Of a rank whose peer has said all that it will: whoever waits for more hangs."""

    def _check_stalled(self, channel, pending, polls) -> None:
        raise AssertionError(f"it waits for {pending.call} after the stream's end")


def begin(rank: ConnectionPool) -> None:
    """Have this rank make its call, which a waiting peer's is compared with."""
    assert Group(rank, 0, range(2)).call(FrameKind.BCAST, 0).signature == MINE


def calls(progress: ProgressEngine, channel: SocketChannel) -> list:
    """Each way of receiving; the last has no frame to show."""
    into = memoryview(bytearray(SIZE))
    pending = PendingReceive(MINE, 0, into)

    def exchanged():
        return progress.exchange(channel, MINE, 0, Blob(0, [b""], 0), channel, pending)

    def drained():
        try:
            while progress.take_in(channel):
                pass
        except ChannelError as error:
            progress._failure.channel_failed(error)

    return [
        lambda: progress.receive(channel, MINE, 0),
        lambda: progress.receive_into(channel, MINE, 0, into),
        lambda: progress.receive_into(channel, MINE, 0, memoryview(bytearray(LARGE))),
        lambda: progress.receive(channel, POINT, 0, True),
        lambda: progress.receive(channel, POINT, 1),
        exchanged,
        drained,
    ]


def read_stream(data: bytes, choice: bytes = b"\0") -> PerseidError | None:
    """Give a rank these bytes and the end; the error that its calls came to.

    Every payload that it got was in the bytes.
    """
    ours, theirs = socket.socketpair()
    rank = ConnectionPool(None, 0, 2, 0, timeout=30.0)
    channel = SocketChannel(1, SocketConnection(ours, "direct", rank.poll_seconds, 15.0))
    rank.adopt(channel)
    begin(rank)
    theirs.setblocking(False)
    data = data[: theirs.send(data)] if data else data
    theirs.close()
    found = calls(Impatient(rank), channel)
    call = found[(choice[0] if choice else 0) % len(found)]
    try:
        for _ in range(len(data) // HEADER_BYTES + 2):
            blob = call()
            assert blob is None or bytes(blob.flat()) in data
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
    rank = ConnectionPool(None, 0, 2, 0, timeout=0.0)
    channel = StoreChannel(0, 1, Box(data), "p", 0.0)
    rank.adopt(channel)
    begin(rank)
    progress, pending = ProgressEngine(rank), PendingReceive(MINE, 0, None)
    try:
        try:
            while True:
                complete = channel.process_buffered(pending)
                rank.handle_control_frames(channel)
                if complete or not channel.read_some():
                    break
        except ChannelError as error:
            progress._failure.channel_failed(error)
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
