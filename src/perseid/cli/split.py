"""``perseid split SURVEY DEST``: cut a survey into numbered partitions."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from perseid.api.terminal import console
from perseid.cli.awsarguments import add_storage_arguments
from perseid.cli.surveys import (
    add_columns_argument,
    add_layout_argument,
    print_notes,
    read_options,
)
from perseid.plaintext import counted
from perseid.survey import SplitProgress, suffixes
from perseid.survey.split import split


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid split``."""
    parser.add_argument("survey", metavar="SURVEY", help="a file, a folder, or a URL of either")
    parser.add_argument("dest", metavar="DEST", help="folder or URL for 1.pt, 2.pt, …")
    much = parser.add_mutually_exclusive_group()
    much.add_argument(
        "--size", default="25MB", help="size of a partition: 25MB is 1,278 SDSS cutouts (default)"
    )
    much.add_argument("--rows", type=int, metavar="N", help="rows per partition, instead of --size")
    known = ", ".join(suffix.lstrip(".") for suffix in suffixes())
    parser.add_argument("--format", default="pt", help=f"of the partitions: {known} (default: pt)")
    add_columns_argument(parser)
    add_layout_argument(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace existing numbered partitions"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Split with a progress bar, then print one line about the result."""
    began = time.perf_counter()
    with _progress() as show:
        done = split(
            args.survey,
            args.dest,
            size=args.size,
            rows=args.rows,
            format=args.format,
            overwrite=args.overwrite,
            options=read_options(args),
            progress=show,
        )
    seconds = time.perf_counter() - began
    print_notes(done.notes)
    if args.json:
        print(json.dumps({**asdict(done), "seconds": seconds}))
        return 0
    print(
        f"{counted(done.rows, 'row')} of {counted(done.files, 'file')} in "
        f"{counted(done.partitions, 'partition')} of {counted(done.rows_per_partition, 'row')} "
        f"under {done.url} ({seconds:.1f} s)"
    )
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[SplitProgress], None]]:
    """A bar on stderr, and the function that moves it."""
    bar = Progress(
        TextColumn("splitting"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,} rows, {task.fields[partitions]} partitions"),
        TimeRemainingColumn(),
        console=console(),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    task = bar.add_task("split", total=0, partitions=0)

    def show(progress: SplitProgress) -> None:
        bar.update(
            task,
            completed=progress.rows,
            total=progress.total_rows,
            partitions=f"{progress.partitions}/{progress.total_partitions}",
        )

    with bar:
        yield show
