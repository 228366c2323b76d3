"""The Dask engine on a cluster of worker processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed
import pytest
from conformance_suite import Conformance, Lab, here, reference, whole  # noqa: F401
from distributed import Client, LocalCluster
from engine import FAULTY_WORKER
from tiny import tiny_survey

import perseid
from perseid.api.runs import begin
from perseid.cli import main
from perseid.engines.dask import DaskEngine, dask_worker
from perseid.errors import RunError, RunInterruptedError
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.resumption import with_current_model
from perseid.storage import Storage

FAULTS = {"raise": "raise", "kill": "kill", "hang": "sleep:600"}
DEADLINE = 120.0


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=3, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def lab(client, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dask")
    environment, started = {}, []

    def fail(name, plan):
        by_rank = {
            str(rank): {str(n): FAULTS[fault] for n, fault in enumerate(faults, start=1)}
            for rank, faults in plan.items()
        }
        environment["FAULTS"] = json.dumps(by_rank)

    def begin_elsewhere(keys):
        (folder / "request.json").write_text(json.dumps(dict(keys)))
        command = [sys.executable, "-m", "perseid", "run", str(folder / "request.json"), "--engine",
                   "dask", "--scheduler", client.scheduler.address, "--quiet"]  # fmt: skip
        started.append(subprocess.Popen(command))

    engine = DaskEngine(client, environment=environment, command=FAULTY_WORKER, retries=1)
    lab = Lab(engine, str(folder), fail, begin_elsewhere)
    lab.survey()
    lab.model(folder)
    yield lab
    for process in started:
        assert process.wait(60) == 0


class TestDask(Conformance):
    """See `conformance_suite.Conformance`."""

    def test_a_killed_dask_worker_is_an_ending_like_any_other(self, lab, client, reference):
        lab.fail("worker", {1: ["hang"]})
        run = begin(perseid.RunRequest.parse(lab.keys("worker")), lab.engine, lambda event: None)
        deadline = time.monotonic() + DEADLINE
        while run.status().done < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        [pid] = [pid for pid in client.run(_at_work, run.id).values() if pid]
        os.kill(pid, signal.SIGKILL)
        assert run.wait(DEADLINE, progress=False).incomplete is None
        assert run.ranks[1].attempt == 2
        assert run.catalogue().difference(reference) is None

    def test_a_process_and_its_model_go_on_from_task_to_task(self, lab, client):
        """And the dashboard's progress counts a task a rank: it draws the scheduler's prefixes."""
        lab.fail("kept", {1: ["kill"]})
        tiny_survey(Path(lab.root) / "more", 27, 3)
        keys = lab.keys("kept") | {"data": f"{lab.root}/more"}
        run = begin(perseid.RunRequest.parse(keys), lab.engine, lambda event: None)
        tasks = [future.key for future in run.handle.futures]
        assert len(tasks) == run.manifest.world_size
        assert {distributed.utils.key_split(key) for key in tasks} == {"perseid"}
        standing = lambda: list(dask_worker._kept)  # noqa: E731
        assert all(run.id in kept for kept in client.run(standing).values())
        assert run.wait(DEADLINE, progress=False).incomplete is None
        attempts = run.result.mapped.attempts
        assert len(attempts) == run.manifest.world_size + 1
        cold = [attempt for attempt in attempts if attempt.cold]
        # One start a Dask worker at most, and one in the place of the process that was killed.
        assert len(cold) <= len(client.scheduler_info()["workers"]) + 1 < len(attempts)
        assert not any(client.run(standing).values()), "nothing stands by when the run has ended"

    def test_tasks_go_where_their_resources_are(self, lab, client):
        lab.fail("resources", {})
        keys = lab.keys("resources")
        engine = DaskEngine(client, resources={"GPU": 1}, command=FAULTY_WORKER)
        run = begin(perseid.RunRequest.parse(keys), engine, lambda event: None)
        try:
            time.sleep(0.5)
            assert {future.status for future in run.handle.futures} == {"pending"}
        finally:
            run.stop()
        with pytest.raises(RunInterruptedError):
            run.wait(DEADLINE, progress=False)

    def test_a_model_that_is_swapped_under_a_resumption_is_refused(self, lab):
        """After the driver has looked at it, and before the task begins."""
        lab.fail("swapped", {1: ["raise", "raise"]})
        run = lab.run("swapped")
        manifest = with_current_model(Manifest.load(Storage(run.url)))
        lab.fail("swapped", {})
        model = Storage(lab.root).get("tiny.onnx")
        Storage(lab.root).put("tiny.onnx", model.replace(b"tiny", b"tinx"))
        try:
            with lab.engine.submit(manifest, [1]) as handle:
                handle.wait(lambda event: None, DEADLINE)
                assert "is not the one" in handle.report().failures[1]
        finally:
            Storage(lab.root).put("tiny.onnx", model)

    def test_workers_of_another_version_are_refused(self, lab, client):
        client.run(_pretend, "9.9.0")
        try:
            with pytest.raises(RunError, match=r"of \d Dask workers have another perseid .*9\.9"):
                lab.run("version")
        finally:
            client.run(_pretend, perseid.__version__)

    def test_no_scheduler_is_one_sentence(self, lab, tmp_path, capsys):
        command = ["run", "--data", f"{lab.root}/survey", "--model", f"{lab.root}/tiny.onnx",
                   "--out", str(tmp_path / "run"), "--engine", "dask"]  # fmt: skip
        assert main(command) == 2
        assert "no Dask cluster is named" in capsys.readouterr().err
        assert main([*command, "--scheduler", "tcp://127.0.0.1:9"]) == 2
        assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def _at_work(run_id):
    """In a Dask worker: its process id while it works on the run, else 0."""
    return os.getpid() if dask_worker._stops.get(run_id) else 0


def _pretend(version):
    perseid.__version__ = version
