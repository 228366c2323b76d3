"""What AWS would never answer, but a proxy on the way does: one short sentence of ours."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from small_s3 import Answer, serving

from perseid.aws import existing
from perseid.aws.executions import Executions
from perseid.aws.handlers import service_address
from perseid.aws.handlers.service_address import ServiceAddress, ServiceNames
from perseid.aws.observe.calls import Calls
from perseid.aws.session import Aws, aws_errors
from perseid.aws.stack_resources import StackResources
from perseid.errors import AwsError, BadInputError, NotFoundError

PAGE = b"<!doctype html>\n<html>\n<h1>Please log in</h1>\n" + b"<p>to this network</p>\n" * 100


@pytest.fixture
def proxy(monkeypatch):
    """A server that answers everything with a page; set its status."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)

        do_GET = do_POST

        def log_message(self, *words) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("service", "call", "status"),
    [
        ("cloudformation", "describe_stacks", 200),  # XML
        ("cloudformation", "describe_stacks", 403),
        ("stepfunctions", "list_state_machines", 403),  # JSON
        ("lambda", "get_account_settings", 404),  # REST
    ],
)
def test_a_page_in_place_of_an_answer(proxy, service, call, status):
    proxy.status = status
    client = Aws(region="us-east-1").client(service)
    with pytest.raises((AwsError, NotFoundError)) as caught, aws_errors():
        getattr(client, call)()
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert len(said) < 600


SKEWED = "Signature expired: 20261126T010000Z is now earlier than 20261126T012000Z"


@pytest.mark.parametrize(
    ("code", "message", "said"),
    [
        ("InvalidSignatureException", SKEWED, "set the clock"),
        ("SignatureDoesNotMatch", SKEWED, "set the clock"),
        ("RequestExpired", "Request has expired.", "set the clock"),
        ("InvalidSignatureException", "The request signature we calculated", "renew them"),
        ("ExpiredTokenException", "The security token included is expired", "get new ones"),
        ("UnrecognizedClientException", "The security token is invalid", "renew them"),
        ("AccessDeniedException", "not authorized to perform", "may not call"),
    ],
)
def test_a_refusal_says_what_to_do(proxy, monkeypatch, code, message, said):
    """Step Functions' answers; AWS words a wrong clock as a wrong signature."""
    with serving() as server:
        body = json.dumps({"__type": code, "message": message}).encode()
        kind = {"Content-Type": "application/x-amz-json-1.0"}
        server.answer = lambda asked: Answer(400, body, kind)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        client = Aws(region="us-east-1").client("stepfunctions")
        with pytest.raises(AwsError, match=said) as caught, aws_errors():
            client.list_state_machines()
        assert code in str(caught.value) or code == "AccessDeniedException"


@pytest.mark.parametrize(
    ("region", "enable"), [("eu-south-2", True), ("us-east-1", False)], ids=["opt-in", "usual"]
)
def test_a_region_that_the_account_has_not_enabled(proxy, monkeypatch, region, enable):
    """STS of such a region knows no credentials of the account."""
    body = b"<ErrorResponse><Error><Type>Sender</Type><Code>InvalidClientTokenId</Code><Message>"
    body += b"The security token included in the request is invalid</Message></Error>"
    with serving() as server:
        server.answer = lambda asked: Answer(403, body + b"</ErrorResponse>", {})
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        for ask in (lambda aws: aws.account, Aws.check_partition):
            with pytest.raises(AwsError, match="does not accept these credentials") as caught:
                ask(Aws(region=region))
            said = f"aws account enable-region --region-name {region}"
            assert (said in str(caught.value)) == enable


def test_a_name_that_cannot_be_is_one_sentence(proxy):
    with pytest.raises(AwsError) as caught, aws_errors():
        Aws(region="us-east-1").client("s3").head_bucket(Bucket="no bucket's name")
    assert "Invalid bucket name" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def answers(proxy, monkeypatch):
    """A function that sets what a server of AWS's JSON protocol answers."""
    with serving() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        kind = {"Content-Type": "application/x-amz-json-1.1"}

        def answer(**values: object) -> None:
            server.answer = lambda asked: Answer(200, json.dumps(values).encode(), kind)

        yield answer


DEEP = "[" * 100_000
MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:m"
EXECUTION = "arn:aws:states:us-east-1:123456789012:execution:m:one"
NOT_OURS = [DEEP, "[1, 2]", "7", "null", '"text"', "{", '{"address": 7}', '{"results": [1]}']
IDS = ["deep", "list", "number", "null", "text", "cut", "address", "results"]
"""What anybody may write into a parameter, or start a state machine with."""


@pytest.mark.parametrize("text", NOT_OURS, ids=IDS)
def test_a_parameter_that_somebody_edited_has_no_address(answers, text):
    answers(Parameter={"Name": "p", "Value": text})
    names = ServiceNames("cluster", "service", "p")
    assert service_address.read(names, Aws().client) == ServiceAddress()


def test_a_parameter_with_keys_of_a_newer_version_is_read(answers):
    answers(Parameter={"Name": "p", "Value": '{"address": "192.0.2.7", "ipv6": "2001:db8::1"}'})
    names = ServiceNames("cluster", "service", "p")
    assert service_address.read(names, Aws().client) == ServiceAddress("192.0.2.7")


@pytest.mark.parametrize("text", NOT_OURS, ids=IDS)
def test_an_execution_that_is_none_of_ours_is_a_sentence(answers, text):
    answers(executionArn=EXECUTION, stateMachineArn=MACHINE, status="RUNNING", startDate=1,
            input=text)  # fmt: skip
    place = StackResources(MACHINE, "b", "w", "i", "s", 1024)
    with pytest.raises(BadInputError) as caught:
        Executions(Calls(Aws()), place).find(EXECUTION)
    assert f"{EXECUTION} is not a run of perseid" in str(caught.value)


@pytest.mark.parametrize("text", [DEEP, "{"], ids=["deep", "cut"])
def test_a_definition_that_cannot_be_read_is_a_sentence(answers, text):
    answers(stateMachineArn=MACHINE, name="m", type="STANDARD", definition=text, roleArn="r",
            status="ACTIVE", creationDate=1)  # fmt: skip
    with pytest.raises(BadInputError, match="cannot be read"):
        existing.examine(Calls(Aws()), MACHINE)
