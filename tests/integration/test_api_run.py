"""`perseid.run` and `Run` as a Python programmer meets them, errors included."""

from __future__ import annotations

import json

import pytest
from engine import FAULTY_WORKER, Lab

import perseid
from perseid.api.runs import begin
from perseid.engines.local import LocalEngine
from perseid.engines.local.local_options import LocalOptions
from perseid.errors import PerseidError
from perseid.pipeline.events import RankEvent, RankState


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path, monkeypatch)
    lab.survey(partitions=3)
    monkeypatch.chdir(tmp_path)
    yield lab
    assert lab.none_left() == []


def run(**keys):
    given = {"model": "tiny.onnx", "engine": perseid.LocalEngine(workers=2), "progress": False}
    return perseid.run("survey", **(given | keys))


def test_results_go_to_a_fresh_place_and_nothing_is_printed(lab, capfd):
    first = run()
    assert list(lab.folder.glob("runs/survey-*/summary.json"))
    assert capfd.readouterr() == ("", "")
    assert first.summary["rows"]["received"] == 15
    assert first.result.summary == first.summary
    assert [rank.partitions for rank in first.ranks] == [("1.pt",), ("2.pt",), ("3.pt",)]
    assert first.ranks[2].seconds > 0
    assert first.id in repr(first)
    assert ">complete<" in first._repr_html_()
    assert "complete: 3 of 3 ranks" in str(first)


def test_events_come_to_a_function_of_ones_own(lab):
    events = []
    run(results="r", progress=events.append)
    done = [e for e in events if isinstance(e, RankEvent) and e.state is RankState.DONE]
    assert sorted(event.rank for event in done) == [0, 1, 2]


def test_several_runs_in_one_table_and_what_a_further_one_would_take(lab):
    """As the command line says it, which asks the same functions."""
    run(results="a")
    run(results="b", world_size=2)
    found = perseid.measurements("a", "b")
    assert [row["world"] for row in found.table("runs").rows] == [3, 2]
    status, out, _ = lab.call("table", "a", "b", "--json")
    assert status == 0
    assert json.loads(out) == found.table().to_json()
    assert [path.name for path in found.table().save("t.csv", "csv")] == [
        "t.csv",
        "t-partitions.csv",
    ]
    with pytest.raises(ValueError, match=r"b is not a single run of perseid \(there are 2\)"):
        found.report()
    page = perseid.measurements("a").report()
    page.save((lab.folder / "page.html").as_uri())
    assert (lab.folder / "page.html").read_text() == page.html
    expected = perseid.estimate("survey", model="tiny.onnx", results="c", rate=100.0)
    assert (expected.rows, expected.pace.rows_per_second) == (15, 100.0)
    assert not (lab.folder / "c").exists()


def test_a_list_of_partitions_and_a_whole_request(lab):
    some = perseid.run(
        ["survey/1.pt", "survey/3.pt"], model="tiny.onnx", results="some", progress=False
    )
    assert len(some.catalogue()) == 10
    request = perseid.RunRequest.parse({"data": "survey", "results": "r", "model": "tiny.onnx"})
    assert len(perseid.run(request, world_size=2, progress=False).ranks) == 2


def test_errors_are_those_that_a_python_programmer_catches(lab):
    run(results="r")
    with pytest.raises(RuntimeError, match="r belongs to run"):
        run(results="r")
    assert run(results="r", replace=True).incomplete is None
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        perseid.run("nowhere", progress=False)
    with pytest.raises(FileNotFoundError, match="there is no run at"):
        perseid.open_run("no/run")
    with pytest.raises(ValueError, match="world_size in the request is 0"):
        run(world_size=0)
    with pytest.raises(ValueError, match="there is no engine 'moon': choose one of local"):
        run(engine="moon")
    with pytest.raises(ValueError, match="cannot be detached"):
        run(detach=True)
    with pytest.raises(ValueError, match="has no rank 9: it has the ranks 0 to 2"):
        list(perseid.open_run("r").logs(9))


def test_a_run_that_cannot_begin_leaves_nothing(lab, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(lab.folder / "gone"))
    with pytest.raises(PerseidError, match="cannot write to the temporary folder"):
        run(results="r")
    assert not list(lab.folder.glob("r/*"))


def test_who_waits_no_longer_ends_a_run_that_cannot_be_detached(lab):
    lab.faults({1: {"*": "sleep:600"}})
    engine = LocalEngine(LocalOptions(workers=3, command=FAULTY_WORKER))
    request = perseid.RunRequest.parse({"data": "survey", "results": "r", "model": "tiny.onnx"})
    going = begin(request, engine, lambda event: None)
    lab.wait_for(lambda: going.status().done == 2)
    with pytest.raises(RuntimeError, match="has not ended within 0"):
        going.wait(0.2, progress=False)
    assert lab.none_left() == []
    assert not (lab.folder / "r" / "driver.json").exists()
    lab.faults({})
    assert perseid.resume("r", progress=False).incomplete is None
    assert json.loads((lab.folder / "r" / "summary.json").read_text())["status"] == "complete"
