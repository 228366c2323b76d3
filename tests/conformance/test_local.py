"""The local engine."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest
from conformance_suite import Conformance, Lab, here, reference, until, whole  # noqa: F401
from engine import FAULTY_RUN, FAULTY_WORKER

import perseid
from perseid.engines.local import LocalEngine
from perseid.engines.local.local_options import LocalOptions
from perseid.engines.retry import RetryPolicy
from perseid.errors import RunInterruptedError
from perseid.storage import Storage

FAULTS = {"raise": "raise", "kill": "kill", "hang": "sleep:600"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    started = []

    def fail(name, plan):
        by_rank = {
            str(rank): {str(n): FAULTS[fault] for n, fault in enumerate(faults, start=1)}
            for rank, faults in plan.items()
        }
        os.environ["FAULTS"] = json.dumps(by_rank)

    def begin_elsewhere(keys):
        (folder / "request.json").write_text(json.dumps(dict(keys)))
        command = [sys.executable, "-m", "perseid", "run", str(folder / "request.json")]
        started.append(subprocess.Popen([*command, "--quiet"]))

    options = LocalOptions(workers=3, command=FAULTY_WORKER, retry=RetryPolicy(1, 0.05))
    lab = Lab(LocalEngine(options), str(folder), fail, begin_elsewhere)
    lab.survey()
    lab.model(folder)
    yield lab
    os.environ.pop("FAULTS", None)
    for process in started:
        assert process.wait(30) == 0


class TestLocal(Conformance):
    """See `conformance_suite.Conformance`."""

    def test_a_run_of_another_process_is_watched_and_stopped_from_here(self, lab, tmp_path):
        """Its ranks' logs are followed meanwhile; here nothing of it is held but its place."""
        (tmp_path / "request.json").write_text(json.dumps(lab.keys("other", workers=3)))
        lab.fail("other", {2: ["hang"]})
        command = [*FAULTY_RUN, "run", str(tmp_path / "request.json"), "--quiet"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            until(lambda: Storage(lab.url("other")).exists("driver.json"))
            run = perseid.open_run(lab.url("other"))
            until(lambda: run.status().done == 2)
            assert run.status().state == "running"
            lines = run.logs(0, follow=True)
            assert any("START RequestId" in line for _, line in itertools.islice(lines, 5))
            assert run.stop()
            said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
        assert process.returncode == RunInterruptedError.exit_code
        assert "perseid resume" in said
        with pytest.raises(RunInterruptedError, match="perseid resume"):
            run.wait(60, progress=False)
        assert run.status().state == "not ended"
