"""The local engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conformance_suite import Conformance, Lab, reference, whole  # noqa: F401
from engine import FAULTY_WORKER

from perseid.engines.local import LocalEngine
from perseid.engines.options import LocalOptions
from perseid.engines.retry import RetryPolicy

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
