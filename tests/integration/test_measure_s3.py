"""Tables and reports of a run that lies in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_model, tiny_survey

from perseid.cli import main
from perseid.measure.load import load_runs
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
