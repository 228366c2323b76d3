"""``perseid table``: memory, duration and cost of any set of runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from perseid.errors import BadInput
from perseid.measure.load import load_runs
from perseid.measure.logruns import LoadOptions
from perseid.measure.prices import ARCHITECTURES, Prices, load_prices
from perseid.measure.runs import MeasuredRun
from perseid.measure.table import partition_table, run_table, tables
from perseid.measure.text import FORMATS, Table

WHICH = ("both", "runs", "partitions")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run's folder or URL, a folder of many, a glob, a combined_data.json, a log file",
    )
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--out", type=Path, help="write here instead of printing")
    parser.add_argument("--table", choices=WHICH, default="both", help="which of the two")
    parser.add_argument("--expect", type=int, metavar="N", help="ranks that should have answered")
    add_price_arguments(parser)


def add_price_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of all commands that speak of money."""
    parser.add_argument("--arch", choices=ARCHITECTURES, default="x86", help="whose prices")
    parser.add_argument("--prices", type=Path, metavar="JSON", help="prices other than the list")


def chosen_prices(args: argparse.Namespace) -> Prices:
    """The list prices, or the user's."""
    return load_prices(args.prices) if args.prices else Prices()


def run(args: argparse.Namespace) -> int:
    """Print or write the tables."""
    runs = load_runs(args.runs, LoadOptions(args.arch, args.expect))
    chosen = _chosen(runs, chosen_prices(args), args.table)
    if args.out is None:
        sys.stdout.write("\n".join(table.render(args.format) for table in chosen))
        return 0
    for path in _write(args.out, chosen, args.format):
        print(f"wrote {path}")
    return 0


def _chosen(runs: list[MeasuredRun], prices: Prices, which: str) -> list[Table]:
    if which == "both":
        return list(tables(runs, prices))
    return [run_table(runs, prices) if which == "runs" else partition_table(runs, prices)]


def _write(out: Path, chosen: list[Table], form: str) -> list[Path]:
    """One file; two tables as CSV are two files, since one file is one table to a program."""
    texts = [table.render(form) for table in chosen]
    files = {out: "\n".join(texts)}
    if form == "csv" and len(texts) > 1:
        files = {out: texts[0], out.with_stem(f"{out.stem}-partitions"): texts[1]}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"the table cannot be written to {out}: {error}") from error
    return list(files)
