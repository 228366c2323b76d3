"""Histories of executions in the forms in which they come; runs joined with them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from perseid.cli import main
from perseid.errors import BadInputError
from perseid.measure.sources.documents import document
from perseid.measure.sources.history import history_of, moment, read_history
from perseid.measure.sources.load import load_runs

START = datetime(2024, 11, 17, 2, 40, 30, tzinfo=UTC)


def event(number: int, kind: str, second: float, **details: object) -> dict[str, object]:
    when = (START + timedelta(seconds=second)).isoformat()
    return {"id": number, "type": kind, "timestamp": when, **details}


def entered(number: int, kind: str, second: float, name: str) -> dict[str, object]:
    return event(
        number,
        f"{kind}StateEntered",
        second,
        stateEnteredEventDetails={"name": name, "input": "{}"},
    )


def exited(number: int, kind: str, second: float, name: str) -> dict[str, object]:
    return event(number, f"{kind}StateExited", second, stateExitedEventDetails={"name": name})


def distributed(path: str = "result-partition-75MB/8GB/2") -> list[dict[str, object]]:
    """Init 4 s, a distributed map 50 s, a summary 6 s."""
    arn = "arn:aws:states:eu-west-1:1:mapRun:cosmic/Map:abc"
    started = {"input": json.dumps({"result_path": path})}
    return [
        event(1, "ExecutionStarted", 0, executionStartedEventDetails=started),
        entered(2, "Task", 0.1, "Init"),
        event(3, "TaskSucceeded", 3.9),
        exited(4, "Task", 4, "Init"),
        entered(5, "Map", 4, "Each"),
        event(6, "MapStateStarted", 4.1, mapStateStartedEventDetails={"length": 0}),
        event(7, "MapRunStarted", 4.2, mapRunStartedEventDetails={"mapRunArn": arn}),
        event(8, "MapRunSucceeded", 53.9),
        exited(9, "Map", 54, "Each"),
        entered(10, "Task", 54, "Summary"),
        exited(11, "Task", 60, "Summary"),
        event(12, "ExecutionSucceeded", 60.5),
    ]


def test_steps_of_a_distributed_map() -> None:
    found = read_history(distributed()[::-1], "arn:x")  # newest first, as the console asks for it
    assert (found.status, found.seconds, found.transitions) == ("SUCCEEDED", 60.5, 3)
    assert [(s.name, s.kind) for s in found.steps] == [
        ("Init", "Task"), ("Each", "Map"), ("Summary", "Task")]  # fmt: skip
    assert [found.part(part) for part in ("before", "map", "after")] == [4, 50, 6.5]
    assert found.map_run.endswith(":abc")


def test_states_inside_an_inline_map_are_no_steps_but_are_billed() -> None:
    inside = [
        *distributed()[:6],
        event(7, "MapIterationStarted", 5),
        entered(8, "Task", 5, "Work"),
        exited(9, "Task", 20, "Work"),
        entered(10, "Task", 6, "Work"),
        event(11, "TaskFailed", 7, taskFailedEventDetails={"error": "Lambda.Unknown"}),
        exited(12, "Map", 54, "Each"),
        event(13, "ExecutionSucceeded", 55),
    ]
    found = read_history(inside)
    assert [s.name for s in found.steps] == ["Init", "Each"]
    assert found.part("map") == 50
    assert found.transitions == 4
    assert found.map_run is None


def test_a_map_that_failed_and_an_execution_that_still_runs() -> None:
    details = {"error": "States.ExceedToleratedFailureThreshold", "cause": "5 of 9 items failed"}
    broken = [
        *distributed()[:7],
        event(8, "MapRunFailed", 30, mapRunFailedEventDetails=details),
        event(9, "ExecutionFailed", 30.2, executionFailedEventDetails=details),
    ]
    found = read_history(broken)
    assert (found.status, found.error, found.cause) == ("FAILED", *details.values())
    assert found.part("map") == pytest.approx(26)
    running = read_history(distributed()[:7])
    assert (running.status, running.seconds, running.part("map")) == ("RUNNING", None, None)


def test_times_in_all_forms() -> None:
    text = "2024-11-17T03:40:30.000000+01:00"
    assert moment(text) == moment(START) == moment(START.timestamp())
    assert moment("2024-11-17T02:40:30") == START.timestamp()


@pytest.mark.parametrize("text", ["[]", "{}", "no", '{"events": [{"id": 2, "type": "X"}]}'])
def test_what_is_no_history(text: str) -> None:
    with pytest.raises(BadInputError, match="history"):
        history_of(document(text, "x.json"))


ALL = distributed()
SHAPES = {
    "answer": json.dumps({"events": ALL}),
    "events alone": json.dumps(ALL),
    "the last first": json.dumps({"events": ALL[::-1]}),
    "two pages": json.dumps({"events": ALL[:5]}) + "\n" + json.dumps({"events": ALL[5:]}),
    "pages in a list": json.dumps([{"events": ALL[:5], "nextToken": "x"}, {"events": ALL[5:]}]),
    "yaml": yaml.safe_dump({"events": ALL}),
    "yaml, events alone": yaml.safe_dump(ALL),
    "yaml-stream": yaml.safe_dump([{"events": ALL[:5]}, {"events": ALL[5:]}]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_a_history_says_the_same(shape: str, tmp_path: Path) -> None:
    (tmp_path / "history").write_text(SHAPES[shape])
    (run,) = load_runs([str(tmp_path / "history")])
    assert (run.whole.seconds, run.map.seconds, run.partition) == (60.5, 50, "75MB")


def test_the_sample_log_with_an_execution(cai: Path, tmp_path: Path, capsys) -> None:
    """75MB/8GB/2 was run twice: only the history tells which invocation is of which execution."""
    (tmp_path / "history.json").write_text(json.dumps({"events": distributed()}))
    names = [str(cai / "log_example.txt"), str(tmp_path / "history.json")]
    runs = load_runs(names)
    assert len(runs) == 9
    assert [run.data for run in runs if run.partition == "75MB"].count("8GB") == 3
    joined = [run for run in runs if run.whole is not None]
    (run,) = joined
    assert (run.whole.seconds, run.whole.what) == (60.5, "whole execution")
    assert (run.map.seconds, run.map.what) == (50, "map state")
    assert run.usage.transitions == 3 + len(run.reports)
    assert (run.partition, run.data, run.expected) == ("75MB", "8GB", 110)
    assert "execution: before 4.00 s, map 50.00 s, after 6.50 s" in run.notes
    assert main(["table", *names, "--format", "markdown", "--table", "runs"]) == 0
    assert "| 8GB | 512 | 110 | 1/110 | 60.50 | whole execution |" in capsys.readouterr().out


def test_another_runs_execution_takes_nothing(cai: Path, tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(json.dumps({"events": distributed("elsewhere/1")}))
    runs = load_runs([str(cai / "log_example.txt"), str(tmp_path / "history.json")])
    *logged, alone = runs
    assert all(run.whole is None for run in logged)
    assert (alone.whole.seconds, alone.map.seconds, alone.reports) == (60.5, 50, ())
    assert "no log of its workers was given" in alone.notes
