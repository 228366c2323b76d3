"""The worker's side of a collective merge: one thread for each rank that it was given.

Ranks that are done occupy no process: their outputs are on a disk, and the process that worked on
them continues with other ranks. When all ranks are done, each process joins the communicator for
its share of the ranks; each rank has its own registration and its own connections.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from perseid.errors import PerseidError
from perseid.pipeline.items import WorkItem
from perseid.pipeline.join_settings import JoinSettings
from perseid.storage import Storage

STACK_BYTES = 1024 * 1024
"""Stack size of a rank's thread, which calls numpy and pickle without deep recursion."""


def run_ranks(
    settings: JoinSettings, items: Sequence[WorkItem], kept: Mapping[int, Any]
) -> dict[int, str]:
    """Merge collectively as each of these ranks; return by rank why that failed (empty: it
    succeeded).

    Parameters
    ----------
    settings
        The rendezvous, and the deadlines that bound this call.
    items
        Work items of the ranks.
    kept
        By rank, `RankOutputs` of those whose objects this process still has; the objects of the
        other ranks are read from the store.
    """
    from perseid.pipeline.collective_merge import RankOutputs, merge_collectively

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Each rank has its own connections, so fifty ranks exceed the usual limit of 1,024 files.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found: dict[int, str] = {}
    # Parsing npz headers uses Python's ast, which in 3.11 is not safe in several threads.
    reading = threading.Lock()

    def one(item: WorkItem) -> None:
        try:
            outputs = kept.get(item.rank) or RankOutputs.of_store(
                item, Storage(item.results_url), reading
            )
            found[item.rank] = merge_collectively(outputs, settings).transport_note
        except (PerseidError, ValueError) as error:  # the record cannot be read
            found[item.rank] = str(error)

    # The default is 8 MB of address space per thread, and there may be hundreds of threads.
    former = threading.stack_size(STACK_BYTES)
    # Daemons, so that a rank which hangs in the network does not keep the worker alive.
    threads = [threading.Thread(target=one, args=(item,), daemon=True) for item in items]
    for thread in threads:
        thread.start()
    threading.stack_size(former)
    for thread in threads:
        thread.join()
    return found
