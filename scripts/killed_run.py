"""`perseid run` with one rank's worker killed (kill -9) while all ranks are in a collective.

    python scripts/killed_run.py --kill-rank 3 --data PARTITIONS --out RUN --world-size 8

Every rank has a process of its own here. The victim's is the real worker but for one thing: where
its rank comes to the gather of the columns, it says so and waits to be killed. The rest is the
product's own: the others must find out, and the run must complete through the store and say so.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import perseid
from perseid.cli.show_outcome import COMPLETE, show
from perseid.comm import Communicator
from perseid.engines import worker_program
from perseid.engines.local.local_options import LocalOptions
from perseid.pipeline.records import STORE

VICTIM, PLACE = "KILLED_RUN_RANK", "KILLED_RUN_PLACE"
"""Environment of the workers: who is to die, and the file in which it leaves its process id."""
INSIDE_SECONDS = 0.5
"""After the victim came to the collective: by now the others are in it, too."""
WAIT_SECONDS = 120.0


def work_until_killed() -> int:
    """The worker's program."""
    victim, place = int(os.environ[VICTIM]), Path(os.environ[PLACE])
    gather = Communicator.gather

    def last(comm: Communicator, value: Any, root: int = 0) -> list[Any] | None:
        if comm.rank == victim:
            written = place.with_suffix(".part")
            written.write_text(str(os.getpid()))
            written.rename(place)
            time.sleep(WAIT_SECONDS)
        return gather(comm, value, root)

    Communicator.gather = last  # type: ignore[method-assign]
    return worker_program.main()


def kill(rank: int, place: Path, stop: threading.Event) -> None:
    """Wait until the rank is in its collective, then kill its process."""
    while not place.exists():
        if stop.wait(0.02):
            return
    time.sleep(INSIDE_SECONDS)
    pid = int(place.read_text())
    print(
        f"\n$ kill -9 {pid}    # the worker of rank {rank}, in the middle of a gather", flush=True
    )
    os.kill(pid, signal.SIGKILL)


def run(args: argparse.Namespace, place: Path) -> perseid.Run:
    """The run, all ranks at once, and a thread that kills one."""
    os.environ |= {VICTIM: str(args.kill_rank), PLACE: str(place)}
    command = (sys.executable, str(Path(__file__).resolve()))
    options = LocalOptions(workers=args.world_size, second_attempts=False, command=command)
    over = threading.Event()
    killer = threading.Thread(target=kill, args=(args.kill_rank, place, over))
    killer.start()
    try:
        return perseid.run(
            args.data, engine=perseid.LocalEngine(options), results=str(args.out),
            world_size=args.world_size, model=str(args.model) if args.model else None,
        )  # fmt: skip
    finally:
        over.set()
        killer.join()


def main() -> int:
    """Run, and see whether what must be so is so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kill-rank", type=int, required=True, help="whose worker is killed")
    parser.add_argument("--data", type=Path, required=True, help="folder of partitions")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--world-size", type=int, default=8, help="ranks, a process each")
    parser.add_argument("--model", type=Path, help="exported model (default: the package's own)")
    args = parser.parse_args()
    if not 0 <= args.kill_rank < args.world_size:
        parser.error(f"rank {args.kill_rank} is not one of {args.world_size}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "victim"
        result = run(args, place)
        if not place.exists():
            print("there was no collective merge, so no rank was killed", file=sys.stderr)
            return 1
    status = show(result)
    transport = result.summary["transport"]
    if status == COMPLETE and transport["used"] != STORE:
        print(f"nobody missed it: statistics went {transport['used']}", file=sys.stderr)
        return 1
    if status == COMPLETE:
        done = f"rank {args.kill_rank} was killed in a collective; the run is complete"
        print(f"\n{done}, through the {STORE}: {transport['reason']}")
    return status


if __name__ == "__main__":
    sys.exit(work_until_killed() if VICTIM in os.environ else main())
