"""``perseid logs``: what the ranks of a run logged, here or on AWS, also while it runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from perseid.cli.awsarguments import add_aws_arguments
from perseid.errors import BadInput, NotFound
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
    stored = [] if args.run.startswith("arn:") or args.follow else _stored(args)
    if stored:
        for text in stored:
            print(text, end="" if text.endswith("\n") else "\n")
        return 0
    if not args.run.startswith(("s3://", "arn:")):
        here = Storage(args.run).exists(layout.MANIFEST)
        if here or "/" in args.run:
            Manifest.load(Storage(args.run))  # says so where there is none
            raise BadInput(f"{args.run} has no logs{_of(args.rank)}: it runs here, or kept none")
    from perseid.cli.awsrun import engine_of

    engine = engine_of(args)
    for rank, line in _from_aws(args, engine, engine.find(args.run)):
        print(f"rank {rank} | {line}" if args.rank is None else line, flush=args.follow)
    return 0


def _stored(args: argparse.Namespace) -> list[str]:
    """Logs in the run's own folder, in order of the ranks."""
    store = Storage(args.run)
    if args.rank is not None:
        try:
            return [store.get(layout.log(args.rank)).decode("utf-8", "replace")]
        except NotFound:
            return []
    keys = sorted((info.key for info in store.list(layout.LOGS)), key=natural_key)
    with ThreadPoolExecutor(READERS) as pool:
        return [data.decode("utf-8", "replace") for data in pool.map(store.get, keys)]


def _from_aws(
    args: argparse.Namespace, engine: AwsEngine, started: Started
) -> Iterator[tuple[int, str]]:
    from perseid.aws.logs import Tail, follow, group_of, read_events

    run_id = Manifest.load(Storage(started.results_url)).run_id
    group, tail = group_of(engine.place.worker), Tail(run_id, args.rank)
    start = engine.began(started) - 1.0
    if args.follow:
        ended = lambda: engine.look(started).ended  # noqa: E731
        yield from follow(engine.calls, group, tail, start, ended)
        return
    for event in sorted(read_events(engine.calls, group, start), key=lambda e: e.time):
        yield from tail.feed(event)


def _of(rank: int | None) -> str:
    return "" if rank is None else f" of rank {rank}"
