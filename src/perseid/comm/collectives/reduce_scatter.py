"""Reduce-scatter: every rank receives its part from all ranks, and combines them in rank order.

One algorithm serves all operations: each byte is sent once, directly to where it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from perseid.comm.collectives import alltoall
from perseid.comm.group import Call
from perseid.comm.objects import Blob, loads
from perseid.comm.ops import Array, Op
from perseid.comm.ports import array_bytes


def objects(call: Call, parts: Sequence[Blob], op: Op) -> Any:
    """The reduction of the parts that all ranks have for this one, for objects."""
    values = [loads(blob.parts, blob.flat()) for blob in alltoall.blobs(call, parts)]
    result = values[0]
    for value in values[1:]:
        result = op.function(result, value)
    return result


def into(call: Call, parts: Sequence[Array], place: Array, op: Op) -> None:
    """`objects` for arrays; the result is written to ``place``."""
    came = [np.empty_like(place) for _ in range(call.size)]
    places = [array_bytes(array) for array in came]
    alltoall.into(call, [array_bytes(part) for part in parts], places)
    result = came[0]
    for value in came[1:]:
        # In rank order, not in order of arrival: sums have the same bits each time.
        op.arrays(result, value, result)
    place[...] = result
