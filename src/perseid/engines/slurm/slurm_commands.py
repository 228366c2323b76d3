"""sbatch, squeue and scancel: the commands that every cluster has, and no other.

``sacct`` is not needed (many clusters have no accounting), and ``scontrol`` only asks for a limit
where it is there. Formats: the manual pages of Slurm 22.05 and later.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from perseid.errors import BadInputError, NotInstalledError, RunError

COMMAND_SECONDS = 60.0
"""How long a command may take; a busy controller answers after some seconds."""
DEFAULT_ARRAY = 1001
"""MaxArraySize of a cluster that does not say: Slurm's own default."""
LIVE = frozenset({
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
    "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED",
    "RESV_DEL_HOLD",
})  # fmt: skip
"""States of a task that has not ended for good."""
RUNNING = frozenset({"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT"})
ENDINGS = {
    "BOOT_FAIL": "its node failed to start",
    "CANCELLED": "it was canceled",
    "COMPLETED": "it ended without a result",
    "DEADLINE": "its deadline passed",
    "FAILED": "its program failed",
    "NODE_FAIL": "its node was lost",
    "OUT_OF_MEMORY": "it took more memory than Slurm gave it; ask for more with --memory",
    "PREEMPTED": "it was preempted and not put back into the queue",
    "TIMEOUT": "its time limit passed; ask for more with --time, or pack fewer ranks into a task",
}
"""What happened to a task, by the state that it ended in."""


@dataclass(frozen=True)
class TaskState:
    """One task of a job array, as squeue tells it."""

    job: str
    """Number of the array's job."""
    index: int
    """Place in the array."""
    state: str
    """Slurm's name of it, e.g. ``RUNNING``."""
    node: str
    reason: str
    """Why it waits."""

    @property
    def live(self) -> bool:
        """Whether it has not ended for good."""
        return self.state in LIVE


@dataclass(frozen=True)
class Resources:
    """What one task of an array asks for."""

    cpus: int
    memory_mb: int
    time: str = ""
    """As sbatch takes it, e.g. ``2:00:00``; empty: the partition's default."""
    partition: str = ""
    account: str = ""
    extra: tuple[str, ...] = ()
    """Further options of sbatch, the user's own; they count before ours."""

    def options(self) -> list[str]:
        """The options of sbatch; a later one replaces an earlier one."""
        named = {"partition": self.partition, "account": self.account, "time": self.time}
        given = [f"--{name}={value}" for name, value in named.items() if value]
        sizes = [f"--cpus-per-task={self.cpus}", f"--mem={self.memory_mb}M"]
        return [*sizes, *given, *self.extra]


def submit(script: str, tasks: int, name: str, output: str, resources: Resources) -> str:
    """Submit a job array of so many tasks; the job's number.

    Raises
    ------
    NotInstalledError
        There is no sbatch here.
    BadInputError
        Slurm refuses the job; the message has its reason.
    """
    command = [
        "sbatch", "--parsable", f"--array=0-{tasks - 1}", f"--job-name={name}",
        f"--output={output}", "--open-mode=append", "--requeue", "--signal=B:USR1@60", "--ntasks=1",
        *resources.options(),
    ]  # fmt: skip
    done = _call(command, script)
    if done.returncode:
        raise BadInputError(f"Slurm refuses the job: {_reason(done.stderr)}{_advice(done.stderr)}")
    return done.stdout.strip().partition(";")[0]


def submit_after(
    jobs: Sequence[str], script: str, name: str, output: str, resources: Resources
) -> str:
    """Submit a job that starts when these have ended, whatever came of them; its number.

    Raises as `submit`.
    """
    command = ["sbatch", "--parsable", f"--dependency=afterany:{':'.join(jobs)}",
               f"--job-name={name}", f"--output={output}", "--open-mode=append", "--requeue",
               "--ntasks=1", *resources.options()]  # fmt: skip
    done = _call(command, script)
    if done.returncode:
        raise BadInputError(f"Slurm refuses the job: {_reason(done.stderr)}{_advice(done.stderr)}")
    return done.stdout.strip().partition(";")[0]


def is_live(job: str) -> bool | None:
    """Whether a job that is not an array waits or runs; None if Slurm does not answer."""
    done = _call(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"])
    if done.returncode:
        return False if "Invalid job id" in done.stderr else None
    return any(line.strip() in LIVE for line in done.stdout.splitlines())


def states(jobs: Sequence[str]) -> list[TaskState] | None:
    """All tasks of these arrays that Slurm still knows; None if it does not answer.

    Tasks are forgotten some minutes after their end (``MinJobAge``).
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}",
               "--format=%F|%K|%T|%N|%r"]  # fmt: skip
    done = _call(command)
    if done.returncode:
        return [] if "Invalid job id" in done.stderr else None
    rows = (line.split("|", 4) for line in done.stdout.splitlines() if line.count("|") >= 4)
    return [
        TaskState(job.strip(), int(index), state.strip(), node.strip(), reason.strip())
        for job, index, state, node, reason in rows
        if index.strip().isdecimal()
    ]


def cancel(jobs: Sequence[str]) -> None:
    """End these arrays, whatever of them waits or runs.

    Raises
    ------
    RunError
        Slurm does not do it; the message has its reason.
    """
    done = _call(["scancel", *jobs])
    if done.returncode and "Invalid job id" not in done.stderr:
        raise RunError(f"Slurm does not end the jobs {', '.join(jobs)}: {_reason(done.stderr)}")


def largest_array() -> int:
    """Tasks that one array may have (MaxArraySize)."""
    try:
        done = _call(["scontrol", "show", "config"])
    except NotInstalledError:  # some clusters have it on few machines
        return DEFAULT_ARRAY
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return int(found[1]) if found else DEFAULT_ARRAY


def time_limit(text: str) -> timedelta | None:
    """A limit as sbatch takes it: minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s; None for another."""
    found = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(\d+)(?::(\d+))?(?::(\d+))?)", text)
    if found is None:
        return None
    days, hours, minutes, seconds, *plain = (int(part) if part else None for part in found.groups())
    if days is not None:
        return timedelta(days, seconds or 0, 0, 0, minutes or 0, hours or 0)
    first, second, third = plain
    if third is not None:
        return timedelta(hours=first or 0, minutes=second or 0, seconds=third)
    return timedelta(minutes=first or 0, seconds=second or 0)


def _call(command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=COMMAND_SECONDS
        )
    except FileNotFoundError:
        raise NotInstalledError(
            f"there is no {command[0]} here: run this on a login node of a cluster that Slurm "
            "schedules"
        ) from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "Slurm's controller does not answer")


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = next((line for line in lines if "error:" in line), lines[-1] if lines else "no reason")
    return re.sub(r"^s\w+: error: ", "", said)


def _advice(stderr: str) -> str:
    if "Job violates accounting/QOS policy" in stderr or "MaxSubmit" in stderr:
        return "; more ranks per task (--ranks-per-task) make fewer tasks"
    if "mem" in stderr.lower():
        return "; --memory says what a rank takes, --sbatch='--mem=0' asks for none"
    return ""
