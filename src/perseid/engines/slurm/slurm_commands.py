"""Calls of sbatch, squeue and scancel, the commands that every Slurm cluster has.

``sacct`` is not used, since many clusters have no accounting; ``scontrol`` only tells a limit
where it is available. Formats: the manual pages of Slurm 22.05 and later.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from perseid.errors import BadInputError, NotInstalledError, RunError
from perseid.plaintext import option

COMMAND_SECONDS = 60.0
"""Time limit of a command, in seconds; a busy controller takes several seconds to answer."""
DEFAULT_ARRAY = 1001
"""MaxArraySize if the cluster does not tell it; this is Slurm's default."""
LIVE = frozenset({
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
    "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED",
    "RESV_DEL_HOLD",
})  # fmt: skip
"""States of a task that may still run."""
RUNNING = frozenset({"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT"})
ENDINGS = {
    "BOOT_FAIL": "its node failed to start",
    "CANCELLED": "it was canceled",
    "COMPLETED": "it ended without a result",
    "DEADLINE": "its deadline passed",
    "FAILED": "its program failed",
    "NODE_FAIL": "its node was lost",
    "OUT_OF_MEMORY": "it took more memory than Slurm gave it; ask for more with {memory}",
    "PREEMPTED": "it was preempted and not put back into the queue",
    "TIMEOUT": "its time limit passed; ask for more with {time}, or pack fewer ranks into a task",
}
"""Explanation for the user, by the state in which a task ended; for `ending`."""


def ending(state: str) -> str:
    """Explanation for the user of the state in which a task ended."""
    said = ENDINGS.get(state, f"it ended as {state}")
    return said.format(memory=option("memory_mb"), time=option("time"))


@dataclass(frozen=True)
class TaskState:
    """One task of a job array, as reported by squeue."""

    job: str
    """Job number of the array."""
    index: int
    """Index in the array."""
    state: str
    """Slurm's name of the state, such as ``RUNNING``."""
    node: str
    reason: str
    """Slurm's reason why the task waits."""

    @property
    def live(self) -> bool:
        """Whether the task may still run."""
        return self.state in LIVE


@dataclass(frozen=True)
class Resources:
    """The resources that one task of an array requests."""

    cpus: int
    memory_mb: int
    time: str = ""
    """Time limit in sbatch's format, such as ``2:00:00``; empty for the partition's default."""
    partition: str = ""
    account: str = ""
    extra: tuple[str, ...] = ()
    """The user's own options of sbatch, which override ours."""

    def options(self) -> list[str]:
        """Command-line options of sbatch; a later option overrides an earlier one."""
        named = {"partition": self.partition, "account": self.account, "time": self.time}
        given = [f"--{name}={value}" for name, value in named.items() if value]
        sizes = [f"--cpus-per-task={self.cpus}", f"--mem={self.memory_mb}M"]
        return [*sizes, *given, *self.extra]


def submit(script: str, tasks: int, name: str, output: str, resources: Resources) -> str:
    """Submit a job array with this many tasks; return the job number.

    Raises
    ------
    NotInstalledError
        This machine has no sbatch.
    BadInputError
        Slurm refused the job; the message contains its reason.
    """
    # --requeue: a task whose node is lost starts again. USR1 comes to the batch script 60 s before
    # the time limit, early enough to leave out ranks that would be cut off.
    command = [
        "sbatch", "--parsable", f"--array=0-{tasks - 1}", f"--job-name={name}",
        f"--output={output}", "--open-mode=append", "--requeue", "--signal=B:USR1@60", "--ntasks=1",
        *resources.options(),
    ]  # fmt: skip
    return _submitted(command, script)


def submit_after(
    jobs: Sequence[str], script: str, name: str, output: str, resources: Resources
) -> str:
    """Submit a job that starts once these have ended in any way; return its number.

    Raises the errors of `submit`.
    """
    # afterany, since a run with failed tasks is published as well, as incomplete.
    command = ["sbatch", "--parsable", f"--dependency=afterany:{':'.join(jobs)}",
               f"--job-name={name}", f"--output={output}", "--open-mode=append", "--requeue",
               "--ntasks=1", *resources.options()]  # fmt: skip
    return _submitted(command, script)


