"""``srun perseid comm run``: ranks on the nodes of a real Slurm find each other by themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perseid.comm.slurm_step import SlurmStep
from perseid.errors import RendezvousError

PROGRAM = """
import json, os, sys
from perseid.comm import Communicator
with Communicator.from_environment() as comm:
    total = comm.allreduce(comm.rank + 1)
    nodes = comm.gather(os.environ["SLURMD_NODENAME"])
    if comm.rank == 0:
        print(json.dumps([comm.world_size, total, nodes, sorted(set(comm.transports.values()))]))
sys.exit(int(sys.argv[1]) if comm.rank == 2 else 0)
"""


@pytest.mark.slurm
@pytest.mark.parametrize("status", [0, 3])
def test_ranks_of_a_step_on_two_nodes(slurm, tmp_path: Path, status: int):
    (tmp_path / "program.py").write_text(PROGRAM)
    perseid = [sys.executable, "-m", "perseid", "comm", "run"]
    done = subprocess.run(
        ["srun", "--nodes=2", "--ntasks=4", "--overcommit", "--kill-on-bad-exit=0", *perseid,
         str(tmp_path / "program.py"), str(status)],
        capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env={**os.environ, "PERSEID_MEETING_FOLDER": str(tmp_path / "meetings")},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    world_size, total, nodes, transports = json.loads(done.stdout)
    assert (world_size, total, transports) == (4, 10, ["direct"])
    assert set(nodes) == {"n1", "n2"}
    assert list((tmp_path / "meetings").iterdir()) == [], "the key is gone"


def test_what_is_no_step_of_slurm():
    """The batch script of a job is not a step: it has a rank, and no others beside it."""
    assert SlurmStep.of({}) is None
    assert SlurmStep.of({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) is None


def test_a_rank_without_its_rank_0_says_which_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("perseid.comm.slurm_step.MEETING_SECONDS", 0.2)
    step = SlurmStep("slurm-1.0-0", 1, 2, "127.0.0.1")
    with (
        pytest.raises(RendezvousError, match="PERSEID_MEETING_FOLDER"),
        step.meet({"PERSEID_MEETING_FOLDER": str(tmp_path)}),
    ):
        raise AssertionError("it met nobody")


@pytest.mark.slurm
def test_tagged_output_and_time_limit_of_a_step(slurm, tmp_path: Path):
    (tmp_path / "program.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    run = [sys.executable, "-m", "perseid", "comm", "run", "--tag-output", "--timeout", "5"]
    done = subprocess.run(
        ["srun", "--ntasks=2", "--overcommit", *run, str(tmp_path / "program.py")],
        capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env={**os.environ, "PERSEID_MEETING_FOLDER": str(tmp_path / "meetings")},
    )  # fmt: skip
    assert done.returncode == 124, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0 | here", "rank 1 | here"]
