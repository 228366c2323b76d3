"""``perseid report``: write one self-contained HTML page about a run."""

from __future__ import annotations

import argparse
import json

from perseid.api.measurements import measurements
from perseid.cli.awsarguments import add_storage_arguments
from perseid.cli.table import add_price_arguments
from perseid.storage import Location

NAME = "report.html"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid report``."""
    parser.add_argument("run", metavar="RUN", help="a run's folder or URL")
    parser.add_argument(
        "--out", metavar="FILE", help=f"path or URL of the page (default: {NAME} in the run)"
    )
    parser.add_argument("--json", action="store_true", help="print its place as JSON")
    add_price_arguments(parser)
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page and print its place."""
    found = measurements(args.run, architecture=args.arch, prices=args.prices)
    page = found.report()
    place = page.save(args.out or (Location.parse(found.runs[0].name) / NAME).url)
    size = len(page.html.encode())
    if args.json:
        print(json.dumps({"report": str(place), "bytes": size}))
    else:
        print(f"report: {place} ({size / 1e6:.2f} MB)")
    return 0
