"""``perseid resume``: compute what is missing from a run, then merge again."""

from __future__ import annotations

import argparse

from perseid.api.runs import begin_again
from perseid.cli.engines import (
    add_engine_arguments,
    engine_of,
    progress_of,
    refuse_detach,
    to_the_end,
)
from perseid.storage import Location


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid resume``."""
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL")
    add_engine_arguments(parser)
    parser.add_argument(
        "--allow-model-change",
        action="store_true",
        help="continue although the model differs from the one that the run started with; the run "
        "is then marked as mixed, never as complete",
    )


def run(args: argparse.Namespace) -> int:
    """Compute what is missing from a run, then print its outcome."""
    engine = engine_of(args, args.engine)
    refuse_detach(args, engine)
    with progress_of(args) as progress:
        going_on = begin_again(
            Location.parse(args.run).url,
            engine,
            progress,
            allow_model_change=args.allow_model_change,
        )
        return to_the_end(args, going_on, progress)
