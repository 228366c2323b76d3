"""Records of many ranks are collected in both ways with latency on each S3 request."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "collect.py"


@pytest.mark.s3
def test_the_benchmark_of_collecting(s3_server):  # the fixture skips where there is no server
    """The program itself compares what was collected with what the ranks had."""
    command = [sys.executable, str(BENCHMARK), "--ranks", "24", "--serial", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seconds = {
        name: float(re.search(rf"^{name}\s+([0-9.]+) s", done.stdout, re.MULTILINE)[1])
        for name in ("one GET after the other", "store, concurrently", "communicator, gather")
    }
    assert "(measured on 12, scaled)" in done.stdout
    assert all(taken > 0 for taken in seconds.values())
