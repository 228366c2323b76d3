"""The live page of runs that other processes work on: on S3, on Slurm and on AWS, to their end."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections import Counter

import pytest
from engine import FAULTY_RUN, FAULTY_WORKER
from explored import ask, served, states, watched
from small_s3 import BUCKET, serving
from tiny import tiny_cutouts, tiny_model, tiny_survey
from waiting import eventually

import perseid
from perseid.cli import main
from perseid.engines.log_lines import standing_line, start_lines
from perseid.engines.slurm import SlurmEngine
from perseid.pipeline import layout
from perseid.pipeline.events import RankState
from perseid.storage import Storage
from perseid.survey import write_cutouts

DEADLINE = 120.0
TOLD = "1 failed, [23] tried again"  # a rank that waits long is tried a second time beside


def faults(go) -> str:
    """Rank 0 works once there is a file `go`, 1 is retried, 2 fails, the others just work."""
    return json.dumps({"0": {"*": f"until:{go}"}, "1": {"1": "raise"}, "2": {"*": "raise:no luck"}})


def waits_for_go(kind: str, page: str) -> bool:
    wanted = {0: "running", 1: "done", 2: "failed", 3: "done"}
    return kind == "run" and states(page) == wanted


def look_on(run: perseid.Run, go) -> None:
    """The page of a run as `faults` has it: while it goes on, at its end, and opened again."""
    with served(run) as server:
        page = watched(server.address, waits_for_go)
        assert re.search(TOLD, page)
        assert "RuntimeError: no luck</td>" in page
        assert "what it would cost on AWS" in page
        assert 'class="stage-inference"' in page, "the timeline grows"
        assert "START RequestId" in ask(server.address, "log/0").text
        go.touch()
        ended = watched(server.address, lambda kind, page: kind == "end")
        assert "<strong>Incomplete</strong> <span>Ranks 2 of 4" in ended
        assert states(ended) == {0: "done", 1: "done", 2: "failed", 3: "done"}
        assert ask(server.address, "objects").status == 200
    with served(perseid.open_run(run.url)) as server:
        again = ask(server.address).text
        assert states(again) == states(ended)
        assert re.search(TOLD, again)


def begun(url: str) -> perseid.Run:
    """The run of another process, once it has begun."""
    store = Storage(url)
    # The driver claims the prefix first, and writes the manifest then.
    eventually(lambda: all(map(store.exists, (layout.DRIVER, layout.MANIFEST))), DEADLINE)
    return perseid.open_run(url)


def test_a_run_in_s3_that_another_process_works_on(s3, tmp_path, monkeypatch):
    tiny_model(tmp_path / "tiny.onnx")
    bucket = s3.bucket()
    for number, part in enumerate(tiny_cutouts(20).batches(5), start=1):
        write_cutouts(part, f"{bucket}/survey/{number}.pt")
    monkeypatch.setenv("FAULTS", faults(tmp_path / "go"))
    command = [
        "run", "--data", f"{bucket}/survey", "--model", str(tmp_path / "tiny.onnx"), "--out",
        f"{bucket}/run", "--world-size", "4", "--workers", "2", "--retries", "1", "--quiet",
    ]  # fmt: skip
    with subprocess.Popen([*FAULTY_RUN, *command], stderr=subprocess.PIPE, text=True) as driver:
        try:
            look_on(begun(f"{bucket}/run"), tmp_path / "go")
        finally:
            driver.terminate()
        assert "Traceback" not in driver.stderr.read()


@pytest.mark.slurm
@pytest.mark.slow
def test_a_run_on_slurm(slurm, tmp_path, monkeypatch):
    tiny_model(tmp_path / "tiny.onnx")
    tiny_survey(tmp_path / "survey", 20, 5)
    monkeypatch.setenv("FAULTS", faults(tmp_path / "go"))
    run = perseid.run(
        tmp_path / "survey", model=str(tmp_path / "tiny.onnx"), results=str(tmp_path / "run"),
        engine=SlurmEngine(command=FAULTY_WORKER, retries=1), detach=True, progress=False,
    )  # fmt: skip
    look_on(perseid.open_run(run.url), tmp_path / "go")


SCRIPT = """
import json, os, time
import boto3

rank, results = os.environ["RANK"], os.environ["RESULT_PATH"]
s3, bucket = boto3.client("s3"), os.environ["S3_BUCKET"]
while rank == "1" and not s3.list_objects_v2(Bucket=bucket, Prefix=f"go/{results}").get("KeyCount"):
    time.sleep(0.2)
