"""Scripts whose ranks talk through FMI, in script mode and under the commands that start ranks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import tiny_cutouts, tiny_survey

from perseid.cli import main
from perseid.compat import fmi
from perseid.compat.fmi_config import load
from perseid.engines.driver import start
from perseid.engines.local import LocalEngine
from perseid.engines.local.local_options import LocalOptions
from perseid.engines.retry import RetryPolicy
from perseid.errors import BadInputError, RendezvousTimeoutError
from perseid.pipeline.events import StageEvent
from perseid.pipeline.request import RunRequest
from perseid.rendezvous import Config, EmbeddedServer, job_key
from perseid.storage import Storage
from perseid.survey.reader import write_cutouts

SUPPORT = Path(__file__).parents[1] / "support"
SERVER = {"enabled": "true", "host": "rendezvous.invalid", "port": 10000, "max_timeout": 900_000}
CONFIGURATION = {"backends": {"Direct": SERVER, "S3": {"enabled": "false"}}, "model": {}}


@pytest.fixture
def name() -> Iterator[str]:
    """A script folder's name; what script mode makes of it in /tmp is removed."""
    name = f"Message Passing {uuid.uuid4().hex[:8]}"
    yield name
    shutil.rmtree(Path("/tmp") / name, ignore_errors=True)
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    Path("/tmp", f".perseid-{os.geteuid()}-{digest}.lock").unlink(missing_ok=True)


@pytest.mark.s3
@pytest.mark.parametrize(
    ("script", "more"),
    [("fmi_inference.py", {}), ("fmi_statistics.py", {"fmi_enabled": "true"})],
)
def test_three_ranks_talk_though_two_workers_were_asked_for(
    s3, tmp_path: Path, name: str, capfd, script: str, more: dict
):
    url = s3.bucket()
    bucket = Storage(url)
    bucket.put(f"{name}/{script}", (SUPPORT / script).read_bytes())
    if not more:
        bucket.put(f"{name}/fmi.json", json.dumps(CONFIGURATION).encode())
    for number, part in enumerate(tiny_cutouts(30).batches(10), start=1):
        write_cutouts(part, f"{url}/25MB/{number}.pt")
    payload = {
        "bucket": url.removeprefix("s3://"), "file_limit": "3", "batch_size": 4,
        "object_type": "folder", "S3_object_name": name, "script": f"/tmp/{name}/{script}",
        "result_path": "result-partition-25MB/1GB/1", "data_bucket": url.removeprefix("s3://"),
        "data_prefix": "25MB", "world_size": "3", "data_path": "25MB/1.pt",
        "rendezvous_endpoint": "rendezvous.invalid:10000", **more,
    }  # fmt: skip
    (tmp_path / "payload.json").write_text(json.dumps(payload))
    words = [str(tmp_path / "payload.json"), "--workers", "2"]
    assert main(["run", *words]) == 0
    said = "".join(capfd.readouterr())
    assert "--workers is raised from 2 to 3" in said
    assert "complete: 3 of 3 ranks, 3 of 3 partitions" in said
    results = bucket.at(payload["result_path"])
    records = json.loads(results.get("combined_data.json"))
    assert [record["data_path"] for record in records] == ["25MB/1.pt", "25MB/2.pt", "25MB/3.pt"]
    if script == "fmi_inference.py":
        assert [record["rows_of_all"] for record in records] == [30, 30, 30]
        assert records[0]["rows_of_each"] == [0, 10, 1, 10, 2, 10]
        assert [record["slowest"] for record in records] == [True, False, False]
    else:
        assert [record["weight"] for record in records] == [[0.0], [0.5], [1.0]]
        assert [record["scale"] for record in records] == [2.0, 2.0, 2.0]
        assert [record["passed"] for record in records] == [[0.0], [0.0, 1.0], [0.0, 1.0, 2.0]]
        assert [record["before"] for record in records] == [1, 12, 123]


TALKS = """
import json, os, pathlib, fmi
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
own = pathlib.Path(os.environ["TMPDIR"], "fmi.cfg")
own.write_text(CONFIGURATION)
comm = fmi.Communicator(rank, size, str(own), "plain")
total = comm.allreduce(rank, fmi.func(fmi.op.sum), fmi.types(fmi.datatypes.int))
pathlib.Path(RESULTS, f"{rank}.json").write_text(json.dumps({"total": total}))
"""


