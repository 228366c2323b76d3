"""Tables and reports of a run that lies in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
from flaky import flaky_proxy
from tiny import tiny_model, tiny_survey

from perseid.cli import main
from perseid.engines.driver import start
from perseid.engines.local import LocalEngine
from perseid.engines.local.local_options import LocalOptions
from perseid.measure.sources.load import load_runs
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage

pytestmark = pytest.mark.s3


def test_a_run_in_a_bucket(
    s3_server: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.bucket()
    tiny_survey(tmp_path / "data", rows=30, per_partition=10)
    model = tiny_model(tmp_path / "model.onnx")
    store = Storage(f"{bucket}/data")
    for path in (tmp_path / "data").iterdir():
        store.put(path.name, path)
    place = f"{bucket}/result-partition-1MB/3MB/1"
    command = ["run", "--data", f"{bucket}/data", "--out", place, "--model", str(model), "--quiet"]
    assert main(command) == 0
    (run,) = load_runs([place])
    assert (run.received, run.expected, run.rows, run.is_complete) == (3, 3, 30, True)
    assert (run.partition, run.data) == ("1MB", "3MB")
    assert len(run.reports) == 3
    assert len(load_runs([bucket])) == 1, "the only run below the bucket"
    (record,) = load_runs([f"{place}/combined_data.json"])
    assert (record.received, record.rows) == (3, 30)
    capsys.readouterr()
    assert main(["table", place]) == 0
    assert "3/3" in capsys.readouterr().out
    assert main(["report", place]) == 0
    page = Storage(place).get("report.html").decode()
    assert page.count("<img ") == 24
    assert "3 ranks and 3 partitions, none missing" in page


def test_the_bill_counts_the_requests_that_were_made(
    s3_server: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a proxy before the store saw, but for the local engine's own notes and logs."""
    bucket = s3_server.bucket()
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    tiny_survey(tmp_path / "data", rows=40, per_partition=10, suffix=".pt")
    model = tiny_model(tmp_path / "model.onnx")
    store = Storage(f"{bucket}/data")
    for path in (tmp_path / "data").iterdir():
        store.put(path.name, path)
    request = RunRequest.parse(
        {"data": f"{bucket}/data", "results": f"{bucket}/run", "model": str(model),
         "transport": "store", "world_size": 3}
    )  # fmt: skip
    with flaky_proxy(s3_server.env["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        engine = LocalEngine(LocalOptions(workers=1))
        start(request, engine, lambda event: None)
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.env["AWS_ENDPOINT_URL"])
    own = ("/driver.json", "/engine.json", ".log")
    root = "/" + bucket.removeprefix("s3://")
    gets = puts = 0
    for (method, path), times in proxy.seen.items():
        if path.rstrip("/") == root:
            puts += times * (method == "GET")  # a listing
        elif not path.endswith(own):
            gets += times * (method in ("GET", "HEAD"))
            puts += times * (method == "PUT")
    (run,) = load_runs([f"{bucket}/run"])
    # The local engine reads what it has published once more, and lists logs and results.
    assert gets - 3 <= run.usage.s3_gets <= gets
    assert puts - 4 <= run.usage.s3_puts <= puts
