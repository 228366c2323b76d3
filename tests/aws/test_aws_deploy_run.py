"""Whole runs on the deployed stack: the same handlers, zips, state machine and template."""

from __future__ import annotations

import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cfnlint.decode import cfn_yaml
from ministack import limited, run_to_end
from packets import assert_encrypted, captured

from perseid.aws import stack as stacks
from perseid.aws.deploy.template import template
from perseid.engines.driver import start
from perseid.engines.local import LocalEngine
from perseid.engines.local.local_options import LocalOptions
from perseid.pipeline.initialize import new_run_id
from perseid.pipeline.request import RunRequest
from perseid.rendezvous import Config, EmbeddedServer
from perseid.storage import Storage

THREE = new_run_id(time.time())


def machine(stack):
    return stack.aws.client("stepfunctions"), stack.outputs["StateMachineArn"]


def same_catalogue(one: str, other: str) -> bool:
    """Byte for byte but for the run's own name, which both carry (names of one length)."""
    texts, tables = [], []
    for url in (one, other):
        storage = Storage(url)
        name = json.loads(storage.get("manifest.json"))["run_id"].encode()
        text = storage.get("catalogue.parquet")
        tables.append(pq.read_table(pa.BufferReader(text)))
        texts.append(text.replace(name, b"?"))
    if texts[0] != texts[1]:
        for column in tables[0].column_names:
            found = zip(*(table[column].to_pylist() for table in tables), strict=True)
            unequal = [(row, *pair) for row, pair in enumerate(found) if pair[0] != pair[1]]
            print(f"{column} differs in {len(unequal)} rows, first in {unequal[:3]}")
    return texts[0] == texts[1]


def local_twin(stack, tmp_path, results, data):
    """The same run by the local engine; its place."""
    request = RunRequest.parse({"data": data, "results": str(tmp_path / results)})
    engine = LocalEngine(LocalOptions(workers=2))
    start(request, engine, lambda event: None)
    return str(tmp_path / results)


def test_a_run_of_three_ranks_gives_the_local_engines_catalogue(stack, put_survey, tmp_path):
    data, results = f"{stack.bucket}/three", f"{stack.bucket}/runs/three"
    put_survey(data, 3, rows=40)
    done = run_to_end(*machine(stack), THREE, {"data": data, "results": results})
    assert done["status"] == "SUCCEEDED", (done.get("error"), done.get("cause"))
    assert done["output"]["summary"]["rows"] == 120
    assert done["output"]["run_id"] == THREE
    summary = json.loads(Storage(results).get("summary.json"))
    assert summary["status"] == "complete"
    assert len(json.loads(Storage(results).get("combined_data.json"))) == 3
    assert same_catalogue(results, local_twin(stack, tmp_path, "three", data))


def test_an_existing_payload_is_refused_in_one_sentence_where_its_data_is_missing(stack):
    payload = {
        "bucket": stack.outputs["Bucket"], "file_limit": "11", "batch_size": 512,
        "object_type": "folder", "S3_object_name": "Anomaly Detection",
        "script": "/tmp/Anomaly Detection/Inference/inference.py",
        "result_path": "result-partition-100MB/1GB/1",
        "data_bucket": stack.outputs["Bucket"], "data_prefix": "absent",
    }  # fmt: skip
    done = run_to_end(*machine(stack), "absent", payload)
    assert (done["status"], done["error"]) == ("FAILED", "NotFoundError")
    assert "is not there" in done["cause"]
    assert "{" not in done["cause"]


@pytest.mark.parametrize(("function", "begins"), [("perseid-ping", "give {"), ("absent", "")])
def test_what_a_function_raised_is_the_cause_without_its_traceback(stack, function, begins):
    client, arn = machine(stack)
    found = client.describe_state_machine(stateMachineArn=arn)
    definition = json.loads(found["definition"])
    definition["States"]["Initialize"]["Parameters"]["FunctionName"] = function
    made = client.create_state_machine(
        name=f"raises-{function}", definition=json.dumps(definition), roleArn=found["roleArn"]
    )
    done = run_to_end(client, made["stateMachineArn"], "raises", {})
    assert done["status"] == "FAILED"
    assert done["cause"].startswith(begins)
    assert done["cause"]
    assert "errorMessage" not in done["cause"]


