"""Workers that raise, exit, return nothing, come twice: what the engine makes of it."""

from __future__ import annotations

import json

import faulty_stack
import pytest
from faulty_stack import endings, run

from perseid.aws.calls import Calls
from perseid.aws.collect import collect
from perseid.aws.engine import AwsEngine, Started
from perseid.errors import Interrupted, PerseidError
from perseid.measure.load import load_runs
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage


@pytest.fixture(scope="module")
def data(faulty_data):
    return faulty_data


@pytest.fixture(scope="module")
def survived(stack, faulty, data):
    plan = {"0": ["raise"], "1": ["exit"], "2": ["nothing"] * 9}
    return run(stack, faulty, data, "faults", plan)


def test_what_another_attempt_mends_is_mended_and_the_rest_is_named(survived):
    _, started, result, seen = survived
    assert result.summary["status"] == "incomplete"
    assert [entry["rank"] for entry in result.summary["ranks"]["missing"]] == [2]
    assert "ranks 2 of 4" in result.incomplete
    kept = json.loads(Storage(started.results_url).get(layout.SUMMARY))
    for entry in (*kept["ranks"]["missing"], *kept["partitions"]["missing"]):
        assert "it returned without a result" in entry["reason"]
    assert endings(result, 0) == [(1, "raised"), (2, "done")]
    assert endings(result, 1) == [(1, "no result"), (2, "done")]
    assert endings(result, 2) == [(1, "no result")]  # it said that it was done
    assert endings(result, 3) == [(1, "done")]
    assert "returned without a result" in result.mapped.failures[2]
    assert "StorageError" in next(a.message for a in result.mapped.attempts if a.rank == 0)
    assert seen[-1].ended
    assert seen[-1].retried == 2
    assert seen[-1].rows == 3 * 8


def test_every_attempt_is_billed(survived):
    _, started, _, _ = survived
    logs = [Storage(started.results_url).get(layout.log(rank)).decode() for rank in range(4)]
    assert [text.count("REPORT RequestId") for text in logs] == [2, 2, 1, 1]


def test_an_item_that_comes_twice_changes_no_object_and_is_billed(stack, faulty, survived):
    engine, started, _, _ = survived
    store = Storage(started.results_url)
    items = json.loads(store.get(layout.ITEMS))
    before = {key: store.get(key) for key in (layout.predictions(3), layout.features(3))}
    event = {"item": items[3], "attempt_before": 0}
    stack.aws.client("lambda").invoke(
        FunctionName=faulty.function, Payload=json.dumps(event).encode()
    )
    assert {key: store.get(key) for key in before} == before
    manifest = Manifest.load(store)
    again = collect(engine.calls, engine.place, manifest, engine.executions(started.results_url))
    twice = [a for a in again.mapped.attempts if a.rank == 3]
    assert [a.ending.value for a in twice] == ["done", "done"]
    assert len({a.request_id for a in twice}) == 2


def test_resume_does_only_what_is_missing(stack, survived):
    engine, started, *_ = survived
    Storage(f"{stack.bucket}/runs").delete(["faults.faults.json"])
    kept = Storage(started.results_url).get(layout.record(0))
    again = engine.resume(started.results_url)
    assert engine.watch(again, lambda seen: None, first=0.5, longest=1.0).total == 1
    result = engine.finish(again)
    assert result.incomplete is None
    assert result.summary["rows"]["received"] == 4 * 8
    assert Storage(started.results_url).get(layout.record(0)) == kept
    (last,) = [a for a in result.mapped.attempts if a.rank == 2 and a.ending.value == "done"]
    assert last.attempt > 1
    assert engine.find(started.results_url) == again
    (run,) = load_runs([started.results_url])
    assert run.is_complete
    assert len(run.reports) == 8  # 6 of the first execution, a duplicate, and this one
    assert run.usage.transitions > 8


@pytest.mark.parametrize("percent", [10, 25])
def test_more_failures_than_tolerated_still_publish_what_there_is(stack, faulty, data, percent):
    """One rank of four fails: with 10 % tolerated the map fails, with 25 % it does not."""
    name = f"tolerated-{percent}"
    *_, result, seen = run(
        stack, faulty, data, name, {"3": ["exit"] * 9}, tolerated_failures=percent
    )
    assert result.summary["ranks"]["received"] < 4
    assert 3 in [entry["rank"] for entry in result.summary["ranks"]["missing"]]
    assert "is incomplete" in result.incomplete
    assert seen[-1].failed >= 1


def test_a_stopped_run_says_how_to_go_on(stack, faulty, data):
    engine = AwsEngine(Calls(stack.aws), faulty.place)
    results = f"{stack.bucket}/runs/stopped"
    started = engine.start(RunRequest.parse({"data": data, "results": results}))
    engine.stop(started)
    ended = engine.watch(started, lambda seen: None, first=0.2, seconds=60)
    assert ended.status == "ABORTED"
    with pytest.raises(Interrupted, match="perseid resume s3://"):
        engine.finish(started)


def test_an_items_object_that_is_gone_is_a_sentence(stack, faulty):
    """The map cannot read what initialize wrote: the execution ends with a readable cause."""
    machines = stack.aws.client("stepfunctions")
    given = machines.describe_state_machine(stateMachineArn=faulty.place.state_machine)
    definition = json.loads(given["definition"]) | {"StartAt": "Initialized"}
    made = machines.create_state_machine(
        name="no-items", definition=json.dumps(definition), roleArn=given["roleArn"]
    )
    state = {
        "ok": True, "run_id": "gone", "execution": "gone", "world_size": 3, "ranks": 3,
        "results_url": f"{stack.bucket}/runs/gone", "bucket": stack.outputs["Bucket"],
        "items_key": "runs/gone/items.json", "max_concurrency": 0, "children": "STANDARD",
        "timeout_seconds": 60, "tolerated_failure_percentage": 100.0,
    }  # fmt: skip
    begun = machines.start_execution(
        stateMachineArn=made["stateMachineArn"], name="gone", input=json.dumps(state)
    )
    engine = AwsEngine(Calls(stack.aws), faulty.place)
    started = Started(begun["executionArn"], f"{stack.bucket}/runs/gone")
    ended = engine.watch(started, lambda seen: None, first=0.2, seconds=60)
    assert ended.status == "FAILED"
    with pytest.raises(PerseidError) as caught:
        engine.finish(started)
    assert "items" in str(caught.value) or "NoSuchKey" in str(caught.value)


@pytest.mark.slow
def test_a_worker_that_hangs_is_timed_out_and_tried_again(stack, data):
    slow = faulty_stack.make(stack, timeout=30, name="hanging")
    *_, result, _ = run(stack, slow, data, "hangs", {"0": ["hang"]})
    assert result.incomplete is None
    first, second = endings(result, 0)
    # ministack ends the worker in time but does not log it as Lambda does ("Task timed out").
    assert first in ((1, "timed out"), (1, "no result"))
    assert second == (2, "done")
    hung = next(a for a in result.mapped.attempts if (a.rank, a.attempt) == (0, 1))
    assert 29_000 < hung.duration_ms < 45_000
