"""``perseid run``: run a model over all partitions of a survey."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from perseid.api.runs import begin, with_results
from perseid.cli.engines import (
    add_engine_arguments,
    engine_of,
    progress_of,
    refuse_detach,
    to_the_end,
)
from perseid.cli.explore_options import add_explore_arguments
from perseid.cli.request_options import add_request_options, given_options
from perseid.cli.surveys import add_columns_argument, add_missing_argument
from perseid.cli.units import rate_argument
from perseid.engines.base import Engine
from perseid.errors import BadInputError
from perseid.pipeline.request import RunRequest, read_keys
from perseid.survey.missing import parse_options, sentinel_column
from perseid.survey.names import canonical, parse_columns

DRY_RUN = "local"
"""The engine for which `--dry-run` makes a plan."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid run``."""
    parser.add_argument(
        "request", nargs="?", type=Path, metavar="REQUEST.json",
        help="a request in a file: an existing payload, or one with perseid's keys",
    )  # fmt: skip
    what = parser.add_argument_group("what to run (each overrides the request's key)")
    add_request_options(what, limits=False)
    add_columns_argument(what)
    add_missing_argument(what)
    add_engine_arguments(parser)
    add_explore_arguments(parser)
    parser.add_argument("--state-machine", metavar="ARN", help="on AWS: send the unchanged file to "
                                                               "this state machine, follow it, "
                                                               "print tables")  # fmt: skip
    parser.add_argument(
        "--replace", action="store_true", help="remove an earlier run at the same place"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan without running anything"
    )
    parser.add_argument("--rate", type=rate_argument, metavar="ROWS", help="with --dry-run: rows "
                        "per second of one worker, instead of the measured rate")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the request, or print the plan."""
    if args.rate is not None and not args.dry_run:
        raise BadInputError(
            "--rate only affects the plan of --dry-run: add --dry-run, or leave --rate out"
        )
    if args.state_machine is not None:
        from perseid.cli.existing_machine import run_existing

        return run_existing(args)
    engine = engine_of(args, args.engine)
    plain = plain_of(args)
    request = RunRequest.parse(with_results(plain, engine), options=given_options(args))
    if args.dry_run:
        return _look_ahead(args, engine, request)
    refuse_detach(args, engine)
    with progress_of(args) as progress:
        begun = begin(request, engine, progress, replace=args.replace)
        if args.explore and not args.detach:
            from perseid.cli.explore import explore_to_the_end

            return explore_to_the_end(args, begun, progress)
        return to_the_end(args, begun, progress)


def plain_of(args: argparse.Namespace) -> dict[str, object]:
    """The keys of the request's file, overridden by those of the options."""
    plain: dict[str, object] = {}
    if args.request is not None:
        plain = dict(read_keys(args.request))
    elif args.data is None:
        raise BadInputError(
            "there is nothing to run: give a request file, or --data with a folder of partitions"
        )
    given = given_options(args)
    if "data" in given:
        for key in ("data_bucket", "data_prefix"):
            plain.pop(key, None)
    plain |= given
    if args.columns:
        columns = parse_columns(args.columns)
        plain["columns"] = _replaced(plain.get("columns"), columns, canonical)
    if args.missing:
        missing = parse_options(args.missing)
        plain["missing"] = _replaced(plain.get("missing"), missing, sentinel_column)
    return plain


def _replaced(
    value: object, options: Mapping[str, object], usual: Callable[[str], str]
) -> dict[str, object]:
    """The request's values by column, with those of the options in place of its own.

    A value of any other form is replaced as a whole. `usual` gives the same word for all spellings
    of a column.
    """
    given = {usual(column) for column in options}
    kept = value.items() if isinstance(value, dict) else ()
    return {**{name: of for name, of in kept if usual(name) not in given}, **options}


def _look_ahead(args: argparse.Namespace, engine: Engine, request: RunRequest) -> int:
    if engine.on_aws:
        from perseid.cli.aws_preflight import show_preflight

        return show_preflight(args, engine, request)
    if args.engine != DRY_RUN:
        raise BadInputError(
            f"--dry-run works only with --engine {DRY_RUN} (a plan) and --engine aws (checks)"
        )
    return _dry_run(args, request)


def _dry_run(args: argparse.Namespace, request: RunRequest) -> int:
    from perseid.api.estimating import estimate_run, look_ahead
    from perseid.cli.dry_run import plan_lines, script_plan

    manifest = look_ahead(request, replace=args.replace)
    if manifest.script is not None:
        plain = json.dumps(manifest.to_json(), indent=1)
        print(plain if args.json else "\n".join(script_plan(manifest)))
        return 0
    expected = estimate_run(manifest, request, rate=args.rate)
    if args.json:
        print(json.dumps(expected.to_json(), indent=1))
    else:
        print("\n".join(plan_lines(expected, given=args.rate is not None)))
    return 0
