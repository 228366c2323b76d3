"""Programs on many ranks from the command line; programs of FMI; relay and store as the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ranks import run_threads
from waiting import eventually

from perseid.comm import Communicator, cost_measurement
from perseid.comm.cost_model import Constants
from perseid.compat import fmi
from perseid.compat.fmi_config import load
from perseid.errors import (
    BadInputError,
    MismatchedCollectiveError,
    PerseidError,
    RendezvousTimeoutError,
)
from perseid.rendezvous import EmbeddedServer
from perseid.storage import Storage


def perseid(*arguments, timeout=60):
    command = [sys.executable, "-m", "perseid", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def script(folder, text):
    path = folder / "program.py"
    path.write_text(text)
    return path


# --- perseid comm ----------------------------------------------------------------------------


def test_comm_run_starts_a_program_on_every_rank(tmp_path):
    program = script(
        tmp_path,
        "import sys\n"
        "from perseid.comm import Communicator\n"
        "with Communicator.from_environment() as comm:\n"
        "    everyone = comm.gather((comm.rank, sys.argv[1]))\n"
        "    if comm.rank == 0: print(everyone)\n",
    )
    result = perseid("comm", "run", "-n", 3, program, "word")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "rank 0 | [(0, 'word'), (1, 'word'), (2, 'word')]"
    alone = subprocess.run(
        [sys.executable, program, "solo"], capture_output=True, text=True, check=True
    )
    assert alone.stdout.strip() == "[(0, 'solo')]"


def test_each_line_of_a_rank_carries_its_number(tmp_path):
    """Lines of ranks that print at once never mix; an unfinished last line is shown."""
    program = script(
        tmp_path,
        "import os, sys\n"
        "rank = os.environ['PERSEID_RANK']\n"
        "for n in range(2000): print(rank * 40, n)\n"
        "print('wrong', rank, file=sys.stderr)\n"
        "sys.stdout.write('€' * 50_000 + ' ' + rank)\n",
    )
    result = perseid("comm", "run", "-n", 3, program)
    assert result.returncode == 0, result.stderr
    by_rank = {rank: [] for rank in range(3)}
    for line in result.stdout.splitlines():
        match = re.fullmatch(r"rank (\d) \| (.*)", line)
        by_rank[int(match[1])].append(match[2])
    for rank, lines in by_rank.items():
        assert lines[:2000] == [f"{str(rank) * 40} {n}" for n in range(2000)]
        assert "".join(lines[2000:]).endswith(f"€ {rank}")
        assert set("".join(lines[2000:])) == {"€", " ", str(rank)}
    assert sorted(result.stderr.splitlines()) == [f"rank {r} | wrong {r}" for r in range(3)]


def test_a_rank_that_nobody_reads_on_ends(tmp_path):
    program = script(tmp_path, "while True: print('x' * 1000)\n")
    command = [sys.executable, "-m", "perseid", "comm", "run", "-n", "2", str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout.readline().startswith(b"rank ")
        running.stdout.close()
        assert running.wait(60) != 0


def test_what_a_rank_leaves_running_does_not_hold_up_the_command(tmp_path):
    program = script(
        tmp_path,
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(200)'])\n"
        "print('done')\n",
    )
    result = subprocess.run(
        [sys.executable, "-m", "perseid", "comm", "run", "-n", "1", str(program)],
        stdout=subprocess.PIPE, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "rank 0 | done\n")


def test_comm_run_tells_which_rank_failed_and_leaves_nothing_running(tmp_path):
    program = script(
        tmp_path,
        "import sys, time\n"
        "from perseid.comm import Communicator\n"
        "with Communicator.from_environment() as comm:\n"
        "    comm.barrier()\n"
        "    if comm.rank == 1: sys.exit(7)\n"
        "    comm.barrier()\n",
    )
    result = perseid("comm", "run", "-n", 3, program)
    assert result.returncode != 0
    assert "rank 1 exited with 7" in result.stderr
    assert "PeerLostError" in result.stderr


@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        (0, "at least 1 rank is needed, not 0"),
        (1_000_000, "1,000,000 ranks are too many for one machine"),
        (60, "of 60 could not be started (Too many open files)"),
    ],
)
def test_ranks_that_cannot_be_started_are_a_sentence(tmp_path, ranks, says):
    program = script(tmp_path, "import time\ntime.sleep(100)\n")
    words = [sys.executable, "-m", "perseid", "comm", "run", "-n", str(ranks), str(program)]
    result = subprocess.run(
        ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_comm_run_ends_a_program_that_hangs(tmp_path):
    program = script(tmp_path, "import time\ntime.sleep(100)\n")
    result = perseid("comm", "run", "-n", 2, "--timeout", 1, program)
    assert result.returncode == 124
    assert "was ended by signal 15" in result.stderr
    assert "the --timeout of 1 s expired" in result.stderr


def test_comm_run_does_not_wait_for_ranks_that_a_failed_one_left_behind(tmp_path):
    program = script(
        tmp_path,
        "import os, time\nif os.environ['PERSEID_RANK'] == '1': exit(3)\ntime.sleep(200)\n",
    )
    result = perseid("comm", "run", "-n", 3, program, timeout=100)
    assert "rank 1 exited with 3" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_comm_run_that_is_ended_leaves_nothing_running(tmp_path, number):
    text = "import os, time\nos.write(1, b'%d\\n' % os.getpid())\ntime.sleep(60)\n"
    program = script(tmp_path, text)
    command = [sys.executable, "-m", "perseid", "comm", "run", "-n", "2", str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        ranks = [int(running.stdout.readline().rpartition(b" ")[2]) for _ in range(2)]
        running.send_signal(number)
        said = running.communicate(timeout=20)[1]
    assert running.returncode == 128 + number
    assert b"perseid: stopped" in said
    for rank in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(rank, 0)


def test_comm_model_prints_times_and_prices(tmp_path):
    result = perseid("comm", "model", "gather", "-n", 517, "-m", 1000)
    assert result.returncode == 0, result.stderr
    assert "direct" in result.stdout
    assert "store" in result.stdout
    assert "USD" in result.stdout
    ways = tmp_path / "ways.json"
    ways.write_text('{"ways": {"direct": {"latency": 9.0}}}')
    slow = perseid("comm", "model", "barrier", "-n", 2, "-m", 0, "--constants", ways)
    assert "18 s" in slow.stdout
    assert "relay" in next(line for line in slow.stdout.splitlines() if "<-" in line)
    assert perseid("comm", "model", "sing").returncode == 2


def test_comm_bench_measures_this_machine(tmp_path):
    out = tmp_path / "numbers.json"
    result = perseid("comm", "bench", "-n", 2, "--iterations", 5, "--json", out)
    assert result.returncode == 0, result.stderr
    numbers = json.loads(out.read_text())
    columns = numbers["2"]["perseid"]
    assert {
        "barrier",
        "round trip 8 B",
        "round trip 64 MiB",
        "plain TCP 8 B",
        "plain TCP 64 MiB",
        "last start to first collective",
    } <= set(columns)
    assert all(0 < value < 60 for value in columns.values())
    assert "allreduce 1e6 doubles" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-m", "nan"], "no estimate of 'bcast' for 8 ranks and nan bytes"),
        (["--memory", "-1"], "--memory: '-1' is not a size of memory"),
        (["--constants", "no.json"], "no.json cannot be read: No such file"),
    ],
)
def test_comm_model_refuses_what_makes_no_sense_in_one_sentence(words, expected):
    result = perseid("comm", "model", "bcast", *words)
    assert result.returncode == 2
    assert result.stderr.startswith("perseid: ")
    assert expected in result.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--constants", "/proc/no/such"], "/proc/no/such cannot be written: No such file"),
        (["--iterations", "0"], "must be at least 1"),
        (["-n", "0"], "must be at least 1"),
        (
            ["-n", "1", "--iterations", "1", "--json", "/proc/no/such"],
            "/proc/no/such cannot be written: No such file",
        ),
    ],
)
def test_comm_bench_that_cannot_be_is_refused_in_one_sentence(words, expected):
    result = perseid("comm", "bench", *words)
    assert result.returncode == 2
    assert result.stderr.startswith("perseid: ")
    assert expected in result.stderr


def test_comm_bench_measures_the_models_constants(tmp_path):
    """What is written is what the model reads; nothing is left in the store."""
    path = tmp_path / "constants.json"
    more = ("--iterations", 20, "--store", tmp_path / "box")
    result = perseid("comm", "bench", "--constants", path, *more)
    assert result.returncode == 0, result.stderr
    direct, relay, store = Constants.load(path).transports
    assert 1e-6 < direct.latency < 0.05
    assert 1e-6 < relay.latency < 0.1
    assert 1e6 < relay.bandwidth <= relay.shared
    assert 1e-5 < store.latency < 1
    assert store.puts == 1
    assert 1 <= store.gets < 20
    assert not [entry for entry in (tmp_path / "box").rglob("*") if entry.is_file()]
    for line in ("direct", "relay", "store", "measured on"):
        assert line in result.stdout
    estimate = perseid("comm", "model", "send", "-n", 2, "-m", 0, "--constants", path)
    assert "constants: measured on" in estimate.stdout
    alone = perseid("comm", "bench", "--store", tmp_path / "box")
    assert alone.returncode == 2
    assert "--constants" in alone.stderr


# --- ways ------------------------------------------------------------------------------------


def exchange(comm):
    values = comm.allgather(np.full(50_000, comm.rank))
    assert [int(value[-1]) for value in values] == list(range(comm.world_size))
    into = np.empty(100_000)
    comm.Allreduce(np.full(100_000, 1.0), into)
    assert into.sum() == 100_000 * comm.world_size
    return comm.transports


def test_everything_goes_through_the_relay_where_that_is_asked_for():
    routes = run_threads(4, exchange, transport="relay")
    assert set(routes[0].values()) == {"relay"}


def through_store(store, size, function, timeout=20.0, **more):
    results, errors = [None] * size, {}

    def work(rank):
        try:
            with Communicator.join(
                "job", rank, size, store=store, timeout=timeout, **{"transport": "store", **more}
            ) as comm:
                results[rank] = function(comm)
        except BaseException as error:
            errors[rank] = error

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results, errors


def test_the_store_alone_is_enough_and_is_left_empty(tmp_path):
    store = Storage(tmp_path)
    results, errors = through_store(store, 5, exchange)
    assert not errors
    assert set(results[2].values()) == {"store"}
    assert list(store.list()) == []


def test_through_the_store_mismatches_and_missing_ranks_are_errors_too(tmp_path):
    def disagree(comm):
        comm.bcast(1) if comm.rank else comm.barrier()
        comm.barrier()

    _, errors = through_store(Storage(tmp_path / "one"), 2, disagree)
    assert all(isinstance(error, MismatchedCollectiveError) for error in errors.values()), errors
    assert len(errors) == 2

    def late(comm):
        if comm.rank == 0:
            comm.barrier()

    _, errors = through_store(Storage(tmp_path / "two"), 2, late, timeout=1.0)
    assert isinstance(errors[0], RendezvousTimeoutError)
    assert errors[0].missing == [1]


def test_a_store_is_needed_to_go_through_one():
    with pytest.raises(BadInputError, match="store"):
        Communicator.join("job", 0, 2, transport="store")
    with pytest.raises(BadInputError, match="rendezvous"):
        Communicator.join("job", 0, 2)


# --- FMI -------------------------------------------------------------------------------------

FMI_PROGRAM = """
import json, sys
import fmi

