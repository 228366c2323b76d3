"""Runs that take a while, watched as people do: logs as they come, Ctrl-C at a real terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from terminal import CTRL_C, terminal

from perseid.aws.executions import Executions
from perseid.aws.observe.calls import Calls
from perseid.aws.stack_resources import StackResources
from perseid.cli import main
from perseid.storage import Storage

SCRIPT = '''
"""Rank 0 ends at once; the other waits until an object is there."""
import json, os, time
import boto3

rank = os.environ["RANK"]
s3, bucket, results = boto3.client("s3"), os.environ["S3_BUCKET"], os.environ["RESULT_PATH"]
print(f"rank {rank} begins", flush=True)
while rank != "0" and not s3.list_objects_v2(Bucket=bucket, Prefix=f"go/{results}").get("KeyCount"):
    time.sleep(0.2)
print(f"rank {rank} ends", flush=True)
s3.put_object(Bucket=bucket, Key=f"{results}/{rank}.json", Body=json.dumps({"num_batches": 1}))
'''
PERSEID = (sys.executable, "-m", "perseid")


@pytest.fixture(scope="module")
def waiting(stack, put_survey, tmp_path_factory):
    """A function that writes a payload whose second rank waits, and gives its path and URL."""
    put_survey(f"{stack.bucket}/watched", 2)
    Storage(f"{stack.bucket}/watched-script").put("wait.py", SCRIPT.encode())
    bucket, folder = stack.outputs["Bucket"], tmp_path_factory.mktemp("payloads")

    def write(name):
        payload = {
            "bucket": bucket, "data_bucket": bucket, "data_prefix": "watched", "world_size": 2,
            "S3_object_name": "watched-script", "script": "wait.py", "result_path": f"runs/{name}",
        }  # fmt: skip
        (folder / name).write_text(json.dumps(payload))
        return folder / name, f"{stack.bucket}/runs/{name}"

    return write


@pytest.fixture
def engine(stack):
    return Executions(Calls(stack.aws), StackResources.of_outputs(stack.outputs, "perseid"))


def let_go(stack, url):
    Storage(f"{stack.bucket}/go").put(url.removeprefix(f"{stack.bucket}/"), b"")


def ends(process, seconds=60):
    out, _ = process.communicate(timeout=seconds)
    return process.returncode, out


def test_logs_are_followed_while_the_run_goes_on(stack, engine, waiting):
    payload, url = waiting("followed")
    assert main(["run", str(payload), "--engine", "aws", "--detach", "--quiet"]) == 0
    follower = subprocess.Popen(  # at once: the run has not begun to leave anything
        [*PERSEID, "logs", url, "--follow"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        shown = []
        for line in follower.stdout:
            shown.append(line)
            if "rank 0 | " in line and "REPORT RequestId" in line:
                break
        assert any("rank 0 begins" in line for line in shown), shown
        assert not engine.look(engine.find(url)).ended
        let_go(stack, url)
        status, rest = ends(follower)
    finally:
        follower.kill()
    assert status == 0, rest
    lines = [*shown, *rest.splitlines()]
    assert sum("rank 1 | " in line and "rank 1 ends" in line for line in lines) == 1
    assert sum("REPORT RequestId" in line for line in lines) == 2
    assert engine.look(engine.find(url)).ended


def test_logs_of_a_run_that_has_ended_can_be_followed_too(stack, waiting, capsys):
    _, url = waiting("followed")
    assert main(["status", url, "--wait", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["logs", url, "--follow", "--rank", "1"]) == 0
    assert capsys.readouterr().out.count("rank 1 ends") == 1
    assert main(["logs", url, "--rank", "2"]) == 2
    assert "has the ranks 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["y", "n"])
def test_ctrl_c_asks_whether_to_stop_the_execution_too(stack, engine, waiting, answer):
    payload, url = waiting(f"asked-{answer}")
    with terminal([*PERSEID, "run", payload, "--engine", "aws"]) as shown:
        shown.until("1/2 ranks done")
        shown.type(CTRL_C)
        shown.until("too? [y/N] ", seconds=20)
        shown.type(f"{answer}\r")
        assert shown.end() == 130
    assert "Traceback" not in shown.text
    says = f"perseid resume {url}" if answer == "y" else "continues without this process"
    assert says in " ".join(shown.text.split())
    now = engine.look(engine.find(url))
    assert now.status == ("ABORTED" if answer == "y" else "RUNNING")
    let_go(stack, url)
    if answer == "n":
        assert main(["status", url, "--wait", "--quiet"]) == 0


def test_ctrl_c_without_a_terminal_leaves_the_execution_running(stack, engine, waiting):
    payload, url = waiting("left")
    words = [*PERSEID, "run", str(payload), "--engine", "aws"]
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    for line in process.stderr:
        if line.startswith("map"):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(30) == 130
    assert "continues without this process" in said
    assert f"perseid status {url} --stop" in said
    assert main(["status", url, "--stop"]) == 0
    assert engine.look(engine.find(url)).status == "ABORTED"
    let_go(stack, url)