def local_run(root: Path, name: str, milliseconds: int, **more: object) -> RunRequest:
    """Two ranks that talk, by a configuration that the script writes itself."""
    bucket = root / "bucket"
    (bucket / name).mkdir(parents=True)
    backends = {"backends": {"Direct": SERVER | {"max_timeout": milliseconds}}}
    text = TALKS.replace("CONFIGURATION", repr(json.dumps(backends)))
    (bucket / name / "run.py").write_text(text.replace("RESULTS", repr(str(bucket / "out"))))
    tiny_survey(bucket / "data", rows=20, per_partition=10)
    given = {
        "bucket": "bucket", "data_bucket": "bucket", "data_prefix": "data", "result_path": "out",
        "S3_object_name": name, "script": "run.py", "bucket_root": str(root),
    }  # fmt: skip
    return RunRequest.parse(given | more)


def run(request: RunRequest, **options: object) -> tuple[object, list[str]]:
    told: list[str] = []

    def report(event: object) -> None:
        if isinstance(event, StageEvent) and event.message:
            told.append(event.message)

    chosen = LocalOptions(**{"retry": RetryPolicy(0), "memory_mb": 500} | options)  # type: ignore[arg-type]
    return start(request, LocalEngine(chosen), report), told


@pytest.mark.parametrize("milliseconds", [1500, 900_000])
def test_a_rank_that_waits_for_ranks_not_started_names_the_option(
    tmp_path: Path, name: str, milliseconds: int
):
    """At the configuration's limit, and where that is beyond the rank's own, before that one."""
    result, told = run(local_run(tmp_path, name, milliseconds), workers=1, timeout=12)
    assert result.incomplete
    assert "works on 1 of its 2 ranks at once" in result.mapped.failures[0]
    assert "`workers=2`" in result.mapped.failures[0]
    assert not [said for said in told if "raised" in said]


def test_workers_enough_need_no_note(tmp_path: Path, name: str):
    result, told = run(local_run(tmp_path, name, 60_000), workers=2)
    assert not result.incomplete
    assert json.loads((tmp_path / "bucket/out/1.json").read_text())["total"] == 1
    assert not [said for said in told if "raised" in said]


@pytest.mark.parametrize(
    ("more", "files", "talks"),
    [
        ({"fmi_enabled": True}, {}, True),
        ({}, {"conf/fmi.json": json.dumps(CONFIGURATION)}, True),
        ({}, {"fmi.conf": json.dumps(CONFIGURATION)}, True),
        ({"fmi_enabled": False}, {"fmi.json": json.dumps(CONFIGURATION)}, False),
        ({}, {"a.json": "{", "b.json": '{"backends": 1}', "c.json": "[" * 50_000}, False),
        ({}, {"fmi.json": '{"backends": {"Direct": {}}, "x": "' + "y" * 70_000 + '"}'}, False),
        ({}, {}, False),
    ],
)
def test_when_a_script_talks(tmp_path: Path, name: str, more: dict, files: dict, talks: bool):
    from perseid.compat.scripts.script_job import script_job
    from perseid.pipeline.initialize import plan

    request = local_run(tmp_path, name, 1000, **more)
    for key, text in files.items():
        path = tmp_path / "bucket" / name / key
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    manifest = plan(request, script_job(request))
    assert manifest.talks is talks
    assert bool(manifest.item(0).options.talks) is talks


@pytest.mark.parametrize(("asked", "each"), [({}, 300), ({"memory_mb": 10_240}, 10_240)])
def test_ranks_that_find_no_memory_together_are_refused_before_anything_is_written(
    tmp_path: Path, name: str, asked: dict, each: int
):
    request = local_run(tmp_path, name, 1000, fmi_enabled=True, world_size=9_000, **asked)
    engine = LocalEngine(LocalOptions(memory_mb=10_240))
    with pytest.raises(
        BadInputError, match=rf"9000 ranks .* too little for {each} MB each.*`memory_mb`"
    ):
        start(request, engine, lambda event: None)
    assert not (tmp_path / "bucket" / "out").exists()