def is_live(job: str) -> bool | None:
    """Whether a single job (not an array) waits or runs; None if Slurm does not answer."""
    done = _call(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"])
    if done.returncode:
        return False if "Invalid job id" in done.stderr else None
    return any(line.strip() in LIVE for line in done.stdout.splitlines())


def states(jobs: Sequence[str]) -> list[TaskState] | None:
    """The tasks of these arrays that Slurm still knows; None if it does not answer.

    Slurm forgets a task some minutes after its end (``MinJobAge``).
    """
    # --states=all includes tasks that ended recently, whose state says why.
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}",
               "--format=%F|%K|%T|%N|%r"]  # fmt: skip
    done = _call(command)
    if done.returncode:
        # Slurm has forgotten all of these jobs, so they have ended.
        return [] if "Invalid job id" in done.stderr else None
    # The reason comes last and may contain the separator.
    rows = (line.split("|", 4) for line in done.stdout.splitlines() if line.count("|") >= 4)
    return [
        TaskState(job.strip(), int(index), state.strip(), node.strip(), reason.strip())
        for job, index, state, node, reason in rows
        if index.strip().isdecimal()
    ]


def cancel(jobs: Sequence[str]) -> None:
    """Cancel these arrays, both waiting and running tasks.

    Raises
    ------
    RunError
        Slurm did not cancel them; the message contains its reason.
    """
    done = _call(["scancel", *jobs])
    if done.returncode and "Invalid job id" not in done.stderr:
        raise RunError(f"Slurm did not cancel the jobs {', '.join(jobs)}: {_reason(done.stderr)}")


def largest_array() -> int:
    """The cluster's MaxArraySize, which bounds the number of tasks of an array."""
    try:
        done = _call(["scontrol", "show", "config"])
    except NotInstalledError:  # some clusters have it on few hosts only
        return DEFAULT_ARRAY
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return int(found[1]) if found else DEFAULT_ARRAY


def largest_node(partition: str = "") -> int | None:
    """Memory of the largest node of a partition (or of several, with commas), in MB.

    An empty name means the partition that sbatch chooses. None if Slurm does not tell it.
    """
    wanted = partition or os.environ.get("SBATCH_PARTITION", "")
    try:
        # One line per node: a line for several would show the smallest value, such as "8000+".
        done = _call(["sinfo", "--noheader", "--Node", "--format=%P|%m"])
    except NotInstalledError:
        return None
    rows = [line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == 1]
    # sinfo marks the default partition by an asterisk.
    sizes = [
        int(size.strip("+ "))
        for name, size in rows
        if size.strip("+ ").isdecimal()
        and (name.strip("* ") in wanted.split(",") if wanted else name.strip().endswith("*"))
    ]
    return max(sizes, default=None)


def time_limit(text: str) -> timedelta | None:
    """Parse a time limit of sbatch: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s; otherwise None."""
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


def _submitted(command: Sequence[str], script: str) -> str:
    """Run sbatch and return the job number."""
    done = _call(command, script)
    if done.returncode:
        raise BadInputError(f"Slurm refuses the job: {_reason(done.stderr)}{_advice(done.stderr)}")
    # On a federation, --parsable prints JOB;CLUSTER.
    return done.stdout.strip().partition(";")[0]


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
        # Treated like a failed command: callers decide whether to try again.
        return subprocess.CompletedProcess(command, 1, "", "Slurm's controller does not answer")


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # sbatch prints hints and warnings around its one line with the error.
    said = next((line for line in lines if "error:" in line), lines[-1] if lines else "no reason")
    return re.sub(r"^s\w+: error: ", "", said)


def _advice(stderr: str) -> str:
    if "Job violates accounting/QOS policy" in stderr or "MaxSubmit" in stderr:
        return f"; more ranks per task ({option('ranks_per_task')}) make fewer tasks"
    if "mem" in stderr.lower():
        return (
            f"; {option('memory_mb')} sets the memory of a rank, {option('sbatch', '--mem=0')} "
            "requests none"
        )
    return ""
