"""Broadcast: down a binomial tree, or through a pipeline for large arrays."""

from __future__ import annotations

from perseid.comm.collectives.trees import branch
from perseid.comm.group import Call
from perseid.comm.objects import Blob

LARGE_BYTES = 4 << 20
"""Size of an array, in bytes, from which on a pipeline is used: in it, every rank receives and
sends at the same time."""
CHUNK_BYTES = 512 * 1024
"""Size of the chunks that pass through the pipeline."""


def blob(call: Call, value: Blob | None, root: int) -> Blob:
    """The root's payload on every rank; only the root knows its length beforehand."""
    place = branch(call.rank, call.size, root)
    if place not in call.group.reached:
        call.reach(place, place.near)
    channels, signature, progress = call.channels, call.signature, call.group.progress
    if place.parent >= 0:
        value = progress.receive(channels[place.parent], signature, 0)
    assert value is not None
    # The largest subtree first, since it takes longest.
    for child in place.children:
        progress.send_blob(channels[child], signature, 0, value)
    return value


def into(call: Call, data: memoryview, root: int) -> None:
    """Copy the root's bytes into every rank's memory; all ranks know the length."""
    # With two ranks, a pipeline has nothing to overlap.
    if len(data) >= LARGE_BYTES and call.size > 2:
        pipeline(call, data, root)
    else:
        binomial(call, data, root)


def binomial(call: Call, data: memoryview, root: int) -> None:
    """Send the whole array as one message along each edge of a tree."""
    place = branch(call.rank, call.size, root)
    if place not in call.group.reached:
        call.reach(place, place.near)
    channels, signature, progress = call.channels, call.signature, call.group.progress
    if place.parent >= 0:
        progress.receive_into(channels[place.parent], signature, 0, data)
    for child in place.children:
        progress.send(channels[child], signature, 0, data)


def pipeline(call: Call, data: memoryview, root: int, chunk: int = CHUNK_BYTES) -> None:
    """Send chunks along a chain of ranks; each passes one on while it receives the next."""
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
