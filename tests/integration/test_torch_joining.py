"""torch.distributed by torch's own variables: where ranks meet, several groups, how they end."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'perseid[torch]'")

PROGRAM = Path(__file__).parents[1] / "support" / "torch_joining.py"


def joining(what, size=3, address="127.0.0.1", timeout=120, **variables):
    """What each rank printed; standard error is in the message if one fails to end."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        port = str(sock.getsockname()[1])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERSEID_")}
    running = []
    try:
        for rank in range(size):
            told = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": address}
            running.append(
                subprocess.Popen(
                    [sys.executable, str(PROGRAM), what, str(rank), str(size)],
                    env={**kept, "OMP_NUM_THREADS": "1", "MASTER_PORT": port, **told, **variables},
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        ends = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait(10)
    return [out if out else error[-3000:] for out, error in ends]


@pytest.mark.slow
def test_groups_beside_another_default_backend():
    for said in joining("beside_gloo"):
        assert "SUMS [2, 2] 3 3" in said, said
        assert "LEFT 0" in said


def own_address() -> str:
    from perseid.rendezvous.net.dialing import own_address

    return own_address("192.0.2.1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "variables", "encrypted"),
    [
        pytest.param("127.0.1.1", {}, False, id="another loopback address"),
        pytest.param("here", {}, True, id="the machine's address"),
        pytest.param("here", {"LOCAL_WORLD_SIZE": "2"}, False, id="all ranks of torchrun's here"),
    ],
)
def test_by_any_master_address(address, variables, encrypted):
    address = own_address() if address == "here" else address
    for said in joining("named", 2, address, **variables):
        assert f"SUM 2 ENCRYPTED {encrypted}" in said, said


@pytest.mark.slow
def test_a_job_that_a_mismatch_ended_is_made_again():
    for said in joining("again", 2):
        assert "NO ERROR" not in said, said
        assert said.count("MISMATCH") == 4, said
        assert said.count("SUM 2") == 4, said


@pytest.mark.slow
def test_an_interrupted_rank_is_lost_to_the_others():
    said = joining("interrupted", 2, timeout=60)
    assert "LOST 1" in said[0] or "INTERRUPTED" in said[1], said
    assert "INTERRUPTED" in said[1], said


def test_the_first_rank_ends_and_the_others_know_at_once():
    """It holds the rendezvous, and waits for the others' goodbyes: they must not wait for it."""
    said = joining("exits")
    end = float(re.search(r"ENDS (\S+)", said[0])[1])
    for other in said[1:]:
        rank, at = re.search(r"LOST (\d) (\S+)", other).groups()
        assert rank == "0"
        assert float(at) - end < 5, said  # join.LEAVE_SECONDS is 10
