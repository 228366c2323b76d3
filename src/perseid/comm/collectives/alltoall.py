"""All-to-all: in round k, send to the rank k after this one and receive from the one k before."""

from __future__ import annotations

from collections.abc import Sequence

from perseid.comm.group import Call
from perseid.comm.objects import Blob


def blobs(call: Call, parts: Sequence[Blob]) -> list[Blob]:
    """The payloads that all ranks have for this one, in rank order."""
    rank, size = call.rank, call.size
    call.need(range(size))
    came = list(parts)
    for step in range(1, size):
        # In each round every rank sends to one rank and receives from one, so that no receiver is
        # flooded by several senders at once.
        to, source = (rank + step) % size, (rank - step) % size
        came[source] = call.exchange_blob(to, parts[to], source, step)
    return came


def into(call: Call, parts: Sequence[memoryview], places: Sequence[memoryview]) -> None:
    """`blobs` for bytes of known lengths, received into ``places``."""
    rank, size = call.rank, call.size
    call.need(range(size))
    places[rank][:] = parts[rank]
    for step in range(1, size):
        to, source = (rank + step) % size, (rank - step) % size
        call.exchange(to, parts[to], source, places[source], step)
