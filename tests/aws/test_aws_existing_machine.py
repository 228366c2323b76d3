"""A state machine that others made, with their payload and their torch script: run and measured."""

from __future__ import annotations

import io
import json
from pathlib import Path

import boto3
import course_system
import pytest
import torch

from perseid.aws.deploy.template import definition
from perseid.aws.existing import examine
from perseid.aws.session import Aws
from perseid.cli import main
from perseid.storage import Storage

SCRIPT = Path(course_system.__file__).parent / "inference_script.py"
HELPER = b"def bits_of(tensor):\n    return tensor.nbytes * 8\n"
RESULTS = "result-partition-25MB/1GB/1"
RANKS = 3


@pytest.fixture(scope="module")
def machine(ministack):
    return course_system.deploy(Aws(), ministack.env)


@pytest.fixture(scope="module")
def payload(ministack, put_survey, tmp_path_factory):
    """Their file, and all that it names in a bucket of theirs."""
    boto3.client("s3").create_bucket(Bucket="cosmicai-data")
    put_survey("s3://cosmicai-data/25MB", RANKS, rows=10)
    folder = Storage("s3://cosmicai-data/Anomaly Detection")
    folder.put("Inference/inference.py", SCRIPT.read_bytes())
    folder.put("Inference/helpers/__init__.py", b"")
    folder.put("Inference/helpers/metrics.py", HELPER)
    weights = io.BytesIO()
    torch.save(torch.ones(5), weights)
    folder.put("Fine Tuned/weights.pt", weights.getvalue())
    path = tmp_path_factory.mktemp("course") / "payload.json"
    given = {
        "bucket": "cosmicai-data", "file_limit": "11", "batch_size": 4, "object_type": "folder",
        "S3_object_name": "Anomaly Detection", "result_path": RESULTS,
        "script": "/tmp/Anomaly Detection/Inference/inference.py",
        "data_bucket": "cosmicai-data", "data_prefix": "25MB",
    }  # fmt: skip
    path.write_text(json.dumps(given))
    return path


@pytest.mark.timeout(300)
def test_their_payload_runs_on_their_machine_and_the_tables_are_made(machine, payload, capsys):
    """The torch script works where the system has no name for its user, and no home."""
    assert main(["run", str(payload), "--state-machine", machine, "--json"]) == 0
    runs, partitions = json.loads(capsys.readouterr().out)
    [row] = runs["rows"]
    known = {name: row[name] for name in ("data", "batch", "world")}
    assert known == {"data": "1GB", "batch": 4, "world": RANKS}
    assert row["cost"] > RANKS * 2.5e-5  # the children's transitions alone
    [entry] = partitions["rows"]
    assert (entry["partition"], entry["requests"]) == ("25MB", RANKS)
    combined = json.loads(Storage(f"s3://cosmicai-data/{RESULTS}").get("combined_data.json"))
    assert len(combined) == RANKS
    events = boto3.client("logs").filter_log_events(logGroupName="/aws/lambda/course-executor")
    assert sum("user nobody home None" in event["message"] for event in events["events"]) == RANKS


def test_what_keeps_a_payload_from_being_run(machine, payload, tmp_path, capsys):
    for words, said in [
        (["run", "--state-machine", machine], "needs a payload"),
        (["run", str(payload), "--state-machine", "cosmic-workflow"], "is not the ARN"),
        (["run", str(payload), "--state-machine", machine + "-gone"], "DescribeStateMachine"),
        (["run", str(payload), "--state-machine", machine, "--world-size", "2"], "world_size"),
    ]:
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error


def test_functions_that_a_path_names_are_found():
    """As in our own state machine: what the map gives its items, and what a state puts there."""
    text = definition()
    for name in ("Initialize", "Worker", "LargerWorker", "Summarize"):
        arn = f"arn:aws:lambda:eu-west-1:{'1' * 12}:function:s-{name.lower()}"
        text = text.replace(f"${{{name}Function}}", arn)

    class States:
        def client(self, service):
            return self

        def describe_state_machine(self, **_):
            return {"type": "STANDARD", "definition": text}

    found = examine(States(), "arn")
    assert set(found.workers) == {"s-worker", "s-largerworker"}
    assert set(found.others) == {"s-initialize", "s-summarize"}