peer, peers, config, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
comm = fmi.Communicator(peer, peers, config, "stars", 512)
comm.hint(fmi.hints.fast)
number, real = fmi.types(fmi.datatypes.int), fmi.types(fmi.datatypes.double)
pair = fmi.types(fmi.datatypes.int_list, 2)
reals = fmi.types(fmi.datatypes.double_list, 3)
comm.barrier()
found = {}
found["bcast"] = comm.bcast(42 if peer == 1 else None, 1, number)
found["gather"] = comm.gather([peer, -peer], 0, pair)
found["scatter"] = comm.scatter(
    list(range(peers)) if peer == 0 else None, 0, fmi.types(fmi.datatypes.int_list, peers)
)
found["reduce"] = comm.reduce(peer + 1, 0, fmi.func(fmi.op.prod), number)
found["sum"] = comm.allreduce([peer * 0.5, 1.0, -2.0], fmi.func(fmi.op.sum), reals)
found["least"] = comm.allreduce(peer, fmi.func(fmi.op.min), number)
strict = fmi.func(fmi.op.custom, lambda a, b: 2 * a + b, False, False)
found["strict"] = comm.allreduce(peer, strict, number)
found["strict list"] = comm.allreduce([peer, 1], strict, pair)
found["scan"] = comm.scan(peer, fmi.func(fmi.op.max), number)
if peer == 0:
    comm.send([1.5, 2.5, 3.5], 1, reals)
