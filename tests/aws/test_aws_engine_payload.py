"""The existing payload as it is, its own script included, through the state machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perseid.cli import main
from perseid.storage import Storage

SCRIPT = Path(__file__).parents[1] / "support" / "small_script.py"
KEYS = ("total_cpu_time (seconds)", "execution_time (seconds/batch)", "num_batches", "batch_size",
        "throughput_bps", "sample_persec", "result_path", "data_path")  # fmt: skip


@pytest.fixture(scope="module")
def payload(stack, put_survey, tmp_path_factory):
    """A payload file in exactly the published form, and all it names in the bucket."""
    put_survey(f"{stack.bucket}/100MB", 11)
    folder = Storage(f"{stack.bucket}/Anomaly Detection")
    folder.put("Inference/inference.py", SCRIPT.read_bytes())
    folder.put("Fine Tuned/weights.json", b'{"weight": 12.5}')
    bucket = stack.outputs["Bucket"]
    given = {
        "bucket": bucket, "file_limit": "11", "batch_size": 512, "object_type": "folder",
        "S3_object_name": "Anomaly Detection",
        "script": "/tmp/Anomaly Detection/Inference/inference.py",
        "result_path": "result-partition-100MB/1GB/1", "data_bucket": bucket,
        "data_prefix": "100MB", "world_size": "4",
    }  # fmt: skip
    path = tmp_path_factory.mktemp("payload") / "payload.json"
    path.write_text(json.dumps(given))
    return path


def test_the_users_script_runs_and_its_records_are_combined(stack, payload, capsys):
    assert main(["run", str(payload), "--engine", "aws"]) == 0
    assert "complete: 4 of 4 ranks" in capsys.readouterr().out
    url = f"{stack.bucket}/result-partition-100MB/1GB/1"
    records = json.loads(Storage(url).get("combined_data.json"))
    assert len(records) == 4
    for rank, record in enumerate(records):
        assert set(KEYS) <= set(record)
        assert record["rank"] == rank
        assert record["total_cpu_memory (MB)"] == 12.5
    files = [name for record in records for name in _names(record["data_path"])]
    assert files == [f"100MB/{n}.pt" for n in range(1, 12)]  # 1 to 11, not 1, 10, 11, 2 …
    log = Storage(url).get("logs/2.log").decode()
    assert "rank 2 of 4 works on" in log
    assert main(["table", url, "--format", "csv", "--table", "runs"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("1GB,512,4,4/4,")


def _names(path):
    return [path] if isinstance(path, str) else path
