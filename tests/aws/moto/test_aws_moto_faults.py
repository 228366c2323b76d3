"""On moto: ranks that fail within what is tolerated and beyond, resumed runs, refusals."""

from __future__ import annotations

import json

import faulty_stack
import pytest
from faulty_stack import endings, run
from ministack import run_to_end

from perseid.measure.cost import cost
from perseid.measure.sources.load import load_runs
from perseid.storage import Storage


@pytest.fixture(scope="module")
def faulty(moto):
    return faulty_stack.make(moto)


@pytest.fixture(scope="module")
def data(moto, put_survey):
    url = f"{moto.bucket}/faulty-data"
    put_survey(url, 4, rows=8)
    return url


@pytest.fixture(scope="module")
def within(moto, faulty, data):
    """One rank is mended by another attempt, one of four fails for good, 30 % may."""
    plan = {"0": ["raise"], "1": ["exit"] * 2}
    return run(moto, faulty, data, "within", plan, tolerated_failures=30, retries=1)


def test_a_failing_rank_within_what_is_tolerated(within):
    _, started, result, _ = within
    assert endings(result, 0) == [(1, "raised"), (2, "done")]
    assert [how for _, how in endings(result, 1)] == ["no result"] * 2
    assert endings(result, 2) == [(1, "done")]
    assert "ranks 1 of 4" in result.incomplete
    assert result.summary["rows"]["received"] == 24
    (execution,) = json.loads(Storage(started.results_url).get("engine.json"))["executions"]
    assert (execution["status"], execution["error"]) == ("FAILED", "RunIncompleteError")
    assert (execution["map"]["succeeded"], execution["map"]["failed"]) == (3, 1)
    assert "ranks 1 of 4" in execution["cause"]


def test_a_failing_rank_beyond_what_is_tolerated_stops_the_map(moto, faulty, data):
    """At once: ranks that still work are lost to it. The rest is published nevertheless."""
    plan = {"1": ["exit"] * 2}
    _, started, result, _ = run(
        moto, faulty, data, "beyond", plan, tolerated_failures=10, retries=0
    )
    missing = [entry["rank"] for entry in result.summary["ranks"]["missing"]]
    assert 1 in missing
    assert f"ranks {missing[0]}" in result.incomplete
    (execution,) = json.loads(Storage(started.results_url).get("engine.json"))["executions"]
    assert (execution["status"], execution["error"]) == ("FAILED", "RunIncompleteError")
    events = moto.aws.client("stepfunctions").get_execution_history(executionArn=started.arn)
    said = [event["mapRunFailedEventDetails"] for event in events["events"]
            if "mapRunFailedEventDetails" in event]  # fmt: skip
    assert [entry["error"] for entry in said] == ["States.ExceedToleratedFailureThreshold"]


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"data_bucket": "b"}, "BadInputError", "results"),
        ({"resume": "s3://absent-bucket/r"}, "NotFoundError", "no run"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_sentence(moto, given, error, says):
    client, machine = moto.aws.client("stepfunctions"), moto.outputs["StateMachineArn"]
    done = run_to_end(client, machine, f"refused-{error}", given)
    assert (done["status"], done["error"]) == ("FAILED", error)
    assert says in done["cause"]
    assert "Traceback" not in done["cause"]


def test_a_worker_that_hangs_is_ended_at_its_time(moto, data):
    """Lambda's own limit: the process is killed, its REPORT says so."""
    slow = faulty_stack.make(moto, timeout=10, name="hanging")  # healthy ranks take a second
    _, _, result, _ = run(moto, slow, data, "hang", {"2": ["hang"]}, retries=1)
    assert result.incomplete is None
    assert endings(result, 2) == [(1, "timed out"), (2, "done")]
    [first] = [a for a in result.mapped.attempts if (a.rank, a.attempt) == (2, 1)]
    assert first.duration_ms == pytest.approx(10_000, abs=1)


def test_a_rank_that_runs_out_of_memory_is_tried_again_with_more(moto, data):
    """The process is killed above its memory, as on Lambda; the other worker has enough.

    Each attempt is billed with the memory that it had, and the state that gave it more, too.
    """
    small = faulty_stack.make(moto, name="small", memory=400)
    plan = {"1": ["much memory"] * 2, "3": ["raise"]}
    _, started, result, _ = run(moto, small, data, "memory", plan, retries=1)
    assert result.incomplete is None
    assert endings(result, 1) == [(1, "out of memory"), (2, "done")]
    memory = {(a.rank, a.attempt): a.memory_mb for a in result.mapped.attempts}
    assert memory == {(0, 1): 400, (1, 1): 400, (1, 2): 3008, (2, 1): 400, (3, 1): 400, (3, 2): 400}
    engine = json.loads(Storage(started.results_url).get("engine.json"))
    # The run's 6 states, 6 attempts, 3 after each failed one, and one to have more memory.
    assert engine["transitions"] == 6 + 6 + 3 * 2 + 1
    [measured] = load_runs([started.results_url])
    seconds = {4: 0.0, 30: 0.0}
    for one in result.mapped.attempts:
        seconds[one.memory_mb // 100] += one.billed_ms / 1e3
    [line] = [one for one in cost(measured.usage).lines if one.name == "Lambda compute"]
    assert line.quantity == pytest.approx((400 * seconds[4] + 3008 * seconds[30]) / 1024, rel=1e-6)


def test_what_a_function_raises_is_the_cause_without_its_traceback(moto):
    """Another function in initialize's place, which takes none of its input."""
    client = moto.aws.client("stepfunctions")
    found = client.describe_state_machine(stateMachineArn=moto.outputs["StateMachineArn"])
    first, other = moto.outputs["InitializeFunction"], moto.outputs["PingFunction"]
    made = client.create_state_machine(
        name="ping-first", definition=found["definition"].replace(first, other),
        roleArn=found["roleArn"], type="STANDARD",
    )  # fmt: skip
    done = run_to_end(client, made["stateMachineArn"], "raised", {})
    assert (done["status"], done["error"]) == ("FAILED", "BadInputError")
    assert done["cause"] == 'give {"rendezvous_endpoint": "HOST" or "HOST:PORT"}'