def test_a_missing_rank_of_a_talking_script_means_all_of_them(tmp_path: Path, name: str):
    from perseid.engines.driver import missing_ranks

    result, _ = run(local_run(tmp_path, name, 60_000, fmi_enabled=True), workers=1)
    assert not result.incomplete
    store = Storage(result.manifest.results_url)
    assert missing_ranks(store, result.manifest) == []
    store.delete(["1.json"])
    assert missing_ranks(store, result.manifest) == [0, 1]


FAILS = """
import json, os, pathlib, sys, fmi
rank, size, flag = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), pathlib.Path(FLAG)
own = pathlib.Path(os.environ["TMPDIR"], "fmi.cfg")
own.write_text(CONFIGURATION)
comm = fmi.Communicator(rank, size, str(own), "fails")
if WHEN == "always" and rank == 1:
    sys.exit("out of luck")
comm.barrier()
if rank == 1 and not flag.exists():
    flag.touch()
    sys.exit("out of luck")
total = comm.allreduce(rank, fmi.func(fmi.op.sum), fmi.types(fmi.datatypes.int))
pathlib.Path(RESULTS, f"{rank}.json").write_text(json.dumps({"total": total}))
"""


@pytest.mark.parametrize("when", ["once", "always"])
def test_a_rank_of_a_talking_script_that_fails(tmp_path: Path, name: str, when: str):
    """Once: all are tried again, together. For good: the others do not wait out their 900 s."""
    request = local_run(tmp_path, name, 900_000, fmi_enabled=True)
    bucket = tmp_path / "bucket"
    words = {"CONFIGURATION": json.dumps(CONFIGURATION), "RESULTS": str(bucket / "out"),
             "FLAG": str(tmp_path / "flag"), "WHEN": when}  # fmt: skip
    text = FAILS
    for word, value in words.items():
        text = text.replace(word, repr(value))
    (bucket / name / "run.py").write_text(text)
    result, _ = run(request, workers=1, retry=RetryPolicy(1, first_wait=0.1))
    if when == "once":
        assert not result.incomplete
        assert json.loads((bucket / "out/1.json").read_text())["total"] == 1
    else:
        assert "out of luck" in result.mapped.failures[1]
        assert "rank 1, which it talks to, failed" in result.mapped.failures[0]


PROGRAM = """
import os, sys, fmi
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
for name in ("one", "two"):
    comm = fmi.Communicator(rank, size, sys.argv[1], name)
    total = comm.allreduce(rank, fmi.func(fmi.op.sum), fmi.types(fmi.datatypes.int))
    os.write(1, f"{name} {total}\\n".encode())
"""


