"""Healthy runs on the local engine: many ranks, few workers, measured as on Lambda."""

from __future__ import annotations

import time

import numpy as np
import pytest
from engine import Lab

from perseid.engines import worker_speed
from perseid.engines.local.local_options import LocalOptions, cores
from perseid.engines.run_plan import make_plan
from perseid.errors import BadInputError, BadModelError, RunError
from perseid.measure.report_line import find_reports
from perseid.pipeline.checks import count_rows
from perseid.pipeline.events import RankEvent, RankState, StageEvent
from perseid.pipeline.initialize import plan
from perseid.storage import Storage


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path, monkeypatch)
    yield lab
    assert lab.none_left() == []


def columns(lab, name):
    table = lab.catalogue(name)
    names = ("object_id", "z_pred", "anomaly_score", "anomaly_rank")
    return {column: np.asarray(table[column]) for column in names}


def test_the_catalogue_does_not_depend_on_ranks_and_workers(lab):
    lab.survey(partitions=41, rows=4)
    found = {}
    for ranks, workers in ((1, 1), (4, 2), (8, 3), (41, 2)):
        name = f"run{ranks}"
        result = lab.run(name=name, request={"world_size": ranks}, workers=workers)
        assert result.incomplete is None
        assert result.summary["ranks"]["received"] == ranks
        found[ranks] = columns(lab, name)
    assert len(found[1]["object_id"]) == 164
    for ranks in (4, 8, 41):
        for column, values in found[1].items():
            assert np.array_equal(found[ranks][column], values), (ranks, column)


def test_workers_are_used_again_and_never_more_at_once_than_told(lab):
    lab.survey(partitions=12, rows=3)
    result = lab.run({"*": {"*": "sleep:0.5"}}, workers=3)
    journal = lab.journal()
    running = peak = 0
    for *_, what, _, _ in sorted(journal, key=lambda entry: entry[4]):
        running += 1 if what == "start" else -1
        peak = max(peak, running)
    assert peak == 3
    assert len({process for *_, process, _ in journal}) == 3
    cold = [a for a in result.mapped.attempts if a.cold]
    assert len(cold) == 3
    assert all(a.init_ms > 10 for a in cold)
    assert lab.json("summary.json")["workers"]["cold_starts"] == 3
    assert sum(record["cold_start"] for record in lab.json("combined_data.json")) == 3


def test_each_rank_is_measured_as_lambda_reports_it(lab):
    lab.survey(partitions=5)
    began = time.time()
    result = lab.run({"*": {"*": "sleep:0.1"}}, workers=2, memory_mb=1000)
    ended = time.time()
    for attempt in result.mapped.attempts:
        (report,) = find_reports(lab.log(attempt.rank))
        assert report.request_id == attempt.request_id
        assert report.duration_ms == pytest.approx(attempt.duration_ms, abs=0.006)
        assert report.billed_ms == attempt.billed_ms
        assert report.billed_ms >= report.duration_ms + (report.init_ms or 0) - 0.01
        assert report.billed_ms < report.duration_ms + (report.init_ms or 0) + 1.01
        assert report.memory_mb == 1000
        assert 20 < report.max_memory_mb < 400
        assert report.cold == attempt.cold
        assert attempt.duration_ms >= 1000 * attempt.work_seconds >= 100
        assert began <= attempt.started <= ended
    kept = lab.json("engine.json")
    assert kept["engine"] == "local"
    assert len(kept["attempts"]) == 5
    assert kept["cold_starts"] == 2
    assert kept["wall_seconds"] * 2 == pytest.approx(
        kept["work_seconds"] + kept["overhead_seconds"], abs=1e-6
    )


def test_events_tell_the_whole_story_in_order(lab):
    lab.survey(partitions=3)
    events = []
    lab.run(report=events.append)
    stages = [e.stage for e in events if isinstance(e, StageEvent)]
    assert stages == ["initialize", "map", "collectives", "summarize"]
    for rank in range(3):
        states = [e.state for e in events if isinstance(e, RankEvent) and e.rank == rank]
        unique = list(dict.fromkeys(states))
        assert unique == [RankState.WAITING, RankState.RUNNING, RankState.DONE]
    done = [e for e in events if isinstance(e, RankEvent) and e.state is RankState.DONE]
    assert sum(e.rows for e in done) == 15


