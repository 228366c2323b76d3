"""Temporary folders of killed runs: the next run removes its own kind, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import tiny_model, tiny_survey

from perseid.cli import main
from perseid.engines.local import scratch
from perseid.engines.local.scratch import ScratchFolder, remove_abandoned

HOLD = "import time; from perseid.engines.local.process import Reaper; g = Reaper(); print(g.folder, flush=True); time.sleep(600)"  # noqa: E501


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, of this process and its children."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def kill_with_children(process):
    """SIGKILL to the process and all it started, at the same moment as far as that goes."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()[1:]]
    chosen = [process.pid]
    for pid in chosen:
        chosen += [child for child, parent in pairs if parent == pid]
    assert len(chosen) > 1
    for pid in chosen[1:]:
        os.kill(pid, signal.SIGSTOP)  # so that the reaper does not clean up first
    for pid in chosen:
        os.kill(pid, signal.SIGKILL)
    process.wait(30)


def test_the_next_run_removes_what_a_killed_one_left(temporary, tmp_path, monkeypatch, capsys):
    started = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    left = started.stdout.readline().strip()
    kill_with_children(started)
    started.stdout.close()
    assert os.path.isdir(left), "else this test shows nothing"  # noqa: PTH112
    monkeypatch.chdir(tmp_path)
    tiny_survey(tmp_path / "survey", rows=10, per_partition=10)
    tiny_model(tmp_path / "tiny.onnx")
    assert main(["run", "--data", "survey", "--model", "tiny.onnx", "--out", "one", "--quiet"]) == 0
    assert [path for path in temporary.iterdir() if path.name.startswith("perseid")] == []


def test_folders_of_others_stay(temporary):
    mine = ScratchFolder()
    foreign, old, fresh = (temporary / f"{scratch.PREFIX}{name}" for name in ("uid", "old", "new"))
    for folder in (foreign, old, fresh):
        folder.mkdir()
    os.utime(old, (time.time() - 3600,) * 2)
    os.utime(foreign, (time.time() - 3600,) * 2)
    if os.getuid() == 0:
        os.chown(foreign, 12345, 12345)
    elsewhere = temporary / "kept"
    elsewhere.mkdir()
    (temporary / f"{scratch.PREFIX}link").symlink_to(elsewhere)
    remove_abandoned()
    names = {path.name.removeprefix(scratch.PREFIX) for path in temporary.iterdir()}
    expected = {mine.path.name.removeprefix(scratch.PREFIX), "new", "kept", "link"}
    assert names == expected | ({"uid"} if os.getuid() == 0 else set())
    mine.release()
    remove_abandoned()
    assert not mine.path.exists()


RACE = """
from perseid.engines.local.scratch import ScratchFolder
for _ in range(300):
    folder = ScratchFolder()
    assert folder.path.is_dir(), "another process took it for abandoned"
    folder.release()
"""


def test_many_that_begin_at_once_leave_each_others_folders_alone(temporary):
    started = [subprocess.Popen([sys.executable, "-c", RACE]) for _ in range(4)]
    assert [process.wait(120) for process in started] == [0] * 4
