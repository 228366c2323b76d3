"""A worker program that misbehaves at stated ranks and attempts, and else is the real worker.

``FAULTS`` holds JSON: {rank: {attempt: fault}}, with ``*`` for every rank or attempt. ``JOURNAL``
names a file that gets one line at the start and one at the end of each attempt. ``MEETING_FAULTS``
holds JSON: {rank: "COLLECTIVE FAULT"}: what goes wrong when the rank comes to this collective.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from perseid.engines.worker_program import main
from perseid.errors import BadPartitionError


def fault_of(rank: int, attempt: int) -> str:
    faults = json.loads(os.environ.get("FAULTS", "{}"))
    of_rank = faults.get(str(rank), faults.get("*", {}))
    return of_rank.get(str(attempt), of_rank.get("*", ""))


def note(rank: int, attempt: int, what: str) -> None:
    if "JOURNAL" in os.environ:
        line = f"{rank} {attempt} {what} {os.getpid()} {time.monotonic()}\n"
        with open(os.environ["JOURNAL"], "a") as journal:
            journal.write(line)


def misbehave(fault: str) -> bool:
    """Do it; True where the real work is left out."""
    name, _, value = fault.partition(":")
    if name == "raise":
        raise RuntimeError(value or "it broke")
    if name == "bad":
        raise BadPartitionError(value or "1.pt is corrupt")
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "exit":
        os._exit(int(value))
    if name == "stop":  # no signal reaches it but SIGKILL
        os.kill(os.getpid(), signal.SIGSTOP)
    if name == "deaf":  # asks to be killed
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if name == "hog":
        hog = []
        while True:
            hog.append(b"x" * (20 * 2**20))
            time.sleep(0.02)
    if name == "task" and not Path(value).exists():  # the whole task, which can report nothing
        Path(value).touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    if name == "sleep":
        time.sleep(float(value))
    while name == "until" and not Path(value).exists():
        time.sleep(0.05)
    if name == "child":  # something that outlives a worker killed alone
        child = subprocess.Popen(["sleep", "600"])
        Path(value).write_text(str(child.pid))
        time.sleep(600)
    if name == "print":
        print(value, flush=True)
        print(value.upper(), file=sys.stderr)
    if name == "garbage":
        os.write(int(sys.argv[1]), b"{this is not a message\n")
    return name == "nothing"


def around(work):
    def faulty(item, attempt, report):
        note(item.rank, attempt, "start")
        try:
            if not misbehave(fault_of(item.rank, attempt)):
                return work(item, attempt, report)
        finally:
            note(item.rank, attempt, "end")
        return None

    return faulty


def in_meetings(faults):
    """Let the real communicator's calls go wrong at stated ranks."""
    from perseid.comm import Communicator

    def wrapped(name, real):
        def call(self, *arguments, **keywords):
            collective, _, fault = faults.get(str(self.rank), "").partition(" ")
            if collective == name:
                time.sleep(0.3)  # the others are inside by now
                note(self.rank, 0, f"met-{name}")
                misbehave(fault)
            return real(self, *arguments, **keywords)

        return call

    for name in ("reduce", "bcast", "gather"):
        setattr(Communicator, name, wrapped(name, getattr(Communicator, name)))


if __name__ == "__main__":
    if "MEETING_FAULTS" in os.environ:
        in_meetings(json.loads(os.environ["MEETING_FAULTS"]))
    if os.environ.get("INIT_FAULT") == "exit":
        sys.exit(3)
    if os.environ.get("INIT_FAULT") == "hang":
        time.sleep(600)
    sys.exit(main(around=around))
