"""What ``run``, ``resume``, ``status`` and ``logs`` share where a run is on AWS."""

from __future__ import annotations

import argparse
import sys

from perseid.aws.calls import Calls
from perseid.aws.engine import AwsEngine, Started, default_results
from perseid.aws.place import Place
from perseid.aws.session import Aws
from perseid.cli.awsprogress import AwsProgress
from perseid.cli.outcome import show
from perseid.engines.driver import NOTHING_TO_DO
from perseid.errors import (
    AwsError,
    BadInputError,
    NotFoundError,
    NotInstalledError,
    RunInterruptedError,
)
from perseid.pipeline import layout
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage


def engine_of(args: argparse.Namespace) -> AwsEngine:
    """The engine of the stack that the arguments name."""
    aws = Aws(args.region, args.profile)
    return AwsEngine(Calls(aws), Place.of_stack(aws, args.stack))


def find(args: argparse.Namespace) -> tuple[AwsEngine, Started]:
    """The run on AWS that the arguments name, by its URL, its id or an execution's ARN.

    Raises
    ------
    NotFoundError
        It was named by a bare word, which is neither a run's folder here nor a run's id there.
    """
    try:
        engine = engine_of(args)
        return engine, engine.find(args.run)
    except (AwsError, NotFoundError, NotInstalledError) as error:
        if args.run.startswith(("s3://", "arn:")):
            raise
        here = Storage(args.run).where(layout.MANIFEST)
        raise NotFoundError(
            f"there is no run {args.run} here (no {here}), nor can one of that id be found on AWS "
            f"({error}); name a run on AWS by its s3:// URL, its id or an execution's ARN"
        ) from error


def run(args: argparse.Namespace, plain: dict[str, object]) -> int:
    """``perseid run --engine aws``."""
    engine = engine_of(args)
    if not plain.get("results") and not plain.get("result_path"):
        plain["results"] = default_results(engine.place, plain.get("data"))
    request = RunRequest.parse(plain)
    _check_memory(args, engine.place)
    return _go_on(args, engine, engine.start(request, replace=args.replace))


def resume(args: argparse.Namespace) -> int:
    """``perseid resume --engine aws``."""
    engine = engine_of(args)
    done = engine.finished(args.run)
    if done is None:
        return _go_on(args, engine, engine.resume(args.run, args.allow_model_change))
    if args.detach:
        print(done.manifest.results_url)
        return 0
    with AwsProgress(quiet=args.quiet or args.json) as progress:
        progress.say(NOTHING_TO_DO)
    return show(done, as_json=args.json, quiet=args.quiet)


def _check_memory(args: argparse.Namespace, place: Place) -> None:
    if args.memory not in (None, place.memory_mb):
        raise BadInputError(
            f"the stack's workers have {place.memory_mb} MB, not {args.memory}: set it by "
            f"`perseid aws deploy --memory {args.memory}`"
        )


def _go_on(args: argparse.Namespace, engine: AwsEngine, started: Started) -> int:
    quiet = args.quiet or args.json
    with AwsProgress(quiet=quiet) as progress:
        progress.say(f"execution  {started.arn}")
        progress.say(f"results    {started.results_url}")
        if args.detach:
            print(started.results_url)
            progress.say(f"next       perseid status {started.results_url}")
            return 0
        try:
            engine.watch(started, progress)
        except KeyboardInterrupt:
            progress.close()
            _interrupted(engine, started)
        progress.say("fetching logs and times")
        result = engine.finish(started)
    status = show(result, as_json=args.json, quiet=args.quiet)
    if not quiet:
        print(f"asked      {_asked(engine)}")
    return status


def _asked(engine: AwsEngine) -> str:
    counts = engine.calls.counts
    parts = ", ".join(f"{name} {number}" for name, number in counts.most_common(6))
    return f"{engine.calls.total} requests of AWS from here ({parts})"


def _interrupted(engine: AwsEngine, started: Started) -> None:
    """Ctrl-C: stop the execution, or leave it running; never returns."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(f"\nstop the execution {started.name}, too? [y/N] ", end="", file=sys.stderr)
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            engine.stop(started)
            raise RunInterruptedError(
                f"stopped; `perseid resume {started.results_url} --engine aws` goes on with what "
                "is missing"
            )
    raise RunInterruptedError(
        f"{started.name} goes on without you; `perseid status {started.results_url}` says how far "
        f"it is, `perseid status {started.results_url} --stop` stops it"
    )
