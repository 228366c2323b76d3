"""``perseid logs``: what the ranks of a run logged, here or on AWS, also while it runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from perseid.cli.awsarguments import add_aws_arguments
from perseid.cli.status import is_here
from perseid.errors import BadInputError
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage
from perseid.survey import natural_key

if TYPE_CHECKING:
    from perseid.aws.engine import AwsEngine, Started

READERS = 16


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL; on AWS also its id, "
                        "or an execution's ARN")  # fmt: skip
    parser.add_argument("--rank", type=int, metavar="N", help="only this one's")
    parser.add_argument("--follow", action="store_true", help="as they come, until the run ends "
                        "(AWS)")  # fmt: skip
    add_aws_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print them."""
    if is_here(args.run):
        _check(args, Manifest.load(Storage(args.run)))
        if args.follow:
            raise BadInputError(
                f"--follow is for runs on AWS, and {args.run} is none: leave it out"
            )
        if not _show_stored(args, args.run):
            raise BadInputError(f"{args.run} kept no logs{_of(args.rank)}, or works on it still")
        return 0
    if args.run.startswith("s3://") and not args.follow and _show_stored(args, args.run):
        return 0
    from perseid.cli.awsrun import find

    engine, started = find(args)
    if args.follow or not _show_stored(args, started.results_url):
        for rank, line in _from_aws(args, engine, started):
            print(f"rank {rank} | {line}" if args.rank is None else line, flush=args.follow)
    return 0


def _show_stored(args: argparse.Namespace, url: str) -> bool:
    """Print the logs in the run's own folder, in order of the ranks; whether there are any."""
    store = Storage(url)
    wanted = None if args.rank is None else layout.log(args.rank)
    keys = [info.key for info in store.list(layout.LOGS) if wanted in (None, info.key)]
    with ThreadPoolExecutor(READERS) as pool:
        for data in pool.map(store.get, sorted(keys, key=natural_key)):
            text = data.decode("utf-8", "replace")
            print(text, end="" if text.endswith("\n") else "\n")
    return bool(keys)


def _from_aws(
    args: argparse.Namespace, engine: AwsEngine, started: Started
) -> Iterator[tuple[int, str]]:
    from perseid.aws.logs import Tail, follow, group_of, read_events

    run_id = started.name  # of a run that has just begun there is no more than its name
    if started.resumed:
        run_id = Manifest.load(Storage(started.results_url)).run_id
    group, tail = group_of(engine.place.worker), Tail(run_id, args.rank)
    start = engine.began(started) - 1.0
    if args.follow:
        ended = lambda: engine.look(started).ended  # noqa: E731
        yield from follow(engine.calls, group, tail, start, ended)
        return
    for event in sorted(read_events(engine.calls, group, start), key=lambda e: e.time or 0.0):
        yield from tail.feed(event)
    _check(args, Manifest.load(Storage(started.results_url)))


def _check(args: argparse.Namespace, manifest: Manifest) -> None:
    if args.rank is not None and not 0 <= args.rank < manifest.world_size:
        raise BadInputError(
            f"the run has no rank {args.rank}: it has the ranks 0 to {manifest.world_size - 1}"
        )


def _of(rank: int | None) -> str:
    return "" if rank is None else f" of rank {rank}"
