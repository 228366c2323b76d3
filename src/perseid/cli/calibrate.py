"""``perseid calibrate``: measure how fast a worker is, from small runs or on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from perseid.api.worker_pace import Calibration, calibrate
from perseid.cli import units
from perseid.cli.awsarguments import add_storage_arguments
from perseid.plaintext import counted

FEW_ROWS = 500
"""A rank with fewer rows does not measure the pace well."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid calibrate``."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="small runs, on AWS or on this "
                                                               "machine; without any, the model is "
                                                               "timed on this machine")  # fmt: skip
    parser.add_argument(
        "--model", metavar="URL", help="model to time on this machine (default: the package's own)"
    )
    parser.add_argument(
        "--memory", type=units.memory_argument, metavar="SIZE",
        help="memory of the runs' workers, if their REPORT lines are missing",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="JSON", help="write it for `perseid plan`")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure the pace of a worker, print it, and write it to a file if asked to."""
    found = calibrate(*args.runs, model=args.model or "default", memory_mb=args.memory)
    print(json.dumps(found.to_json(), indent=1) if args.json else "\n".join(lines(found)))
    if args.out is not None:
        found.save(args.out)
        if not args.json:
            print(f"wrote {args.out}")
    return 0


def lines(found: Calibration) -> list[str]:
    """The calibration in words, one line per figure."""
    ranks = counted(found.ranks, "rank") if found.ranks else "no run"
    few = found.ranks > 0 and found.rows / found.ranks < FEW_ROWS
    note = "note       few rows per rank: with more, the pace is higher (batches are padded)"
    return [
        f"measured   {found.source} ({ranks}), {found.measured}",
        f"pace       {found.rows_per_second:,.0f} rows/s per vCPU, x {found.scaling:.2f} with "
        f"twice as many; workers differ by {found.variation:.0%}",
        f"start      {found.ready_seconds:.2f} s cold, {found.rank_seconds:.2f} s per rank beyond "
        "its rows",
        f"memory     {found.base_mb:,.0f} MB and 400 bytes per row",
        f"reading    {found.row_bytes:,.0f} bytes per row at {found.network_mb_s:,.0f} MB/s",
        f"accuracy   the pace on AWS may differ by a factor of {found.doubt:g} in either direction",
        *([note] if few else []),
    ]
