"""``perseid report``: write one self-contained HTML page about a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from perseid.cli.awsarguments import add_storage_arguments
from perseid.cli.table import add_price_arguments, chosen_prices
from perseid.errors import BadInputError
from perseid.measure.present.report import render_report
from perseid.measure.sources.load import load_runs
from perseid.measure.sources.load_options import LoadOptions
from perseid.storage import Location, Storage

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
    found = load_runs([args.run], LoadOptions(args.arch))
    if len(found) != 1 or found[0].folder is None:
        raise BadInputError(
            f"{args.run} is not a single run of perseid (it contains {len(found)}): name the "
            "folder that contains its manifest.json"
        )
    text = render_report(found[0], chosen_prices(args))
    if not args.out or "://" in args.out:
        place = Location.parse(args.out) if args.out else Location.parse(found[0].name) / NAME
        store, name = Storage.holding(place)
        store.put(name, text.encode())
        where = store.where(name)
    else:
        where = _write(Path(args.out), text)
    size = len(text.encode())
    if args.json:
        print(json.dumps({"report": where, "bytes": size}))
    else:
        print(f"report: {where} ({size / 1e6:.2f} MB)")
    return 0


def _write(path: Path, text: str) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"the report cannot be written to {path}: {error.strerror}") from error
    return str(path)
