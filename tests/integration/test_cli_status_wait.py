"""``perseid status --wait`` of a run that another process works on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tiny import tiny_model, tiny_survey


def test_status_waits_until_a_run_of_this_machine_has_ended(tmp_path: Path) -> None:
    tiny_survey(tmp_path / "data", rows=60, per_partition=1)
    tiny_model(tmp_path / "m.onnx")
    perseid = [sys.executable, "-m", "perseid"]
    begin = [
        "run",
        "--data",
        "data",
        "--model",
        "m.onnx",
        "--out",
        "r",
        "--workers",
        "1",
        "--quiet",
    ]
    with subprocess.Popen([*perseid, *begin], cwd=tmp_path) as running:
        summary = tmp_path / "r" / "summary.json"
        deadline = time.monotonic() + 60
        while not (tmp_path / "r" / "0.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not summary.exists(), "it still runs"
        done = subprocess.run(
            [*perseid, "status", "r", "--wait", "--json"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert summary.exists(), "it did not wait"
        said = json.loads(done.stdout)
        assert (said["status"], said["records"], said["rows"]) == ("complete", 60, 60)
        told = json.loads(summary.read_text())
        assert said["seconds"] == told["timing"]["total"]
        assert said["usd"] == told["cost"]["total_usd"]
        assert running.wait(60) == 0
