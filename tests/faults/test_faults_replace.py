"""A run that replaces another one and is killed before each single change that it makes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_survey

import perseid
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage

HOOK = Path(__file__).parents[1] / "support" / "killed"
MOST = 200
"""More changes than any of these runs makes."""
SECONDS = 180


@dataclass(frozen=True)
class Replacement:
    """Runs in one place, which a subprocess replaces."""

    folder: Path
    place: str

    def words(self, *more: str) -> list[str]:
        model, data = self.folder / "m.onnx", self.folder / "data"
        return ["run", "--data", str(data), "--model", str(model), "--out", self.place,
                "--workers", "1", "--quiet", *more]  # fmt: skip

    def call(self, *words: str, kill_at: int = 0) -> subprocess.CompletedProcess[str]:
        more = {}
        if kill_at:
            self.counter.unlink(missing_ok=True)
            more = {"PYTHONPATH": str(HOOK), "KILL_COUNTER": str(self.counter),
                    "KILL_AT": str(kill_at)}  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "perseid", *words], env={**os.environ, **more},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip

    @property
    def counter(self) -> Path:
        return self.folder / "changes"

    def objects(self) -> dict[str, bytes]:
        store = Storage(self.place)
        return {info.key: store.get(info.key) for info in store.list()}

    def put_back(self, objects: dict[str, bytes]) -> None:
        """Make the place what it was."""
        store = Storage(self.place)
        if (root := store.local_path()) is not None:
            shutil.rmtree(root)
        else:
            store.delete([info.key for info in store.list()])
        for key, data in objects.items():
            store.put(key, data)

    def after_the_kill(self, former: dict[str, bytes], run_id: str) -> str:
        """What is there now; fails unless one of the two runs is whole, or can be."""
        store = Storage(self.place)
        there = Manifest.load(store).run_id
        status = self.call("status", self.place)
        assert "Traceback" not in status.stderr
        if there == run_id:
            now = self.objects()
            assert {key for key in former if now.get(key) != former[key]} <= {"driver.json"}
            assert status.returncode == 0, status
            return "former run whole"
        if status.returncode == 0 and "complete" in status.stdout:
            whole = perseid.open_run(self.place).catalogue()
            assert len(whole) == 20
        done = self.call("resume", self.place, "--workers", "1", "--quiet")
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done
        run = perseid.open_run(self.place)
        assert (run.summary["status"], run.summary["run_id"]) == ("complete", there)
        assert len(run.catalogue()) == 20
        left = set(self.objects()) - set(former)
        assert left <= {"driver.json"}, "nothing of an interrupted step stays"
        return "new run, resumed to complete"


@pytest.fixture(params=["disk", "s3"])
def replacement(request: pytest.FixtureRequest, tmp_path: Path) -> Replacement:
    tiny_survey(tmp_path / "data", rows=20, per_partition=10)
    tiny_model(tmp_path / "m.onnx")
    bucket = "" if request.param == "disk" else request.getfixturevalue("s3").bucket()
    made = Replacement(tmp_path, f"{bucket}/run" if bucket else str(tmp_path / "run"))
    done = made.call(*made.words())
    assert done.returncode == 0, done
    return made


def killed_at(made: Replacement, number: int, former: dict[str, bytes], run_id: str) -> str | None:
    """Outcome of a kill before the change of this number; None if there are fewer changes."""
    done = made.call(*made.words("--replace"), kill_at=number)
    if done.returncode == 0:
        return None
    assert done.returncode == -signal.SIGKILL, done
    change = made.counter.read_text().splitlines()[number - 1].removeprefix("put run/")
    return f"{number:3d}  {change[-60:]:60s}  {made.after_the_kill(former, run_id)}"


def every_step(made: Replacement, numbers: range) -> list[str]:
    former, run_id = made.objects(), Manifest.load(Storage(made.place)).run_id
    lines = []
    for number in numbers:
        line = killed_at(made, number, former, run_id)
        if line is None:
            break
        print(line, flush=True)
        lines.append(line)
        made.put_back(former)
    return lines


@pytest.mark.slow
def test_a_replacement_that_is_killed_at_any_step_leaves_a_whole_run(replacement: Replacement):
    lines = every_step(replacement, range(1, MOST))
    assert 20 < len(lines) < MOST - 1
    assert lines[0].endswith("former run whole")
    assert lines[-1].endswith("resumed to complete")
