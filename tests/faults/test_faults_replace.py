"""A run that replaces another one and is killed before each single change that it makes.

The two runs have different models and surveys, so that a mixture of both would be seen.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import WEIGHTS, tiny_model, tiny_survey

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
    answers: dict[str, list[float]]
    """The predictions of the former and of the new run."""

    def words(self, run: str, *more: str) -> list[str]:
        model, data = self.folder / f"{run}.onnx", self.folder / run
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

    def redshifts(self) -> list[float]:
        """The predictions in the catalogue that is there."""
        return perseid.open_run(self.place).catalogue().to_pandas()["z_pred"].tolist()

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
        records = {
            rank.rank: json.loads(store.get(f"{rank.rank}.json"))["run_id"]
            for rank in perseid.open_run(self.place).ranks if rank.done
        }  # fmt: skip
        assert set(records.values()) <= {there}
        if there == run_id:
            now = self.objects()
            assert {key for key in former if now.get(key) != former[key]} <= {"driver.json"}
            assert status.returncode == 0, status
            return "former run whole"
        ended = status.returncode == 0 and "complete" in status.stdout
        if ended:
            assert self.redshifts() == self.answers["new"]
        else:
            assert f"{len(records)} of 2 ranks have a record" in status.stdout
        done = self.call("resume", self.place, "--workers", "1", "--quiet")
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done
        run = perseid.open_run(self.place)
        assert (run.summary["status"], run.summary["run_id"]) == ("complete", there)
        assert self.redshifts() == self.answers["new"]
        left = set(self.objects()) - set(former)
        assert left <= {"driver.json"}, "nothing of an interrupted step stays"
        return "new run, resumed to complete"


@pytest.fixture(params=["disk", "s3"])
def replacement(request: pytest.FixtureRequest, tmp_path: Path) -> Replacement:
    """A complete run in its place; what is to replace it was computed elsewhere before."""
    for number, run in enumerate(("former", "new"), start=1):
        tiny_survey(tmp_path / run, rows=20, per_partition=10, seed=number)
        tiny_model(tmp_path / f"{run}.onnx", weights=WEIGHTS * number)
    bucket = "" if request.param == "disk" else request.getfixturevalue("s3").bucket()
    place = f"{bucket}/run" if bucket else str(tmp_path / "run")
    made = Replacement(tmp_path, place, {})
    for run in ("new", "former"):
        done = made.call(*made.words(run, "--replace"))
        assert done.returncode == 0, done
        made.answers[run] = made.redshifts()
    assert not set(made.answers["new"]) & set(made.answers["former"])
    return made


def killed_at(made: Replacement, number: int, former: dict[str, bytes], run_id: str) -> str | None:
    """Outcome of a kill before the change of this number; None if there are fewer changes."""
    done = made.call(*made.words("new", "--replace"), kill_at=number)
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
