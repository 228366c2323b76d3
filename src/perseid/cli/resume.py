"""``perseid resume``: redo what is missing of a run, then merge again."""

from __future__ import annotations

import argparse

from perseid.cli.outcome import show
from perseid.cli.progress import RunProgress
from perseid.cli.run import add_engine_arguments, options_of
from perseid.engines.driver import resume
from perseid.engines.local import LocalEngine
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL")
    add_engine_arguments(parser)
    parser.add_argument(
        "--allow-model-change",
        action="store_true",
        help="go on though the model is another one than the run began with; the run is then "
        "marked as mixed, never as complete",
    )


def run(args: argparse.Namespace) -> int:
    """Go on with it."""
    if args.engine == "aws":
        from perseid.cli import awsrun

        return awsrun.resume(args)
    options = options_of(request_of(args, Manifest.load(Storage(args.run))))
    with LocalEngine(options) as engine, RunProgress(quiet=args.quiet or args.json) as progress:
        result = resume(args.run, engine, progress, allow_model_change=args.allow_model_change)
    return show(result, as_json=args.json, quiet=args.quiet)


def request_of(args: argparse.Namespace, manifest: Manifest) -> RunRequest:
    """The run's own request, with what the command line says of the engine in its place."""
    names = {"memory": "memory_mb"}
    options = ("workers", "threads", "memory", "timeout", "retries")
    given = {names.get(name, name): getattr(args, name) for name in options}
    changed = {key: value for key, value in given.items() if value is not None}
    return RunRequest.parse({**manifest.request, **changed})
