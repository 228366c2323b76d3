"""A payload file in exactly the published form, and all that it names in a bucket."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from perseid.storage import Storage

SCRIPT = Path(__file__).parent / "small_script.py"
KEYS = ("total_cpu_time (seconds)", "execution_time (seconds/batch)", "num_batches", "batch_size",
        "throughput_bps", "sample_persec", "result_path", "data_path")  # fmt: skip
"""Of each record that the script leaves."""
RESULTS = "result-partition-100MB/1GB/1"


def write(bucket: str, put_survey: Callable[..., None], path: Path) -> Path:
    """Fill the bucket; the file. Eleven partitions for four ranks, with the user's own script."""
    url = f"s3://{bucket}"
    put_survey(f"{url}/100MB", 11)
    folder = Storage(f"{url}/Anomaly Detection")
    folder.put("Inference/inference.py", SCRIPT.read_bytes())
    folder.put("Fine Tuned/weights.json", b'{"weight": 12.5}')
    given = {
        "bucket": bucket, "file_limit": "11", "batch_size": 512, "object_type": "folder",
        "S3_object_name": "Anomaly Detection",
        "script": "/tmp/Anomaly Detection/Inference/inference.py",
        "result_path": RESULTS, "data_bucket": bucket, "data_prefix": "100MB", "world_size": "4",
    }  # fmt: skip
    path.write_text(json.dumps(given))
    return path


def check(url: str) -> None:
    """What the script must have left of that payload."""
    records = json.loads(Storage(url).get("combined_data.json"))
    assert len(records) == 4
    for rank, record in enumerate(records):
        assert set(KEYS) <= set(record)
        assert record["rank"] == rank
        assert record["total_cpu_memory (MB)"] == 12.5
    files = [name for record in records for name in _names(record["data_path"])]
    assert files == [f"100MB/{n}.pt" for n in range(1, 12)]  # 1 to 11, not 1, 10, 11, 2 …


def _names(path: str | list[str]) -> list[str]:
    return [path] if isinstance(path, str) else path
