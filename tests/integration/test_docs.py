"""Every bash and python block of the docs runs as it stands, page by page, in order."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.M | re.S)
PAGES = sorted(p for p in DOCS.rglob("*.md") if BLOCK.search(p.read_text()))


def script_of(page: Path) -> str:
    """The page's blocks as one bash script that stops at the first failure."""
    parts = ["set -euo pipefail"]
    for language, code in BLOCK.findall(page.read_text()):
        parts.append(code if language == "bash" else f"python - <<'PYTHON'\n{code}PYTHON")
    return "\n".join(parts)


def run_page(page: Path, folder: Path) -> None:
    # A reader's machine: nothing of the servers that other tests have started.
    machine = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    temporary = TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True)  # a short path
    with (
        temporary as short,
        subprocess.Popen(
            ["bash", "-c", script_of(page)],
            cwd=folder,
            env={**machine, "PATH": path, "TMPDIR": short},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        ) as shell,
    ):
        try:
            out, err = shell.communicate(timeout=880)
        finally:  # servers that a page started end with it, also where it was cut off
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, f"{page.name}:\n{out}\n{err}"


MADE = re.compile(
    r"^perseid (?:run .*--out |train \S+ |simulate |calibrate .*--out |comm bench --constants )"
    r"(\S+)"
    r"|^cat > (\S+)",
    re.M,
)
"""What a command of a page makes, and refuses to make, or overwrites, if it is there."""


def test_pages_can_be_read_one_after_the_other() -> None:
    made: dict[str, Path] = {}
    for page in PAGES:
        code = "\n".join(code for _, code in BLOCK.findall(page.read_text()))
        for name in {next(filter(None, found.groups())) for found in MADE.finditer(code)}:
            assert name not in made, f"{page.name} makes {name}, and so does {made[name].name}"
            made[name] = page
    assert {"survey", "runs/first", "runs/second", "here.json", "mean.py"} <= set(made)


@pytest.fixture(scope="session")
def tutorial_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has after the tutorial: survey/, partitions/, runs/first/."""
    folder = tmp_path_factory.mktemp("tutorial")
    run_page(DOCS / "tutorial.md", folder)
    return folder


def test_the_tutorial(tutorial_folder: Path) -> None:
    assert (tutorial_folder / "runs/first/report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != "tutorial.md"], ids=lambda p: p.stem
)
def test_a_page_after_the_tutorial(page: Path, tutorial_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tutorial_folder, tmp_path, dirs_exist_ok=True)
    run_page(page, tmp_path)
