"""What AWS would never answer, but a proxy on the way does: one short sentence of ours."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from small_s3 import Answer, serving

from perseid.aws.session import Aws, aws_errors
from perseid.errors import AwsError, NotFoundError

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


def test_a_name_that_cannot_be_is_one_sentence(proxy):
    with pytest.raises(AwsError) as caught, aws_errors():
        Aws(region="us-east-1").client("s3").head_bucket(Bucket="no bucket's name")
    assert "Invalid bucket name" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
