"""``perseid similar``: find the objects of a run that are most similar to one of them."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from perseid.api.runs import open_run
from perseid.api.terminal import width
from perseid.cli.awsarguments import add_storage_arguments
from perseid.errors import BadInputError
from perseid.measure.present.text import Cell, TableColumn, TextTable, number, word
from perseid.pipeline.similar import SimilarObject
from perseid.science import GROUPS

_COLUMNS = (
    TableColumn("place", "#"),
    TableColumn("distance", "distance"),
    TableColumn("object_id", "object id", numeric=False, names_row=True),
    TableColumn("partition", "partition", numeric=False),
    TableColumn("row", "row"),
    TableColumn("z_pred", "z pred"),
    TableColumn("z_spec", "z spec"),
    TableColumn("label", "label"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid similar``."""
    parser.add_argument("run", metavar="RUN", help="a run's folder or URL")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--id", metavar="ID", help="the object's id in the survey")
    which.add_argument(
        "--object", metavar="PARTITION:ROW", help="partition and row of the object, e.g. 3.pt:17"
    )
    parser.add_argument("-n", type=int, default=100, metavar="N", help="how many objects (100)")
    parser.add_argument(
        "--use",
        choices=GROUPS,
        help="which features (default: the embedding, if the model has one)",
    )
    parser.add_argument("--json", action="store_true", help="print unrounded numbers as JSON")
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the objects, nearest first; the first is the object itself."""
    found = open_run(args.run)
    if args.id is not None:
        objects = found.similar(args.id, n=args.n, use=args.use)
    else:
        objects = found.similar(place=_place(args.object), n=args.n, use=args.use)
    if args.json:
        print(json.dumps([asdict(one) for one in objects], indent=1))
    else:
        sys.stdout.write(_table(objects).render("text", width()))
    return 0


def _place(text: str) -> tuple[str, int]:
    partition, _, row = text.rpartition(":")
    if not partition or not row.isdecimal():
        raise BadInputError(f"--object is PARTITION:ROW, such as 3.pt:17, not {text!r}")
    return partition, int(row)


def _table(objects: list[SimilarObject]) -> TextTable:
    rows = [
        {
            "place": Cell(str(place)),
            "distance": number(one.distance),
            "object_id": word(None if one.object_id is None else str(one.object_id)),
            "partition": word(one.partition),
            "row": Cell(str(one.row)),
            "z_pred": number(one.z_pred),
            "z_spec": number(one.z_spec),
            "label": word(None if one.label is None else str(one.label)),
        }
        for place, one in enumerate(objects)
    ]
    table = TextTable("Nearest objects, starting with the object itself", _COLUMNS, tuple(rows))
    return TextTable(table.title, table.filled(), table.rows)
