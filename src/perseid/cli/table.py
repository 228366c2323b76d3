"""``perseid table``: memory, duration and cost of any set of runs."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from perseid.api.measurements import (
    ARCHITECTURES,
    FORMATS,
    WHICH,
    Measurements,
    measurements,
    measurements_on_aws,
)
from perseid.api.terminal import width
from perseid.cli import units
from perseid.cli.awsarguments import add_storage_arguments
from perseid.errors import BadInputError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid table``."""
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="a run's folder or URL, a folder of many, a glob, a combined_data.json, a log file, "
        "the history of an execution (JSON)",
    )
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--json", action="store_true", help="print unrounded numbers as JSON")
    parser.add_argument("--out", type=Path, help="write here instead of printing")
    parser.add_argument("--table", choices=WHICH, default="both", help="which of the two")
    parser.add_argument("--expect", type=int, metavar="N", help="how many ranks there should be")
    add_price_arguments(parser)
    aws = parser.add_argument_group("runs that others made on AWS")
    aws.add_argument("--log-group", action="append", default=[], metavar="NAME",
                     help="e.g. /aws/lambda/cosmic-executor; may be given again")  # fmt: skip
    aws.add_argument("--from", dest="since", metavar="TIME",
                     help="2026-11-22T10:15 (UTC), or how long ago: 2h")  # fmt: skip
    aws.add_argument("--to", default="now", metavar="TIME")
    aws.add_argument("--state-machine", metavar="ARN", help="its executions give the steps' times")
    add_storage_arguments(parser)


def add_price_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the price options of all commands that show costs."""
    parser.add_argument(
        "--arch",
        choices=ARCHITECTURES,
        default="x86",
        help="processor architecture whose prices apply",
    )
    parser.add_argument("--prices", type=Path, metavar="JSON", help="prices other than the list")


def run(args: argparse.Namespace) -> int:
    """Print or write the tables."""
    view = _found(args).table(args.table)
    if args.json:
        print(json.dumps(view.to_json(), indent=1))
    elif args.out is None:
        sys.stdout.write(view.render(args.format, width()))
    else:
        for path in view.save(args.out, args.format):
            print(f"wrote {path}")
    return 0


def _found(args: argparse.Namespace) -> Measurements:
    """Load the named runs, then those in the log groups."""
    if not args.runs and not args.log_group:
        raise BadInputError(
            "nothing to measure: name a run, a log file, or --log-group with --from"
        )
    if not args.log_group and (args.since or args.state_machine):
        raise BadInputError("--from and --state-machine go with --log-group: name one")
    if not args.log_group:
        return _of_sources(args)
    logged = _of_log_groups(args)
    return _of_sources(args) + logged if args.runs else logged


def _of_sources(args: argparse.Namespace) -> Measurements:
    return measurements(
        *args.runs, architecture=args.arch, expected=args.expect, prices=args.prices
    )


def _of_log_groups(args: argparse.Namespace) -> Measurements:
    if args.since is None:
        raise BadInputError("--log-group needs --from, the start of the time range, e.g. --from 2h")
    start, end = units.moment(args.since), units.moment(args.to)
    if not start < end:
        raise BadInputError(f"--from {args.since} is not before --to {args.to}")
    return measurements_on_aws(
        args.log_group,
        datetime.fromtimestamp(start, UTC),
        datetime.fromtimestamp(end, UTC),
        state_machine=args.state_machine,
        architecture=args.arch,
        expected=args.expect,
        prices=args.prices,
        region=args.region,
        profile=args.profile,
    )
