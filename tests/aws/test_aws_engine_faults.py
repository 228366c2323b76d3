"""Workers that raise, exit, return nothing, come twice: what the engine makes of it."""

from __future__ import annotations

import json
from dataclasses import replace

import faulty_stack
import pytest
from faulty_stack import endings, run
from ministack import limited

from perseid.aws.executions import Executions, Started
from perseid.aws.observe.calls import Calls
from perseid.aws.observe.run_archive import collect
from perseid.errors import PerseidError, RunInterruptedError, StorageError
from perseid.measure.sources.load import load_runs
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


def test_a_worker_without_memory_is_tried_again(stack, faulty, data):
    """Asking for more than there is raises MemoryError; being killed by the kernel says nothing.

    Environments are warm from a run before, as in a longer session of tests.
    """
    run(stack, faulty, data, "before-memory", {})
    plan = {"0": ["memory"], "1": ["kill"], "2": ["memory"] * 9}
    *_, result, seen = run(stack, faulty, data, "memory", plan, retries=1)
    assert [entry["rank"] for entry in result.summary["ranks"]["missing"]] == [2]
    assert "it needed more memory than its 3008 MB" in result.incomplete
    assert endings(result, 0) == [(1, "out of memory"), (2, "done")]
    assert endings(result, 1) == [(1, "no result"), (2, "done")]
    assert endings(result, 2) == [(1, "out of memory"), (2, "out of memory")]
    memory = {(a.rank, a.attempt): a.memory_mb for a in result.mapped.attempts}
    # More where it was short of memory; ministack does not say that a process was killed.
    assert [memory[rank, 2] for rank in (0, 1, 2)] == [3008, 1769, 3008]
    assert (seen[-1].failed, seen[-1].retried) == (1, 2)


@pytest.mark.parametrize(
    ("tolerated", "failing", "map_run"),
    [(0, 0, "SUCCEEDED"), (0, 1, "FAILED"), (25, 1, "SUCCEEDED"), (24, 1, "FAILED"),
     (25, 2, "FAILED"), (100, 4, "SUCCEEDED")],
)  # fmt: skip
def test_failures_up_to_what_is_tolerated_and_beyond(
    stack, faulty, data, tolerated, failing, map_run
):
    """In each case what there is gets published, and the run says what is missing.

    ministack takes the limit as a number only: it is put in place of the path.
    """
    client = stack.aws.client("stepfunctions")
    machine = limited(client, faulty.place.state_machine, tolerated=tolerated)
    limit = replace(faulty, place=replace(faulty.place, state_machine=machine))
    plan = {str(rank): ["raise"] for rank in range(failing)}
    name, keys = f"tolerated-{tolerated}-{failing}", {"retries": 0, "tolerated_failures": tolerated}
    _, started, result, seen = run(stack, limit, data, name, plan, **keys)
    [found] = client.list_map_runs(executionArn=started.arn)["mapRuns"]
    assert client.describe_map_run(mapRunArn=found["mapRunArn"])["status"] == map_run
    assert [entry["rank"] for entry in result.summary["ranks"]["missing"]] == [*range(failing)]
    assert result.summary["rows"]["received"] == (4 - failing) * 8
    assert (seen[-1].status, seen[-1].failed) == ("FAILED" if failing else "SUCCEEDED", failing)
    assert (result.incomplete is None) == (failing == 0)


@pytest.mark.parametrize("fault", ["raise", "exit before the summary"])
def test_summarize_is_tried_again(stack, data, fault):
    lame = faulty_stack.make(stack, name=f"lame-{fault[0]}", summarize=True)
    name = f"lame-{fault[0]}"
    *_, result, _ = run(stack, lame, data, name, {"summarize": [fault]})
    assert result.incomplete is None
    assert result.summary["rows"]["received"] == 4 * 8
    names = {info.key for info in Storage(f"{stack.bucket}/runs").list()}
    assert {f"{name}.call-0", f"{name}.call-1"} <= names
    assert f"{name}.call-2" not in names


def test_summarize_that_fails_for_good_is_resumed(stack, data):
    """The execution fails with the sentence; nothing is lost: a resumption finds all ranks done."""
    lame = faulty_stack.make(stack, name="lame", summarize=True)
    with pytest.raises(StorageError, match="the records cannot be read"):
        run(stack, lame, data, "lame", {"summarize": ["raise"] * 3})
    engine = Executions(Calls(stack.aws), lame.place)
    again = engine.resume(f"{stack.bucket}/runs/lame")
    assert engine.watch(again, lambda now: None, first=0.2, seconds=60).total == 0
    result = engine.finish(again)
    assert result.incomplete is None
    assert result.summary["rows"]["received"] == 4 * 8
    assert len(result.mapped.attempts) == 4  # of the first execution


def test_a_stopped_run_says_how_to_go_on(stack, faulty, data):
    engine = Executions(Calls(stack.aws), faulty.place)
    results = f"{stack.bucket}/runs/stopped"
    started = engine.start(RunRequest.parse({"data": data, "results": results}))
    engine.stop(started)
    ended = engine.watch(started, lambda seen: None, first=0.2, seconds=60)
    assert ended.status == "ABORTED"
    with pytest.raises(RunInterruptedError, match="perseid resume s3://"):
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
    engine = Executions(Calls(stack.aws), faulty.place)
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
