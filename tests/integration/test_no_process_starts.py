"""A machine on which no further process of this Python can be started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_survey

from perseid.cli import main

COMMANDS = {
    "run": ("run", "--data", "data", "--model", "m.onnx", "--out", "out", "--quiet"),
    "dry run": ("run", "--data", "data", "--model", "m.onnx", "--out", "out", "--dry-run"),
    "plan": ("plan", "--data", "data", "--deadline", "1h"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_whose_processes_cannot_be_started_says_so(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as by a user who may not run the interpreter; nothing is left of what had begun."""
    tiny_survey(tmp_path / "data", 20, 10)
    tiny_model(tmp_path / "m.onnx")
    program = tmp_path / "python"
    program.touch(mode=0o600)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(program))
    assert main(COMMANDS[command]) > 0
    assert f"no further process of {program} can be started: " in capsys.readouterr().err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_simulation_whose_processes_cannot_be_started_says_so(tmp_path: Path) -> None:
    """The pipe to a process that never was is broken; no reader of our output has gone."""
    program = tmp_path / "python"
    program.touch(mode=0o600)
    words = ["simulate", str(tmp_path / "out"), "--rows", "8", "--seed", "1", "--processes", "2"]
    line = f"import sys; sys.executable = {str(program)!r}; from perseid.cli import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{line}sys.exit(main({words!r}))"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode not in (0, 141), done
    assert "process" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*"))
