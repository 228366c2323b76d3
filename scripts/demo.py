"""The main job, shown: a survey in; a catalogue, a performance table and pictures out.

Runs the real command line, prints each command before its output, and can be run again: the
survey is made once, each call makes a new run. With ``--kill-rank 3`` the worker of rank 3 is
killed while all ranks are in a collective: the run completes through the store, and says so.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

RANKS = "8"
KILLED_RUN = Path(__file__).with_name("killed_run.py")


def perseid(*words: str | Path) -> None:
    """Run one command as a user types it; stop the demo where it fails."""
    command = ["perseid", *map(str, words)]
    call(shlex.join(command), "-m", *command)


def call(shown: str, *command: str) -> None:
    """Run a program of this interpreter."""
    print(f"\n$ {shown}", flush=True)
    status = subprocess.run([sys.executable, *command]).returncode
    if status:
        sys.exit(status)


def main() -> None:
    """Simulate, split, run, tabulate, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3000, help="objects to simulate")
    parser.add_argument("--seed", type=int, default=2026, help="seed of the survey")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the demo")
    parser.add_argument("--kill-rank", type=int, metavar="RANK",
                        help="kill this rank's worker in the middle of a collective")  # fmt: skip
    args = parser.parse_args()
    started = time.monotonic()
    home = args.out / f"{args.rows}-{args.seed}"
    survey, partitions = home / "survey", home / "partitions"
    if not (survey / "survey.json").exists():
        shutil.rmtree(survey, ignore_errors=True)
        size = ("--rows", str(args.rows), "--seed", str(args.seed))
        perseid("simulate", survey, *size, "--held-out")
    if not (home / "split.done").exists():
        shutil.rmtree(partitions, ignore_errors=True)
        perseid("split", survey, partitions, "--size", "2MB")
        (home / "split.done").touch()
    run = home / "runs" / time.strftime("%Y%m%d-%H%M%S")
    what = ("--data", str(partitions), "--out", str(run), "--world-size", RANKS)
    if args.kill_rank is None:
        perseid("run", *what)
    else:
        command = (str(KILLED_RUN), "--kill-rank", str(args.kill_rank), *what)
        call(shlex.join(["python", *command]), *command)
    perseid("table", run)
    perseid("report", run)
    print(f"\nThe demo took {time.monotonic() - started:.0f} s. Open {run / 'report.html'}")


if __name__ == "__main__":
    main()
