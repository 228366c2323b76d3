"""Existing payloads through the deployed state machine, script mode included; and its faults."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from pathlib import Path

import pytest
from ministack import limited, run_to_end

from perseid.pipeline.initialize import new_run_id
from perseid.storage import Storage

SCRIPT = '''
"""Of the existing kind: reads payload.json in the bucket, its data, writes RANK.json."""
import json, os, time
import boto3                      # the Lambda runtime has it
import numpy as np                # the worker's package has it
from helpers.counting import size

rank = os.environ["RANK"]
s3 = boto3.client("s3")
bucket = os.environ["S3_BUCKET"]
payload = json.loads(s3.get_object(Bucket=bucket, Key="payload.json")["Body"].read())
keys = payload["data_map"][rank]
if keys is None:
    print(f"rank {rank} has no data")
    raise SystemExit(0)
began = time.perf_counter()
total = sum(size(s3, payload["data_bucket"], key) for key in np.atleast_1d(keys))
seconds = time.perf_counter() - began
print(f"rank {rank} of {os.environ['WORLD_SIZE']} works on {keys}")
result = {
    "total_cpu_time (seconds)": seconds, "total_cpu_memory (MB)": 1.5, "num_batches": 1,
    "execution_time (seconds/batch)": seconds, "batch_size": int(os.environ["BATCH_SIZE"]),
    "device": "cpu", "throughput_bps": 8 * total / seconds, "sample_persec": 8 / seconds,
    "result_path": payload["result_path"], "data_path": keys,
}
body = json.dumps(result).encode()
s3.put_object(Bucket=bucket, Key=f"{payload['result_path']}/{rank}.json", Body=body)
'''
HELPER = """
def size(s3, bucket, key):
    return len(s3.get_object(Bucket=bucket, Key=str(key))["Body"].read())
"""


@pytest.fixture
def folder_name():
    """A script folder's name, with a space; its copies in /tmp are removed."""
    name = f"Anomaly Detection {uuid.uuid4().hex[:8]}"
    yield name
    shutil.rmtree(Path("/tmp") / name, ignore_errors=True)
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    lock = f".perseid-{os.geteuid()}-{digest}.lock"
    with contextlib.suppress(OSError):
        Path("/tmp", lock).unlink()


def payload(stack, folder_name, **more):
    bucket = stack.outputs["Bucket"]
    return {
        "bucket": bucket, "file_limit": "3", "batch_size": 512, "object_type": "folder",
        "S3_object_name": folder_name, "script": f"/tmp/{folder_name}/Inference/inference.py",
        "result_path": f"result-partition-100MB/1GB/{folder_name[-8:]}", "data_bucket": bucket,
        "data_prefix": "100MB", **more,
    }  # fmt: skip


def put_script(stack, folder_name, code=SCRIPT):
    storage = Storage(f"{stack.bucket}/{folder_name}/Inference")
    storage.put("inference.py", code.encode())
    storage.put("helpers/__init__.py", b"")
    storage.put("helpers/counting.py", HELPER.encode())


def execute(stack, given, **limits):
    client, arn = stack.aws.client("stepfunctions"), stack.outputs["StateMachineArn"]
    if limits:
        arn = limited(client, arn, **limits)
    return run_to_end(client, arn, new_run_id(time.time()), given)


def test_an_existing_payload_runs_its_script(stack, put_survey, folder_name):
    put_survey(f"{stack.bucket}/100MB", 4)
    put_script(stack, folder_name)
    given = payload(stack, folder_name, world_size="4")
    done = execute(stack, given)
    assert done["status"] == "SUCCEEDED", (done.get("error"), done.get("cause"))
    results = Storage(f"{stack.bucket}/{given['result_path']}")
    records = json.loads(results.get("combined_data.json"))
    assert [record["data_path"] for record in records] == [
        "100MB/1.pt", "100MB/2.pt", "100MB/3.pt",
    ]  # fmt: skip
    assert all(record["device"] == "cpu" for record in records)
    assert json.loads(results.get("1.json"))["run_id"] == done["output"]["run_id"]
    shared = json.loads(Storage(stack.bucket).get("payload.json"))
    assert {**shared, "data_map": None} == {**given, "data_map": None}
    events = stack.aws.client("logs").filter_log_events(logGroupName="/aws/lambda/perseid-worker")
    said = [event["message"] for event in events["events"]]
    assert "rank 1 of 4 works on 100MB/2.pt" in said


