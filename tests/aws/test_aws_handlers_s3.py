"""The state machine's functions as their zips are, one after the other, on a real S3 server.

Signatures, conditional writes and listings are seaweedfs'; what Step Functions does between the
functions (reading the items, handing the state on) the test does as the definition says.
"""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack

import ministack as doubles
import pytest
from flaky import flaky_proxy
from lambda_runtime import environment

from perseid.engines.driver import start
from perseid.engines.local import LocalEngine
from perseid.engines.local.local_options import LocalOptions
from perseid.errors import RunError
from perseid.pipeline.initialize import initialize
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage

pytestmark = pytest.mark.s3
RUN = "20261122T101500Z-1f0a9c3b"
PARTS = {"initialize": "control", "worker": "worker", "summarize": "control"}


@pytest.fixture(scope="module")
def bucket(s3_server, put_survey):
    """A bucket with a survey of three partitions; this process' variables lead to its server."""
    url = s3_server.bucket("functions")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.env.items():
            patch.setenv(name, value)
        put_survey(f"{url}/survey", 3, rows=40)
        yield url


@pytest.fixture(scope="module")
def call(bucket, s3_server, unpacked, tmp_path_factory):
    """A function that invokes a handler: ``call("worker", event)``."""
    with ExitStack() as open_ones:
        running = {}
        for part, package in PARTS.items():
            running[part] = open_ones.enter_context(
                environment(
                    doubles.python(), unpacked[package], f"perseid.aws.handlers.{part}.handler",
                    tmp_path_factory.mktemp(part), {**s3_server.env, "WORKER_TIMEOUT": "900"},
                )
            )  # fmt: skip
        yield lambda part, event: running[part].invoke(event)


def work(call, state):
    """The map: the items object read as the ItemReader does, a worker an item."""
    items = json.loads(Storage(f"s3://{state['bucket']}").get(state["items_key"]))
    assert len(items) == state["ranks"]
    return [call("worker", {"item": item, "attempt_before": 0}) for item in items]


def test_a_run_gives_the_local_engines_catalogue(call, bucket, tmp_path):
    given = {"data": f"{bucket}/survey", "results": f"{bucket}/runs/one"}
    begun = call("initialize", {"input": given, "execution": RUN})
    assert begun.body["ok"] is True, begun
    assert call("initialize", {"input": given, "execution": RUN}).body == begun.body  # repeated
    done = work(call, begun.body)
    assert [answer.body["rows"] for answer in done] == [40] * 3
    ended = call("summarize", {"state": begun.body}).body
    assert ended["summary"] == {
        "status": "complete", "rows": 120, "summary_url": f"{bucket}/runs/one/summary.json",
    }  # fmt: skip
    twin = RunRequest.parse({"data": f"{bucket}/survey", "results": str(tmp_path / "twin")})
    engine = LocalEngine(LocalOptions(workers=1))
    own = start(twin, engine, lambda event: None).manifest.run_id
    texts = [Storage(url).get("catalogue.parquet") for url in (f"{bucket}/runs/one", twin.results)]
    assert texts[0].replace(RUN.encode(), b"?") == texts[1].replace(own.encode(), b"?")


def test_items_of_a_script_name_each_ranks_own_partitions(call, bucket):
    name = bucket.removeprefix("s3://")
    Storage(f"{bucket}/code").put("run.py", b"pass")
    given = {
        "bucket": name, "data_bucket": name, "data_prefix": "survey", "S3_object_name": "code",
        "script": "/tmp/code/run.py", "result_path": "runs/script", "world_size": "2",
        "data_path": "survey/1.pt",
    }  # fmt: skip
    begun = call("initialize", {"input": given, "execution": RUN + "s"}).body
    items = json.loads(Storage(bucket).get(begun["items_key"]))
    paths = [item["options"]["script"]["DATA_PATH"] for item in items]
    assert paths == ['["survey/1.pt", "survey/2.pt"]', "survey/3.pt"]
    assert json.loads(Storage(bucket).get("payload.json"))["data_path"] == "survey/1.pt"


