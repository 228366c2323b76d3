"""Ranks lost during the collective merge: the run completes through the store and says so."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from engine import FAULTY_RUN, Lab
from same_bits import assert_same_bits

from perseid.errors import RunInterruptedError
from perseid.pipeline import layout

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path, monkeypatch)
    lab.survey(partitions=5)
    yield lab
    lab.clean()
    assert lab.none_left() == []


def meeting_faults(lab, faults):
    lab.monkeypatch.setenv("MEETING_FAULTS", json.dumps({str(r): f for r, f in faults.items()}))


def same(lab, one, other):
    """Both catalogues, bit for bit."""
    one, other = lab.catalogue(one), lab.catalogue(other)
    assert one.column_names == other.column_names
    left, right = (
        {name: t[name].to_numpy(zero_copy_only=False) for name in t.column_names}
        for t in (one, other)
    )
    assert_same_bits(left, left, right)


def test_the_local_engine_lets_the_ranks_meet(lab):
    result = lab.run(workers=2)
    transport = result.summary["transport"]
    assert (transport["asked"], transport["used"]) == ("auto", "direct")
    assert transport["connections"] == {"direct": 4}
    assert result.summary["warnings"] == []
    engine = lab.json("engine.json")
    assert engine["meeting_seconds"] > 0
    assert engine["cold_starts"] == 2, "workers are used again: ranks that are done hold none"
    assert (lab.folder / "run" / layout.MERGED).exists()
    store = lab.run(name="store", request={"transport": "store"}).summary["transport"]
    assert (store["used"], store["reason"]) == ("store", None)
    assert not (lab.folder / "store" / layout.MERGED).exists()
    same(lab, "run", "store")


@pytest.mark.parametrize(
    ("collective", "victim"), [("reduce", 1), ("bcast", 4), ("gather", 2), ("gather", 0)]
)
def test_a_rank_killed_in_the_middle_of_a_collective(lab, collective, victim):
    lab.run(name="store", request={"transport": "store"})
    meeting_faults(lab, {victim: f"{collective} kill"})
    result = lab.run(workers=5)
    assert [entry[0] for entry in lab.journal() if entry[2] == f"met-{collective}"] == [victim]
    transport = result.summary["transport"]
    assert (transport["asked"], transport["used"]) == ("auto", "store")
    assert (
        transport["reason"] == f"the process of rank {victim} was lost during the collective merge"
    )
    assert any("went through the store" in warning for warning in result.summary["warnings"])
    assert (result.incomplete, result.summary["status"]) == (None, "complete")
    assert len(result.mapped.attempts) == 5, "no inference was done again"
    records = lab.json("combined_data.json")
    assert [r["transport"] for r in records] == ["store"] * 5
    said = [r["transport_note"] for r in records if r["transport_note"]]
    if (collective, victim) != ("gather", 0):  # there the others have done their part and left
        assert any(f"Rank {victim}" in note for note in said), said
    same(lab, "run", "store")


def test_the_command_line_says_so(lab):
    meeting_faults(lab, {3: "gather kill"})
    arguments = ("--data", "survey", "--out", "run", "--model", "tiny.onnx", "--workers", "5")
    status, out, err = lab.call("run", *arguments, command=FAULTY_RUN)
    assert status == 0, err
    assert "complete: 5 of 5 ranks" in out
    assert (
        "note: transport is auto, but statistics went through the store: the process of rank 3 was "
        "lost during the collective merge"
    ) in out


def test_the_demo_with_a_killed_rank(lab):
    """`make demo KILL=3`: its run is this program."""
    lab.run(name="store", request={"transport": "store"})
    where = ("--data", "survey", "--out", "run", "--model", "tiny.onnx", "--world-size", "5")
    program = (sys.executable, str(SCRIPTS / "killed_run.py"))
    status, out, err = lab.call("--kill-rank", "3", *where, command=program)
    assert status == 0, err
    killed = re.search(r"kill -9 (\d+) .*worker of rank 3", out)
    assert int(killed[1]) not in lab.processes()
    assert "complete: 5 of 5 ranks" in out
    why = "the process of rank 3 was lost during the collective merge"
    assert f"note: transport is auto, but statistics went through the store: {why}" in out
    assert out.endswith(f"the run is complete, through the store: {why}\n")
    same(lab, "run", "store")
    make = ["make", "--dry-run", "demo", "KILL=3"]
    shown = subprocess.run(make, cwd=SCRIPTS.parent, capture_output=True, text=True, check=True)
    wanted = 'demo --rows 3000 --out demo --run-with "scripts/killed_run.py --kill-rank 3"'
    assert wanted in shown.stdout


def test_a_rank_that_stops_is_noticed_by_its_silence(lab):
    """SIGSTOP: no end of a stream; its process gives no sign of life."""
    meeting_faults(lab, {2: "gather stop"})
    lab.monkeypatch.setattr("perseid.engines.local.gang.SPARE_SECONDS", -85.0)  # 5 s in all
    result = lab.run(workers=5, request={"silence_timeout": 1.3})
    assert result.summary["transport"]["used"] == "store"
    assert result.summary["transport"]["reason"] == (
        "1 rank did not finish the collective merge in time"
    )
    ends = [r["timeline"][-1][2] for r in lab.json("combined_data.json")]
    assert max(ends) - min(ends) < 4, "the others knew soon"
    assert result.incomplete is None


def test_an_error_in_one_rank_is_told(lab):
    meeting_faults(lab, {1: "bcast raise:out of luck"})
    result = lab.run(workers=2)
    assert "out of luck" in result.summary["transport"]["reason"]
    assert result.summary["status"] == "complete"


def test_ranks_that_fail_before_are_tried_again_and_all_meet(lab):
    result = lab.run({0: {1: "kill"}, 3: {1: "raise:no luck", 2: "exit:7"}})
    assert result.summary["transport"]["used"] == "direct"
    assert result.summary["workers"]["retried"] == [0, 3]
    assert result.incomplete is None


def test_without_all_ranks_there_is_no_meeting_and_a_resumed_run_says_why(lab):
    from perseid.engines.driver import resume
    from perseid.engines.local import LocalEngine
    from perseid.engines.local.local_options import LocalOptions

    result = lab.run({3: {"*": "raise:no luck"}})
    assert result.summary["transport"]["reason"] == "1 of 5 ranks failed"
    engine = LocalEngine(LocalOptions(workers=1))
    result = resume(str(lab.folder / "run"), engine, lambda event: None)
    assert result.incomplete is None
    assert "only 1 of 5 ranks worked" in result.summary["transport"]["reason"]


def test_a_resumed_run_does_not_believe_what_was_merged_before(lab):
    """A partition that failed is mended: the former merge lacks it."""
    from perseid.engines.driver import resume
    from perseid.engines.local import LocalEngine
    from perseid.engines.local.local_options import LocalOptions

    good = (lab.folder / "survey" / "2.pt").read_bytes()
    (lab.folder / "survey" / "2.pt").write_bytes(b"nonsense")
    result = lab.run()
    assert result.summary["transport"]["used"] == "direct"
    assert "2.pt" in result.incomplete
    (lab.folder / "survey" / "2.pt").write_bytes(good)
    manifest = lab.json("manifest.json")
    manifest["partitions"][1]["etag"] = None
    manifest["partitions"][1]["size"] = len(good)
    (lab.folder / "run" / "manifest.json").write_text(json.dumps(manifest))
    engine = LocalEngine(LocalOptions(workers=1))
    result = resume(str(lab.folder / "run"), engine, lambda event: None)
    assert result.incomplete is None
    assert lab.catalogue().num_rows == 25


def test_too_many_ranks_for_auto(lab, monkeypatch):
    monkeypatch.setattr("perseid.engines.local.gang.MOST_RANKS", 4)
    result = lab.run()
    assert result.summary["transport"]["used"] == "store"
    assert "5 ranks on one machine are more than the 4" in result.summary["transport"]["reason"]
    asked = lab.run(name="direct", request={"transport": "direct"})
    assert asked.summary["transport"]["used"] == "direct"
    same(lab, "run", "direct")


def test_ctrl_c_while_the_ranks_meet(lab):
    meeting_faults(lab, {1: "gather sleep:600"})
    arguments = ("--data", "survey", "--out", "run", "--model", "tiny.onnx", "--workers", "3")
    process = lab.begin(FAULTY_RUN, "run", *arguments)
    lab.wait_for(lambda: any(entry[2] == "met-gather" for entry in lab.journal()))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == RunInterruptedError.exit_code
    assert "perseid resume" in err
    assert lab.none_left() == []
    status, out, err = lab.call("resume", "run")
    assert status == 0, err
    assert "complete: 5 of 5 ranks" in out
    assert lab.catalogue().num_rows == 25


def test_the_key_is_in_no_file(lab, monkeypatch):
    keys = []
    from perseid.engines.local import gang

    real = gang.job_key
    monkeypatch.setattr(gang, "job_key", lambda *given: keys.append(real(*given)) or keys[-1])
    lab.run()
    assert len(keys) == 1
    for path in (lab.folder / "run").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert keys[0] not in data
            assert keys[0].hex().encode() not in data
