"""``perseid table``: memory, duration and cost of any set of runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from perseid.api.terminal import width
from perseid.cli import units
from perseid.cli.awsarguments import add_storage_arguments
from perseid.errors import BadInputError
from perseid.measure.measured_run import MeasuredRun
from perseid.measure.present.run_tables import partition_table, run_table, tables
from perseid.measure.present.text import FORMATS, TextTable
from perseid.measure.prices import ARCHITECTURES, Prices, load_prices
from perseid.measure.sources.load import load_runs
from perseid.measure.sources.load_options import LoadOptions

WHICH = ("both", "runs", "partitions")


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


def chosen_prices(args: argparse.Namespace) -> Prices:
    """The list prices, or the user's."""
    return load_prices(args.prices) if args.prices else Prices()


def run(args: argparse.Namespace) -> int:
    """Print or write the tables."""
    runs = _runs(args, LoadOptions(args.arch, args.expect))
    chosen = _chosen(runs, chosen_prices(args), args.table)
    if args.json:
        print(json.dumps([plain_table(table) for table in chosen], indent=1))
        return 0
    if args.out is None:
        sys.stdout.write("\n".join(table.render(args.format, width()) for table in chosen))
        return 0
    for path in _write(args.out, chosen, args.format):
        print(f"wrote {path}")
    return 0


def plain_table(table: TextTable) -> dict[str, object]:
    """A table with unrounded numbers as JSON values."""
    rows = [{key: cell.value for key, cell in row.items()} for row in table.rows]
    heads = {column.key: column.head for column in table.columns}
    return {"title": table.title, "columns": heads, "rows": rows}


def _runs(args: argparse.Namespace, options: LoadOptions) -> list[MeasuredRun]:
    """Load the named runs, then those in the log groups."""
    if not args.runs and not args.log_group:
        raise BadInputError(
            "nothing to measure: name a run, a log file, or --log-group with --from"
        )
    found = load_runs(args.runs, options) if args.runs else []
    if not args.log_group:
        if args.since or args.state_machine:
            raise BadInputError("--from and --state-machine go with --log-group: name one")
        return found
    if args.since is None:
        raise BadInputError("--log-group needs --from, the start of the time range, e.g. --from 2h")
    from perseid.aws.observe.calls import Calls
    from perseid.aws.observe.foreign import group_runs
    from perseid.aws.session import Aws

    calls = Calls(Aws(args.region, args.profile))
    start, end = units.moment(args.since), units.moment(args.to)
    if not start < end:
        raise BadInputError(f"--from {args.since} is not before --to {args.to}")
    return found + group_runs(calls, args.log_group, start, end, args.state_machine, options)


def _chosen(runs: list[MeasuredRun], prices: Prices, which: str) -> list[TextTable]:
    if which == "both":
        return list(tables(runs, prices))
    return [run_table(runs, prices) if which == "runs" else partition_table(runs, prices)]


def _write(out: Path, chosen: list[TextTable], form: str) -> list[Path]:
    """Write the tables to one file, but two CSV tables to two, since a CSV file is a single
    table."""
    texts = [table.render(form) for table in chosen]
    files = {out: "\n".join(texts)}
    if form == "csv" and len(texts) > 1:
        files = {out: texts[0], out.with_stem(f"{out.stem}-partitions"): texts[1]}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"the table cannot be written to {out}: {error.strerror}") from error
    return list(files)
