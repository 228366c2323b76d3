"""The three steps on a real S3 server."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_s3 import BUCKET, error, serving
from tiny import tiny_cutouts, tiny_model, tiny_redshift, tiny_survey

from perseid.cli import main
from perseid.errors import BadInputError, NotFoundError, RunError
from perseid.pipeline import layout
from perseid.pipeline.initialize import initialize
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.pipeline.request_listing import list_partitions
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.storage import Storage
from perseid.survey.reader import write_cutouts

pytestmark = pytest.mark.s3


def payload(bucket: str, **more: object) -> dict:
    """A payload in exactly the existing form, for a bucket's name."""
    return {
        "bucket": bucket,
        "file_limit": "11",
        "batch_size": 512,
        "object_type": "folder",
        "result_path": "result-partition-100MB/1GB/1",
        "data_bucket": bucket,
        "data_prefix": "100MB",
        **more,
    }


def test_a_run_by_an_existing_payload(s3, tmp_path: Path):
    url = s3.bucket()
    survey = tiny_cutouts(120)
    for number, part in enumerate(survey.batches(10), start=1):
        write_cutouts(part, f"{url}/100MB/{number}.pt")
    model = tiny_model(tmp_path / "tiny.onnx")
    bucket = Storage(url)
    bucket.put("models/tiny.onnx", model)
    given = payload(url.removeprefix("s3://"), model=f"{url}/models/tiny.onnx")
    begun = initialize(RunRequest.parse(given))
    assert len(begun.items) == 11
    assert begun.items[10].partitions[0].key == "100MB/11.pt"
    for item in begun.items:
        work(item)
    results = bucket.at(given["result_path"])
    assert summarize(results)["status"] == "complete"
    combined = json.loads(bucket.get("result-partition-100MB/1GB/1/combined_data.json"))
    assert [r["data_path"] for r in combined] == [f"100MB/{n}.pt" for n in range(1, 12)]
    assert {r["result_path"] for r in combined} == {given["result_path"]}
    for record in combined:
        assert record["s3_num_requests"] >= 1
        assert 0 < record["s3_min_time"] <= record["s3_avg_time"] <= record["s3_max_time"]
        assert record["s3_first_request_time"] <= record["s3_last_response_time"]
    (tmp_path / "c.parquet").write_bytes(results.get(layout.CATALOGUE))
    got = pq.read_table(tmp_path / "c.parquet")
    np.testing.assert_allclose(got["z_pred"].to_numpy(), tiny_redshift(survey)[:110], atol=1e-5)
    assert set(got["partition"].to_pylist()) == {f"100MB/{n}.pt" for n in range(1, 12)}
    kept = json.loads(results.get(layout.PAYLOAD))
    assert kept == {**given, "data_map": {str(n): f"100MB/{n + 1}.pt" for n in range(11)}}
    assert not bucket.exists(layout.PAYLOAD)  # the bucket's root is for scripts alone


def test_any_number_of_objects_in_natural_order(s3):
    url = s3.bucket()
    bucket = Storage(url)
    request = RunRequest.parse({"data": f"{url}/many", "results": f"{url}/run"})
    with pytest.raises(NotFoundError, match="there is nothing at"):
        list_partitions(request)
    there = 0
    for count in (1, 999, 1000, 1001, 2001):
        with ThreadPoolExecutor(8) as pool:
            names = [f"many/{n}.pt" for n in range(there + 1, count + 1)]
            list(pool.map(lambda name: bucket.put(name, name.encode()), names))
        there = count
        listing = list_partitions(request)
        assert [ref.key for ref in listing.partitions] == [f"{n}.pt" for n in range(1, count + 1)]
        assert listing.warnings == ()
    few = list_partitions(RunRequest.parse({**request.given(), "file_limit": "11"}))
    assert [ref.key for ref in few.partitions] == [f"{n}.pt" for n in range(1, 12)]


