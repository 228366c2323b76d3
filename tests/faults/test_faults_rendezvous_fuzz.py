"""Coverage-guided fuzzing of the parsers (PERSEID_FUZZ_SECONDS, 300 unless told otherwise)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parents[1] / "support" / "fuzz_rendezvous.py"
SECONDS = int(os.environ.get("PERSEID_FUZZ_SECONDS", "300"))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed (pip install 'perseid[fuzz]')",
)
def test_the_parsers_neither_crash_nor_hang_nor_grow(tmp_path):
    command = [sys.executable, str(FUZZER), f"-max_total_time={SECONDS}"]
    command += ["-rss_limit_mb=512", "-timeout=5", "-max_len=4096", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 100)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DONE" in done.stderr
    assert not list(tmp_path.iterdir())
