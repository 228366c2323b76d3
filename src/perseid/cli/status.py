"""``perseid status``: print a run's status; on AWS, fetch its logs after it has ended."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from perseid.api.run import Run
from perseid.api.runs import open_run
from perseid.api.status import RunStatus
from perseid.cli.awsarguments import add_aws_arguments
from perseid.cli.engines import engine_of, progress_of
from perseid.cli.show_outcome import COMPLETE, INCOMPLETE, show
from perseid.engines.engine_names import engine_of_run
from perseid.pipeline import layout
from perseid.storage import Storage


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid status``."""
    add_run_argument(parser)
    parser.add_argument("--stop", action="store_true", help="stop it")
    parser.add_argument("--wait", action="store_true", help="wait until it has ended")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument("--quiet", action="store_true", help="say only what went wrong")
    add_aws_arguments(parser)


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a run: its folder, URL, id or ARN."""
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL; on AWS also its id, "
                        "or an execution's ARN")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the status; exit status 3 if the run has ended and is incomplete."""
    found = find_run(args)
    if args.stop:
        stopped = found.stop()
        print(f"{'stopped   ' if stopped else 'had ended '} {found.url}")
        return COMPLETE
    now = found.status()
    if now.state == "running" and not args.wait:
        return _say(args, found, now)
    if now.state != "not ended" or args.wait:
        with progress_of(args) as progress:
            found.follow(progress)
        now = found.status()
    if args.json or now.state == "not ended":
        return _say(args, found, now)
    return show(found, quiet=args.quiet)


def find_run(args: argparse.Namespace) -> Run:
    """The run that the arguments name, with its engine and stack."""
    engine = engine_of(args, "aws")
    if not args.run.startswith("arn:") and Storage(args.run).exists(layout.MANIFEST):
        engine = engine_of_run(Storage(args.run), vars(args))
    return open_run(args.run, engine=engine)


def _say(args: argparse.Namespace, run: Run, now: RunStatus) -> int:
    if args.json:
        names = {"state": "status", "done": "records"}
        plain = {names.get(name, name): value for name, value in asdict(now).items()}
        print(
            json.dumps({"run_id": run.id, "results": run.url, "engine": run.engine.name, **plain})
        )
    else:
        print(f"{now}\nrun        {run.id}\nresults    {run.url}")
    return INCOMPLETE if now.state == "incomplete" else COMPLETE
