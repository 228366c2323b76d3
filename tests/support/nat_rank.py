"""One rank of a communicator, started inside a network namespace: ``nat_rank.py OPTIONS.json``.

Joins with the options, talks to every other rank, and prints what came of it as one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from perseid.comm import Communicator
from perseid.errors import PerseidError
from perseid.storage import Storage


def talk(comm: Communicator, size: int) -> dict:
    """Every pair of ranks exchanges something; arrays of so many bytes are summed."""
    ranks = range(comm.world_size)
    heard = comm.alltoall([(comm.rank, other) for other in ranks])
    assert heard == [(other, comm.rank) for other in ranks]
    array = np.full(size // 8, float(comm.rank))
    total = np.empty_like(array)
    began = time.monotonic()
    comm.Allreduce(array, total)
    seconds = time.monotonic() - began
    assert (total == sum(ranks)).all()
    return {
        "routes": {str(rank): used for rank, used in comm.transports.items()},
        "seconds": seconds,
    }


def main(options: dict) -> dict:
    size, store = options.pop("size"), options.pop("store", None)
    idle, ready = options.pop("idle", None), options.pop("ready", None)
    if store is not None:
        options["store"] = Storage(store)
    try:
        with Communicator.join(**options) as comm:
            found = talk(comm, size)
            if ready is not None:
                Path(ready).touch()
            if idle:  # nothing is sent for a while, but what the kernels send
                time.sleep(idle)
                found = talk(comm, size)
            while idle == 0:  # until something ends it
                talk(comm, size)
            return found
    except PerseidError as error:
        return {"error": type(error).__name__, "text": str(error)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