@pytest.mark.parametrize("command", [["comm", "run", "-n", "3"], ["fmi-run", "-n", "3"]])
def test_the_commands_that_start_ranks_bring_fmi_and_a_server(tmp_path: Path, command: list):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "fmi.json").write_text(json.dumps(CONFIGURATION))
    words = [*command, tmp_path / "program.py", tmp_path / "fmi.json"]
    done = subprocess.run(
        [sys.executable, "-m", "perseid", *map(str, words)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("one 3") == done.stdout.count("two 3") == 3


def test_a_server_that_asks_for_a_key_gets_the_configurations(tmp_path: Path):
    secret = b"of the server alone, 32 bytes...."
    keys = {"right": job_key(secret, "keyed").hex(), "wrong": job_key(secret, "other").hex()}
    found: dict[object, object] = {}
    with EmbeddedServer(Config(host="127.0.0.1", port=0, http_port=None, secret=secret)) as server:
        host, _, port = server.address.partition(":")
        for which, key in keys.items():
            direct = {"enabled": True, "host": host, "port": port, "key": key}
            document = {"backends": {"Direct": direct | {"max_timeout": "20000"}}}
            (tmp_path / f"{which}.json").write_text(json.dumps(document))

        def rank(number: int) -> None:
            with fmi.Communicator(number, 2, str(tmp_path / "right.json"), "keyed") as comm:
                found[number] = comm.bcast(7, 0, fmi.types(fmi.datatypes.int))

        threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == {0: 7, 1: 7}
        comm = fmi.Communicator(0, 2, str(tmp_path / "wrong.json"), "keyed")
        with pytest.raises(Exception, match="key"):
            comm.barrier()


@pytest.mark.parametrize("limit", [900_000, "900000", 900_000.0])
def test_the_configurations_own_time_limit_is_read(tmp_path: Path, limit: object):
    direct = {"enabled": True, "host": "localhost", "max_timeout": limit}
    (tmp_path / "fmi.json").write_text(json.dumps({"backends": {"Direct": direct}}))
    config = load(tmp_path / "fmi.json", 128)
    assert (config.deadline, config.silence) == (900, 900)


@pytest.mark.parametrize("limit", ["soon", -1, [], True])
def test_a_time_limit_that_is_none_is_a_sentence(tmp_path: Path, limit: object):
    direct = {"enabled": True, "host": "localhost", "max_timeout": limit}
    (tmp_path / "fmi.json").write_text(json.dumps({"backends": {"Direct": direct}}))
    with pytest.raises(BadInputError, match="'max_timeout' in the FMI configuration must be"):
        load(tmp_path / "fmi.json", 128)


@pytest.mark.parametrize(
    ("direct", "server"),
    [
        ({"host": "::1"}, "[::1]:10000"), ({"host": "[::1]", "port": 7}, "[::1]:7"),
        ({"host": "a.example", "port": None}, "a.example:10000"),
        ({"enabled": 1}, "rendezvous.invalid:10000"),
        ({"enabled": "1"}, "rendezvous.invalid:10000"),
    ],
)  # fmt: skip
def test_the_server_is_read_as_fmi_reads_it(tmp_path: Path, direct: dict, server: str):
    config = {"backends": {"Direct": SERVER | direct}}
    (tmp_path / "fmi.json").write_text(json.dumps(config))
    assert load(tmp_path / "fmi.json", 128).rendezvous == server


@pytest.mark.parametrize("value", [1, 1.5, True, [1], {"a": 1}])
@pytest.mark.parametrize(
    ("backend", "name"), [("Direct", "host"), ("S3", "bucket_name"), ("S3", "s3_region")]
)
def test_what_must_be_text_is_no_number(tmp_path: Path, backend: str, name: str, value: object):
    """1 as the host would be the address 0.0.0.1, and [1] as well."""
    part = {"enabled": True, "host": "a", "bucket_name": "b", name: value}
    (tmp_path / "fmi.json").write_text(json.dumps({"backends": {backend: part}}))
    with pytest.raises(BadInputError, match=f"'{name}' in the FMI configuration must be a text"):
        load(tmp_path / "fmi.json", 128)


def test_a_rank_that_never_comes_ends_the_call_at_the_configurations_limit(tmp_path: Path):
    with EmbeddedServer() as server:
        host, _, port = server.address.partition(":")
        direct = {"enabled": True, "host": host, "port": port, "max_timeout": 700}
        (tmp_path / "fmi.json").write_text(json.dumps({"backends": {"Direct": direct}}))
        with (
            fmi.Communicator(0, 2, str(tmp_path / "fmi.json"), "alone") as comm,
            pytest.raises(RendezvousTimeoutError, match=r"not reached within 0\.7 s"),
        ):
            comm.barrier()


STOPPED = """
import os, signal, subprocess, sys, fmi
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
comm = fmi.Communicator(rank, size, sys.argv[1], "stopped")
comm.barrier()
if rank == 1:  # as in one long call into a library: no sign of life
    subprocess.Popen(["sh", "-c", f"sleep 66; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
comm.barrier()
os.write(1, b"met again\\n")
"""


@pytest.mark.slow
def test_a_rank_that_is_silent_for_less_than_the_configurations_limit_is_not_lost(tmp_path: Path):
    """66 s: longer than our own 60 s."""
    (tmp_path / "program.py").write_text(STOPPED)
    (tmp_path / "fmi.json").write_text(json.dumps(CONFIGURATION))
    words = ["fmi-run", "-n", "2", tmp_path / "program.py", tmp_path / "fmi.json"]
    done = subprocess.run(
        [sys.executable, "-m", "perseid", *map(str, words)],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert (done.returncode, done.stdout.count("met again")) == (0, 2), done.stderr
