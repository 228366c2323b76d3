"""Initialize, work, summarize in one process: what a run leaves, and that it is always the same."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import SIDE, tiny_cutouts, tiny_model, tiny_redshift, tiny_survey

from perseid.errors import BadInputError, BadModelError, NotFoundError, RunError
from perseid.pipeline import layout
from perseid.pipeline.events import RankEvent, RankState
from perseid.pipeline.initialize import initialize, plan
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.science import mahalanobis
from perseid.science.moments import Moments
from perseid.storage import Storage
from perseid.survey.cutouts import Cutouts
from perseid.survey.reader import write_cutouts

CAI_KEYS = {
    "total_cpu_time (seconds)",
    "total_cpu_memory (MB)",
    "execution_time (seconds/batch)",
    "num_batches",
    "batch_size",
    "device",
    "throughput_bps",
    "sample_persec",
    "result_path",
    "data_path",
    "s3_num_requests",
    "s3_total_time",
    "s3_avg_time",
    "s3_min_time",
    "s3_max_time",
    "s3_first_request_time",
    "s3_last_response_time",
}


def run(folder: Path, name: str, data: object, **more: object) -> tuple[Storage, dict]:
    """A whole run; its store and its summary."""
    model = folder / "model.onnx"
    if not model.exists():
        tiny_model(model)
    request = RunRequest.parse(
        {"data": data, "results": str(folder / name), "model": str(model), **more}
    )
    for item in initialize(request).items:
        work(item)
    storage = Storage(request.results_url)
    return storage, summarize(storage)


def table(storage: Storage) -> dict[str, np.ndarray]:
    read = pq.read_table(storage.local_path(layout.CATALOGUE))
    return {name: read[name].to_numpy() for name in read.column_names}


def test_a_whole_run(tmp_path: Path):
    survey = tiny_survey(tmp_path / "data", rows=103, per_partition=10)
    storage, summary = run(tmp_path, "run", str(tmp_path / "data"), world_size="4", batch_size="4")
    got = table(storage)
    assert list(got["object_id"]) == list(survey.object_id)
    assert [f"{1 + i // 10}.pt" for i in range(103)] == list(got["partition"])
    assert list(got["row"]) == [i % 10 for i in range(103)]
    np.testing.assert_allclose(got["z_pred"], tiny_redshift(survey), atol=1e-5)
    np.testing.assert_array_equal(got["z_spec"], survey.redshift)
    np.testing.assert_array_equal(got["label"], survey.label)
    assert not got["flag"].any()
    features = np.concatenate(
        [survey.magnitudes, survey.images.mean(axis=(2, 3)), survey.images.max(axis=(2, 3))], axis=1
    )
    expected = mahalanobis(features, Moments.of(features), {"embedding": 5, "residual": 10})
    np.testing.assert_allclose(got["anomaly_score"], expected, rtol=1e-4)
    assert sorted(got["anomaly_rank"]) == list(range(1, 104))
    assert (summary["status"], summary["rows"]["received"]) == ("complete", 103)
    best = int(np.argmin(got["anomaly_rank"]))
    assert summary["top"][0]["object_id"] == got["object_id"][best]
    assert len(summary["top"]) == 24
    kinds = {found["kind"]: found for found in summary["anomaly"]["detection"]}
    assert kinds["all"]["n"] == kinds["label 5"]["n"] == int((survey.label == 5).sum())
    assert kinds["all"]["roc_auc"] > 0.8
    assert summary["redshift"]["n"] == 103
    error = tiny_redshift(survey) - survey.redshift
    assert summary["redshift"]["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)


def test_the_objects_that_a_run_leaves(tmp_path: Path):
    tiny_survey(tmp_path / "data", rows=30, per_partition=10)
    storage, summary = run(tmp_path, "run", str(tmp_path / "data"), world_size=5)
    names = {layout.MANIFEST, layout.ITEMS, layout.PAYLOAD, layout.COMBINED, layout.SUMMARY}
    names |= {layout.CATALOGUE} | {layout.record(rank) for rank in range(5)}
    for rank in range(5):
        names |= {layout.predictions(rank), layout.features(rank), layout.moments(rank)}
    assert {info.key for info in storage.list()} == names
    assert all(layout.is_of_run(name) for name in names)
    combined = json.loads(storage.get(layout.COMBINED))
    assert [record["rank"] for record in combined] == [0, 1, 2]  # means have no zeros
    assert all(record.keys() >= CAI_KEYS for record in combined)
    assert [record["data_path"] for record in combined] == ["1.pt", "2.pt", "3.pt"]
    assert [record["rows"] for record in combined] == [10, 10, 10]
    assert summary["ranks"]["received"] == 5
    assert json.loads(storage.get("1.json")) == combined[1]
    assert json.loads(storage.get(layout.SUMMARY)) == summary
    payload = json.loads(storage.get(layout.PAYLOAD))
    assert payload["data_map"] == {"0": "1.pt", "1": "2.pt", "2": "3.pt", "3": None, "4": None}


def test_a_record_measures_its_rank(tmp_path: Path):
    tiny_survey(tmp_path / "data", rows=25, per_partition=25)
    storage, summary = run(tmp_path, "run", str(tmp_path / "data"), batch_size=4)
    record = json.loads(storage.get(layout.record(0)))
    assert (record["num_batches"], record["batch_size"], record["micro_batch"]) == (7, 4, 4)
    assert record["pixel_bits"] == 8 * 25 * (5 * SIDE * SIDE * 4 + 5 * 8)
    seconds = record["total_cpu_time (seconds)"]
    assert record["throughput_bps"] == pytest.approx(record["pixel_bits"] / seconds)
    assert record["sample_persec"] == pytest.approx(25 / seconds)
    assert record["execution_time (seconds/batch)"] == pytest.approx(seconds / (25 / 4))
    assert record["total_cpu_memory (MB)"] == pytest.approx(25 * 1000 / 1e6)
    stages = record["stages"]
    assert 0 < stages["inference"] <= stages["total"]
    assert {name for name, _, _ in record["timeline"]} == {"init", "fetch", "inference", "publish"}
    assert all(start <= end for _, start, end in record["timeline"])
    assert 30 < record["peak_memory_mb"] < 4000
    flow = summary["throughput"]
    assert flow["sum_of_workers_bps"] == pytest.approx(record["throughput_bps"])
    assert flow["map_bps"] == pytest.approx(record["pixel_bits"] / summary["timing"]["map"])
    assert flow["execution_bps"] == pytest.approx(record["pixel_bits"] / summary["timing"]["total"])
    spread = summary["workers"]["stage_seconds"]["inference"]
    assert set(spread) == {"p50", "p90", "p99", "max"}


def test_the_catalogue_does_not_depend_on_ranks_or_partition_sizes(tmp_path: Path):
    tiny_survey(tmp_path / "small", rows=205, per_partition=5)
    tiny_survey(tmp_path / "large", rows=205, per_partition=20)
    first, _ = run(tmp_path, "four", str(tmp_path / "small"), world_size=4)
    reference = table(first)
    for name, data, ranks in (("eight", "small", 8), ("all", "small", 41), ("l", "large", 3)):
        storage, _ = run(tmp_path, name, str(tmp_path / data), world_size=ranks)
        got = table(storage)
        for column in ("object_id", "z_pred", "z_spec", "label", "flag", "anomaly_rank"):
            np.testing.assert_array_equal(got[column], reference[column], err_msg=name)
        np.testing.assert_allclose(got["anomaly_score"], reference["anomaly_score"], rtol=1e-9)
        if data == "small":  # the same partitions: the same bits
            np.testing.assert_array_equal(got["anomaly_score"], reference["anomaly_score"])


def test_the_same_item_twice_writes_the_same_bytes(tmp_path: Path):
    tiny_survey(tmp_path / "data", rows=40, per_partition=10)
    request = RunRequest.parse(
        {
            "data": str(tmp_path / "data"),
            "results": str(tmp_path / "run"),
            "model": str(tiny_model(tmp_path / "m.onnx")),
            "world_size": 2,
        }
    )
    item = initialize(request).items[1]
    storage = Storage(request.results_url)
    keys = [layout.predictions(1), layout.features(1), layout.moments(1)]
    work(item)
    first = [storage.get(key) for key in keys]
    work(item, attempt=2)
    assert [storage.get(key) for key in keys] == first


def test_predictions_of_a_rank(tmp_path: Path):
    survey = tiny_survey(tmp_path / "data", rows=40, per_partition=10)
    storage, _ = run(tmp_path, "run", str(tmp_path / "data"), world_size=2)
    read = pq.read_table(storage.local_path(layout.predictions(1)))
    assert read.column_names == [
        *("object_id", "partition", "row", "z_pred", "z_spec", "label", "flag")
    ]
    assert read["object_id"].to_pylist() == list(survey.object_id[20:])
    assert set(read["partition"].to_pylist()) == {"3.pt", "4.pt"}
    assert pq.ParquetFile(storage.local_path(layout.predictions(1))).num_row_groups == 2


def test_rows_that_are_not_finite_keep_their_place(tmp_path: Path):
    good = tiny_cutouts(50)
    images, magnitudes = good.images.copy(), good.magnitudes.copy()
    images[3, 1, 2, 2] = np.nan
    images[10, 0, 0, 0] = np.inf
    magnitudes[20, 4] = -np.inf
    bad = Cutouts(images, magnitudes, good.redshift, good.object_id, good.label)
    (tmp_path / "data").mkdir()
    (tmp_path / "whole").mkdir()
    write_cutouts(bad, tmp_path / "data" / "1.pt")
    write_cutouts(good, tmp_path / "whole" / "1.pt")
    storage, summary = run(tmp_path, "run", str(tmp_path / "data"))
    whole, _ = run(tmp_path, "good", str(tmp_path / "whole"))
    got, reference = table(storage), table(whole)
    flagged = np.array([3, 10, 20])
    others = np.setdiff1d(np.arange(50), flagged)
    assert list(np.flatnonzero(got["flag"])) == list(flagged)
    assert np.isnan(got["z_pred"][flagged]).all()
    np.testing.assert_array_equal(got["z_pred"][others], reference["z_pred"][others])
    read = pq.read_table(storage.local_path(layout.CATALOGUE))
    assert [read["anomaly_rank"].to_pylist()[i] for i in flagged] == [None] * 3
    assert [read["anomaly_score"].to_pylist()[i] for i in flagged] == [None] * 3
    assert sorted(got["anomaly_rank"][others]) == list(range(1, 48))
    assert summary["status"] == "complete"
    assert summary["rows"] == {"expected": 50, "received": 50, "flagged": 3}
    assert "3 objects have no prediction" in summary["warnings"][0]
    assert summary["redshift"]["excluded"] == 3


def test_columns_that_a_survey_does_not_have(tmp_path: Path):
    full = tiny_cutouts(20)
    (tmp_path / "data").mkdir()
    write_cutouts(Cutouts(full.images, full.magnitudes), tmp_path / "data" / "1.npz")
    storage, summary = run(tmp_path, "run", str(tmp_path / "data"))
    read = pq.read_table(storage.local_path(layout.CATALOGUE))
    for column in ("object_id", "z_spec", "label"):
        assert read[column].null_count == 20
    assert summary["redshift"] is None
    assert summary["anomaly"]["detection"] == []
    assert summary["top"][0]["object_id"] is None


@pytest.mark.parametrize(("use", "width"), [("embedding", 5), ("residual", 10)])
def test_scores_by_one_group_of_features(tmp_path: Path, use: str, width: int):
    tiny_survey(tmp_path / "data", rows=60, per_partition=20)
    _, both = run(tmp_path, "both", str(tmp_path / "data"))
    _, one = run(tmp_path, use, str(tmp_path / "data"), anomaly=use)
    assert one["anomaly"]["features"] == {use: width}
    assert one["top"][0]["anomaly_score"] != both["top"][0]["anomaly_score"]


def test_no_scores_where_none_are_asked_for_or_to_be_had(tmp_path: Path):
    tiny_survey(tmp_path / "data", rows=20, per_partition=10)
    storage, summary = run(tmp_path, "none", str(tmp_path / "data"), anomaly="none")
    assert (summary["anomaly"], summary["top"], summary["warnings"]) == (None, [], [])
    assert pq.read_table(storage.local_path(layout.CATALOGUE))["anomaly_rank"].null_count == 20
    plain = tiny_model(tmp_path / "plain.onnx", groups=False)
    _, summary = run(tmp_path, "plain", str(tmp_path / "data"), model=str(plain))
    assert summary["anomaly"] is None
    assert "the model has no features" in summary["warnings"][0]
    given = {"data": str(tmp_path / "data"), "model": str(plain), "anomaly": "residual"}
    with pytest.raises(BadInputError, match="the model has no 'residual' features"):
        initialize(RunRequest.parse(given | {"results": str(tmp_path / "x")}))


def test_partitions_named_one_by_one(tmp_path: Path):
    tiny_survey(tmp_path / "a" / "x", rows=20, per_partition=10)
    tiny_survey(tmp_path / "a" / "y", rows=10, per_partition=10, seed=3)
    urls = [str(tmp_path / "a" / name) for name in ("y/1.pt", "x/2.pt", "x/1.pt")]
    _, summary = run(tmp_path, "run", urls, world_size=2)
    storage = Storage(tmp_path / "run")
    assert [p.key for p in Manifest.load(storage).partitions] == ["x/1.pt", "x/2.pt", "y/1.pt"]
    assert summary["rows"]["received"] == 30
    with pytest.raises(BadInputError, match="more than once"):
        initialize(RunRequest.parse({"data": [urls[0]] * 2, "results": "r"}))
    with pytest.raises(NotFoundError, match=r"9\.pt is not there"):
        plan(RunRequest.parse({"data": [str(tmp_path / "9.pt")], "results": "r"}))
    for other in ("s3://b/1.pt", "/1.pt"):
        with pytest.raises(BadInputError, match="different stores, or without a common folder"):
            plan(RunRequest.parse({"data": [urls[0], other], "results": "r"}))


def test_a_transport_that_is_not_to_be_had_is_said(tmp_path: Path):
    tiny_survey(tmp_path / "data", rows=20, per_partition=10)
    _, summary = run(tmp_path, "run", str(tmp_path / "data"), transport="auto")
    transport = summary["transport"]
    assert (transport["asked"], transport["used"], transport["ranks"]) == (
        *("auto", "store"), {"store": 2}
    )  # fmt: skip
    assert transport["reason"] == "the ranks had no rendezvous"
    assert "went through the store" in summary["warnings"][0]


def test_one_file_as_data(tmp_path: Path):
    tiny_survey(tmp_path / "data", rows=30, per_partition=10)
    _, summary = run(tmp_path, "run", str(tmp_path / "data" / "2.pt"))
    assert (summary["partitions"]["expected"], summary["rows"]["received"]) == (1, 10)
    with pytest.raises(NotFoundError, match="there is nothing at"):
        plan(RunRequest.parse({"data": str(tmp_path / "4.pt"), "results": "r"}))


def test_results_beside_the_partitions(tmp_path: Path):
    """Version 0.1 let a run be written into its data; its catalogue is not a partition of the
    next."""
    tiny_survey(tmp_path / "data", rows=20, per_partition=10)
    run(tmp_path, "former", str(tmp_path / "data"))
    shutil.copytree(tmp_path / "former", tmp_path / "data", dirs_exist_ok=True)
    _, summary = run(tmp_path, "run", str(tmp_path / "data"))
    assert summary["rows"]["received"] == 20


def test_the_same_object_twice_is_said(tmp_path: Path):
    tiny_survey(tmp_path / "data", rows=20, per_partition=10)
    (tmp_path / "data" / "3.pt").write_bytes((tmp_path / "data" / "1.pt").read_bytes())
    _, summary = run(tmp_path, "run", str(tmp_path / "data"))
    assert "10 objects have the id of another one" in summary["warnings"][0]
    assert summary["rows"]["received"] == 30


def test_the_default_model_gives_the_same_bits_in_any_partition(tmp_path: Path):
    whole = tiny_cutouts(131, side=32)
    found = []
    for rows in (131, 50, 9):
        (tmp_path / f"by{rows}").mkdir()
        for number, part in enumerate(whole.batches(rows), start=1):
            write_cutouts(part, tmp_path / f"by{rows}" / f"{number}.pt")
        storage, _ = run(
            tmp_path, f"run{rows}", str(tmp_path / f"by{rows}"), model="default", world_size=2
        )
        found.append(table(storage))
    for got in found[1:]:
        np.testing.assert_array_equal(got["z_pred"], found[0]["z_pred"])
        np.testing.assert_array_equal(got["anomaly_rank"], found[0]["anomaly_rank"])


def test_progress_is_reported_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    tiny_survey(tmp_path / "data", rows=30, per_partition=10)
    request = RunRequest.parse(
        {
            "data": str(tmp_path / "data"),
            "results": str(tmp_path / "run"),
            "model": str(tiny_model(tmp_path / "m.onnx")),
            "world_size": 1,
            "batch_size": 5,
        }
    )
    events: list[RankEvent] = []
    work(initialize(request).items[0], report=events.append, attempt=3)
    rows = [event.rows for event in events]
    assert rows == sorted(rows)
    assert rows[-1] == 30
    assert {event.attempt for event in events} == {3}
    assert [events[0].state, events[-1].state] == [RankState.RUNNING, RankState.DONE]
    assert capfd.readouterr() == ("", "")


def test_a_worker_imports_no_more_than_it_needs(tmp_path: Path):
    """A rank's whole work with numpy, onnxruntime and obstore alone."""
    tiny_survey(tmp_path / "data", rows=30, per_partition=10)
    given = {"data": str(tmp_path / "data"), "results": str(tmp_path / "run"), "world_size": 1}
    model = tiny_model(tmp_path / "m.onnx")
    (item,) = initialize(RunRequest.parse(given | {"model": str(model)})).items
    (tmp_path / "item.json").write_text(json.dumps(item.to_json()))
    code = (
        "import pathlib, sys\n"
        "from perseid.pipeline.items import WorkItem\n"
        "from perseid.pipeline.cold_start import load_runtime\n"
        "item, masked = WorkItem.from_json(pathlib.Path(sys.argv[1]).read_text()), []\n"
        "early = set(sys.modules)\n"
        "runtime = load_runtime(item)\n"
        "beside = set(sys.modules)\n"
        "from perseid.pipeline.work import work\n"
        "tell = lambda event: masked.append('numpy.ma' in sys.modules)\n"
        "rows = work(item, runtime=runtime, report=tell).rows\n"
        "found = {name.partition('.')[0] for name in sys.modules}\n"
        "files = {n: getattr(sys.modules[n], '__file__', '') or '' for n in found}\n"
        "print(rows, *sorted(n for n, f in files.items() if 'site-packages' in f))\n"
        "print(*sorted(sys.modules))\n"
        "print(*masked[:2])\n"
        "print(*sorted(name for name in early if name.startswith('perseid.')))\n"
        "print(*sorted(name for name in beside if name.startswith('perseid.')))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "item.json")]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split() for line in told.stdout.splitlines()]
    (rows, *packages), loaded, masked, early, beside = lines
    assert rows == "30"
    # A worker starts as quickly as its imports: these cost it a third of that time, for nothing.
    slow = {"asyncio", "csv", "email", "http.client", "statistics", "urllib.request", "xml.etree"}
    slow |= {f"perseid.rendezvous.{part}" for part in ("client", "protocol", "server")}
    assert not slow & set(loaded)
    # What is not needed to load the model is imported while it is being loaded.
    rest = {f"perseid.{name}" for name in ("pipeline.work", "pipeline.feed", "survey.reader")}
    assert not rest & set(early)
    assert rest <= set(beside)
    assert masked == ["False", "False"]  # at the start and after the first block
    assert {"numpy", "obstore", "onnxruntime"} <= set(packages)
    allowed = {"numpy", "obstore", "onnxruntime", "typing_extensions", "packaging", "flatbuffers"}
    assert {name for name in packages if not name.startswith("_")} <= allowed


def test_a_model_that_is_none(tmp_path: Path):
    tiny_survey(tmp_path / "data", rows=10, per_partition=10)
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    request = RunRequest.parse(
        {
            "data": str(tmp_path / "data"),
            "results": str(tmp_path / "run"),
            "model": str(tmp_path / "m.onnx"),
        }
    )
    with pytest.raises(BadModelError, match="not a model"):
        initialize(request)
    assert not (tmp_path / "run").exists()


def test_a_plan_writes_nothing(tmp_path: Path):
    tiny_survey(tmp_path / "data", rows=30, per_partition=10)
    request = RunRequest.parse(
        {
            "data": str(tmp_path / "data"),
            "results": str(tmp_path / "run"),
            "model": str(tiny_model(tmp_path / "m.onnx")),
            "file_limit": 2,
        }
    )
    assert plan(request).world_size == 2
    assert not (tmp_path / "run").exists()


def test_results_of_a_run_are_not_partitions_of_the_next(tmp_path: Path):
    """A run inside the data's folder leaves the listing as it was."""
    tiny_survey(tmp_path / "data", rows=30, per_partition=10)
    run(tmp_path, "former", str(tmp_path / "data"))
    (tmp_path / "former").rename(tmp_path / "data" / "run")
    storage, _ = run(tmp_path, "again", str(tmp_path / "data"))
    assert len(Manifest.load(storage).partitions) == 3


def test_summarize_without_a_run(tmp_path: Path):
    with pytest.raises(NotFoundError, match="there is no run at"):
        summarize(Storage(tmp_path))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BadInputError, match="manifest"):
        summarize(Storage(tmp_path))


def test_a_taken_prefix(tmp_path: Path):
    tiny_survey(tmp_path / "data", rows=10, per_partition=10)
    storage, _ = run(tmp_path, "run", str(tmp_path / "data"))
    former = Manifest.load(storage).run_id
    with pytest.raises(RunError) as caught:
        run(tmp_path, "run", str(tmp_path / "data"))
    for word in (former, "ended", "perseid resume", "`replace=True`"):
        assert word in str(caught.value)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    request = RunRequest.parse(
        {
            "data": str(tmp_path / "data"),
            "results": str(tmp_path / "run"),
            "model": str(tmp_path / "model.onnx"),
        }
    )
    begun = initialize(request, replace=True)
    assert begun.manifest.run_id != former
    assert {info.key for info in storage.list()} == {
        *(layout.MANIFEST, layout.ITEMS, layout.PAYLOAD, "notes.txt")
    }
