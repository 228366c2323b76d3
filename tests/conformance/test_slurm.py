"""The Slurm engine on a real Slurm of two nodes, made for the tests."""

from __future__ import annotations

import json
import os

import pytest
from conformance_suite import Conformance, Lab, here, reference, whole  # noqa: F401
from engine import FAULTY_WORKER

import perseid
from perseid.engines.slurm import SlurmEngine

FAULTS = {"raise": "raise", "kill": "kill", "hang": "sleep:600"}
pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def lab(slurm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")

    def fail(name, plan):
        by_rank = {
            str(rank): {str(n): FAULTS[fault] for n, fault in enumerate(faults, start=1)}
            for rank, faults in plan.items()
        }
        os.environ["FAULTS"] = json.dumps(by_rank)

    def begin_elsewhere(keys):
        plain = dict(keys)
        data = plain.pop("data")
        perseid.run(data, engine=engine, detach=True, progress=False, **plain)

    engine = SlurmEngine(command=FAULTY_WORKER, retries=1)
    lab = Lab(engine, str(folder), fail, begin_elsewhere)
    lab.survey()
    lab.model(folder)
    yield lab
    os.environ.pop("FAULTS", None)


class TestSlurm(Conformance):
    """See `conformance_suite.Conformance`."""
