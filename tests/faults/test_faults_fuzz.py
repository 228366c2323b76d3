"""Coverage-guided fuzzing of the parsers of the rendezvous and of the communicator, both at once.

PERSEID_FUZZ_SECONDS says for how long (300 unless told otherwise).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
SECONDS = int(os.environ.get("PERSEID_FUZZ_SECONDS", "300"))
LIMITS = ("-rss_limit_mb=512", "-timeout=60", "-report_slow_units=60", "-max_len=4096")
"""Memory of the whole process, seconds of one input, and its bytes."""
PARSERS = ("rendezvous", "comm")
BETWEEN = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
"""A process begins with its parent's peak of memory, which libFuzzer then takes for its own: the
tests' process may have had a large one, the small one in between has not."""


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory):
    """Both fuzzers, running: {parser: (process, folder of what broke it)}."""
    running = {}
    for name in PARSERS:
        folder = tmp_path_factory.mktemp(name)
        program = [sys.executable, "-c", BETWEEN, sys.executable, str(SUPPORT / f"fuzz_{name}.py")]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [*program, f"-max_total_time={SECONDS}", *LIMITS, f"-artifact_prefix={folder}/"],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        running[name] = (process, folder)
    yield running
    for process, _ in running.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed (pip install 'perseid[fuzz]')",
)
@pytest.mark.parametrize("parser", PARSERS)
def test_the_parsers_neither_crash_nor_hang_nor_grow(fuzzers, parser):
    process, folder = fuzzers[parser]
    status = process.wait(SECONDS + 100)
    log = (folder / "log").read_text()
    assert status == 0, log[-3000:]
    assert "DONE" in log
    assert [path.name for path in folder.iterdir()] == ["log"]
