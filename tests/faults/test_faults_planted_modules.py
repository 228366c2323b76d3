"""Files in the current folder are no modules: neither of a command nor of what it starts."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_survey

import perseid

PLANTED = (
    "random", "json", "socket", "tempfile", "ctypes", "struct", "logging", "numpy", "onnxruntime",
    "obstore", "pip", "galsim", "pydantic", "secrets", "queue",
)  # fmt: skip
"""Modules that one of our processes imports sooner or later."""
SCRIPT = "import json, os; print(json.dumps(os.getpid()))"
COMMANDS = {
    "run": ("run", "--data", "data", "--model", "m.onnx", "--out", "run", "--workers", "2"),
    "dry run": ("run", "--data", "data", "--model", "m.onnx", "--out", "dry", "--dry-run"),
    "simulate": ("simulate", "sim", "--rows", "8", "--seed", "1", "--processes", "2"),
    "comm run": ("comm", "run", "-n", "2", "scripts/rank.py"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder full of planted modules, each of which tells when it is imported."""
    tiny_survey(tmp_path / "data", rows=20, per_partition=10)
    tiny_model(tmp_path / "m.onnx")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "rank.py").write_text(SCRIPT)
    said = f"open({str(tmp_path / 'imported')!r}, 'a').write(__name__ + '\\n')\n"
    for number, name in enumerate(PLANTED):
        path = tmp_path / f"{name}.py" if number % 2 else tmp_path / name / "__init__.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(said + "raise ImportError('planted')\n")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "program"), [*((name, "-m") for name in COMMANDS), ("run", "perseid")]
)
def test_no_module_comes_from_the_current_folder(folder: Path, command: str, program: str):
    """Nor by an empty part of PYTHONPATH, which means the current folder to Python's workers."""
    line = [sys.executable, "-m", "perseid"]
    if program == "perseid":
        line = [str(Path(sys.executable).with_name("perseid"))]
    done = subprocess.run(
        [*line, *COMMANDS[command]], cwd=folder, capture_output=True, text=True, timeout=120,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    imported = folder / "imported"
    assert not imported.exists(), imported.read_text()
    assert "planted" not in done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_no_rank_of_a_training_imports_from_the_current_folder(folder: Path):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'perseid[train]'")
    (folder / "perseid.py").write_text((folder / "json.py").read_text())
    line = [str(Path(sys.executable).with_name("perseid")), "train", "data", "w.npz"]
    line += ["--epochs", "1", "--pretrain-epochs", "0", "--config", "small"]
    done = subprocess.run(
        [*line, "--world-size", "2"],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert not (folder / "imported").exists(), done
    assert "planted" not in done.stderr


def test_every_module_that_we_start_is_started_without_the_current_folder():
    """In all commands that the package's source contains, -P stands before -m."""
    found = []
    for path in sorted(Path(perseid.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.List, ast.Tuple)):
                words = [getattr(word, "value", None) for word in node.elts]
                found += [(path.name, words[:at]) for at, word in enumerate(words) if word == "-m"]
    assert len(found) >= 6, "the commands are found"
    assert [place for place, before in found if "-P" not in before] == []


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A control group that may use half a core; a process joins it by writing to the file."""
    place = Path("/sys/fs/cgroup")
    v2 = (place / "cgroup.controllers").exists()
    group = (place if v2 else place / "cpu") / f"perseid-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("cpu.max" if v2 else "cpu.cfs_quota_us")).write_text("50000")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield group / "cgroup.procs"
    group.rmdir()


def test_a_quota_of_half_a_core_gives_one_worker(folder: Path, half_a_core: Path):
    line = [sys.executable, "-m", "perseid", *COMMANDS["run"][:-2]]
    done = subprocess.run(
        ["/bin/sh", "-c", f'echo $$ > {half_a_core}; exec "$@"', "sh", *line],
        cwd=folder, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "1 at once" in done.stdout
    engine = json.loads((folder / "run" / "engine.json").read_text())
    assert (engine["concurrency"], engine["cold_starts"]) == (1, 1)


def test_a_trailing_colon_in_the_path_is_no_folder_of_a_worker(folder: Path):
    """`export PYTHONPATH=$PYTHONPATH:` is common; the command itself has it, its workers not."""
    from perseid.engines.worker_command import worker_environment

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"/nowhere{os.pathsep}")
        environment = worker_environment(1)
    program = "import sys; print(sys.path)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=folder, env=environment, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert "'/nowhere'" in done.stdout
    assert str(folder) not in done.stdout
    assert "''" not in done.stdout