elif peer == 1:
    found["recv"] = comm.recv(0, reals)
open(out, "w").write(json.dumps(found))
"""


def run_fmi(folder, config, peers):
    program = script(folder, FMI_PROGRAM)
    settings = folder / "fmi.json"
    settings.write_text(json.dumps(config))
    outs = [folder / f"{peer}.json" for peer in range(peers)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "perseid", "fmi-run", program, str(peer), str(peers),
             settings, outs[peer]]
        )
        for peer in range(peers)
    ]  # fmt: skip
    assert [process.wait(60) for process in processes] == [0] * peers
    return [json.loads(out.read_text()) for out in outs]


def check_fmi(found):
    assert all(one["bcast"] == 42 for one in found)
    assert found[0]["gather"] == [0, 0, 1, -1, 2, -2]
    assert found[1]["gather"] is None
    assert [one["scatter"] for one in found] == [[0], [1], [2]]
    assert [one["reduce"] for one in found] == [6, None, None]
    assert all(one["sum"] == [1.5, 3.0, -6.0] for one in found)
    assert all(one["least"] == 0 for one in found)
    assert all(one["strict"] == 2 * (2 * 0 + 1) + 2 for one in found)
    assert all(one["strict list"] == [4, 7] for one in found)
    assert [one["scan"] for one in found] == [0, 1, 2]
    assert found[1]["recv"] == [1.5, 2.5, 3.5]


def test_a_program_of_fmi_runs_unchanged(tmp_path):
    with EmbeddedServer() as server:
        host, port = server.address.split(":")
        direct = {"enabled": True, "host": host, "port": int(port), "max_timeout": 30_000}
        config = {"backends": {"Direct": direct, "Redis": {"enabled": False}}}
        check_fmi(run_fmi(tmp_path, config, 3))


def test_a_program_of_fmi_runs_over_the_bucket_alone(tmp_path):
    s3 = {"enabled": "true", "bucket_name": str(tmp_path / "bucket"), "max_timeout": 30_000}
    check_fmi(run_fmi(tmp_path, {"backends": {"S3": s3}, "model": {}}, 3))


def test_ranks_that_do_not_use_a_way_are_not_waited_for_there(tmp_path):
    """Two ranks exchange much, which goes directly; all meet through the bucket."""
    values = [float(number) for number in range(10_000)]
    much, found = fmi.types(fmi.datatypes.double_list, len(values)), {}

    def program(rank):
        with fmi.Communicator(rank, 3, str(tmp_path / "fmi.json"), "two-ways") as comm:
            if rank == 0:
                comm.send(values, 1, much)
            elif rank == 1:
                found["values"] = comm.recv(0, much)
            comm.barrier()
            found[rank] = sorted(comm._open)

    with EmbeddedServer() as server:
        host, _, port = server.address.partition(":")
        direct = {"enabled": True, "host": host, "port": int(port), "max_timeout": 10_000}
        s3 = {"enabled": True, "bucket_name": str(tmp_path / "bucket")}
        model = {"Direct": {"overhead": 50}, "S3": {"overhead": 1, "bandwidth": 0.01}}
        config = {"backends": {"Direct": direct, "S3": s3}, "model": model}
        (tmp_path / "fmi.json").write_text(json.dumps(config))
        threads = [threading.Thread(target=program, args=(rank,)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
    both = ["direct", "store"]
    assert found == {"values": values, 0: both, 1: both, 2: ["store"]}


def test_the_channel_is_chosen_by_the_hint_and_the_files_constants(tmp_path):
    path = tmp_path / "fmi.json"
    document = {
        "backends": {
            "Direct": {"enabled": True, "host": "localhost", "port": 1},
            "S3": {"enabled": True, "bucket_name": "stars", "s3_region": "eu-north-1"},
        },
        "model": {
            "Direct": {"overhead": 0.4, "bandwidth": 200, "server_price": 3600.0},
            "S3": {"overhead": 30, "bandwidth": 50, "put_price": 1e-9, "get_price": 1e-9},
            "FaaS": {"gib_second_price": 1e-12},
        },
    }
    path.write_text(json.dumps(document))
    config = load(path, 1024)
    assert [(way.name, way.latency, way.bandwidth) for way in config.transports] == [
        ("direct", pytest.approx(0.4e-3), 200e6),
        ("store", pytest.approx(30e-3), 50e6),
    ]
    assert (config.bucket, config.region) == ("s3://stars", "eu-north-1")
    assert config.rates.server_second == 1.0
    from perseid.comm.cost_model import choose

    assert choose("bcast", 8, 100, "fast", config.transports, config.rates).transport == "direct"
    assert choose("bcast", 8, 100, "cheap", config.transports, config.rates).transport == "store"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"backends": {"Direct": {"enabled": true}}}', '{"backends": 3}']
)
def test_a_configuration_that_enables_nothing_is_refused(tmp_path, text):
    path = tmp_path / "fmi.json"
    path.write_text(text)
    with pytest.raises(BadInputError):
        load(path, 128)


def test_fmi_values_are_checked(tmp_path):
    path = tmp_path / "fmi.json"
    path.write_text('{"backends": {"Direct": {"enabled": true, "host": "localhost", "port": 1}}}')
    comm = fmi.Communicator(0, 1, str(path), "alone")
    numbers = fmi.types(fmi.datatypes.int_list, 3)
    with pytest.raises(BadInputError):
        comm.send([1, 2], 0, numbers)
    with pytest.raises(BadInputError):
        comm.send(["a", "b", "c"], 0, numbers)
    with pytest.raises(BadInputError):
        fmi.func(fmi.op.custom)
    with pytest.raises(BadInputError):
        fmi.func(fmi.op.sum, lambda a, b: a)
    assert numbers.nbytes == 12


def arrive_late(comm):
    """Rank 0 comes to its calls late, and needs nothing from rank 1 in the last one."""
    if comm.rank == 0:
        time.sleep(1.0)
    value = comm.bcast("late" if comm.rank == 0 else None)
    comm.gather(comm.rank)
    if comm.rank == 0:
        time.sleep(1.0)
    return value, comm.bcast("later" if comm.rank == 0 else None)


def test_a_rank_that_had_to_wait_leaves_nothing_in_the_store(tmp_path):
    store = Storage(tmp_path)
    results, errors = through_store(store, 3, arrive_late)
    assert not errors
    assert results == [("late", "later")] * 3
    assert list(store.list()) == []


@pytest.mark.s3
def test_the_store_may_be_a_bucket(s3):
    """Messages and the model's constants through a real S3 server; nothing stays there."""
    bucket = Storage(s3.bucket())
    results, errors = through_store(bucket, 3, exchange)
    assert not errors
    assert set(results[0].values()) == {"store"}
    way = cost_measurement.through(bucket, 5)
    assert 1e-4 < way.latency < 1
    assert way.bandwidth > 1e5
    assert way.puts == 1 <= way.gets
    assert list(bucket.list()) == []


