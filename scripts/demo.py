"""The main job, shown: a survey in; a catalogue, a performance table and pictures out.

Runs the real command line, prints each command before its output, and can be run again: the
survey is made once, each call makes a new run.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path


def perseid(*words: str | Path) -> None:
    """Run one command as a user types it; stop the demo where it fails."""
    command = ["perseid", *map(str, words)]
    print(f"\n$ {shlex.join(command)}", flush=True)
    status = subprocess.run([sys.executable, "-m", *command]).returncode
    if status:
        sys.exit(status)


def main() -> None:
    """Simulate, split, run, tabulate, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3000, help="objects to simulate")
    parser.add_argument("--seed", type=int, default=2026, help="seed of the survey")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the demo")
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
    perseid("run", "--data", partitions, "--out", run, "--world-size", "8")
    perseid("table", run)
    perseid("report", run)
    print(f"\nThe demo took {time.monotonic() - started:.0f} s. Open {run / 'report.html'}")


if __name__ == "__main__":
    main()