def test_the_same_place_twice_is_refused_unless_replaced(stack, put_survey):
    data, results = f"{stack.bucket}/twice", f"{stack.bucket}/runs/twice"
    put_survey(data, 1)
    given = {"data": data, "results": results}
    assert execute(stack, given)["status"] == "SUCCEEDED"
    again = execute(stack, given)
    assert (again["status"], again["error"]) == ("FAILED", "RunError")
    assert "belongs to run" in again["cause"]
    assert execute(stack, {**given, "replace": True})["status"] == "SUCCEEDED"


def test_short_runs_go_by_express_children(stack, put_survey):
    data, results = f"{stack.bucket}/express", f"{stack.bucket}/runs/express"
    put_survey(data, 1)
    done = execute(stack, {"data": data, "results": results, "timeout": 60})
    assert done["output"]["children"] == "EXPRESS"
    assert done["output"]["timeout_seconds"] == 60
    assert done["status"] == "SUCCEEDED"


def test_a_rank_that_fails_is_named_published_without_and_resumed(stack, put_survey, folder_name):
    """Fails in all its attempts; the others go on; later a resumption does only what is missing."""
    put_survey(f"{stack.bucket}/100MB", 4)
    bad = "import os\nif os.environ['RANK'] == '1': raise SystemExit('out of luck')\n"
    put_script(stack, folder_name, bad + SCRIPT)
    given = payload(stack, folder_name)
    done = execute(stack, given, at_once=4)
    assert (done["status"], done["error"]) == ("FAILED", "RunIncompleteError")
    assert "ranks 1 of 3" in done["cause"]
    assert "out of luck" in done["cause"]  # the script's last words
    results = Storage(f"{stack.bucket}/{given['result_path']}")
    assert [r["rank"] for r in json.loads(results.get("combined_data.json"))] == [0, 2]
    untouched = results.get("0.json")
    put_script(stack, folder_name)
    again = execute(stack, {"resume": f"{stack.bucket}/{given['result_path']}"})
    assert again["status"] == "SUCCEEDED", (again.get("error"), again.get("cause"))
    assert again["output"]["ranks"] == 1
    assert results.get("0.json") == untouched
    records = json.loads(results.get("combined_data.json"))
    assert [record["rank"] for record in records] == [0, 1, 2]
    assert records[1]["attempt"] > 3


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"data_bucket": "b"}, "BadInputError", "results"),
        ({"data": "s3://b/x", "results": "/tmp/x"}, "BadInputError", "Lambda cannot reach"),
        (
            {"data": "s3://absent-bucket/x", "results": "s3://absent-bucket/r"},
            "NotFoundError",
            "not there",
        ),
        ({"resume": "s3://absent-bucket/r"}, "NotFoundError", "no run"),
        ([1], "BadInputError", "JSON object"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_sentence(stack, given, error, said):
    done = execute(stack, given)
    assert (done["status"], done["error"]) == ("FAILED", error), done
    assert said in done["cause"]
    assert "Traceback" not in done["cause"]


def test_a_missing_items_object_is_a_failure_with_a_cause(stack, put_survey):
    """The machine from the map on: what initialize wrote is gone meanwhile."""
    client = stack.aws.client("stepfunctions")
    found = client.describe_state_machine(stateMachineArn=stack.outputs["StateMachineArn"])
    definition = json.loads(found["definition"]) | {"StartAt": "WorkersStandard"}
    machine = client.create_state_machine(
        name="from-the-map", definition=json.dumps(definition), roleArn=found["roleArn"]
    )["stateMachineArn"]
    state = {
        "ok": True, "bucket": stack.outputs["Bucket"], "items_key": "gone/items.json",
        "max_concurrency": 0, "timeout_seconds": 9, "tolerated_failure_percentage": 100.0,
    }  # fmt: skip
    done = run_to_end(client, machine, "gone", state)
    assert (done["status"], done["error"]) == ("FAILED", "States.ItemReaderFailed")
    assert "gone/items.json" in done["cause"]
