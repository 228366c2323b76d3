"""The suite itself: what its tests may take for granted of the shell that they run in."""

from __future__ import annotations

import signal
import subprocess
import sys


def test_children_can_be_interrupted():
    code = "import signal; raise SystemExit(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_children_can_be_interrupted_where_the_shell_ignores_sigint():
    one = f"{__file__}::{test_children_can_be_interrupted.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", one]
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a child inherits it
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    finally:
        signal.signal(signal.SIGINT, former)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout
