"""``perseid aws prove``: measure what only AWS can show, for less than a dollar."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from perseid.aws.deploy.template import Options
from perseid.aws.deploy.wheels import MACHINES, StandIn, default_cache
from perseid.aws.prove.budget import CAP_USD
from perseid.aws.prove.page import render_page
from perseid.aws.prove.proof import LINES
from perseid.aws.prove.prove import NAME, ProveSettings, prove
from perseid.aws.prove.survey_map import MapSize
from perseid.aws.session import Aws
from perseid.cli.awsarguments import add_storage_arguments
from perseid.errors import BadInputError

INCOMPLETE = 3
"""Exit status if a line was not measured."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid aws prove``."""
    parser.description = (
        "Deploy two small stacks, measure what only AWS can show, remove them again, and write "
        "one JSON file and one page that name no account, resource, address or person."
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("perseid-prove"), metavar="DIR",
        help="where prove.json and prove.html go (default %(default)s)")  # fmt: skip
    add("--max-usd", type=float, default=CAP_USD, metavar="USD",
        help="start nothing that could exceed this cost (default and maximum "
             "%(default)s)")  # fmt: skip
    add("--yes", action="store_true", help="do not ask before anything is made")
    add("--stack", default=NAME, metavar="NAME", help="of the stacks (default %(default)s)")
    add("--json", action="store_true", help="print the content of prove.json")
    what = parser.add_argument_group("what is measured")
    what.add_argument("--architecture", action="append", choices=tuple(MACHINES),
                      help="may be given again (default: both)")  # fmt: skip
    what.add_argument("--ranks", type=int, default=MapSize.ranks, metavar="N",
                      help="partitions of the map (default %(default)s)")  # fmt: skip
    what.add_argument("--rows", type=int, default=MapSize.rows, metavar="N",
                      help="of a partition (default %(default)s: 25 MB)")  # fmt: skip
    what.add_argument("--gang", type=int, action="append", metavar="N", choices=(8, 32),
                      help="size of a group of functions that communicate (default: 8 and "
                           "32)")  # fmt: skip
    what.add_argument("--no-rendezvous", action="store_true",
                      help="skip functions that communicate: no VPC and no ECS are "
                           "needed")  # fmt: skip
    what.add_argument("--rendezvous", metavar="HOST:PORT",
                      help="use this running server instead of a task on Fargate")  # fmt: skip
    where = parser.add_argument_group("rights and places of the account, as for deploy")
    for option, metavar in (("--bucket", "NAME"), ("--role", "ARN"), ("--kms-key", "ARN"),
                            ("--permissions-boundary", "ARN"), ("--cluster", "NAME"),
                            ("--vpc", "ID")):  # fmt: skip
        where.add_argument(option, metavar=metavar)
    where.add_argument("--subnet", action="append", metavar="ID")
    add_storage_arguments(parser)
    parser.set_defaults(act=run)


def run(args: argparse.Namespace) -> int:
    """Measure and write both files; exit status 3 if a line was not measured."""
    settings = _settings(args)
    aws = Aws(args.region, args.profile)
    if not args.yes:
        _ask(settings, aws.region)
    args.out.mkdir(parents=True, exist_ok=True)
    there = StandIn.of_environment()
    found = prove(
        aws, settings, default_cache() / "packages" / NAME, _tell, interpreter=there.python,
        machine=there.machine,
    )  # fmt: skip
    (args.out / "prove.json").write_text(found.to_json(), encoding="utf-8")
    (args.out / "prove.html").write_text(render_page(found), encoding="utf-8")
    if args.json:
        print(found.to_json())
    else:
        for line in found.lines:
            print(f"{line.name:18} {line.state:9} {line.sentence}")
        print(f"at most {found.usd:.3f} USD; mail {args.out}/prove.json and prove.html")
    return 0 if found.whole else INCOMPLETE


def _settings(args: argparse.Namespace) -> ProveSettings:
    if args.ranks < 1 or args.rows < 1:
        raise BadInputError("--ranks and --rows must be at least 1")
    options = Options(
        name=args.stack, bucket=args.bucket, role=args.role, kms_key=args.kms_key,
        boundary=args.permissions_boundary, cluster=args.cluster, vpc=args.vpc,
        subnets=tuple(args.subnet) if args.subnet else None,
    )  # fmt: skip
    return ProveSettings(
        options=options,
        architectures=tuple(args.architecture or MACHINES),
        size=MapSize(args.ranks, rows=args.rows),
        gangs=tuple(args.gang or (8, 32)),
        rendezvous=not args.no_rendezvous,
        endpoint=args.rendezvous,
        cap_usd=args.max_usd,
    )


def _ask(settings: ProveSettings, region: str) -> None:
    print(
        f"this makes the stacks {settings.options.name} and {settings.options.name}-arm in "
        f"{region}, measures {len(LINES)} lines for at most {settings.cap_usd:g} USD, and removes "
        "both again; go on? [y/N] ",
        end="", file=sys.stderr, flush=True,
    )  # fmt: skip
    if not sys.stdin.isatty():
        raise BadInputError("there is no terminal to answer in: give --yes")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise BadInputError("nothing was done")


def _tell(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {text}", file=sys.stderr, flush=True)
