"""What can happen to a task of Slurm, on a real Slurm: each ending named, retried or resumed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from engine import FAULTY_WORKER
from tiny import tiny_cutouts, tiny_model
from waiting import eventually

import perseid
from perseid.api.runs import begin
from perseid.cli import main
from perseid.engines.slurm import SlurmEngine
from perseid.engines.slurm.job_arrays import JobArray, Launcher, job_name, pack
from perseid.engines.slurm.more_memory import with_more_memory
from perseid.engines.slurm.slurm_commands import ENDINGS, LIVE, largest_node, time_limit
from perseid.engines.slurm.slurm_run import SlurmRun
from perseid.engines.slurm.submission import Submission
from perseid.errors import BadInputError, RunError, RunInterruptedError
from perseid.pipeline.items import PartitionRef
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.run_settings import RunSettings
from perseid.storage import Storage
from perseid.survey import write_cutouts

pytestmark = pytest.mark.slurm
RANKS = 4
DEADLINE = 200.0


class Cluster:
    """A run of four ranks on the cluster, with workers that misbehave as told."""

    def __init__(self, slurm, folder, monkeypatch):
        self.slurm, self.folder, self._patch = slurm, folder, monkeypatch
        cutouts = tiny_cutouts(5 * RANKS)
        for rank in range(RANKS):
            write_cutouts(cutouts[5 * rank : 5 * rank + 5], folder / "survey" / f"{rank + 1}.pt")
        tiny_model(folder / "tiny.onnx")
        self.keys = {"data": str(folder / "survey"), "model": str(folder / "tiny.onnx"),
                     "results": str(folder / "run")}  # fmt: skip

    def faults(self, **by_rank):
        plan = {name.removeprefix("rank"): {"1": fault} for name, fault in by_rank.items()}
        self._patch.setenv("FAULTS", json.dumps(plan))
        self._patch.setenv("JOURNAL", str(self.folder / "journal"))

    def begin(self, **settings):
        engine = SlurmEngine(command=FAULTY_WORKER, **{"retries": 0, **settings})
        request = perseid.RunRequest.parse(self.keys)
        return begin(request, engine, lambda event: None)

    def resume(self):
        self._patch.setenv("FAULTS", "{}")
        return perseid.resume(str(self.folder / "run"), engine="slurm", progress=False)

    def here(self):
        """The catalogue of the same survey by the local engine."""
        keys = self.keys | {"results": str(self.folder / "here")}
        return perseid.run(keys.pop("data"), progress=False, **keys).catalogue()

    def started(self):
        """Ranks whose attempt has begun, in order."""
        journal = self.folder / "journal"
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [int(line.split()[0]) for line in lines if line.split()[2] == "start"]


@pytest.fixture
def cluster(slurm, tmp_path, monkeypatch):
    return Cluster(slurm, tmp_path, monkeypatch)


def missing(run):
    return {entry["rank"]: entry["reason"] for entry in run.summary["ranks"]["missing"]}


def test_a_preempted_task_goes_on_where_it_was(cluster):
    """A task of two ranks is put back into the queue while it works on its second."""
    cluster.faults(rank1="sleep:600")
    run = cluster.begin(ranks_per_task=2, retries=2)
    eventually(
        lambda: (cluster.folder / "run/0.json").exists() and 1 in cluster.started(), DEADLINE
    )
    first = (cluster.folder / "run/0.json").read_bytes()
    [index] = [row[0] for row in cluster.slurm.tasks() if row[0] == "0"]
    job = json.loads((cluster.folder / "run/driver.json").read_text())["jobs"][0]
    cluster.slurm.call(
        "sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1",
        f"--output={cluster.folder}/urgent.out",
    )  # fmt: skip
    assert run.wait(DEADLINE, progress=False).incomplete is None
    assert (cluster.folder / "run/0.json").read_bytes() == first, f"task {job}_{index} did it again"
    assert run.ranks[1].attempt == 2
    assert run.catalogue().difference(cluster.here()) is None


@pytest.mark.slow
def test_a_task_near_its_limit_leaves_the_rest(cluster):
    """SIGUSR1 comes a minute before the limit of the task: no further rank is begun."""
    cluster.faults(rank0="sleep:75")
    run = cluster.begin(ranks_per_task=RANKS, time="2")
    assert "time limit" in run.wait(DEADLINE, progress=False).incomplete
    assert run.ranks[0].done, "the rank that was worked on is finished"
    told = missing(run)
    assert set(told) == {1, 2, 3}
    assert all("time limit of its Slurm task was near" in reason for reason in told.values())
    again = cluster.resume()
    assert again.incomplete is None
    assert again.catalogue().difference(cluster.here()) is None


def test_a_canceled_task_is_named_and_resumed(cluster):
    cluster.faults(rank2="sleep:600")
    run = cluster.begin(ranks_per_task=1)
    eventually(lambda: 2 in cluster.started(), DEADLINE)
    job = json.loads((cluster.folder / "run/driver.json").read_text())["jobs"][0]
    cluster.slurm.call("scancel", f"{job}_2")
    with pytest.raises(RunInterruptedError, match="perseid resume"):
        run.wait(DEADLINE, progress=False)
    again = cluster.resume()
    assert again.incomplete is None
    assert again.catalogue().difference(cluster.here()) is None


@pytest.mark.slow
def test_a_lost_nodes_ranks_go_to_another(cluster):
    cluster.faults(rank1="sleep:600")
    run = cluster.begin(ranks_per_task=1)
    eventually(lambda: 1 in cluster.started(), DEADLINE)
    [node] = [row[2] for row in cluster.slurm.tasks() if row[:2] == ["1", "RUNNING"]]
    cluster.slurm.lose(node)
    try:
        assert run.wait(DEADLINE, progress=False).incomplete is None
    finally:
        cluster.slurm.revive(node)
    assert run.ranks[1].attempt == 2
    assert run.catalogue().difference(cluster.here()) is None


def test_a_rank_above_its_memory_is_named_by_our_own_limit(cluster):
    """No control group limits jobs here, so it is the worker's own limit that is shown."""
    cluster.faults(rank1="hog")
    run = cluster.begin(memory_mb=300)
    assert "ranks 1 of 4" in run.wait(DEADLINE, progress=False).incomplete
    assert "above its 300 MB" in missing(run)[1]
    assert cluster.resume().incomplete is None


