"""Libraries that are installed and cannot be loaded, and processes at their limits: a sentence."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_cutouts, tiny_model, tiny_survey

from perseid.errors import NotInstalledError
from perseid.libraries import library_error, limit_reached
from perseid.survey.reader import write_cutouts

REASON = "libfoo.so.7: cannot open shared object file"
BREAK = """
import sys
from importlib.abc import MetaPathFinder
class Broken(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {library!r}:
            raise ImportError({reason!r})
sys.meta_path.insert(0, Broken())
from perseid.cli import main
sys.exit(main({words!r}))
"""
"""A program that calls a command where the loader of a library fails."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libraries")
    tiny_survey(folder / "data", rows=4, per_partition=4)
    tiny_model(folder / "m.onnx")
    for suffix in ("parquet", "hdf5", "fits"):
        (folder / suffix).mkdir()
        write_cutouts(tiny_cutouts(4), folder / suffix / f"1.{suffix}")
    return folder


INFO = "survey info {0}/"
COMMANDS = {
    "numpy": INFO + "data", "pyarrow": INFO + "parquet", "h5py": INFO + "hdf5",
    "astropy": INFO + "fits", "obstore": "survey info s3://nowhere/data",
    "onnxruntime": "run --data {0}/data --model {0}/m.onnx --out {0}/run --quiet",
    "torch": "train {0}/data {0}/trained", "boto3": "aws doctor",
    "galsim": "simulate --rows 4 --seed 1 {0}/simulated",
}  # fmt: skip
"""A command that needs each library."""
OFTEN = ("numpy", "onnxruntime", "pyarrow")
"""Libraries that are tried each time; the others are slow tests, as a process each is."""


def often(values: Iterable[Any], chosen: Sequence[Any]) -> list[Any]:
    return [v if v in chosen else pytest.param(v, marks=pytest.mark.slow) for v in values]


@pytest.mark.parametrize("library", often(COMMANDS, OFTEN))
def test_a_library_that_cannot_be_loaded_is_a_sentence(library: str, place: Path):
    words = COMMANDS[library].format(place).split()
    program = BREAK.format(library=library, reason=REASON, words=words)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    [line] = done.stderr.splitlines()
    assert line.startswith("perseid: a library that is installed cannot be loaded")
    assert REASON in line
    assert "pip install" not in line, "it is installed"
    assert done.returncode in (1, 2)
    assert not (place / "run").exists()


@pytest.mark.parametrize("megabytes", often([60, 160, 200, 240, 400], [60, 400]))
def test_a_command_whose_memory_is_limited_ends_with_a_sentence(megabytes: int, place: Path):
    """`ulimit -v`, and job schedulers: which library fails first depends on the machine."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    words = COMMANDS["onnxruntime"].format(place).replace("/run ", f"/run-{megabytes} ").split()
    done = subprocess.run(
        [sys.executable, "-m", "perseid", *words], preexec_fn=limit, timeout=120,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    # NumPy's own library ends the process itself if it gets no memory for its threads.
    said = ("perseid: ", "OpenBLAS error: ")
    assert done.returncode == 0 or done.stderr.splitlines()[-1].startswith(said)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("libc.so: failed to map segment from shared object"), "memory is short"),
        (
            ImportError("PLEASE READ\n\nOriginal error was: libx.so: gone\n"),
            "libx.so: gone",
        ),
        (SyntaxError("expected ':'", ("/lib/cut.py", 7, 1, "", 7, 2)), "/lib/cut.py"),
        (MemoryError(), "too little memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "too little memory"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (OSError(errno.EISDIR, "Is a directory"), None),
        (RuntimeError("a fault of ours"), None),
        (KeyError("a"), None),
    ],
)
def test_what_a_limit_is_and_what_a_fault_of_ours(error: BaseException, said: str | None):
    found = limit_reached(error)
    if said is None:
        assert found is None
    else:
        assert said in str(found)
        assert "\n" not in str(found)


def test_a_failure_without_an_exception_is_a_lack_of_memory_where_memory_is_limited():
    program = (
        "import resource, sys\nfrom perseid.libraries import limit_reached\n"
        "error = SystemError('error return without exception set')\n"
        "print(limit_reached(error))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "print(limit_reached(error))\nprint(limit_reached(SystemError('a fault of ours')))\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    free, limited, other = done.stdout.splitlines()
    assert (free, other) == ("None", "None")
    assert limited.startswith("there is too little memory (`ulimit -v` allows 8,590 MB)")


def test_a_library_that_is_not_there_is_told_apart():
    needs = "HDF5 needs h5py: pip install h5py"
    absent = library_error(ModuleNotFoundError("h5py", name="h5py"), needs)
    broken = library_error(ImportError(REASON, name="h5py"), needs)
    assert isinstance(absent, NotInstalledError)
    assert str(absent) == needs
    assert REASON in str(broken)
    assert needs not in str(broken)
