"""``perseid status``: where a run stands; on AWS, its logs are fetched once it has ended."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from perseid.cli.awsarguments import add_aws_arguments
from perseid.cli.outcome import COMPLETE, INCOMPLETE, show
from perseid.errors import BadInputError, NotFoundError
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage

if TYPE_CHECKING:
    from perseid.aws.engine import AwsEngine, Started


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL; on AWS also its id, "
                        "or an execution's ARN")  # fmt: skip
    parser.add_argument("--stop", action="store_true", help="stop the execution (AWS)")
    parser.add_argument("--wait", action="store_true", help="watch until it has ended (AWS)")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument("--quiet", action="store_true", help="say only what went wrong")
    add_aws_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print it; exit status 3 where the run has ended and is incomplete."""
    if is_here(args.run):
        return _stored(args)
    from perseid.cli.awsrun import find

    engine, started = find(args)
    if args.stop:
        running = engine.stop(started)
        print(f"{'stopped   ' if running else 'had ended '} {started.arn}")
        return COMPLETE
    return _on_aws(args, engine, started)


def is_here(run: str) -> bool:
    """Whether the run is of this machine, or has nothing left that only AWS knows."""
    if run.startswith("arn:"):
        return False
    if "://" not in run and "/" not in run and not Storage(run).exists(layout.MANIFEST):
        return False  # a run's id
    if not run.startswith("s3://"):
        return True
    return _engine(Storage(run)).get("engine") == "local"


def _engine(store: Storage) -> dict[str, object]:
    try:
        return dict(json.loads(store.get(layout.ENGINE)))
    except (NotFoundError, ValueError):
        return {}


def _on_aws(args: argparse.Namespace, engine: AwsEngine, started: Started) -> int:
    from perseid.cli.awsprogress import AwsProgress, line

    now = engine.look(started)
    if args.wait and not now.ended:
        with AwsProgress(quiet=args.quiet or args.json) as progress:
            now = engine.watch(started, progress)
    if args.json and not now.ended:
        print(json.dumps({"arn": started.arn, "results": started.results_url, **vars(now)}))
        return COMPLETE
    if not now.ended:
        print(f"{line(now)}\nexecution  {started.arn}\nresults    {started.results_url}")
        return COMPLETE
    return show(engine.finish(started), as_json=args.json, quiet=args.quiet)


def _stored(args: argparse.Namespace) -> int:
    """A run of this machine: what its summary says, else how many ranks have a record."""
    if args.stop:
        raise BadInputError(
            f"{args.run} is no run on AWS: stop it with Ctrl-C where it was started"
        )
    store = Storage(args.run)
    manifest = Manifest.load(store)
    names, script = {info.key for info in store.list()}, manifest.script is not None
    keys = (layout.done_record(rank, script=script) for rank in range(manifest.world_size))
    done = sum(key in names for key in keys)
    state = {"run_id": manifest.run_id, "status": "not ended", "ranks": manifest.world_size,
             "records": done, "results": store.where()}  # fmt: skip
    if layout.SUMMARY in names:
        state["status"] = json.loads(store.get(layout.SUMMARY))["status"]
    if args.json:
        print(json.dumps(state))
    else:
        print(f"{state['status']}: {done} of {manifest.world_size} ranks have a record")
        print(f"run        {manifest.run_id}\nresults    {store.where()}")
    return INCOMPLETE if state["status"] == "incomplete" else COMPLETE