@pytest.fixture
def control_groups(slurm, tmp_path, monkeypatch):
    """What squeue says where control groups end a task: none of them limit the jobs here."""
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f'#!/bin/sh\n{shutil.which("squeue")} "$@" | sed s/FAILED/OUT_OF_MEMORY/\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(squeue.parent), prepend=":")


def test_ranks_that_ran_out_of_memory_are_submitted_again_with_more(cluster, control_groups):
    """One meets the worker's own limit; the task of another is ended by Slurm."""
    cluster.faults(rank1="hog", rank2=f"task:{cluster.folder}/ended")
    run = cluster.begin(ranks_per_task=1, retries=1)
    told = []
    run.wait(DEADLINE, progress=told.append)
    assert run.incomplete is None
    said = {one.rank: one.message for one in told if getattr(one, "state", "") == "retrying"}
    assert set(said) == {1, 2}
    assert all("may take 3,538 MB in Slurm job" in text for text in said.values())
    report = json.loads((cluster.folder / "run/engine.json").read_text())
    ends = {(one["rank"], one["ending"], one["memory_mb"]) for one in report["attempts"]}
    assert ends == {(0, "done", 1769), (3, "done", 1769), (1, "out of memory", 1769),
                    (1, "done", 3538), (2, "done", 3538)}  # fmt: skip
    job = run.handle.jobs[1]
    assert "mem=3638M" in cluster.slurm.call("scontrol", "show", "job", f"{job}_0")


@pytest.mark.slow
def test_a_resumption_gives_more_to_ranks_that_ran_out_of_memory(cluster, control_groups):
    """Nobody waited for the run, and the job that publishes it submits nothing."""
    cluster.faults(rank2=f"task:{cluster.folder}/ended")
    keys = dict(cluster.keys)
    engine = SlurmEngine(command=FAULTY_WORKER, ranks_per_task=1, retries=1)
    run = perseid.run(keys.pop("data"), engine=engine, detach=True, progress=False, **keys)
    run.wait(DEADLINE, progress=False)
    assert (cluster.folder / "run/slurm/publish.out").read_text().startswith("the run at")
    assert "more memory than Slurm gave it" in missing(run)[2]
    assert cluster.resume().incomplete is None
    report = json.loads((cluster.folder / "run/engine.json").read_text())
    assert [one["memory_mb"] for one in report["attempts"] if one["rank"] == 2] == [3538]


@pytest.mark.slow
def test_two_that_wait_submit_what_ran_out_of_memory_once(cluster, control_groups):
    cluster.faults(rank2=f"task:{cluster.folder}/ended")
    run = cluster.begin(ranks_per_task=1, retries=1)
    command = [sys.executable, "-m", "perseid", "status", run.url, "--wait"]
    others = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    run.wait(DEADLINE, progress=False)
    assert [other.wait(DEADLINE) for other in others] == [0, 0]
    assert run.incomplete is None
    report = json.loads((cluster.folder / "run/engine.json").read_text())
    assert [one["memory_mb"] for one in report["attempts"] if one["rank"] == 2] == [3538]
    rows = cluster.slurm.call("squeue", "--noheader", "--array", "--states=all",
                              "--format=%F %T", f"--name={job_name(run.manifest)}")  # fmt: skip
    kept = {row.split()[0] for row in rows.splitlines() if "CANCELLED" not in row}
    assert len(kept) == 2, rows


