"""Runs of a tiny survey on the real local engine, with workers that misbehave as told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny import tiny_model, tiny_survey

from perseid.engines.driver import RunResult, start
from perseid.engines.local import LocalEngine
from perseid.engines.local.local_options import LocalOptions
from perseid.engines.retry import RetryPolicy
from perseid.pipeline.events import Event
from perseid.pipeline.request import RunRequest

TESTS = Path(__file__).parent.parent
FAULTY_WORKER = (sys.executable, str(TESTS / "faults" / "faulty_worker.py"))
FAULTY_RUN = (sys.executable, str(TESTS / "faults" / "faulty_run.py"))
PERSEID = (sys.executable, "-m", "perseid")
MARK = "PERSEID_TEST_MARK"


@dataclass
class Lab:
    """A folder with a tiny survey and model, and what is needed to run it and to look on."""

    folder: Path
    monkeypatch: Any
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.monkeypatch.setenv("JOURNAL", str(self.folder / "journal"))
        self.monkeypatch.setenv(MARK, self.mark)

    def survey(self, partitions: int = 4, rows: int = 5) -> None:
        """Write the survey and the model."""
        tiny_model(self.folder / "tiny.onnx")
        tiny_survey(self.folder / "survey", partitions * rows, rows)

    def request(self, name: str = "run", **keys: Any) -> RunRequest:
        plain = {
            "data": str(self.folder / "survey"),
            "results": str(self.folder / name),
            "model": str(self.folder / "tiny.onnx"),
        }
        return RunRequest.parse(plain | keys)

    def faults(self, faults: Mapping[Any, Mapping[Any, str]]) -> None:
        """What goes wrong: {rank: {attempt: fault}}, ``*`` for all."""
        plain = {str(r): {str(a): f for a, f in by.items()} for r, by in faults.items()}
        self.monkeypatch.setenv("FAULTS", json.dumps(plain))

    def run(
        self, faults: Mapping[Any, Mapping[Any, str]] | None = None, *, name: str = "run",
        report: Callable[[Event], None] = lambda event: None,
        request: Mapping[str, Any] | None = None, **options: Any,
    ) -> RunResult:  # fmt: skip
        """A whole run in this process, with real worker processes."""
        self.faults(faults or {})
        settings = {"command": FAULTY_WORKER, "retry": RetryPolicy(2, 0.05), "workers": 2}
        engine = LocalEngine(LocalOptions(**(settings | options)))
        return start(self.request(name, **(request or {})), engine, report)

    def journal(self) -> list[tuple[int, int, str, int, float]]:
        """What the workers did: (rank, attempt, start or end, process, monotonic time)."""
        path = self.folder / "journal"
        if not path.exists():
            return []
        entries = [line.split() for line in path.read_text().splitlines()]
        return [(int(r), int(a), what, int(p), float(t)) for r, a, what, p, t in entries]

    def started(self) -> list[tuple[int, int]]:
        """(rank, attempt) of each attempt that began, sorted."""
        return sorted((rank, attempt) for rank, attempt, what, *_ in self.journal()
                      if what == "start")  # fmt: skip

    def begin(self, command: tuple[str, ...], *arguments: str, **changes: str) -> subprocess.Popen:
        """Start a program in the folder, its output piped as text."""
        return subprocess.Popen(
            [*command, *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **changes},
        )

    def call(self, *arguments: str, command: tuple[str, ...] = PERSEID, **changes: str):
        """Run a program to its end: (exit status, stdout, stderr)."""
        process = self.begin(command, *arguments, **changes)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def processes(self) -> list[int]:
        """Live processes that descend from this test, itself left out."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            try:
                environment = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"{MARK}={self.mark}".encode() in environment.split(b"\0") and state != "Z":
                found.append(int(entry.name))
        return found

    def none_left(self, within: float = 5.0) -> list[int]:
        """Processes that are still there after so many seconds."""
        deadline = time.monotonic() + within
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def wait_for(self, condition: Callable[[], Any], within: float = 30.0) -> None:
        """Until the condition holds."""
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, "it did not come to pass in time"
            time.sleep(0.02)

    def clean(self) -> None:
        """Kill what a failed test left behind."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def log(self, rank: int, name: str = "run") -> str:
        return (self.folder / name / "logs" / f"{rank}.log").read_text()

    def json(self, key: str, name: str = "run") -> Any:
        return json.loads((self.folder / name / key).read_text())

    def catalogue(self, name: str = "run") -> Any:
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / name / "catalogue.parquet")