def test_a_model_that_cannot_be_loaded_is_found_before_the_run_starts(lab):
    lab.survey(partitions=9)
    (lab.folder / "tiny.onnx").write_bytes(b"no model")
    with pytest.raises(BadModelError, match="is not a model that onnxruntime can load"):
        lab.run()
    assert not (lab.folder / "run").exists()


def test_a_former_run_in_the_way_is_refused_and_replaced_on_demand(lab):
    lab.survey()
    first = lab.run()
    with pytest.raises(RunError, match=f"belongs to run {first.manifest.run_id}"):
        lab.run()
    other = lab.folder / "run" / "notes.txt"
    other.write_text("mine")
    status, out, _ = lab.call("run", "--data", "survey", "--model", "tiny.onnx", "--out", "run",
                              "--replace", "--world-size", "2")  # fmt: skip
    assert status == 0
    assert "complete: 2 of 2 ranks" in out
    assert not (lab.folder / "run" / "3.json").exists()
    assert other.read_text() == "mine"


def test_a_plan_has_numbers_that_fit_the_survey(lab):
    lab.survey(partitions=6, rows=50)
    manifest = plan(lab.request(world_size=4))
    options = LocalOptions(workers=2)
    pace = worker_speed.measure(manifest.item(0), 1)
    assert pace.row_bytes == 5 * 8 * 8 * 4 + 6 * 8
    assert pace.rows_per_second > 1000
    assert 0.02 < pace.ready_seconds < 60
    assert 20 < pace.peak_mb < 400
    slow = worker_speed.at_rate(pace, 10.0)
    counts = count_rows(Storage(manifest.data_url), manifest.partitions)
    expected = make_plan(manifest, options, slow, counts)
    assert expected.rows == 300
    # 2 ranks of 2 files and 2 of 1: three files in a row, at 10 rows per second
    assert expected.map_seconds == pytest.approx(expected.rows / 20 + slow.ready_seconds, rel=0.1)
    assert expected.total_mb == 2 * expected.worker_mb
    assert expected.cost.total > 0
    assert not (lab.folder / "run").exists()


def test_calibration_names_a_model_that_is_none(lab):
    lab.survey()
    item = plan(lab.request()).item(0)
    (lab.folder / "tiny.onnx").write_bytes(b"no model")
    with pytest.raises(BadModelError, match=r"cannot be timed: .*tiny.onnx is not a model"):
        worker_speed.measure(item, 1)


def test_options_are_checked_and_default_to_the_cores():
    assert LocalOptions().concurrency == cores()
    assert LocalOptions(threads=cores()).concurrency == 1
    assert LocalOptions(workers=7).concurrency == 7
    for name in ("workers", "threads", "memory_mb", "timeout"):
        with pytest.raises(BadInputError, match=f"{name} must be above 0, not 0"):
            LocalOptions(**{name: 0})


def test_517_ranks_on_two_workers(lab):
    """The whole published number of 25MB partitions, tiny: nothing grows with the ranks."""
    lab.survey(partitions=517, rows=2)
    before = len(list_descriptors())
    result = lab.run(workers=2)
    assert result.incomplete is None
    assert result.summary["ranks"] == {"expected": 517, "received": 517, "missing": []}
    assert lab.catalogue().num_rows == 1034
    assert len(result.mapped.attempts) == 517
    assert sum(a.cold for a in result.mapped.attempts) == 2
    assert len(list_descriptors()) <= before + 8
    # Far above what is measured when the machine does nothing else (see the benchmarks page).
    assert result.mapped.overhead_per_rank < 0.25


def list_descriptors():
    from pathlib import Path

    return list(Path("/proc/self/fd").iterdir())