@pytest.mark.parametrize(
    ("had", "most", "expected"),
    [({1: 1000}, 8000, ((1,), 2000)), ({1: 1000, 2: 2000}, 8000, ((1, 2), 4000)),
     ({1: 1000, 2: 2000}, 2000, ((1,), 2000)), ({1: 1000}, 1000, None), ({1: 1000}, 0, None),
     ({}, 8000, None)],
    ids=["twice", "the most of several", "a node's limit", "no larger node", "unknown nodes",
         "none"],
)  # fmt: skip
def test_memory_is_raised_within_the_largest_node(had, most, expected):
    submission = Submission("a", (0, 1, 2), 1, 1, 1, 1000, 1.0, 2, raises=2)
    found = with_more_memory(submission, had, most, 1)
    assert (found and (found.ranks, found.memory_mb)) == expected
    chosen = replace(submission, raises=None)
    assert with_more_memory(chosen, had, most, 1) is None, "the user's own choice stands"


def test_the_largest_node_of_a_partition(slurm, tmp_path, monkeypatch):
    assert largest_node() == largest_node("urgent") == largest_node("none,main") == 8000
    assert largest_node("none") is None
    sinfo = tmp_path / "sinfo"
    sinfo.write_text("#!/bin/sh\nprintf 'short*|64000\\nshort*|96000+\\nlong|512000\\n'\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert (largest_node(), largest_node("short,long")) == (96000, 512000)


def test_replace_leaves_nothing_of_the_former_run(cluster):
    cluster.faults()
    first = cluster.begin().wait(DEADLINE, progress=False)
    before = [path for path in (cluster.folder / "run/slurm").rglob("*") if path.is_file()]
    assert len(before) > RANKS
    data = cluster.keys["data"]
    keys = {name: value for name, value in cluster.keys.items() if name != "data"}
    second = perseid.run(data, progress=False, replace=True, **keys)
    assert second.id != first.id
    assert not any(path.exists() for path in before)


def test_two_at_once_are_refused(cluster):
    cluster.faults(rank0="sleep:600")
    run = cluster.begin()
    with pytest.raises(RunError, match=r"of Slurm work on .*perseid status --stop"):
        perseid.resume(run.url, engine="slurm", progress=False)
    assert run.stop()
    with pytest.raises(RunInterruptedError):
        run.wait(DEADLINE, progress=False)


def test_what_slurm_refuses_is_one_sentence(cluster, capsys):
    cluster.faults()
    command = ["run", "--data", cluster.keys["data"], "--model", cluster.keys["model"],
               "--out", cluster.keys["results"], "--engine", "slurm"]  # fmt: skip
    for words, said in (
        (["--partition", "none"], "Slurm refuses the job: .*partition"),
        (["--time", "soon"], "is not a limit of sbatch"),
        (["--ranks-per-task", "0"], "at least 1, not 0"),
        (["--sbatch", "'"], "cannot be split"),
        (["--transport", "direct"], "needs all ranks at once"),
        (["--sbatch=--mem=100G"], "Slurm refuses the job: .*--memory"),
    ):
        assert main([*command, *words]) == 2, words
        lines = [line for line in capsys.readouterr().err.splitlines() if "perseid:" in line]
        assert len(lines) == 1
        assert re.search(said, lines[0]), words
        assert not list(Storage(cluster.keys["results"]).list()), f"{words} left something behind"


def test_detached_followed_logged_and_tabulated_by_the_command_line(cluster, capsys):
    cluster.faults()
    out = cluster.keys["results"]
    command = ["run", "--data", cluster.keys["data"], "--model", cluster.keys["model"],
               "--out", out, "--engine", "slurm", "--detach", "--quiet"]  # fmt: skip
    assert main(command) == 0
    assert main(["status", out, "--wait"]) == 0
    capsys.readouterr()
    assert main(["logs", out]) == 0
    assert capsys.readouterr().out.count("REPORT RequestId") == RANKS
    assert main(["table", out]) == 0
    assert "4/4" in capsys.readouterr().out
    assert json.loads((cluster.folder / "run/engine.json").read_text())["engine"] == "slurm"


def test_a_run_that_was_left_is_published_by_a_job(cluster):
    """Nobody waits: the arrays are followed by a job that writes the catalogue."""
    cluster.faults(rank2="raise")
    keys = dict(cluster.keys)
    engine = SlurmEngine(command=FAULTY_WORKER, retries=1)
    perseid.run(keys.pop("data"), engine=engine, detach=True, progress=False, **keys)
    summary = cluster.folder / "run/summary.json"
    eventually(summary.exists, DEADLINE)
    eventually(
        lambda: not cluster.slurm.tasks() and not (cluster.folder / "run/driver.json").exists(),
        DEADLINE,
    )
    run = perseid.open_run(str(cluster.folder / "run"))
    assert run.incomplete is None
    assert run.wait(DEADLINE, progress=False).catalogue().difference(cluster.here()) is None
    assert run.ranks[2].attempt == 2
    assert run.summary["cost"]["total_usd"] > 0


def test_who_waits_for_a_run_that_was_left_sees_what_the_job_publishes(cluster):
    cluster.faults(rank0="raise")
    keys = dict(cluster.keys)
    engine = SlurmEngine(command=FAULTY_WORKER, retries=0)
    run = perseid.run(keys.pop("data"), engine=engine, detach=True, progress=False, **keys)
    assert "ranks 0 of 4" in run.wait(DEADLINE, progress=False).incomplete
    assert not (cluster.folder / "run/driver.json").exists()
    assert (cluster.folder / "run/slurm/publish.out").read_text().startswith("the run at")


def test_every_state_of_slurm_has_a_meaning():
    """Those that squeue(1) lists: a task either may still work, or its ending has a sentence."""
    listed = (
        "BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED NODE_FAIL "
        "OUT_OF_MEMORY PENDING PREEMPTED RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED "
        "RESIZING SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED SUSPENDED TIMEOUT"
    )
    listed = set(listed.split())
    assert {*LIVE, *ENDINGS} >= listed
    assert not LIVE & set(ENDINGS)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 300), ("1:30", 90), ("2:00:00", 7200), ("1-0", 86400), ("1-2:30", 95400),
     ("0-0:0:7", 7), ("soon", None), ("1:2:3:4", None), ("", None)],
)  # fmt: skip
def test_limits_as_sbatch_takes_them(text, seconds):
    found = time_limit(text)
    assert (found and found.total_seconds()) == seconds


