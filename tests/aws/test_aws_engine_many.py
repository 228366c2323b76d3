"""Many ranks, more than may work at once: each has its turn; requests stay few."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from ministack import limited

from perseid.aws.executions import Executions
from perseid.aws.observe.calls import Calls
from perseid.aws.stack_resources import StackResources
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage

AT_ONCE = 6
"""Workers at one moment: as a number, since ministack ignores `MaxConcurrencyPath`."""


def run(stack, put_survey, ranks, rows, seconds):
    data, results = f"{stack.bucket}/many-{ranks}", f"{stack.bucket}/runs/many-{ranks}"
    put_survey(data, ranks, rows=rows)
    place = StackResources.of_outputs(stack.outputs, "perseid")
    machine = limited(stack.aws.client("stepfunctions"), place.state_machine, AT_ONCE)
    engine = Executions(Calls(stack.aws), replace(place, state_machine=machine))
    began = time.monotonic()
    started = engine.start(RunRequest.parse({"data": data, "results": results}))
    engine.watch(started, lambda now: None, seconds=seconds)
    wall = time.monotonic() - began
    result = engine.finish(started)
    assert result.incomplete is None
    assert result.summary["rows"]["received"] == ranks * rows
    assert len(result.mapped.attempts) == ranks
    kept = json.loads(Storage(results).get("engine.json"))
    assert kept["executions"][0]["map"]["succeeded"] == ranks
    assert kept["unreported"] == 0
    asked = sum(n for name, n in kept["api_calls"].items() if not name.startswith("s3."))
    work = sum(a.work_seconds for a in result.mapped.attempts)
    print(
        f"\n{ranks} ranks, at most {AT_ONCE} at once: {wall:.1f} s, of it "
        f"{work / AT_ONCE:.1f} s the ranks' own work, {1e3 * (wall - work / AT_ONCE) / ranks:.0f} "
        f"ms per rank beyond it; {asked} requests of Step Functions and CloudWatch, "
        f"{engine.calls.total} in all"
    )
    return asked, engine, wall


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "rows", "seconds"), [(41, 8, 300), (517, 2, 1500)])
@pytest.mark.timeout(1800)
def test_many_ranks(stack, put_survey, ranks, rows, seconds):
    asked, engine, wall = run(stack, put_survey, ranks, rows, seconds)
    looks = engine.calls.counts["sfn.DescribeExecution"]
    assert looks <= 8 + wall / 4  # the waits grow to five seconds
    assert asked <= 3 * looks + 12 + ranks // 1000
    assert engine.calls.counts["s3.GetObject"] == ranks + 1  # each record once, then all in one
