"""A real Slurm of two nodes on this machine, in a temporary folder: for the tests of the engine.

munged, slurmctld and two slurmd of Debian's packages (slurm-wlm, munge), as root, with sockets,
keys, state and logs of their own; nothing is left behind. There is no accounting, as on many
clusters, and no control groups, so a job's memory is not limited by Slurm.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from perseid.lifetime import bound_to_parent

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
START_SECONDS = 60.0
"""Deadline for all daemons; about 2 s are usual."""
CONF = """\
ClusterName=perseid
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=30
InactiveLimit=0
KillWait=2
MinJobAge=300
MaxArraySize={array}
MaxJobCount=5000
SlurmdParameters=config_overrides
RebootProgram=/bin/true
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=8000 State=UNKNOWN"  # noqa: E501


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster."""

    folder: Path
    env: dict[str, str]
    """Variables that a client process needs beside its own."""
    daemons: dict[str, subprocess.Popen[bytes]]
    """``munged``, ``slurmctld`` and each node's slurmd by the node's name."""

    def call(self, *command: str, check: bool = True) -> str:
        """Run a command of Slurm; its output."""
        done = subprocess.run(
            command, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def tasks(self) -> list[list[str]]:
        """Array index, state and node of every task that waits or runs."""
        rows = self.call("squeue", "--noheader", "--array", "--format=%K|%T|%N").splitlines()
        return [row.strip().split("|") for row in rows]

    def lose(self, node: str) -> None:
        """A node dies with all that it runs: power off."""
        daemon = self.daemons[node]
        for pid in [*_tree(daemon.pid), *_jobs_of(self.folder, node)]:
            _kill(pid)
        daemon.wait(30)

    def revive(self, node: str) -> None:
        """Start a node that was lost."""
        _start(self, node, "slurmd", "-D", "-N", node, "-f", self.env["SLURM_CONF"])
        state = ("sinfo", "--noheader", f"--nodes={node}", "--format=%T", "--partition=main")
        up = {"idle", "mixed", "allocated"}  # it may have work at once
        _wait(self, lambda: up & set(self.call(*state).split()))


def missing() -> str:
    """Why no cluster can be started here; empty if one can."""
    if os.getuid():
        return "a cluster for tests needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (Debian's slurm-wlm and munge)" if absent else ""


@contextmanager
def running(cpus: int = 2, largest_array: int = 1001) -> Iterator[SlurmCluster]:
    """Start a cluster of nodes n1 and n2; end it with everything it runs."""
    folder = Path(tempfile.mkdtemp(prefix="perseid-slurm-"))
    host = socket.gethostname()
    env = {"SLURM_CONF": str(folder / "slurm.conf")}
    daemons: dict[str, subprocess.Popen[bytes]] = {}
    cluster = SlurmCluster(folder, env, daemons)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(_stop, cluster)
        ports = _free_ports(3)
        nodes = [
            NODE.format(name=name, host=host, port=port, cpus=cpus)
            for name, port in zip(("n1", "n2"), ports[1:], strict=True)
        ]
        for part in ("state", "munge"):
            (folder / part).mkdir(mode=0o755)
        folder.chmod(0o755)  # munged wants every folder above its socket to be passable
        text = CONF.format(
            folder=folder, host=host, ctld=ports[0], array=largest_array, nodes="\n".join(nodes)
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        _start(cluster, "munged", *_munged(folder / "munge"))
        _wait(cluster, (folder / "munge" / "socket").exists)
        _start(cluster, "slurmctld", "slurmctld", "-D", "-i", "-f", env["SLURM_CONF"])
        for name in ("n1", "n2"):
            _start(cluster, name, "slurmd", "-D", "-N", name, "-f", env["SLURM_CONF"])
        _wait(cluster, lambda: cluster.call(
            "sinfo", "--noheader", "--Node", "--format=%T", "--partition=main", check=False
        ).split() == ["idle", "idle"])  # fmt: skip
        yield cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A real Slurm of two nodes; this process' variables lead to it."""
    reason = missing()
    if reason and not os.environ.get("PERSEID_REQUIRE_SLURM"):
        pytest.skip(reason)
    assert not reason, reason
    with running() as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        yield cluster


def _munged(folder: Path) -> list[str]:
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log",
             "seed-file": "seed"}  # fmt: skip
    return ["munged", "-F", "--force", *(f"--{name}={folder / at}" for name, at in files.items())]


def _start(cluster: SlurmCluster, name: str, *command: str) -> None:
    with open(cluster.folder / f"{name}.out", "wb") as out:
        cluster.daemons[name] = subprocess.Popen(
            command, cwd=cluster.folder, env={**os.environ, **cluster.env}, stdout=out, stderr=out,
            stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=bound_to_parent(),
        )  # fmt: skip


def _wait(cluster: SlurmCluster, ready: object) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        ended = [name for name, daemon in cluster.daemons.items() if daemon.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = "\n".join(
                f"{path.name}: {path.read_text(errors='replace')[-1500:]}"
                for path in sorted(cluster.folder.glob("*.[lo][ou][gt]"))
            )
            raise RuntimeError(f"no cluster ({ended or 'too slow'}):\n{logs}")
        time.sleep(0.05)


def _stop(cluster: SlurmCluster) -> None:
    """Daemons first, so that nothing is started again, then what outlives them: running jobs."""
    for daemon in reversed(cluster.daemons.values()):
        for pid in _tree(daemon.pid):
            _kill(pid)
    for daemon in cluster.daemons.values():
        daemon.wait(30)
    for node in cluster.daemons:
        for pid in _jobs_of(cluster.folder, node):
            _kill(pid)


def _jobs_of(folder: Path, node: str) -> list[int]:
    """Processes of the jobs that run on a node, slurmstepd's own included."""
    wanted = (f"SLURM_CONF={folder}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode())
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = (path / "environ").read_bytes().split(b"\0")
            if all(one in variables for one in wanted):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                words = Path(f"/proc/{parent}/cmdline").read_bytes()
                found += [int(path.name), *([parent] if words.startswith(b"slurmstepd") else [])]
        except OSError:
            continue
    return found


def _tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, path.read_text().split())
            except OSError:
                continue
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
