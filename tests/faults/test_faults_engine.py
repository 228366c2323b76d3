"""What can happen to a worker, on the real engine with real processes (faults 20, 21, 27)."""

from __future__ import annotations

import pytest
from engine import Lab

from perseid.engines.driver import resume, start
from perseid.engines.local.local_engine import LocalEngine
from perseid.engines.retry import RetryPolicy
from perseid.errors import RunInterruptedError
from perseid.measure.report_line import find_reports
from perseid.pipeline.attempts import Ending
from perseid.pipeline.events import RankEvent, RankState


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path, monkeypatch)
    lab.survey()
    yield lab
    assert lab.none_left() == []


def whole(lab, result, rows=20):
    """Every row once, and every rank received."""
    table = lab.catalogue()
    keys = list(zip(table["partition"].to_pylist(), table["row"].to_pylist(), strict=True))
    assert len(keys) == len(set(keys)) == rows
    return result.incomplete is None and result.summary["status"] == "complete"


ENDINGS = [
    ("raise:out of luck", Ending.RAISED, "RuntimeError: out of luck", "Function.Error"),
    ("kill", Ending.KILLED, "its process was killed (SIGKILL)", "Runtime.ExitError"),
    ("segv", Ending.KILLED, "its process was ended by SIGSEGV", "Runtime.ExitError"),
    ("exit:0", Ending.NO_RESULT, "exited with status 0 without a result", "Runtime.ExitError"),
    ("exit:7", Ending.NO_RESULT, "exited with status 7 without a result", "Runtime.ExitError"),
    ("nothing", Ending.NO_RESULT, "left no RANK.json", "Runtime.ExitError"),
    ("garbage", Ending.RAISED, "sent something that is not a message", "Function.Error"),
]


@pytest.fixture(scope="module")
def failing_once(tmp_path_factory):
    """One run in which each rank's first attempt ends in another way: (lab, result, events)."""
    with pytest.MonkeyPatch.context() as patch:
        lab = Lab(tmp_path_factory.mktemp("once"), patch)
        lab.survey(len(ENDINGS))
        events = []
        faults = {rank: {1: fault} for rank, (fault, *_) in enumerate(ENDINGS)}
        result = lab.run(faults, report=events.append)
        assert lab.none_left() == []
    return lab, result, events


@pytest.mark.parametrize("rank", range(len(ENDINGS)), ids=[fault for fault, *_ in ENDINGS])
def test_a_rank_that_fails_once_is_tried_again(failing_once, rank):
    lab, result, events = failing_once
    _, ending, said, error = ENDINGS[rank]
    said = said.replace("RANK", str(rank))
    assert whole(lab, result, rows=5 * len(ENDINGS))
    first, second = [a for a in result.mapped.attempts if a.rank == rank]
    assert (first.ending, second.ending) == (ending, Ending.DONE)
    assert said in first.message
    retrying = [
        event
        for event in events
        if isinstance(event, RankEvent) and (event.rank, event.state) == (rank, RankState.RETRYING)
    ]
    assert [event.attempt for event in retrying] == [1]
    assert said in retrying[0].message
    reports = list(find_reports(lab.log(rank)))
    assert [r.succeeded for r in reports] == [False, True]
    assert reports[0].error_type == error
    assert lab.json(f"{rank}.json")["attempt"] == 2
    assert lab.started().count((rank, 1)) == lab.started().count((rank, 2)) == 1


def test_a_rank_that_always_fails_is_named_and_the_others_go_on(lab):
    result = lab.run({1: {"*": "kill"}, 3: {"*": "raise:no luck"}})
    assert "ranks 1, 3 of 4" in result.incomplete
    assert sorted(result.mapped.failures) == [1, 3]
    assert result.summary["status"] == "incomplete"
    missing = {m["rank"]: m["reason"] for m in result.summary["ranks"]["missing"]}
    assert "SIGKILL" in missing[1]
    assert missing[3] == "RuntimeError: no luck"
    assert [m["key"] for m in result.summary["partitions"]["missing"]] == ["2.pt", "4.pt"]
    assert lab.started() == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2), (3, 3)]
    assert lab.catalogue().num_rows == 10


def test_bad_input_is_not_tried_again(lab):
    result = lab.run({0: {"*": "bad:1.pt is corrupt"}})
    assert lab.started().count((0, 1)) == 1
    assert len(lab.started()) == 4
    assert result.mapped.failures == {0: "1.pt is corrupt"}
    assert [a.ending for a in result.mapped.attempts if a.rank == 0] == [Ending.BAD_INPUT]


@pytest.mark.parametrize("fault", ["sleep:600", "stop"])
def test_a_hung_rank_is_ended_at_its_time_out(lab, fault):
    result = lab.run({0: {1: fault}}, timeout=1.5)
    assert whole(lab, result)
    first = next(a for a in result.mapped.attempts if (a.rank, a.attempt) == (0, 1))
    assert first.ending is Ending.TIMED_OUT
    assert first.message == "it was not done within 1.5 s"
    assert first.duration_ms >= 1500
    log = lab.log(0)
    assert "Task timed out after" in log
    assert next(find_reports(log)).status == "timeout"
    if fault != "stop":  # where it hung is in its log
        assert "faulty_worker.py" in log
        assert "in misbehave" in log