RECORDED = """\
1842|0|COMPLETED|c01|None
1842|1|OUT_OF_MEMORY|c02|OutOfMemory
1842|2|RUNNING|c02|None
1842|3|PENDING||Resources
1842|N/A|PENDING||Dependency
"""
"""What squeue of a cluster with control groups answers to the engine's own question."""


def test_a_task_that_slurm_ended_for_memory(tmp_path, monkeypatch):
    """No control group limits the jobs of the cluster for tests: the answer is a recorded one."""
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\ncat <<'END'\n{RECORDED}END\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    keys = {"results_url": f"memory://{tmp_path.name}", "data_url": "memory://none"}
    refs = tuple(PartitionRef(f"{n}.pt", 1) for n in range(4))
    run = Manifest("r", 1.0, "0", partitions=refs, assignment=(1,) * 4, settings=RunSettings(),
                   request={}, **keys)  # fmt: skip
    array = JobArray(Submission("a", (0, 1, 2, 3), 1, 1, 1, 100, 1.0, 0), "1842")
    handle = SlurmRun(run, [array], Launcher(run))
    count = handle.poll()[-1]
    assert (count.waiting, count.running) == (1, 1)
    assert not handle.ended
    squeue.write_text(
        squeue.read_text().replace("RUNNING", "COMPLETED").replace("PENDING", "COMPLETED")
    )
    handle.poll()
    assert handle.ended
    said = handle.report().failures[1]
    assert "1842_1 on node c02 left no record of it: it took more memory than Slurm gave it" in said
    assert "ask for more with `memory_mb`" in said


def test_wrong_settings_are_named():
    with pytest.raises(BadInputError, match="at least 1"):
        SlurmEngine(ranks_per_task=-1)


@pytest.mark.parametrize(
    ("ranks", "largest", "asked", "per_task"),
    [(4, 1001, None, 1), (517, 1001, None, 5), (10_240, 1001, None, 80), (10_240, 11, None, 1024),
     (10_240, 1001, 1, 11), (517, 1001, 40, 40), (1, 1, None, 1)],
)  # fmt: skip
def test_ranks_are_packed_into_tasks(ranks, largest, asked, per_task):
    assert pack(ranks, largest, asked) == per_task
    assert -(-ranks // per_task) <= max(1, largest - 1)
