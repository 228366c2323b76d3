"""The existing system in a small: initializer, executor, summarizer and their state machine.

Written from what its users have, and knowing nothing of perseid. The executor runs in the
environment that an image with torch would have, by AWS's own bootstrap, as Lambda's image does:
under a user that the system has no name for, and without a home.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Mapping
from typing import Any

INIT = """
import json, math
import boto3

def handler(event, context):
    print("receiving event:", event)
    s3 = boto3.client("s3")
    listed = s3.list_objects_v2(Bucket=event["data_bucket"], Prefix=event["data_prefix"] + "/")
    keys = [entry["Key"] for entry in listed["Contents"]][: int(event["file_limit"])]
    world = int(event.get("world_size") or len(keys))
    data_map, left = {}, list(keys)
    for rank in range(world):
        count = math.ceil(len(left) / (world - rank))
        own, left = left[:count], left[count:]
        data_map[str(rank)] = (own[0] if len(own) == 1 else own) or None
    body = json.dumps({**event, "data_map": data_map})
    s3.put_object(Bucket=event["bucket"], Key="payload.json", Body=body)
    common = {"S3_BUCKET": event["bucket"], "S3_OBJECT_NAME": event["S3_object_name"],
              "SCRIPT": event["script"], "S3_OBJECT_TYPE": event["object_type"],
              "WORLD_SIZE": str(world), "DATA_BUCKET": event["data_bucket"],
              "DATA_PREFIX": event["data_prefix"], "RESULT_PATH": event["result_path"],
              "BATCH_SIZE": str(event["batch_size"])}
    items = [{**common, "RANK": str(rank), "DATA_PATH": data_map[str(rank)] or ""}
             for rank in range(world)]
    return {"bucket": event["bucket"], "result_path": event["result_path"], "body": items}
"""
EXECUTOR = """
import os, pwd, subprocess, sys
import boto3

def handler(event, context):
    print("received: ", event, flush=True)
    s3, name = boto3.client("s3"), event["S3_OBJECT_NAME"]
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=event["S3_BUCKET"], Prefix=name)
    for page in pages:
        for entry in page.get("Contents", ()):
            path = "/tmp/" + entry["Key"]
            os.makedirs(os.path.dirname(path), exist_ok=True)
            s3.download_file(event["S3_BUCKET"], entry["Key"], path)
    env = {**os.environ, **{key: str(value) for key, value in event.items()}}
    command = [sys.executable, event["SCRIPT"]]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    try:
        who = pwd.getpwuid(os.getuid())
    except KeyError:
        who = "nobody"
    print(done.stdout, done.stderr, "user", who, "home", os.environ.get("HOME"), flush=True)
    if done.returncode:
        raise RuntimeError(f"the script ended with {done.returncode}")
    return {"rank": event["RANK"]}
"""
SUMMARIZER = """
import json
import boto3

def handler(event, context):
    s3, bucket, path = boto3.client("s3"), event["bucket"], event["result_path"]
    found = s3.list_objects_v2(Bucket=bucket, Prefix=path + "/")["Contents"]
    records = [json.loads(s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())
               for entry in found if entry["Key"].rpartition("/")[2][:-5].isdecimal()]
    s3.put_object(Bucket=bucket, Key=path + "/combined_data.json", Body=json.dumps(records))
    return {"records": len(records)}
"""
BOOTSTRAP = """#!/bin/sh
if [ -z "$PRIVATE" ]; then PRIVATE=1 exec unshare --mount "$0"; fi
own="/tmp/Anomaly Detection"
mkdir -p "$own" && mount -t tmpfs none "$own" && mount --bind /dev/null /etc/passwd || exit 1
printf 'passwd: files\nhosts: files dns\n' > "$own/names"
mount --bind "$own/names" /etc/nsswitch.conf || exit 1
unset HOME USER LOGNAME
cd "$LAMBDA_TASK_ROOT" && PYTHONPATH="$LAMBDA_TASK_ROOT" exec {python} -m awslambdaric "$_HANDLER"
"""
"""As on Lambda: the system has no name for the user, there is no home, and each environment has
files of its own."""


def deploy(aws: Any, env: Mapping[str, str]) -> str:
    """Make the three functions and the state machine; its ARN."""
    roles, machines = aws.client("iam"), aws.client("stepfunctions")
    trust = json.dumps({"Version": "2012-10-17", "Statement": []})
    role = roles.create_role(RoleName="course", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    arns = {
        "init": _function(aws, role, "course-init", python, INIT, env),
        "executor": _function(aws, role, "course-executor", "provided.al2023", EXECUTOR, env),
        "summarizer": _function(aws, role, "course-summarizer", python, SUMMARIZER, env),
    }
    made = machines.create_state_machine(
        name="course-workflow", definition=json.dumps(definition(arns)), roleArn=role
    )
    return str(made["stateMachineArn"])


def definition(arns: Mapping[str, str]) -> dict[str, Any]:
    """Initialize, a distributed map over the items in its answer, summarize."""

    def call(name: str, **more: Any) -> dict[str, Any]:
        given = {"FunctionName": arns[name], "Payload.$": "$"}
        task = {"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke", "Parameters": given}
        return {**task, "OutputPath": "$.Payload", **more}

    return {
        "Comment": "A description of my state machine",
        "StartAt": "Initialize World",
        "States": {
            "Initialize World": call("init", Next="Distributed Inference"),
            "Distributed Inference": {
                "Type": "Map", "ItemsPath": "$.body", "MaxConcurrency": 4, "ResultPath": None,
                "ItemProcessor": {
                    "ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"},
                    "StartAt": "Inference", "States": {"Inference": call("executor", End=True)},
                },
                "Next": "Summarize",
            },
            "Summarize": call("summarizer", End=True),
        },
    }  # fmt: skip


def _function(
    aws: Any, role: str, name: str, runtime: str, source: str, env: Mapping[str, str]
) -> str:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("main.py", source)
        entry = zipfile.ZipInfo("bootstrap")
        entry.external_attr = 0o755 << 16
        archive.writestr(entry, BOOTSTRAP.format(python=sys.executable))
    made = aws.client("lambda").create_function(
        FunctionName=name, Runtime=runtime, Handler="main.handler", Role=role, Timeout=120,
        MemorySize=3008, Code={"ZipFile": data.getvalue()}, Environment={"Variables": dict(env)},
    )  # fmt: skip
    aws.client("logs").create_log_group(logGroupName=f"/aws/lambda/{name}")
    return str(made["FunctionArn"])