# --- hints -----------------------------------------------------------------------------------


def slow_post(tmp_path, **latencies):
    """A file of constants in which ways have these latencies."""
    path = tmp_path / "constants.json"
    ways = {way: {"latency": seconds} for way, seconds in latencies.items()}
    path.write_text(json.dumps({"ways": ways}))
    return path


def routed(comm):
    values = exchange(comm)
    return set(values.values()), comm.choice


@pytest.mark.parametrize(
    ("latencies", "way"),
    [({"relay": 1.0}, "direct"), ({"direct": 9.0}, "relay"), ({"direct": 9, "relay": 9}, "store")],
    ids=["direct", "relay", "store"],
)
def test_a_hint_has_all_ranks_take_the_way_that_the_model_prefers(tmp_path, latencies, way):
    constants, store = slow_post(tmp_path, **latencies), Storage(tmp_path / "box")
    results = run_threads(
        3, routed, hint="fast", expects=("allgather", 4e5), constants=constants, store=store
    )
    assert [ways for ways, _ in results] == [{way}] * 3
    assert [choice.transport for _, choice in results] == [way] * 3
    assert results[0][1].seconds > 0
    assert bool(list((tmp_path / "box").rglob("*"))) == (way == "store")


def test_a_hint_needs_no_rendezvous_where_there_is_a_store_and_one_rank_needs_nothing(tmp_path):
    store = Storage(tmp_path / "box")
    results, errors = through_store(store, 2, routed, hint="cheap", transport="auto")
    assert not errors
    assert [ways for ways, _ in results] == [{"store"}] * 2
    with Communicator.join("alone", 0, 1, hint="fast") as comm:
        assert (comm.allreduce(2), comm.choice) == (2, None)
    with pytest.raises(BadInputError, match="no transport"):
        Communicator.join("job", 0, 2, hint="fast")
    with pytest.raises(BadInputError, match="fast or cheap"):
        Communicator.join("job", 0, 2, hint="good", store=store)


