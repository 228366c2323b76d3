"""Reduce-scatter: every rank gets all ranks' parts for it and folds them strictly by rank.

One algorithm for all operations: each byte is sent once, straight to where it is needed.
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
    """The reduction of all ranks' part of this rank's number."""
    values = [loads(blob.parts, blob.flat()) for blob in alltoall.blobs(call, parts)]
    result = values[0]
    for value in values[1:]:
        result = op.function(result, value)
    return result


def into(call: Call, parts: Sequence[Array], place: Array, op: Op) -> None:
    """The same for arrays, into place."""
    came = [np.empty_like(place) for _ in range(call.size)]
    places = [array_bytes(array) for array in came]
    alltoall.into(call, [array_bytes(part) for part in parts], places)
    result = came[0]
    for value in came[1:]:
        # By rank, whenever each part arrived: sums have the same bits each time.
        op.arrays(result, value, result)
    place[...] = result