def test_the_same_place_is_taken_once(call, bucket):
    """By a conditional write: of two runs that begin at one place at one time one is refused.

    Also where all have found the place free before the first of them writes.
    """
    given = {"data": f"{bucket}/survey", "results": f"{bucket}/runs/taken"}
    assert call("initialize", {"input": given, "execution": RUN}).body["ok"] is True
    other = call("initialize", {"input": given, "execution": "20261122T101500Z-ffffffff"}).body
    assert (other["ok"], other["error"]) == (False, "RunError")
    assert f"belongs to run {RUN}" in other["message"]
    free = RunRequest.parse({**given, "results": f"{bucket}/runs/free"})
    ready, found = threading.Barrier(4), []

    def begin() -> None:
        try:
            initialize(free, check=lambda manifest: ready.wait(60))
            found.append("begun")
        except RunError as error:
            found.append(str(error))

    others = [threading.Thread(target=begin) for _ in range(4)]
    for one in others:
        one.start()
    for one in others:
        one.join(120)
    assert len(found) == 4
    assert found.count("begun") == 1


def test_what_is_missing_is_resumed(call, bucket):
    url = f"{bucket}/runs/again"
    given = {"data": f"{bucket}/survey", "results": url}
    state = call("initialize", {"input": given, "execution": RUN}).body
    [first, *_] = json.loads(Storage(url).get("items.json"))
    assert call("worker", {"item": first, "attempt_before": 0}).kind == "response"
    part = call("summarize", {"state": state}).body
    assert (part["ok"], part["error"]) == (False, "RunIncompleteError")
    assert "ranks 1, 2 of 3" in part["message"]
    again = call("initialize", {"input": {"resume": url}, "execution": f"{RUN}-2"}).body
    assert (again["ranks"], again["items_key"]) == (2, f"runs/again/items.{RUN}-2.json")
    assert [answer.body["attempt"] for answer in work(call, again)] == [4, 4]
    assert call("summarize", {"state": again}).body["summary"]["status"] == "complete"


def test_a_store_that_refuses_these_keys_is_a_sentence(bucket, s3_server, unpacked, tmp_path):
    env = {**s3_server.env, "AWS_SECRET_ACCESS_KEY": "wrong", "WORKER_TIMEOUT": "900"}
    handler = "perseid.aws.handlers.initialize.handler"
    given = {"data": f"{bucket}/survey", "results": f"{bucket}/runs/refused"}
    with environment(doubles.python(), unpacked["control"], handler, tmp_path, env) as function:
        answer = function.invoke({"input": given, "execution": RUN})
    assert (answer.kind, answer.error_type) == ("error", "ForbiddenError")
    assert "SignatureDoesNotMatch" in answer.body["errorMessage"]


def test_a_busy_store_is_asked_again(bucket, s3_server, unpacked, tmp_path):
    """503 SlowDown to the first two requests of each object; nothing of it is seen outside."""
    url, handler = f"{bucket}/runs/busy", "perseid.aws.handlers.{}.handler"
    with flaky_proxy(s3_server.endpoint, refuse=2) as flaky, ExitStack() as open_ones:
        names = [name for name in s3_server.env if name.startswith("AWS_ENDPOINT_URL")]
        env = {**s3_server.env, **dict.fromkeys(names, flaky.endpoint), "WORKER_TIMEOUT": "900"}
        call = {}
        for part, package in PARTS.items():
            (tmp_path / part).mkdir()
            call[part] = open_ones.enter_context(
                environment(
                    doubles.python(), unpacked[package], handler.format(part), tmp_path / part, env
                )
            )
        given = {"data": f"{bucket}/survey", "results": url}
        state = call["initialize"].invoke({"input": given, "execution": RUN}).body
        done = work(lambda part, event: call[part].invoke(event), state)
        assert [answer.kind for answer in done] == ["response"] * 3
        ended = call["summarize"].invoke({"state": state}).body
    assert ended["summary"]["status"] == "complete"
    assert flaky.refused > 20
