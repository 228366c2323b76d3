"""``perseid catalogue``: write a run's catalogue in the format of another tool."""

from __future__ import annotations

import argparse
import json

from perseid.api.catalogue import Catalogue
from perseid.catalogues.export import FORMATS
from perseid.cli.awsarguments import add_storage_arguments
from perseid.plaintext import counted
from perseid.storage import Storage


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid catalogue``."""
    parser.add_argument("run", metavar="RUN", help="a run's folder or URL")
    parser.add_argument(
        "--to",
        required=True,
        metavar="PLACE",
        help="path or URL to write to; its suffix selects the format: .fits, .vot, .csv, "
        ".parquet, .hdf5 (redshift PDFs for qp), or / for a folder of HATS",
    )
    parser.add_argument("--format", choices=sorted(FORMATS), help="overrides the suffix")
    parser.add_argument(
        "--columns", metavar="NAME,NAME,…", help="the columns to write, in this order (all)"
    )
    parser.add_argument(
        "--where",
        metavar="CONDITION",
        help='the rows to write, such as "z_pred > 0.1 and flag == 0" (all)',
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the catalogue and print its place."""
    columns = args.columns.split(",") if args.columns else None
    written = Catalogue(Storage(args.run)).write(
        args.to, columns=columns, where=args.where, format=args.format
    )
    if args.json:
        print(json.dumps(vars(written)))
    else:
        print(
            f"catalogue: {written.where} ({counted(written.rows, 'row')}, "
            f"{written.bytes / 1e6:.2f} MB)"
        )
    return 0
