"""Shared by commands that start runs: the engine's options, and following a run to its end."""

from __future__ import annotations

import argparse
import sys

from perseid.api.progress_display import RunProgress
from perseid.api.run import Run
from perseid.cli.awsarguments import add_aws_arguments
from perseid.cli.request_options import add_request_options
from perseid.cli.show_outcome import COMPLETE, show
from perseid.engines.base import Engine
from perseid.engines.engine_names import ENGINES, engine_class
from perseid.errors import BadInputError, RunInterruptedError
from perseid.pipeline.events import Event, Report


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``run`` and ``resume`` share: limits, engine, and verbosity."""
    how = parser.add_argument_group("how to run it")
    how.add_argument("--engine", choices=tuple(ENGINES), default="local", help="where (default: "
                     "local, on this machine)")  # fmt: skip
    how.add_argument("--detach", action="store_true", help="start the run and return (slurm, aws)")
    add_request_options(how, limits=True)
    slurm = parser.add_argument_group("on a cluster (slurm, dask)")
    slurm.add_argument("--scheduler", metavar="ADDRESS", help="of Dask, e.g. tcp://host:8786")
    slurm.add_argument("--partition", metavar="NAME", help="of the cluster (its default)")
    slurm.add_argument("--account", metavar="NAME", help="account to charge")
    slurm.add_argument("--time", metavar="LIMIT", help="of a task, as sbatch takes it: 2:00:00")
    slurm.add_argument("--ranks-per-task", type=int, metavar="N", help="ranks that a task works "
                       "on, one after the other (default: at most 128 tasks)")  # fmt: skip
    slurm.add_argument("--sbatch", metavar="OPTIONS", help="further options of sbatch, in quotes")
    how.add_argument("--no-preflight", action="store_true",
                     help="on AWS: skip the checks before the start")  # fmt: skip
    how.add_argument("--max-usd", type=float, metavar="USD", help="on AWS: stop the run once its "
                     "workers have cost about so much")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="report only problems and notes")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    add_aws_arguments(parser)


def engine_of(args: argparse.Namespace, name: str) -> Engine:
    """The engine of this name, configured from the command line."""
    return engine_class(name).configured(vars(args))


def refuse_detach(args: argparse.Namespace, engine: Engine) -> None:
    """Raise `BadInputError` if ``--detach`` is given but the run would end with this process."""
    if args.detach and args.max_usd is not None:
        raise BadInputError(
            "--max-usd is enforced by this command, which --detach would end: leave one of them out"
        )
    if args.detach and not engine.capabilities.detach:
        raise BadInputError(
            f"--detach does not work with --engine {engine.name}: there, a run ends with this "
            "command"
        )


def progress_of(args: argparse.Namespace) -> RunProgress:
    """The display of the run's progress on stderr."""
    return RunProgress(quiet=args.quiet or args.json)


def to_the_end(
    args: argparse.Namespace, run: Run, progress: RunProgress, also: Report | None = None
) -> int:
    """Follow a run and print its outcome; with ``--detach``, leave it instead.

    `also` receives every event, too.
    """

    def report(event: Event) -> None:
        progress(event)
        if also is not None:
            also(event)

    if args.detach:
        if said := run.leave():
            progress.say(said)
        print(run.url)
        progress.say(f"next       perseid status {run.url}")
        return COMPLETE
    try:
        run.follow(report)
    except KeyboardInterrupt:
        # The live line has to be gone before the question appears.
        progress.close()
        raise _interrupted(run) from None
    progress.close()
    return show(run, as_json=args.json, quiet=args.quiet)


def _interrupted(run: Run) -> RunInterruptedError:
    """Handle Ctrl-C: ask whether to stop a run that would otherwise continue by itself."""
    if not run.engine.capabilities.detach:
        return run.stopped()
    # In a script nobody can answer, so the run continues, and its address is printed.
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(f"\nstop the run {run.id}, too? [y/N] ", end="", file=sys.stderr)
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            run.stop()
            return run.stopped()
    return run.left()