def test_unrelated_keys_are_left_out(s3):
    url = s3.bucket()
    bucket = Storage(url)
    partitions = ("10.pt", "2.pt", "1.pt")
    for key in (*partitions, "sub/3.pt", "README.txt", ".hidden.pt", "4.pt.tmp", "5.json"):
        bucket.put(f"data/{key}", b"x")
    bucket.put("data-of-others/9.pt", b"x")
    request = RunRequest.parse({"data": f"{url}/data", "results": f"{url}/run"})
    assert [ref.key for ref in list_partitions(request).partitions] == ["1.pt", "2.pt", "10.pt"]
    bucket.put("data/3.npz", b"x")
    mixed = list_partitions(request)
    assert [ref.key for ref in mixed.partitions] == ["1.pt", "2.pt", "3.npz", "10.pt"]
    assert "several formats (npz, pt)" in mixed.warnings[0]
    other = RunRequest.parse({"data": f"{url}/data/sub/none", "results": f"{url}/run"})
    with pytest.raises(NotFoundError):
        list_partitions(other)
    bucket.put("texts/README.txt", b"x")
    with pytest.raises(BadInputError, match="holds no partition"):
        list_partitions(RunRequest.parse({"data": f"{url}/texts", "results": f"{url}/run"}))


def test_more_files_asked_for_than_there_are(s3):
    url = s3.bucket()
    Storage(url).put("data/1.pt", b"x")
    given = {"data": f"{url}/data", "results": f"{url}/run", "file_limit": 5}
    assert "there is only 1 partition" in list_partitions(RunRequest.parse(given)).warnings[0]


def test_a_bucket_that_is_not_there(s3):
    request = RunRequest.parse(payload("no-such-bucket-at-all"))
    with pytest.raises(
        NotFoundError,
        match=r"s3://no-such-bucket-at-all/\S+ is not there: there is no such bucket",
    ):
        initialize(request)


def put_partition(url: str, folder: Path) -> None:
    """A survey of one partition that the default model can read."""
    write_cutouts(tiny_cutouts(2, side=32), folder / "one.pt")
    Storage(url).put("data/1.pt", (folder / "one.pt").read_bytes())


@pytest.mark.parametrize("where", ["s3", "disk"])
def test_of_many_runs_at_one_place_exactly_one_begins(s3, where: str, tmp_path: Path):
    url = s3.bucket() if where == "s3" else str(tmp_path)
    put_partition(url, tmp_path)
    request = RunRequest.parse({"data": f"{url}/data", "results": f"{url}/run"})
    gate = threading.Barrier(8)

    def begin(_: int) -> object:
        gate.wait(30)
        try:
            return initialize(request).manifest.run_id
        except RunError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(begin, range(8)))
    winners = [end for end in ends if isinstance(end, str)]
    assert len(winners) == 1
    assert Manifest.load(Storage(f"{url}/run")).run_id == winners[0]
    for end in ends:
        if isinstance(end, RunError):
            assert "choose another place" in str(end)


def test_results_of_a_former_run_in_the_way(s3, tmp_path: Path):
    url = s3.bucket()
    storage = Storage(f"{url}/run")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda rank: storage.put(layout.record(rank), b"{}"), range(1100)))
    storage.put("thoughts.txt", b"keep me")
    put_partition(url, tmp_path)
    request = RunRequest.parse({"data": f"{url}/data", "results": f"{url}/run"})
    with pytest.raises(RunError, match=r"holds results of a former run .* `replace=True`"):
        initialize(request)
    initialize(request, replace=True)
    keys = {info.key for info in storage.list()}
    assert keys == {layout.MANIFEST, layout.ITEMS, layout.PAYLOAD, "thoughts.txt"}


def test_a_server_without_conditional_writes(tmp_path, monkeypatch, capsys):
    """The run does not begin and leaves nothing; without the lock it runs, with a warning."""

    def refuse(asked):
        if asked.method == "PUT" and {"if-none-match", "if-match"} & set(asked.headers):
            return error(501, "NotImplemented", "A header you provided implies functionality that "
                         "is not implemented")  # fmt: skip
        return None

    tiny_survey(tmp_path / "survey", 20, 10)
    words = ["run", "--data", str(tmp_path / "survey"), "--out", f"s3://{BUCKET}/run",
             "--model", str(tiny_model(tmp_path / "tiny.onnx")), "--workers", "1"]  # fmt: skip
    with serving() as server:
        server.answer = refuse
        monkeypatch.delenv("AWS_CONDITIONAL_PUT", raising=False)
        for name, value in {"AWS_ENDPOINT_URL": server.endpoint, "AWS_ACCESS_KEY_ID": "k",
                            "AWS_SECRET_ACCESS_KEY": "s"}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "AWS_CONDITIONAL_PUT=disabled" in said
        assert server.objects == {}
        monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
        for more in ([], ["--replace"]):
            assert main([*words, *more]) == 0
            assert "start one at a time" in " ".join("".join(capsys.readouterr()).split())
        assert main(words) != 0, "the place is taken all the same"
