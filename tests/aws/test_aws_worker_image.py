"""What a worker's image runs, without the image: AWS's bootstrap where torch is installed."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lambda_runtime import environment

from perseid.pipeline.initialize import initialize
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage

HERE = Path(__file__).parents[1]
PAGES = HERE.parent / "docs/how-to"
SCRIPT = HERE / "support/inference_script.py"
PYTHON = """#!/bin/sh
if [ -z "$PRIVATE" ]; then PRIVATE=1 exec unshare --mount "$0" "$@"; fi
mount --bind /dev/null /etc/passwd && mount --bind {names} /etc/nsswitch.conf || exit 1
unset HOME USER LOGNAME
exec {python} "$@"
"""
"""As on Lambda: the system has no name for the user, and there is no home."""


@pytest.mark.s3
def test_a_torch_script_in_the_worker_of_an_image(s3, put_survey, tmp_path):
    url, name = s3.bucket(), "Image Worker"
    bucket = Storage(url)
    bucket.put(f"{name}/Inference/inference.py", SCRIPT.read_bytes())
    bucket.put(f"{name}/Inference/helpers/__init__.py", b"")
    helper = b"def bits_of(tensor):\n    return tensor.nbytes * 8\n"
    bucket.put(f"{name}/Inference/helpers/metrics.py", helper)
    weights = io.BytesIO()
    torch.save(torch.ones(5), weights)
    bucket.put(f"{name}/Fine Tuned/weights.pt", weights.getvalue())
    put_survey(f"{url}/25MB", 1, rows=10)
    begun = initialize(RunRequest.parse({
        "bucket": url.removeprefix("s3://"), "data_bucket": url.removeprefix("s3://"),
        "data_prefix": "25MB", "batch_size": "4", "object_type": "folder", "S3_object_name": name,
        "script": f"/tmp/{name}/Inference/inference.py",
        "result_path": "result-partition-25MB/1GB/1",
    }))  # fmt: skip
    (tmp_path / "names").write_text("passwd: files\nhosts: files dns\n")
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable, names=tmp_path / "names"))
    python.chmod(0o755)
    handler = "perseid.aws.handlers.worker.handler"
    with environment(python, tmp_path, handler, tmp_path, s3.env) as image:
        done = image.invoke({"item": begun.items[0].to_json()}, 120, 120)
    assert done.kind == "response", (done.body, image.log.read_text())
    record = json.loads(bucket.get("result-partition-25MB/1GB/1/0.json"))
    assert record["data_path"] == "25MB/1.pt"
    assert record["num_batches"] == 3


def test_the_templates_of_pages_are_valid(tmp_path):
    linter = Path(sys.executable).parent / "cfn-lint"
    blocks = re.findall(r"```yaml\n(AWSTemplate.*?)```", _text("worker-image.md"), re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        done = subprocess.run([linter, path], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout


def _text(page: str) -> str:
    return (PAGES / page).read_text(encoding="utf-8")
