"""517 ranks on a real Slurm, and everything at once that can happen to a task of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import slurm_cluster
from engine import FAULTY_WORKER
from tiny import tiny_model, tiny_survey

import perseid
from perseid.api.runs import begin
from perseid.engines.slurm import SlurmEngine

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(2400)]
RANKS = 517
LATE, LOST, PREEMPTED, HOG = 3, 200, 301, 402
"""Ranks whose task meets its time limit, loses its node, is preempted, takes too much memory."""
DEADLINE = 1800.0


def until(condition, what):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.fixture
def cluster(monkeypatch):
    reason = slurm_cluster.missing()
    if reason:
        pytest.skip(reason)
    with slurm_cluster.running(cpus=4) as found:
        for name, value in found.env.items():
            monkeypatch.setenv(name, value)
        yield found


def test_517_ranks_and_every_ending_at_once(cluster, tmp_path: Path, monkeypatch):
    tiny_survey(tmp_path / "survey", 3 * RANKS, 3)
    tiny_model(tmp_path / "tiny.onnx")
    keys = {"data": str(tmp_path / "survey"), "model": str(tmp_path / "tiny.onnx")}
    always = {str(attempt): "sleep:600" for attempt in range(1, 9)}
    plan = {LATE: always, LOST: {"1": "sleep:600"}, PREEMPTED: {"1": "sleep:600"},
            HOG: {"*": "hog"}}  # fmt: skip
    monkeypatch.setenv("FAULTS", json.dumps(plan))
    monkeypatch.setenv("JOURNAL", str(tmp_path / "journal"))
    engine = SlurmEngine(command=FAULTY_WORKER, retries=0, time="2", memory_mb=400)
    request = perseid.RunRequest.parse({**keys, "results": str(tmp_path / "run")})
    run = begin(request, engine, lambda event: None)
    submission = run.handle.arrays[0].submission

    def started(rank: int) -> bool:
        return f"\n{rank} 1 start " in "\n" + (tmp_path / "journal").read_text()

    def node_of(rank: int) -> str:
        index = str(submission.task_of(rank))
        return next((row[2] for row in cluster.tasks() if row[:2] == [index, "RUNNING"]), "")

    until((tmp_path / "journal").exists, "no rank began")
    until(lambda: started(LOST), "the rank whose node is lost has not begun")
    lost = node_of(LOST)
    cluster.lose(lost)
    until(lambda: started(PREEMPTED) and node_of(PREEMPTED), "the other has not begun")
    cluster.call(
        "sbatch", "--partition=urgent", f"--nodelist={node_of(PREEMPTED)}", "--exclusive",
        "--wrap=sleep 1", f"--output={tmp_path}/urgent.out",
    )  # fmt: skip
    cluster.revive(lost)
    ended = run.wait(DEADLINE, progress=False)
    told = {entry["rank"]: entry["reason"] for entry in ended.summary["ranks"]["missing"]}
    assert "above its 400 MB" in told[HOG]
    assert "its time limit passed" in told[LATE]
    late = set(submission.of_task(submission.task_of(LATE)))
    assert {rank: why for rank, why in told.items() if rank not in late | {HOG}} == {}
    for rank in (LOST, PREEMPTED):
        assert ended.ranks[rank].done
        assert ended.ranks[rank].attempt > 1
    monkeypatch.setenv("FAULTS", "{}")
    again = perseid.resume(str(tmp_path / "run"), engine="slurm", progress=False)
    assert again.incomplete is None
    assert again.summary["ranks"]["received"] == RANKS
    here = perseid.run(keys.pop("data"), results=str(tmp_path / "here"), progress=False, **keys)
    assert again.catalogue().difference(here.catalogue()) is None
    rows = again.table().rows
    assert rows[0]["cores"] > 0
