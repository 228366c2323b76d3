"""mpi4py's own tests against ``perseid.compat.MPI``: how many pass, and which do not.

    python scripts/mpi4py_suite.py [-n RANKS] [--json FILE] [TEST_FILE...]

The tests are fetched from PyPI (the source distribution of the version below) and never stored in
this repository. Each test runs on all ranks at once, in a process per rank; it passes if it passes
on every rank. Tests of one file share their processes until one of them fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

VERSION = "4.1.2"
FILES = (
    "test_cco_obj", "test_cco_buf", "test_cco_vec", "test_cco_nb_buf", "test_cco_nb_vec",
    "test_p2p_obj", "test_p2p_buf", "test_comm", "test_request", "test_status", "test_op",
    "test_group", "test_msgzero", "test_threads",
)  # fmt: skip
"""Test files for the calls that ``perseid.compat.MPI`` has."""
FILE_SECONDS = 150.0
"""How long the tests of a file may take together; what hangs is ended then."""


def fetch(folder: Path) -> Path:
    """The folder of mpi4py's tests, downloaded by pip.

    Raises
    ------
    OSError
        The source distribution cannot be had.
    """
    source = ["--no-deps", "--no-binary", "mpi4py", "--no-build-isolation", f"mpi4py=={VERSION}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *source, "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    archives = list(folder.glob("mpi4py-*.tar.gz"))
    if not archives:
        raise OSError(f"mpi4py {VERSION} cannot be downloaded: {done.stderr.strip()[-300:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"mpi4py-{VERSION}" / "test"


# --- one rank's side -------------------------------------------------------------------------


def stand_in(tests: Path) -> None:
    """Have ``from mpi4py import MPI`` find ours, and the tests' own modules their folder."""
    from perseid.compat import MPI

    package = types.ModuleType("mpi4py")
    package.MPI = MPI  # type: ignore[attr-defined]
    package.rc = types.SimpleNamespace(threads=True, thread_level="multiple")  # type: ignore[attr-defined]
    sys.modules["mpi4py"], sys.modules["mpi4py.MPI"] = package, MPI
    sys.path.insert(0, str(tests))
    import arrayimpl  # of the tests

    # Memory of a GPU, and what only claims to be, is not taken by ours.
    kept = [one for one in arrayimpl.ArrayBackends if one.backend in ("array", "numpy")]
    arrayimpl.ArrayBackends[:] = [one for one in kept if "GPU" not in one.__name__]


class _Outcomes(unittest.TestResult):
    """What came of each test, by its name."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self._out = out
        self.outcomes: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._note(test, "failed: a rank hung or ended")

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        if self.outcomes[test.id()].endswith("hung or ended"):
            self._note(test, "passed")

    def _note(self, test: unittest.TestCase, said: str) -> None:
        self.outcomes[test.id()] = said
        self._out.write_text(json.dumps(self.outcomes))

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: object) -> None:
        if err is not None:
            self._failed(test, err)

    def addError(self, test: unittest.TestCase, err: object) -> None:
        self._failed(test, err)

    addFailure = addError

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._note(test, f"skipped: {reason}")

    def _failed(self, test: unittest.TestCase, err: object) -> None:
        kind, value, trace = err  # type: ignore[misc]
        while trace.tb_next:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        said = f"failed: {kind.__name__}: {str(value)[:200]} ({where})"
        self._note(test, said)
        if not issubclass(kind, AttributeError | NotImplementedError):
            self.stop()  # where a call is missing all ranks are still in step


def run_rank(tests: Path, out: Path, names: Sequence[str]) -> None:
    """Run tests in this process, one rank of several, and write what came of them."""
    stand_in(tests)
    suite = unittest.defaultTestLoader.loadTestsFromNames(list(names))
    with contextlib.redirect_stderr(io.StringIO()):
        suite.run(_Outcomes(out / f"{os.environ['RANK']}.json"))


# --- all ranks -------------------------------------------------------------------------------


def launch(tests: Path, ranks: int, names: Sequence[str], seconds: float) -> dict[str, str]:
    """Run tests on several ranks: what came of each that was begun."""
    from perseid.comm.launch import run_local

    with tempfile.TemporaryDirectory() as folder:
        command = [__file__, "--rank", str(tests), folder, *names]
        run_local(command, ranks, timeout=seconds)
        files = [Path(folder) / f"{rank}.json" for rank in range(ranks)]
        found = [json.loads(file.read_text()) for file in files if file.exists()]
    if len(found) < ranks:
        return {}
    together: dict[str, str] = {}
    for name in found[0]:
        each = [one.get(name, "failed: not reached on another rank") for one in found]
        worst = [one for one in each if one.startswith("failed")] or each
        together[name] = worst[0]
    return together


def names_of(tests: Path, file: str) -> list[str]:
    """The names of all tests of a file."""
    program = (
        f"import sys, unittest; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import mpi4py_suite, pathlib; mpi4py_suite.stand_in(pathlib.Path({str(tests)!r}))\n"
        "def walk(suite):\n"
        "    for one in suite:\n"
        "        if isinstance(one, unittest.TestSuite): walk(one)\n"
        "        else: print(one.id())\n"
        f"walk(unittest.defaultTestLoader.loadTestsFromNames([{file!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    return done.stdout.split()


def run_file(tests: Path, ranks: int, file: str) -> Iterator[tuple[str, str]]:
    """The outcome of each test of a file; after one that fails the rest begins again."""
    left = names_of(tests, file)
    if not left:
        yield file, "failed: its tests cannot be loaded"
    while left:
        found = launch(tests, ranks, left, FILE_SECONDS)
        known = [name for name in left if name in found]
        if not known or len(left) == 1:
            yield left[0], found.get(left[0], "failed: a rank hung or ended")
            left = left[1:]
            continue
        for name in known:
            yield name, found[name]
        left = [name for name in left if name not in found]


def main() -> int:
    """Fetch the tests, run them, and print what came of them."""
    if sys.argv[1:2] == ["--rank"]:
        run_rank(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-n", "--ranks", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--tests", type=Path, metavar="FOLDER", help="tests that are here already")
    parser.add_argument("files", nargs="*", default=FILES, metavar="TEST_FILE")
    options = parser.parse_args()
    outcomes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        tests = options.tests or fetch(Path(folder))
        for file in options.files:
            here = dict(run_file(tests, options.ranks, file))
            outcomes.update(here)
            count = Counter(said.split(":")[0] for said in here.values())
            print(f"{file:18s} {dict(count)}", flush=True)
            for name, said in here.items():
                if said.startswith("failed"):
                    print(f"    {name}: {said}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(outcomes, indent=1))
    count = Counter(said.split(":")[0] for said in outcomes.values())
    print(f"mpi4py {VERSION} on {options.ranks} ranks: {dict(count)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
