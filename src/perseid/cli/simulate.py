"""``perseid simulate``: write a simulated survey and print a summary."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from perseid.api.terminal import console
from perseid.cli.awsarguments import add_storage_arguments
from perseid.plaintext import counted
from perseid.survey.simulation.simulate import Simulated, simulate


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid simulate``."""
    add = parser.add_argument
    add("dest", metavar="DEST", help="folder or URL (s3://bucket/prefix), empty or nonexistent")
    add("--rows", type=int, required=True, metavar="N", help="number of objects")
    add("--seed", type=int, required=True, metavar="S", help="the same seed gives the same survey")
    add(
        "--anomaly-rate",
        type=float,
        default=0.04,
        metavar="R",
        help="share of objects that get a labeled anomaly (default 0.04)",
    )
    add(
        "--held-out",
        action="store_true",
        help="only galaxies that the default model never saw in training",
    )
    add("--processes", type=int, metavar="P", help="default: one per processor")
    add("--rows-per-file", type=int, default=5113, metavar="N", help="default 5113: 100 MiB")
    add(
        "--format",
        default="pt",
        metavar="SUFFIX",
        help="pt, safetensors, npz, h5, fits or parquet (default pt)",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    add_storage_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate, with a progress bar on stderr and a summary on stdout."""
    columns = (
        TextColumn("simulating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("objects"),
        TimeRemainingColumn(),
    )
    start = time.perf_counter()
    with Progress(
        *columns,
        console=console(),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("simulating", total=max(args.rows, 0))
        result = simulate(
            args.dest,
            args.rows,
            args.seed,
            anomaly_rate=args.anomaly_rate,
            processes=args.processes,
            rows_per_file=args.rows_per_file,
            only_held_out=args.held_out,
            suffix="." + args.format.lstrip("."),
            report=lambda done, _: progress.update(task, completed=done),
        )
    seconds = time.perf_counter() - start
    if args.json:
        print(json.dumps({**asdict(result), "seconds": seconds}))
    else:
        _say(result, seconds)
    return 0


def _say(result: Simulated, seconds: float) -> None:
    anomalies = {name: count for name, count in result.labels.items() if name != "none" and count}
    kinds = ", ".join(f"{count} {name}" for name, count in anomalies.items()) or "none"
    files = f"{len(result.files):,} file{'s' * (len(result.files) != 1)}"
    print(f"{counted(result.rows, 'object')} in {files} in {result.url}")
    print(f"seed {result.seed}; {seconds:.1f} s, {result.rows / seconds:,.0f} objects/s")
    print(f"{sum(anomalies.values())} labeled anomalies: {kinds}")
    print("magnitudes and redshifts are real (SDSS); the images are simulated to match them")
    if result.only_held_out:
        print("the default model was trained on none of these galaxies")
    else:
        print("the default model was trained on some of these galaxies: to test it without bias,")
        print("use --held-out")
