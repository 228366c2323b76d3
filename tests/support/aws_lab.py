"""The AWS engine for the conformance suite, on either double."""

from __future__ import annotations

import json

from conformance_suite import Lab

import perseid
from perseid.aws.engine import AwsEngine
from perseid.aws.executions import Executions
from perseid.aws.observe.calls import Calls
from perseid.storage import Storage


def aws_lab(stack, faulty, folder) -> Lab:
    """A lab in the stack's bucket, with the state machine whose worker fails as it is told."""

    def engine():
        return AwsEngine(executions=Executions(Calls(stack.aws), faulty.place))

    def fail(name, plan):
        told = {str(rank): list(faults) for rank, faults in plan.items()}
        Storage(f"{root}/runs").put(f"{name}.faults.json", json.dumps(told).encode())

    def begin_elsewhere(keys):
        plain = dict(keys)
        data = plain.pop("data")
        perseid.run(data, engine=engine(), detach=True, progress=False, **plain)

    root = f"{stack.bucket}/conformance"
    lab = Lab(engine(), root, fail, begin_elsewhere)
    lab.survey()
    lab.model(folder)
    return lab
