"""What can happen to the driver: Ctrl-C, SIGTERM, SIGKILL, a second driver (faults 22, 23, 26).

Everything here is the real command line in its own process.
"""

from __future__ import annotations

import os
import signal

import pytest
from engine import FAULTY_RUN, MARK, PERSEID, Lab

from perseid.engines.log_lines import attempts_in


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path, monkeypatch)
    lab.survey(6)
    yield lab
    lab.clean()


RUN = ("run", "--data", "survey", "--model", "tiny.onnx", "--out", "run", "--workers", "2")
SLOW_TAIL = {rank: {"*": "sleep:600"} for rank in (2, 3, 4, 5)}


def begin_slow(lab):
    """A run that gets through ranks 0 and 1 and then takes for ever."""
    lab.faults(SLOW_TAIL)
    process = lab.begin(FAULTY_RUN, *RUN)
    lab.wait_for(lambda: {(2, 1), (3, 1)} <= set(lab.started()))
    lab.wait_for(lambda: (lab.folder / "run" / "1.json").exists())
    return process


def records(lab):
    return {rank: (lab.folder / "run" / f"{rank}.json").stat().st_mtime_ns for rank in (0, 1)}


def finish(lab, before):
    """Resume with healthy workers: only what is missing is done, and the result is whole."""
    lab.faults({})
    status, out, err = lab.call("resume", "run", command=FAULTY_RUN)
    assert status == 0, err
    assert "complete: 6 of 6 ranks, 6 of 6 partitions, 30 objects" in out
    assert "4 of 6 ranks are missing" in err
    assert records(lab) == before
    assert lab.started().count((0, 1)) == lab.started().count((1, 1)) == 1
    assert lab.catalogue().num_rows == 30
    attempts = {record["rank"]: record["attempt"] for record in lab.json("combined_data.json")}
    # 2 and 3 were at work when it ended, 4 and 5 had not begun
    assert attempts == {0: 1, 1: 1, 2: 2, 3: 2, 4: 1, 5: 1}
    assert attempts_in(lab.log(2)) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_no_process_and_goes_on_later(lab, number):
    process = begin_slow(lab)
    before = records(lab)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"perseid: stopped; `perseid resume {lab.folder / 'run'}` goes on" in err
    assert lab.none_left() == []
    assert not (lab.folder / "run" / "summary.json").exists()
    assert not (lab.folder / "run" / "driver.json").exists()
    finish(lab, before)


def test_a_second_ctrl_c_does_not_wait(lab):
    """Workers that ignore the first request get the whole grace period, unless asked again."""
    lab.faults({"*": {"*": "deaf"}})
    process = lab.begin(FAULTY_RUN, *RUN, GRACE="200")
    lab.wait_for(lambda: len(lab.started()) == 2)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)  # two signals of one number may arrive as one
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert lab.none_left() == []


def test_a_killed_driver_takes_its_workers_along_and_can_be_resumed(lab):
    child = lab.folder / "child"
    lab.faults({**SLOW_TAIL, 3: {"*": f"child:{child}"}})
    process = lab.begin(FAULTY_RUN, *RUN)
    lab.wait_for(child.exists)
    lab.wait_for(lambda: (lab.folder / "run" / "1.json").exists())
    # Logs are written by a thread: an attempt that is killed in its first moment leaves none.
    logs = [lab.folder / "run" / "logs" / f"{rank}.log" for rank in (2, 3)]
    lab.wait_for(lambda: all(log.exists() for log in logs))
    assert len(lab.processes()) >= 4
    before = records(lab)
    process.kill()
    process.communicate(timeout=20)
    assert lab.none_left() == []
    assert (lab.folder / "run" / "driver.json").exists()
    finish(lab, before)
    assert not (lab.folder / "run" / "driver.json").exists()


def test_a_run_in_work_is_not_taken_over_or_replaced(lab):
    process = begin_slow(lab)
    status, _, err = lab.call("resume", "run")
    assert status == 2
    assert f"process {process.pid} has been working on {lab.folder / 'run'}" in err
    status, _, err = lab.call(*RUN, "--replace")
    assert status == 2
    assert f"process {process.pid} has been working on" in err
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)


def test_of_two_runs_at_once_in_one_place_one_is_refused(lab):
    others = [lab.begin(PERSEID, *RUN) for _ in range(2)]
    ends = [(p.communicate(timeout=60), p.returncode) for p in others]
    assert sorted(code for _, code in ends) == [0, 2]
    loser = next(err for (_, err), code in ends if code == 2)
    assert "choose another place for results" in loser
    assert lab.catalogue().num_rows == 30
    assert lab.json("summary.json")["status"] == "complete"


def test_two_runs_at_once_in_two_places_do_not_touch(lab):
    names = ("one", "two")
    others = [lab.begin(PERSEID, *RUN[:6], name) for name in names]
    for process in others:
        process.communicate(timeout=60)
        assert process.returncode == 0
    ids = {name: {r["run_id"] for r in lab.json("combined_data.json", name)} for name in names}
    assert len(ids["one"]) == len(ids["two"]) == 1
    assert ids["one"] != ids["two"]
    assert lab.catalogue("one")["z_pred"].equals(lab.catalogue("two")["z_pred"])


def test_resuming_a_complete_run_leaves_it_as_it_is(lab):
    assert lab.call(*RUN)[0] == 0
    before = records(lab)
    summary = (lab.folder / "run" / "summary.json").read_bytes()
    status, out, err = lab.call("resume", "run")
    assert status == 0
    assert "the run is complete: nothing to do" in err
    assert "no rank was missing" in out
    assert records(lab) == before
    assert (lab.folder / "run" / "summary.json").read_bytes() == summary
    assert len(lab.json("engine.json")["attempts"]) == 6


def test_a_record_of_another_run_is_redone(lab):
    assert lab.call(*RUN)[0] == 0
    path = lab.folder / "run" / "4.json"
    path.write_text(path.read_text().replace(lab.json("manifest.json")["run_id"], "another"))
    (lab.folder / "run" / "5.json").unlink()
    status, _, err = lab.call("resume", "run")
    assert status == 0
    assert "2 of 6 ranks are missing" in err
    assert [a["rank"] for a in lab.json("engine.json")["attempts"]][6:] in ([4, 5], [5, 4])
    assert lab.json("4.json")["attempt"] == 2


def test_a_partition_that_cannot_be_read_is_named_and_stays_so(lab):
    partition = lab.folder / "survey" / "3.pt"
    partition.write_bytes(partition.read_bytes()[:200])
    status, out, err = lab.call(*RUN)
    assert status == 3
    assert "incomplete: 6 of 6 ranks, 5 of 6 partitions, 25 objects" in out
    assert "3.pt" in err
    assert "then start a new run" in err  # a mended file is another one than the run began with
    status, out, err = lab.call("resume", "run")
    assert status == 3
    assert "1 of 6 ranks are missing" in err
    assert "missing    3.pt" in out


def test_workers_have_their_own_environment_marker(lab):
    """The look-out for processes that are left sees what it should see."""
    process = lab.begin(("sleep", "60"))
    lab.wait_for(lambda: process.pid in lab.processes())
    assert os.environ[MARK] == lab.mark
    process.kill()
    process.communicate(timeout=10)
    assert lab.processes() == []
