"""Broadcast: a binomial tree; for large arrays a pipeline."""

from __future__ import annotations

from perseid.comm.collectives.trees import branch
from perseid.comm.group import Call
from perseid.comm.objects import Blob

LARGE_BYTES = 4 << 20
"""From here on a pipeline: every rank receives and sends at the same time."""
CHUNK_BYTES = 512 * 1024
"""What passes through the pipeline at once."""


def blob(call: Call, value: Blob | None, root: int) -> Blob:
    """The root's payload, of a length that only the root knows, on every rank."""
    place = branch(call.rank, call.size, root)
    call.need(place.near)
    if place.parent >= 0:
        value = call.receive_blob(place.parent)
    assert value is not None
    # The largest subtree first: the longest way begins earliest.
    for child in place.children:
        call.send_blob(child, value)
    return value


def into(call: Call, data: memoryview, root: int) -> None:
    """The root's bytes, of a length that all ranks know, into every rank's memory."""
    # Between two ranks a pipeline has nothing to overlap.
    if len(data) >= LARGE_BYTES and call.size > 2:
        pipeline(call, data, root)
    else:
        binomial(call, data, root)


def binomial(call: Call, data: memoryview, root: int) -> None:
    """Down a tree of whole messages."""
    place = branch(call.rank, call.size, root)
    call.need(place.near)
    if place.parent >= 0:
        call.receive_into(place.parent, data)
    for child in place.children:
        call.send(child, data)


def pipeline(call: Call, data: memoryview, root: int, chunk: int = CHUNK_BYTES) -> None:
    """Along a chain in chunks; each rank passes one on while it receives the next."""
    size = call.size
    virtual = (call.rank - root) % size
    before, after = (call.rank - 1) % size, (call.rank + 1) % size
    chunks = [data[at : at + chunk] for at in range(0, len(data), chunk)]
    last = virtual == size - 1
    call.need(([] if virtual == 0 else [before]) + ([] if last else [after]))
    if virtual == 0:
        for step, piece in enumerate(chunks):
            call.send(after, piece, step)
    elif last:
        for step, piece in enumerate(chunks):
            call.receive_into(before, piece, step)
    else:
        _pass_on(call, chunks, before, after)


def _pass_on(call: Call, chunks: list[memoryview], before: int, after: int) -> None:
    call.receive_into(before, chunks[0], 0)
    for step, piece in enumerate(chunks[1:], 1):
        call.exchange(after, chunks[step - 1], before, piece, step - 1, step)
    call.send(after, chunks[-1], len(chunks) - 1)
