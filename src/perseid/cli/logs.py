"""``perseid logs``: print the logs of a run's ranks, even while it is running."""

from __future__ import annotations

import argparse
import json

from perseid.cli.awsarguments import add_aws_arguments
from perseid.cli.status import add_run_argument, find_run
from perseid.errors import BadInputError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid logs``."""
    add_run_argument(parser)
    parser.add_argument("--rank", type=int, metavar="N", help="only the logs of this rank")
    parser.add_argument(
        "--follow", action="store_true", help="print lines as they arrive, until the run ends"
    )
    parser.add_argument(
        "--json", action="store_true", help="print each line as a JSON object with its rank"
    )
    add_aws_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the log lines of a run's ranks."""
    said = False
    for rank, line in find_run(args).logs(args.rank, follow=args.follow):
        said = True
        text = f"rank {rank} | {line}" if args.rank is None else line
        if args.json:
            text = json.dumps({"rank": rank, "line": line})
        print(text, flush=args.follow)
    if not said:
        whose = "" if args.rank is None else f" of rank {args.rank}"
        raise BadInputError(f"{args.run} has no logs{whose}, or none yet")
    return 0
