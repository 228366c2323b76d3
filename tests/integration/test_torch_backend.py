"""torch.distributed over our communicator: every call, DDP and FSDP2, lost ranks, many launches."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'perseid[torch]'")

PROGRAM = Path(__file__).parents[1] / "support" / "torch_program.py"


def comm_run(program, *arguments, ranks=3, timeout=120, **environment):
    command = [sys.executable, "-m", "perseid", "comm", "run", "-n", str(ranks), str(program)]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=timeout, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_every_call_and_ddp_as_gloo(tmp_path):
    parts = ["reductions", "movements", "scattered_sums", "odd_tensors", "objects", "messages",
             "groups", "loader", "ddp"]  # fmt: skip
    done = comm_run(PROGRAM, *parts, GLOO_FILE=str(tmp_path / "gloo"))
    assert done.returncode == 0, done.stderr
    for part in parts:
        assert done.stdout.count(f"DONE {part}\n") == 3
    apart = [float(found) for found in re.findall(r"APART (\S+)", done.stdout)]
    assert len(apart) == 3
    assert max(apart) < 1e-5


@pytest.mark.slow
def test_fsdp2_trains_as_one_process_does():
    done = comm_run(PROGRAM, "fsdp")
    assert done.stdout.count("DONE fsdp\n") == 3, done.stderr


LOST = """
    import os, sys, time
    import torch, torch.distributed as dist
    import perseid.torch
    from perseid.errors import PeerLostError

    torch.set_num_threads(1)
    dist.init_process_group("perseid", init_method="perseid://")
    rank, lost = dist.get_rank(), int(sys.argv[1])
    net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2000, 500))
    x = torch.ones(1000, dtype=torch.float64)
    went_on = 0
    try:
        for step in range(10**6):
            if step == 3 and rank == lost:
                print("ENDS", time.time(), flush=True)
                os.kill(os.getpid(), 9)
            {call}
            went_on += 1
    except Exception as error:
        named = isinstance(error, PeerLostError) and error.rank == lost
        named = named or ("PeerLostError" in str(error) and f"Rank {{lost}}" in str(error))
        print("KNOWS", rank, named, time.time(), type(error).__name__, flush=True)
        if not named:
            print(str(error)[:2000], flush=True)
        if {failed_works}:
            print("WORK", not work.is_success(), flush=True)
            try:
                work.get_future().wait()
                print("FUTURE looks done")
            except Exception as again:
                print("FUTURE", "PeerLostError" in str(again) + type(again).__name__, flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize(
    ("call", "lost"),
    [
        pytest.param("dist.all_reduce(x)", 0, marks=pytest.mark.slow),
        ("work = dist.all_reduce(x, async_op=True); work.wait()", 1),
        ("net(torch.ones(4, 2000)).sum().backward()", 2),
        pytest.param(
            "dist.recv(x) if rank == 0 and step == 3 else dist.barrier()",
            1,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_killed_rank_is_named_in_all_others(tmp_path, call, lost):
    program = tmp_path / "lost.py"
    program.write_text(textwrap.dedent(LOST).format(call=call, failed_works="'work' in globals()"))
    done = comm_run(program, str(lost))
    knows = re.findall(r"KNOWS (\d) (\w+) (\S+) (\w+)", done.stdout)
    assert sorted(int(rank) for rank, *_ in knows) == [r for r in range(3) if r != lost], done
    assert {named for _, named, *_ in knows} == {"True"}, done.stdout
    end = float(re.search(r"ENDS (\S+)", done.stdout)[1])
    assert max(float(at) - end for *_, at, _ in knows) < 2  # 0.05 s is typical
    if "work" in call:
        assert done.stdout.count("WORK True") == done.stdout.count("FUTURE True") == 2


BY_TORCHS_VARIABLES = """
    import os, sys
    import torch, torch.distributed as dist
    import perseid.torch

    torch.set_num_threads(1)
    for name in list(os.environ):
        if name.startswith("PERSEID_"):
            del os.environ[name]
    rank, size, cycles = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(sys.argv[1])
    arguments = {}
    if cycles > 1:
        # With torch's variables alone, a rank that comes back sooner than the first one has left
        # meets the former store, whatever the backend.
        port = int(os.environ["MASTER_PORT"])
        store = dist.TCPStore("127.0.0.1", port, size, is_master=rank == 0)
        arguments = {"store": store, "rank": rank, "world_size": size}
    for attempt in range(cycles):
        dist.init_process_group("perseid", **arguments)
        one = torch.ones(3)
        for _ in range(3):
            dist.all_reduce(one)
        last = dist.all_reduce(torch.ones(50_000), async_op=True)  # nobody waits for it
        assert one[0] == dist.get_world_size() ** 3
        dist.destroy_process_group()
    print("CYCLES", attempt + 1)
"""


def cycles(tmp_path, count, **options):
    program = tmp_path / "cycles.py"
    program.write_text(textwrap.dedent(BY_TORCHS_VARIABLES))
    return comm_run(program, str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()),
                    **options)  # fmt: skip


def test_torchs_own_variables_are_enough(tmp_path):
    done = cycles(tmp_path, 3)
    assert done.stdout.count("CYCLES 3") == 3, done.stderr


@pytest.mark.slow
def test_a_thousand_times_in_standing_processes(tmp_path):
    done = cycles(tmp_path, 1000, timeout=1700)
    assert done.stdout.count("CYCLES 1000") == 3, done.stderr


@pytest.mark.slow
def test_a_hundred_launches(tmp_path):
    failed = []
    for launch in range(100):
        done = cycles(tmp_path, 1, timeout=300)
        if done.returncode or done.stdout.count("CYCLES 1") != 3:
            failed.append((launch, done.stdout[-500:], done.stderr[-2000:]))
    assert failed == []


REFUSED = {
    "a reduction that is unknown": (
        "dist.all_reduce(torch.ones(1), op=dist._make_nccl_premul_sum(2.0))",
        "reduces by SUM, AVG",
    ),
    "a sparse tensor": ("dist.all_reduce(torch.eye(3).to_sparse())", "dense tensors only"),
    "a tensor elsewhere": ("dist.all_reduce(torch.ones(1, device='meta'))", "tensors of the proc"),
    "a mean of truth values": (
        "dist.all_reduce(torch.ones(2, dtype=torch.bool), op=dist.ReduceOp.AVG)",
        "no average of tensors of bool",
    ),
    "bits of floating-point numbers": (
        "dist.reduce(torch.ones(2), 0, op=dist.ReduceOp.BAND)",
        "are of whole numbers",
    ),
    "parts that are not the whole": (
        "dist.distributed_c10d._get_default_group().alltoall_base("
        "torch.ones(3), torch.ones(3), [2], [2]).wait()",
        "do not make 3 rows",
    ),
    "parts that do not fit": (
        "dist.all_to_all_single(torch.ones(1), torch.ones(3), [1], [3])",
        "gives itself 3 elements and takes 1 of them",
    ),
}


def test_what_cannot_be_had_is_refused_by_a_sentence():
    import torch
    import torch.distributed as dist

    import perseid.torch  # noqa: F401  # registers the backend

    dist.init_process_group("perseid", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for call, sentence in REFUSED.values():
            with pytest.raises(Exception, match=re.escape(sentence)):
                exec(call, {"dist": dist, "torch": torch})
    finally:
        dist.destroy_process_group()


def test_a_program_outside_of_any_job_is_told_what_is_missing():
    import torch.distributed as dist

    import perseid.torch  # noqa: F401  # registers the backend

    with pytest.raises(ValueError, match="PERSEID_RANK and PERSEID_WORLD_SIZE"):
        dist.init_process_group("perseid", init_method="perseid://")


def test_importing_perseid_does_not_import_torch():
    program = "import sys, perseid, perseid.comm, perseid.rendezvous; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