def test_an_execution_without_anything_to_do_starts_no_map(stack, put_survey):
    data, results = f"{stack.bucket}/whole", f"{stack.bucket}/runs/whole"
    put_survey(data, 2)
    first = run_to_end(*machine(stack), "whole", {"data": data, "results": results})
    assert first["status"] == "SUCCEEDED", (first.get("error"), first.get("cause"))
    again = run_to_end(*machine(stack), "whole-again", {"resume": results})
    assert again["status"] == "SUCCEEDED", (again.get("error"), again.get("cause"))
    assert again["output"]["summary"]["status"] == "complete"
    client, _ = machine(stack)
    runs = [client.list_map_runs(executionArn=e["executionArn"])["mapRuns"] for e in (first, again)]
    assert [len(found) for found in runs] == [1, 0]


def test_ranks_that_talk_to_each_other_meet_with_the_stacks_secret(stack, put_survey, tmp_path):
    data, results = f"{stack.bucket}/talk", f"{stack.bucket}/runs/talk"
    put_survey(data, 3)
    name = stack.outputs["RendezvousSecretParameter"]
    ssm = stack.aws.client("ssm")
    secret = ssm.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"].encode()
    config = Config(host="127.0.0.1", port=0, http_port=None, secret=secret)
    with EmbeddedServer(config) as server:
        given = {"data": data, "results": results, "transport": "relay"}
        given["rendezvous_endpoint"] = server.address
        with captured(int(str(server.address).rpartition(":")[2])) as packets:
            done = run_to_end(*machine(stack), new_run_id(time.time()), given)
    assert done["status"] == "SUCCEEDED", (done.get("error"), done.get("cause"))
    assert (done["output"]["max_concurrency"], done["output"]["children"]) == (3, "STANDARD")
    records = json.loads(Storage(results).get("combined_data.json"))
    assert {record["transport"] for record in records} == {"relay"}, records[0]
    assert_encrypted(packets, results, secret)
    assert same_catalogue(results, local_twin(stack, tmp_path, "talk", data))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [41, 517])
def test_many_ranks_give_the_local_engines_catalogue(stack, put_survey, tmp_path, ranks):
    data, results = f"{stack.bucket}/of-{ranks}", f"{stack.bucket}/runs/of-{ranks}"
    put_survey(data, ranks, rows=4)
    client, arn = machine(stack)
    name, began = new_run_id(time.time()), time.monotonic()
    done = run_to_end(client, limited(client, arn), name, {"data": data, "results": results})
    seconds = time.monotonic() - began
    assert done["status"] == "SUCCEEDED", (done.get("error"), done.get("cause"))
    assert done["output"]["summary"]["rows"] == ranks * 4
    records = json.loads(Storage(results).get("combined_data.json"))
    assert [record["rank"] for record in records] == list(range(ranks))
    work = sum(record["stages"]["total"] for record in records)
    print(
        f"{ranks} ranks in {seconds:.1f} s; {(6 * seconds - work) / ranks:.3f} s a rank is not work"
    )
    assert same_catalogue(results, local_twin(stack, tmp_path, str(ranks), data))


def test_everything_bears_the_tag_by_which_its_cost_is_told(stack):
    """CloudFormation tags what a stack has; a service must be told to tag its tasks."""
    found = stacks.describe(stack.aws, "perseid")
    assert found.tags[stacks.TAG] == "perseid"
    service = cfn_yaml.loads(template())["Resources"]["Service"]["Properties"]
    assert service["PropagateTags"] == "SERVICE"
    tags = stack.aws.client("s3").get_bucket_tagging(Bucket=stack.outputs["Bucket"])["TagSet"]
    assert {"Key": stacks.TAG, "Value": "perseid"} in tags
