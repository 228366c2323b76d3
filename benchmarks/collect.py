"""How long it takes to collect the ranks' records, with latency put on each S3 request.

    python benchmarks/collect.py --ranks 517 --delay 20

Three ways: one GET after the other (the existing system's; measured on `--serial` records and
scaled, or in full with ``--serial 0``), the store concurrently (what summarize does without a
communicator), and a tree gather between the ranks, after which rank 0 writes one object. A proxy
before a real S3 server (seaweedfs) delays every request. The ranks are threads of `--processes`
processes of this machine; in a run they have registered and connected before, for their
statistics, so that is timed apart. Each record is what a worker writes. Let the machine do nothing
else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import avx2

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "support")]

RECORD = "record.json"


def record_of(rank: int, world_size: int) -> dict[str, Any]:
    """What a worker of one partition writes: about 1.6 kB."""
    from perseid.pipeline.records import STAGES, RankRecord

    now = time.time()
    key = f"25MB/{rank + 1}.pt"
    return RankRecord(
        "collect", rank, world_size, 1, 1278, 0,
        ({"key": key, "rows": 1278, "bytes": 26_212_352},), (), "result-partition-25MB", key,
        512, 32, 3, "cpu", "float32", "direct", dict.fromkeys(STAGES, 1.5),
        tuple((stage, now, now + 1.5) for stage in STAGES), 3.3, 17_862.1, 150.0, True, 209_613_000,
        s3={"num_requests": 5.0, "total_time": 0.4, "avg_time": 0.08, "min_time": 0.05,
            "max_time": 0.1, "first_request_time": now, "last_response_time": now},
    ).to_json()  # fmt: skip


def manifest_of(ranks: int, results: str) -> Any:
    """The manifest that these records are checked against."""
    from perseid.pipeline.items import PartitionRef
    from perseid.pipeline.manifest import Manifest

    refs = tuple(PartitionRef(f"25MB/{rank + 1}.pt", 26_212_352) for rank in range(ranks))
    return Manifest("collect", time.time(), "0", results, results, refs, (1,) * ranks, {}, {})


@contextmanager
def slow_store(delay: float) -> Iterator[tuple[str, str]]:
    """URL of a bucket behind the proxy, and the proxy's endpoint; variables are set for it."""
    from flaky import flaky_proxy

    import conftest

    with ExitStack() as stack:
        server = stack.enter_context(contextmanager(conftest.s3_server.__wrapped__)())
        os.environ |= server.env
        url = server.bucket()
        proxy = stack.enter_context(flaky_proxy(server.endpoint, delay=delay))
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        yield url, proxy.endpoint


def through_the_store(url: str, ranks: int, serial: int) -> dict[str, float]:
    """Seconds: one by one (of all, scaled from `serial`), and concurrently."""
    from perseid.pipeline import layout
    from perseid.pipeline.rank_outputs import ahead, read_records
    from perseid.storage import Storage

    storage = Storage(url)
    records = [json.dumps(record_of(rank, ranks), indent=1).encode() for rank in range(ranks)]
    list(ahead(lambda r: storage.put(layout.record(r), records[r]), range(ranks), 32))
    few = min(serial, ranks) or ranks
    began = time.perf_counter()
    for rank in range(few):
        json.loads(storage.get(layout.record(rank)))
    one_by_one = (time.perf_counter() - began) * ranks / few
    began = time.perf_counter()
    found, missing = read_records(storage, manifest_of(ranks, url))
    concurrently = time.perf_counter() - began
    if len(found) != ranks or missing:
        raise SystemExit(f"{len(found)} of {ranks} records were read")
    return {"one by one": one_by_one, "store": concurrently, "measured": few}


def _member(address: str, rank: int, ranks: int, url: str, times: dict[str, list[float]]) -> None:
    from perseid.comm import Communicator
    from perseid.storage import Storage

    marks = [time.monotonic()]
    with Communicator.join("collect", rank, ranks, address, deadline=120) as comm:
        marks.append(time.monotonic())
        comm.reduce(rank)  # as in a run: the tree's connections are there before the records go
        comm.bcast("go")
        marks.append(time.monotonic())
        records = comm.gather(record_of(rank, ranks))
    if records is not None:
        gathered = time.monotonic()
        if [record["rank"] for record in records] != list(range(ranks)):
            raise SystemExit("the gathered records are not those of all ranks")
        Storage(url).put("combined_data.json", json.dumps(records, indent=1).encode())
        marks += [gathered, time.monotonic()]
        times["root"] = marks
    times.setdefault("ready", []).append(marks[2])
    times.setdefault("joined", []).append(marks[1])
    times.setdefault("began", []).append(marks[0])


def _process(address: str, mine: list[int], ranks: int, url: str, pipe: Any) -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    times: dict[str, list[Any]] = {"errors": []}

    def one(rank: int) -> None:
        try:
            _member(address, rank, ranks, url, times)
        except Exception as error:
            times["errors"].append((time.monotonic(), rank, str(error)))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send(times)


def through_the_communicator(url: str, ranks: int, processes: int) -> dict[str, float]:
    """Seconds: registering, connecting (with two small collectives), gathering, writing."""
    from perseid.rendezvous import EmbeddedServer

    context = multiprocessing.get_context("spawn")
    with EmbeddedServer() as server:
        running, pipes = [], []
        for number in range(processes):
            ours, theirs = context.Pipe()
            share = list(range(number, ranks, processes))
            arguments = (server.address, share, ranks, url, theirs)
            running.append(context.Process(target=_process, args=arguments))
            running[-1].start()
            theirs.close()
            pipes.append(ours)
        found = [pipe.recv() for pipe in pipes]
        for process in running:
            process.join()
    errors = [error for times in found for error in times["errors"]]
    if errors:
        _, rank, text = min(errors)
        raise SystemExit(f"{len(errors)} of {ranks} ranks failed, rank {rank} first: {text}")
    root = next(times["root"] for times in found if "root" in times)
    began = min(min(times["began"]) for times in found)
    joined = max(max(times["joined"]) for times in found)
    return {
        "registering": joined - began,
        "connecting": root[2] - root[1],
        "gather": root[3] - root[2],
        "gather and write": root[4] - root[2],
        "all of it": root[4] - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=517)
    parser.add_argument("--delay", type=float, default=20.0, help="ms put on each request")
    parser.add_argument("--serial", type=int, default=100, help="records read one by one (0: all)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    avx2.add_argument(parser)
    args = parser.parse_args()
    avx2.rerun(args)
    with slow_store(args.delay / 1000) as (url, _):
        store = through_the_store(url, args.ranks, args.serial)
        comm = through_the_communicator(url, args.ranks, args.processes)
    few = int(store["measured"])
    scaled = "" if few == args.ranks else f"  (measured on {few}, scaled)"
    print(f"{args.ranks} records, {args.delay:g} ms on each S3 request")
    print(f"one GET after the other     {store['one by one']:8.2f} s{scaled}")
    print(f"store, concurrently         {store['store']:8.2f} s")
    print(f"communicator, gather        {comm['gather']:8.2f} s, with the PUT of the result "
          f"{comm['gather and write']:.2f} s")  # fmt: skip
    print(f"  before it, as in any run: registering {comm['registering']:.2f} s,")
    print(f"  connecting {comm['connecting']:.2f} s ({args.processes} processes)")
    print(f"  all of it                 {comm['all of it']:8.2f} s")


if __name__ == "__main__":
    main()