def test_ranks_with_different_hints_find_out(tmp_path):
    """One goes through the store, the other connects: an error at both, not a wait for ever."""
    constants, store = slow_post(tmp_path, direct=9.0, relay=9.0), Storage(tmp_path / "box")
    errors = {}

    def work(rank, address):
        more = {"constants": constants, "hint": "fast"} if rank else {}
        try:
            with Communicator.join("job", rank, 2, address, store=store, **more) as comm:
                comm.allreduce(1)
        except PerseidError as error:
            errors[rank] = error

    with EmbeddedServer() as server:
        threads = [threading.Thread(target=work, args=(r, server.address)) for r in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert isinstance(errors[1], MismatchedCollectiveError)
    assert "the same transport, hint" in str(errors[1])
    assert isinstance(errors[0], MismatchedCollectiveError), "the other's own reason"


def test_a_killed_comm_run_leaves_no_rank_behind(tmp_path):
    """The launcher is gone at once, without a chance to end its ranks."""
    program = script(
        tmp_path,
        "import os, pathlib, time\n"
        "pathlib.Path(os.environ['PERSEID_RANK']).write_text(f'{os.getpid()}\\n')\n"
        "time.sleep(60)\n",
    )
    command = [sys.executable, "-m", "perseid", "comm", "run", "-n", "2", str(program)]
    launcher = subprocess.Popen(command, cwd=tmp_path)
    notes = [tmp_path / "0", tmp_path / "1"]
    eventually(lambda: all(note.exists() and note.read_text().endswith("\n") for note in notes))
    launcher.kill()
    launcher.wait(10)
    folders = [Path("/proc", note.read_text().strip(), "cwd") for note in notes]
    eventually(lambda: not any(folder.exists() for folder in folders))
