"""What is said of runs that have ended, or never began: nothing is started or paid for again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perseid.aws.executions import Executions
from perseid.aws.observe.calls import Calls
from perseid.aws.observe.workflow_bill import child_states, express_seconds
from perseid.aws.stack_resources import StackResources
from perseid.cli import main
from perseid.errors import RunError
from perseid.pipeline.attempts import Attempt, Ending
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage


@pytest.fixture(scope="module")
def complete(stack, put_survey):
    """The URL of a complete run of two ranks."""
    data, results = f"{stack.bucket}/ended-data", f"{stack.bucket}/runs/ended"
    put_survey(data, 2, rows=8)
    assert main(["run", "--engine", "aws", "--data", data, "--out", results, "--quiet"]) == 0
    return results


def executions(stack):
    client = stack.aws.client("stepfunctions")
    listed = client.list_executions(stateMachineArn=stack.outputs["StateMachineArn"])
    return [entry["executionArn"] for entry in listed["executions"]]


def test_a_complete_run_is_not_resumed(stack, complete, capsys):
    before = executions(stack)
    assert main(["resume", complete, "--engine", "aws"]) == 0
    said = capsys.readouterr()
    assert "the run is complete: nothing to do" in said.err
    assert "complete: 2 of 2 ranks" in said.out
    assert main(["resume", complete, "--engine", "aws", "--detach"]) == 0
    assert capsys.readouterr().out == f"{complete}\n"
    assert executions(stack) == before


def test_a_run_that_lost_a_record_since_is_resumed(stack, complete, capsys):
    Storage(complete).delete(["1.json"])
    before = executions(stack)
    assert main(["resume", complete, "--engine", "aws"]) == 0
    assert "complete: 2 of 2 ranks" in capsys.readouterr().out
    assert len(executions(stack)) == len(before) + 1


def test_a_run_that_has_ended_is_not_stopped(stack, complete, capsys):
    assert main(["status", complete, "--stop"]) == 0
    said = capsys.readouterr()
    assert "had ended" in said.out
    assert said.err == ""


def test_a_refused_run_shows_no_rows_of_the_one_before_it(stack, complete):
    engine = Executions(Calls(stack.aws), StackResources.of_outputs(stack.outputs, "perseid"))
    data = f"{stack.bucket}/ended-data"
    started = engine.start(RunRequest.parse({"data": data, "results": complete}))
    seen = []
    engine.watch(started, seen.append, first=0.2, longest=0.5, seconds=60)
    assert {(now.rows, now.retried, now.usd) for now in seen} == {(0, 0, 0.0)}
    with pytest.raises(RunError, match="belongs to run"):
        engine.finish(started)
    former = engine.find(complete)
    assert engine.look(former).rows == 2 * 8
    assert former.resumed  # it was, above: its execution has another name than the run


def attempt(rank, ending, message="", started=0.0, ms=50.0):
    return Attempt(
        rank=rank, attempt=1, request_id=f"id-{rank}-{started}", ending=ending, message=message,
        started=1.8e9 + started, duration_ms=ms, memory_mb=1769, max_memory_mb=400.0,
        init_ms=None, work_seconds=0.0, rows=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "message", "states"),
    [
        (Ending.DONE, "", 1),
        (Ending.BAD_INPUT, "BadPartitionError: 1.pt", 2),  # Work, GiveUp
        (Ending.RAISED, "PeerLostError: rank 2", 2),
        (Ending.RAISED, "JobKeyRefusedError: no", 2),
        (Ending.RAISED, "MismatchedCollectiveError: sum", 2),
        (Ending.RAISED, "Replaced: by another", 2),
        (Ending.RAISED, "StorageError: 503", 4),  # Work, Count, Again, and Wait or GiveUp
        (Ending.TIMED_OUT, "the function's time was over", 4),
    ],
)
def test_states_of_a_child_are_those_of_the_definition(ending, message, states):
    assert child_states([attempt(0, ending, message)]) == states


def test_more_memory_is_a_state_where_another_attempt_has_it():
    starved = attempt(0, Ending.OUT_OF_MEMORY)
    again = replace(attempt(0, Ending.DONE), attempt=2)
    assert child_states([starved]) == 4  # given up
    assert child_states([starved, again]) == 1 + 3 + 1 + 1


def test_express_children_are_billed_in_steps_of_a_tenth_of_a_second():
    done = Ending.DONE
    assert express_seconds([attempt(0, done), attempt(1, done)]) == pytest.approx(0.2)
    assert express_seconds([attempt(0, done, ms=100.0)]) == pytest.approx(0.1)
    assert express_seconds([attempt(0, done, ms=100.1)]) == pytest.approx(0.2)
    # Two attempts at a rank and the wait between them are one child.
    twice = [attempt(0, Ending.RAISED, "x: y"), attempt(0, done, started=2.0)]
    assert express_seconds(twice) == pytest.approx(2.1)
    assert express_seconds([]) == 0.0
