"""A run's data and its results are apart, whatever names lead there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_survey

from perseid.errors import BadInputError
from perseid.pipeline.initialize import initialize, plan
from perseid.pipeline.overlap import refuse_overlap
from perseid.pipeline.request import RunRequest
from perseid.storage import Location, Storage


def at(url: str | Path) -> Location:
    return Location.parse(url)


@pytest.mark.parametrize(
    ("data", "results"),
    [
        ("s3://b/data", "s3://b/data"),
        ("s3://b/data", "s3://b/data/runs/1"),
        ("s3://b/runs/1/partitions", "s3://b/runs/1"),
        ("/d", "/d"),
        ("/d", "/d/../d/run"),
        ("/d/run", "file:///d"),
    ],
)
def test_neither_lies_in_the_other(data: str, results: str) -> None:
    with pytest.raises(BadInputError, match="another"):
        refuse_overlap(at(data), at(results))


@pytest.mark.parametrize(
    ("data", "results"),
    [
        ("s3://b/data", "s3://b/database"),
        ("s3://b/data", "s3://b/runs/1"),
        ("s3://b/data", "s3://other/data"),
        ("/d", "/data"),
        ("/data", "s3://b/data"),
    ],
)
def test_what_lies_beside_is_taken(data: str, results: str) -> None:
    refuse_overlap(at(data), at(results))


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(BadInputError, match="would lie in the data"):
        refuse_overlap(at(tmp_path / "data"), at(tmp_path / "link" / "run"))


def test_partitions_at_the_root_of_a_bucket_and_named_ones(tmp_path: Path) -> None:
    refuse_overlap(
        at("s3://b"), at("s3://b/result-partition-1MB/1GB/1"), results_may_lie_below=True
    )
    tiny_survey(tmp_path / "b", rows=4, per_partition=2)
    tiny_model(tmp_path / "m.onnx")
    existing = {"bucket": "b", "data_bucket": "b", "result_path": "r/1",
                "bucket_root": str(tmp_path), "model": str(tmp_path / "m.onnx")}  # fmt: skip
    assert len(plan(RunRequest.parse(existing)).partitions) == 2
    named = {"data": [str(path) for path in (tmp_path / "b").iterdir()],
             "results": str(tmp_path / "b" / "r"), "model": str(tmp_path / "m.onnx")}  # fmt: skip
    assert len(plan(RunRequest.parse(named)).partitions) == 2


@pytest.mark.parametrize("place", ["", "ranks/0", "elsewhere/in/it"])
@pytest.mark.parametrize("store", ["disk", "memory"])
def test_data_inside_a_run_are_refused(tmp_path: Path, place: str, store: str) -> None:
    tiny_survey(tmp_path / "data", rows=4, per_partition=2)
    tiny_model(tmp_path / "m.onnx")
    home = (
        str(tmp_path / "run") if store == "disk" else f"memory://runs-{place.replace('/', '-')}/run"
    )
    request = {"data": str(tmp_path / "data"), "results": home, "model": str(tmp_path / "m.onnx")}
    initialize(RunRequest.parse(request))
    inside = f"{home}/{place}".rstrip("/")
    Storage(inside).put("1.pt", (tmp_path / "data" / "1.pt").read_bytes())
    again = request | {"data": inside, "results": str(tmp_path / "other")}
    if store == "memory" and place == "elsewhere/in/it":
        return  # a request for each folder above would be needed to see it
    with pytest.raises(BadInputError, match="lie in the results of the run"):
        plan(RunRequest.parse(again))


def test_a_survey_with_a_manifest_of_its_own_is_no_run(tmp_path: Path) -> None:
    tiny_survey(tmp_path / "data", rows=4, per_partition=2)
    tiny_model(tmp_path / "m.onnx")
    (tmp_path / "data" / "manifest.json").write_text(json.dumps({"files": ["1.pt"]}))
    request = {"data": str(tmp_path / "data"), "results": str(tmp_path / "run"),
               "model": str(tmp_path / "m.onnx")}  # fmt: skip
    assert len(plan(RunRequest.parse(request)).partitions) == 2
