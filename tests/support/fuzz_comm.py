"""Coverage-guided fuzzing of all that the communicator reads from a peer; run by a slow test.

    python fuzz_comm.py -max_total_time=600 -rss_limit_mb=512 -timeout=30

A peer's bytes may end in an error of ours and in nothing else; libFuzzer watches time and memory.
Pickles are left out: they may run code by design, and come from peers that proved the job's key.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["perseid"]):
    from hostile_peer import SIGNATURES, read_message, read_stream

    from perseid.comm import failure, frames, objects

failure.BLAME_SHARE = 0.0  # nobody else could say who was lost

LIMIT = 1 << 16


def cut(data: bytes) -> None:
    """The same bytes in one piece and in many are the same frames, or the same refusal."""
    whole, pieces = read(data, len(data)), read(data, 1 + data[0] if data else 1)
    assert whole == pieces, (whole, pieces)


def read(data: bytes, size: int) -> list[tuple[bytes, int, int, bytes]]:
    receiver, found, at = frames.Receiver(LIMIT), [], 0
    try:
        while at < len(data):
            room = receiver.room()
            part = data[at : at + min(size, len(room))]
            room[: len(part)] = part
            receiver.arrived(len(part))
            at += len(part)
            while receiver.parse() and receiver.accept():
                frame = receiver.finish()
                found.append((frame.signature, frame.step, frame.parts, bytes(frame.body)))
    except frames.FrameError:
        found.append((b"refused", 0, 0, b""))
    return found


def made(data: bytes) -> bytes:
    """Frames with headers that make sense: the fuzzer gets on to what comes behind them."""
    give = atheris.FuzzedDataProvider(data)
    stream = b""
    while give.remaining_bytes() > 4:
        signature = give.PickValueInList(SIGNATURES)
        body = give.ConsumeBytes(give.ConsumeIntInRange(0, 200))
        size = len(body) if give.ConsumeBool() else give.ConsumeInt(8) & (2**64 - 1)
        parts = give.ConsumeIntInRange(0, 3)
        stream += signature + frames.TAIL.pack(give.ConsumeIntInRange(-1, 2), parts, size) + body
    return stream


def slices(data: bytes) -> None:
    for parts in (0, 1, 2, data[0] if data else 0, frames.MAX_PARTS):
        for piece in objects.slices(memoryview(data), parts):
            assert len(piece) <= len(data)


def bundles(data: bytes) -> None:
    assert sum(blob.nbytes for blob in objects.unbundle(data)) <= len(data)


def one(data: bytes) -> None:
    which, rest = data[:1], data[1:]
    try:
        match which:
            case b"\x00":
                cut(rest)
            case b"\x01":
                read_stream(rest[1:], rest[:1])
            case b"\x02":
                read_stream(made(rest[1:]), rest[:1])
            case b"\x03":
                slices(rest)
            case b"\x04":
                read_message(rest)
            case _:
                bundles(rest)
    except frames.FrameError:
        if which in (b"\x01", b"\x02", b"\x04"):
            raise


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