s3.put_object(Bucket=bucket, Key=f"{results}/{rank}.json", Body=json.dumps({"num_batches": 1}))
"""


@pytest.mark.slow
def test_a_run_on_aws(stack, put_survey, tmp_path):
    put_survey(f"{stack.bucket}/explored", 2)
    Storage(f"{stack.bucket}/explored-script").put("wait.py", SCRIPT.encode())
    payload = {
        "bucket": stack.outputs["Bucket"], "data_bucket": stack.outputs["Bucket"],
        "data_prefix": "explored", "world_size": 2, "S3_object_name": "explored-script",
        "script": "wait.py", "result_path": "runs/explored",
    }  # fmt: skip
    (tmp_path / "payload").write_text(json.dumps(payload))
    url = f"{stack.bucket}/runs/explored"
    command = ["run", str(tmp_path / "payload"), "--engine", "aws", "--detach", "--quiet"]
    assert main(command) == 0
    with served(begun(url)) as server:
        page = watched(server.address, lambda kind, page: "1 of 2" in page)
        assert "not which: a rank is shown as done" in page
        Storage(f"{stack.bucket}/go").put("runs/explored", b"")
        ended = watched(server.address, lambda kind, page: kind == "end")
        assert "<strong>Complete</strong> <span>All ranks" in ended
    with served(perseid.open_run(url)) as server:
        assert states(ask(server.address).text) == {0: "done", 1: "done"}
        assert "REPORT RequestId" in ask(server.address, "log/1").text


# ---- What it costs to look -------------------------------------------------------------------


def looked_at(server, run, follow) -> Counter[tuple[str, str]]:
    """Requests of a follower of a run that goes on: starts, ends, retries and failures of ranks.

    Method and key of each; listings and the driver's mark, which each look asks for once, as one.
    """
    store = Storage(f"s3://{BUCKET}/run")
    for info in run.list():
        name = info.key
        if not name[0].isdigit() and not name.startswith(("logs", layout.SUMMARY, layout.ENGINE)):
            store.put(name, run.get(name).replace(run.url.encode(), store.url.encode()))
    mark = {"host": "elsewhere", "pid": 1, "born": "x", "since": 1.0}
    store.put(layout.DRIVER, json.dumps(mark).encode())
    server.asked.clear()
    follower = threading.Thread(target=follow, daemon=True)
    follower.start()

    def looks() -> int:
        return sum("list-type" in one.query for one in list(server.asked))

    def shown(key: str, data: bytes) -> None:
        store.put(key, data)
        before = looks()
        eventually(lambda: looks() >= before + 2, DEADLINE)  # one whole look after it was written

    begins = start_lines("a", cold=True)
    failed = begins + standing_line(RankState.RETRYING)
    shown(layout.log(0), begins.encode())
    shown(layout.log(0), failed.encode())
    shown(layout.log(1), begins.encode())
    shown(layout.record(0), run.get(layout.record(0)))
    shown(layout.record(1), run.get(layout.record(1)))
    for key in (layout.ENGINE, layout.SUMMARY):
        store.put(key, run.get(key))
    store.delete([layout.DRIVER])
    follower.join(DEADLINE)
    assert not follower.is_alive()
    asked = [one for one in server.asked if one.method in ("GET", "HEAD")]
    found = Counter((one.method, "look" if "list-type" in one.query else one.key) for one in asked)
    assert found["GET", "run/logs/0.log"] == 2
    assert found["GET", "run/logs/1.log"] == 1
    return found


def test_the_page_asks_a_paid_store_no_more_than_the_command_line(tmp_path, monkeypatch):
    """However many look."""
    tiny_model(tmp_path / "tiny.onnx")
    tiny_survey(tmp_path / "survey", 10, 5)
    run = perseid.run(
        tmp_path / "survey", model=str(tmp_path / "tiny.onnx"), results=str(tmp_path / "run"),
        world_size=2, progress=False,
    )  # fmt: skip
    url = f"s3://{BUCKET}/run"

    def page() -> None:
        with served(perseid.open_run(url)) as server:
            ended = lambda kind, page: kind == "end"  # noqa: E731
            visitors = [threading.Thread(target=watched, args=(server.address, ended))
                        for _ in range(3)]  # fmt: skip
            for one in visitors:
                one.start()
            for one in visitors:
                one.join(DEADLINE)

    asked = []
    for follow in (lambda: main(["status", url, "--wait", "--quiet"]), page):
        with serving() as server:
            for name, value in (
                ("AWS_ENDPOINT_URL", server.endpoint),
                ("AWS_REGION", "us-east-1"),
                ("AWS_ACCESS_KEY_ID", "a"),
                ("AWS_SECRET_ACCESS_KEY", "b"),
            ):
                monkeypatch.setenv(name, value)
            asked.append(looked_at(server, Storage(run.url), follow))
    command, seen = asked
    for place in ("look", f"run/{layout.DRIVER}"):  # as long as it took, both were asked
        del command["GET", place], command["HEAD", place]
        del seen["GET", place], seen["HEAD", place]
    assert seen - command == Counter()
