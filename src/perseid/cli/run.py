"""``perseid run``: a model over all partitions of a survey, on this machine or on AWS."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perseid.cli.awsarguments import add_aws_arguments
from perseid.cli.outcome import show
from perseid.cli.progress import RunProgress
from perseid.cli.surveys import add_missing_argument
from perseid.engines.driver import start
from perseid.engines.local import LocalEngine
from perseid.engines.options import LocalOptions
from perseid.engines.retry import RetryPolicy
from perseid.errors import BadInputError
from perseid.pipeline.request import RunRequest, read_keys
from perseid.storage import Location
from perseid.survey.missing import parse_options

KEYS = (
    "world_size", "batch_size", "model", "precision", "anomaly", "top", "file_limit", "transport",
    "timeout", "retries", "workers", "threads", "bucket_root",
)  # fmt: skip
"""Options that are keys of the request, too."""
ENGINES = ("local", "aws")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "request", nargs="?", type=Path, metavar="REQUEST.json",
        help="a request in a file: an existing payload as it is, or one with our keys",
    )  # fmt: skip
    what = parser.add_argument_group("what to run (each overrides the request's key)")
    what.add_argument("--data", metavar="URL", help="folder of partitions: a path or a URL")
    what.add_argument("--out", metavar="URL", help="folder for this run (default runs/NAME)")
    what.add_argument("--model", metavar="URL", help="exported model (default: the package's own)")
    what.add_argument(
        "--world-size", type=int, metavar="N", help="ranks (default: a partition each)"
    )
    what.add_argument("--batch-size", type=int, metavar="ROWS", help="rows a model call, at most")
    what.add_argument("--precision", choices=("float32", "int8"),
                      help="of the encoder (default float32)")  # fmt: skip
    what.add_argument("--anomaly", choices=("both", "embedding", "residual", "none"),
                      help="what scores are made from (default both)")  # fmt: skip
    what.add_argument("--top", type=int, metavar="N", help="length of the list of anomalies")
    what.add_argument("--file-limit", type=int, metavar="N", help="the first N partitions only")
    what.add_argument("--bucket-root", metavar="DIR", help="local folder whose sub-folders stand "
                      "for the buckets")  # fmt: skip
    what.add_argument("--transport", choices=("store", "direct", "relay", "auto"),
                      help="how ranks exchange statistics (default auto)")  # fmt: skip
    add_missing_argument(what)
    add_engine_arguments(parser)
    parser.add_argument("--replace", action="store_true", help="remove a run that is in the way")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")
    parser.add_argument("--rate", type=float, metavar="ROWS", help="with --dry-run: rows a second "
                        "of one worker, instead of the measured rate")  # fmt: skip


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``run`` and ``resume`` share: limits, places, and how much to say."""
    how = parser.add_argument_group("how to run it")
    how.add_argument("--engine", choices=ENGINES, default="local", help="where (default: here)")
    how.add_argument("--detach", action="store_true", help="start it and leave (aws)")
    how.add_argument("--workers", type=int, metavar="N", help="processes at once (default: cores)")
    how.add_argument("--threads", type=int, metavar="N", help="threads a worker (default 1)")
    how.add_argument("--memory", type=int, metavar="MB", help="memory a rank may take (1769)")
    how.add_argument("--timeout", type=float, metavar="S", help="seconds a rank may take (900)")
    how.add_argument("--retries", type=int, metavar="N", help="attempts after a failed one (2)")
    parser.add_argument("--quiet", action="store_true", help="say only what went wrong")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    add_aws_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run it, or print the plan."""
    if args.engine == "aws":
        return _on_aws(args)
    if args.detach:
        raise BadInputError("--detach is for --engine aws: here, the run ends with this command")
    request = request_of(args)
    options = options_of(request)
    if args.dry_run:
        return _dry_run(args, request, options)
    with LocalEngine(options) as engine, RunProgress(quiet=args.quiet or args.json) as progress:
        result = start(request, engine, progress, replace=args.replace)
    return show(result, as_json=args.json, quiet=args.quiet)


def _on_aws(args: argparse.Namespace) -> int:
    from perseid.cli import awsrun

    if args.dry_run:
        raise BadInputError(
            "--dry-run plans a run of this machine: `perseid plan` plans one on AWS"
        )
    return awsrun.run(args, plain_of(args))


def request_of(args: argparse.Namespace) -> RunRequest:
    """The request's file with the options in place of its keys, results in ``runs/``."""
    plain = plain_of(args)
    if not plain.get("results") and not plain.get("result_path") and plain.get("data"):
        plain["results"] = default_place(plain["data"])
    return RunRequest.parse(plain)


def plain_of(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of the request's file with those of the options in their place."""
    plain: dict[str, Any] = {}
    if args.request is not None:
        plain = dict(read_keys(args.request))
    elif args.data is None:
        raise BadInputError(
            "nothing to run: give a request file, or --data with a folder of partitions"
        )
    plain |= {key: getattr(args, key) for key in KEYS if getattr(args, key) is not None}
    if args.missing:
        plain["missing"] = {**(plain.get("missing") or {}), **parse_options(args.missing)}
    if args.memory is not None:
        plain["memory_mb"] = args.memory
    if args.data is not None:
        for key in ("data_bucket", "data_prefix"):
            plain.pop(key, None)
        plain["data"] = args.data
    if args.out is not None:
        plain["results"] = args.out
    return plain


def default_place(data: Any) -> str:
    """``runs/<the data's name>-<now>`` in the current folder."""
    first = data[0] if isinstance(data, list) and data else data
    name = Location.parse(str(first)).name or "run"
    return str(Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}")


def options_of(request: RunRequest) -> LocalOptions:
    """The local engine's options; the request holds those of the command line already."""
    return LocalOptions(
        workers=request.workers,
        threads=request.threads or 1,
        memory_mb=request.memory_mb,
        timeout=request.timeout,
        retry=RetryPolicy(request.retries),
    )


def _dry_run(args: argparse.Namespace, request: RunRequest, options: LocalOptions) -> int:
    from perseid.cli.dry_run import print_plan
    from perseid.engines import calibrate
    from perseid.engines.plan import make_plan
    from perseid.pipeline.initialize import plan

    manifest = plan(request)
    pace = calibrate.measure(manifest.item(0), options.threads)
    if args.rate is not None:
        pace = calibrate.at_rate(pace, args.rate)
    expected = make_plan(manifest, options, pace)
    if args.json:
        json.dump(expected.to_json(), sys.stdout, indent=1)
        print()
    else:
        print_plan(expected, options, pace, given=args.rate is not None)
    return 0
