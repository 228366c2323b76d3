"""``perseid demo``: from a simulated survey to a catalogue, a table and a report.

Runs the real commands and prints each before its output. It can be repeated: the survey is made
once, and each call makes a new run.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RANKS = "8"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid demo``."""
    parser.add_argument("--rows", type=int, default=3000, help="objects to simulate (%(default)s)")
    parser.add_argument("--seed", type=int, default=2026, help="of the survey (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("perseid-demo"), help="folder of the demo (%(default)s)"
    )
    parser.add_argument(
        "--run-with", metavar="COMMAND", help="a Python program and its first arguments, in place "
        "of `perseid run`"
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Simulate, split, run, tabulate, report."""
    started = time.monotonic()
    home = args.out / f"{args.rows}-{args.seed}"
    result = home / "runs" / time.strftime("%Y%m%d-%H%M%S")
    for command in _commands(args, home, result):
        print(f"\n$ {shlex.join(command)}", flush=True)
        status = subprocess.run([sys.executable, *_program(command)]).returncode
        if status:
            return status
        if command[1] == "split":
            (home / "split.done").touch()
    print(f"\nThe demo took {time.monotonic() - started:.0f} s. Open {result / 'report.html'}")
    return 0


def _commands(args: argparse.Namespace, home: Path, result: Path) -> list[list[str]]:
    """The remaining commands, as a user would type them."""
    survey, partitions = home / "survey", home / "partitions"
    commands = []
    if not (survey / "survey.json").exists():
        # The summary is written last: without it the survey is incomplete, and is made again.
        shutil.rmtree(survey, ignore_errors=True)
        size = ["--rows", str(args.rows), "--seed", str(args.seed)]
        commands.append(["perseid", "simulate", str(survey), *size, "--held-out"])
    if not (home / "split.done").exists():
        shutil.rmtree(partitions, ignore_errors=True)
        commands.append(["perseid", "split", str(survey), str(partitions), "--size", "2MB"])
    what = ["--data", str(partitions), "--out", str(result), "--world-size", RANKS]
    program = ["python", *shlex.split(args.run_with)] if args.run_with else ["perseid", "run"]
    commands.append([*program, *what])
    return [*commands, ["perseid", "table", str(result)], ["perseid", "report", str(result)]]


def _program(command: Sequence[str]) -> list[str]:
    """Arguments for this interpreter: a program in a file, or our command line."""
    return list(command[1:]) if command[0] == "python" else ["-P", "-m", *command]
