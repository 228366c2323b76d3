"""Runs whose ranks have done their inference, and a rendezvous where they meet as threads."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perseid.pipeline.collective_merge import RankOutputs, merge_collectively
from perseid.pipeline.initialize import initialize
from perseid.pipeline.items import WorkItem
from perseid.pipeline.join_settings import JoinSettings
from perseid.pipeline.request import RunRequest
from perseid.pipeline.work import work
from perseid.rendezvous import Config, EmbeddedServer, job_key
from perseid.storage import Storage

SECRET = secrets.token_bytes(32)


@contextmanager
def rendezvous() -> Iterator[str]:
    """The address of a server that knows `SECRET`."""
    config = Config(host="127.0.0.1", port=0, http_port=0, tcpunch=False, secret=SECRET)
    with EmbeddedServer(config) as server:
        yield server.address


def begin(survey: Path, place: Path, ranks: int, data: str = "whole", **more: Any):
    """A run whose ranks have done their inference."""
    request = RunRequest.parse(
        {
            "data": str(survey / data), "results": str(place), "model": str(survey / "m.onnx"),
            "world_size": ranks, "transport": "auto", **more,
        }
    )  # fmt: skip
    items = initialize(request).items
    for item in items:
        work(item, defer_merge=True)
    return items, Storage(request.results_url)


def all_meet(
    items: tuple[WorkItem, ...], storage: Storage, address: str,
    each: Callable[[RankOutputs, JoinSettings], Any] = merge_collectively, **how: Any,
) -> list[Any]:  # fmt: skip
    """Every rank in a thread of its own."""
    key = job_key(SECRET, items[0].run_id).hex()
    meeting = JoinSettings(address, key, **({"deadline": 20.0} | how))
    lock = threading.Lock()
    with ThreadPoolExecutor(len(items)) as pool:
        lefts = [RankOutputs.of_store(item, storage, lock) for item in items]
        return list(pool.map(lambda left: each(left, meeting), lefts))