def test_a_rank_above_its_memory_is_ended_and_reported_as_lambda_does(lab):
    result = lab.run({0: {"*": "hog"}}, memory_mb=260, retry=RetryPolicy(1, 0.05))
    assert result.mapped.failures.keys() == {0}
    attempts = [a for a in result.mapped.attempts if a.rank == 0]
    assert [a.ending for a in attempts] == [Ending.OUT_OF_MEMORY] * 2
    assert all(260 < a.max_memory_mb < 500 for a in attempts)
    assert "above its 260 MB of memory" in result.mapped.failures[0]
    reports = list(find_reports(lab.log(0)))
    assert [r.error_type for r in reports] == ["Runtime.OutOfMemory"] * 2
    assert {r.memory_mb for r in reports} == {260}
    others = [a for a in result.mapped.attempts if a.rank != 0]
    assert len(others) == 3
    assert all(20 < a.max_memory_mb < 200 for a in others)


def test_a_rank_above_its_memory_has_twice_as_much_at_its_next_attempt(lab):
    """Where nobody chose the limit, and as far as the machine has it."""
    retry = RetryPolicy(2, 0.05)
    result = lab.run({0: {"1": "hog"}}, memory_mb=260, more_memory=True, retry=retry)
    attempts = [a for a in result.mapped.attempts if a.rank == 0]
    assert [(a.ending, a.memory_mb) for a in attempts] == [
        (Ending.OUT_OF_MEMORY, 260), (Ending.DONE, 520),
    ]  # fmt: skip
    assert [r.memory_mb for r in find_reports(lab.log(0))] == [260, 520]
    assert {a.memory_mb for a in result.mapped.attempts if a.rank != 0} == {260}
    assert LocalEngine().capabilities.more_memory
    assert not LocalEngine(memory_mb=2000).capabilities.more_memory


def test_ctrl_c_while_a_run_is_handed_over_says_how_to_find_it(lab):
    class Interrupted(LocalEngine):
        def submit(self, manifest, ranks=None):
            raise KeyboardInterrupt

    with pytest.raises(RunInterruptedError, match=r"`perseid status .*run` says whether it goes"):
        start(lab.request(), Interrupted(), lambda event: None)
    result = resume(str(lab.folder / "run"), LocalEngine(), lambda event: None)
    assert result.incomplete is None


def test_what_a_worker_started_goes_with_it(lab):
    child = lab.folder / "child"
    result = lab.run({0: {1: f"child:{child}"}}, timeout=1.5)
    assert whole(lab, result)
    assert child.exists()
    assert lab.none_left() == []


def test_workers_that_never_become_ready_end_the_run_soon(lab, monkeypatch):
    monkeypatch.setenv("INIT_FAULT", "exit")
    result = lab.run(retry=RetryPolicy(50, 0.01))
    assert result.mapped.failures.keys() == {0, 1, 2, 3}
    assert len(result.mapped.attempts) < 12
    assert "exited with status 3 without a result" in result.incomplete
    assert result.summary["ranks"]["received"] == 0


def test_a_worker_that_hangs_in_its_init_is_ended(lab, monkeypatch):
    monkeypatch.setenv("INIT_FAULT", "hang")
    result = lab.run(init_timeout=0.7, retry=RetryPolicy(0))
    assert {a.ending for a in result.mapped.attempts} == {Ending.TIMED_OUT}
    assert result.mapped.failures[0] == "it was not ready within 0.7 s of its start"


def test_a_program_that_is_not_there_is_said(lab):
    result = lab.run(command=("/no/such/program",), retry=RetryPolicy(0))
    assert "no process could be started" in result.mapped.failures[0]
    assert result.summary["status"] == "incomplete"


def test_a_program_that_ends_at_once_is_named(lab):
    result = lab.run(command=("/bin/false",), retry=RetryPolicy(1, 0.01))
    assert "its process exited with status 1 without a result" in result.mapped.failures[0]
    assert {a.ending for a in result.mapped.attempts} == {Ending.NO_RESULT}


def test_a_straggler_is_overtaken_by_a_second_attempt(lab):
    """It takes much longer than the others; its second attempt wins, the first is ended."""
    result = lab.run({0: {1: "sleep:600"}}, timeout=900.0)
    assert whole(lab, result)
    endings = {(a.attempt, a.ending) for a in result.mapped.attempts if a.rank == 0}
    assert endings == {(1, Ending.STOPPED), (2, Ending.DONE)}
    assert lab.json("0.json")["attempt"] == 2


def test_what_a_rank_prints_is_in_its_own_log_only(lab):
    lab.run({"*": {"*": "print:hello"}}, workers=1)
    for rank in range(4):
        log = lab.log(rank)
        assert log.count("hello") == log.count("HELLO") == 1
        assert log.index("START") < log.index("hello") < log.index("END")
