"""The rendezvous' container command as ECS starts it, and the ping function against it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import ministack as doubles
import pytest
from cfnlint.decode import cfn_yaml
from lambda_runtime import environment

from perseid.aws.deploy.template import template
from perseid.errors import JobKeyRefusedError
from perseid.rendezvous import Client, job_key
from perseid.storage import Storage

SECRET = "5f" * 32


@pytest.fixture(scope="module")
def command(stack):
    """What the deployed task definition says: command, variables, health check."""
    ecs = stack.aws.client("ecs")
    definition = ecs.describe_task_definition(taskDefinition="perseid-rendezvous")["taskDefinition"]
    return definition["containerDefinitions"][0]


@pytest.fixture(scope="module")
def container():
    """The container as the template has it: ministack tells neither secrets nor health check."""
    task = cfn_yaml.loads(template())["Resources"]["Task"]
    return task["Properties"]["ContainerDefinitions"][0]


def free_ports():
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@pytest.fixture
def credentials(s3_server):
    """ECS' endpoint for the task role's credentials."""
    answer = json.dumps({
        "AccessKeyId": s3_server.env["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": s3_server.env["AWS_SECRET_ACCESS_KEY"],
    }).encode()  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *words):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/credentials"
    server.shutdown()
    server.server_close()


@pytest.fixture
def running(stack, command, s3_server, credentials, tmp_path, monkeypatch):
    """The container's process: bare Python, package from a real S3, the secret in its variables."""
    variables = {entry["name"]: entry["value"] for entry in command["environment"]}
    package = stack.packages["tools"].path.read_bytes()
    with monkeypatch.context() as patch:
        for name, value in s3_server.env.items():
            patch.setenv(name, value)
        store = Storage(s3_server.bucket("code"))
        store.put(variables["CODE_KEY"], package)
    port, http_port = free_ports()
    env = {
        **variables, "PATH": os.defpath, "RENDEZVOUS_SECRET": SECRET, "CODE_BUCKET": "code",
        "AWS_ENDPOINT_URL_S3": s3_server.endpoint, "AWS_REGION": "us-east-1",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": credentials,
    }  # fmt: skip
    words = [sys.executable, "-I", "-S", *command["entryPoint"][1:]]
    words += ["--host", "127.0.0.1", "--port", str(port), "--http-port", str(http_port)]
    log = tmp_path / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 20
        while b"listening" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield port, http_port, log, process
    finally:
        process.kill()
        process.wait(10)


def test_it_asks_for_what_the_template_gives(command, container):
    assert command["entryPoint"][:3] == ["python3", "-P", "-c"]
    assert {"CODE_BUCKET", "CODE_KEY", "AWS_REGION"} == {e["name"] for e in command["environment"]}
    [secret] = container["Secrets"]
    assert secret["Name"] == "RENDEZVOUS_SECRET"
    assert secret["ValueFrom"]["Fn::Sub"].endswith(":parameter${SecretParameter}")


@pytest.mark.s3
def test_the_server_starts_is_healthy_and_keeps_its_secret(running, container, tmp_path):
    port, http_port, log, process = running
    check = container["HealthCheck"]["Command"]
    assert check[0] == "CMD"
    probe = [sys.executable, *(word.replace("10001", str(http_port)) for word in check[2:])]
    assert subprocess.run(probe, timeout=20).returncode == 0
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/readyz", timeout=5) as answer:
        assert answer.status == 200
    key = job_key(SECRET.encode(), "job")
    with Client.register(f"127.0.0.1:{port}", "job", 0, 1, key=key):
        pass  # the job's key fits the secret
    with pytest.raises(JobKeyRefusedError):
        Client.register(f"127.0.0.1:{port}", "job", 0, 1, key=bytes(32))
    assert SECRET not in log.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]  # nothing was written
    process.terminate()
    assert process.wait(30) == 0


@pytest.mark.s3
def test_the_ping_function_reaches_it(running, stack, tmp_path):
    import zipfile

    port, _, _, _ = running
    code = tmp_path / "code"
    with zipfile.ZipFile(stack.packages["tools"].path) as archive:
        archive.extractall(code)
    folder = tmp_path / "lambda"
    folder.mkdir()
    handler = "perseid.aws.handlers.ping.handler"
    with environment(doubles.python(), code, handler, folder) as ping:
        answer = ping.invoke({"rendezvous_endpoint": f"127.0.0.1:{port}"})
        assert answer.kind == "response", answer
        assert answer.body["perseid"] is True
        assert answer.body["keyed"] is True
        said = ping.log.read_text()
        assert "receiving event: {'rendezvous_endpoint'" in said
        assert "successfully connected" in said
        nobody = ping.invoke({"rendezvous_endpoint": f"127.0.0.1:{free_ports()[0]}"})
        assert (nobody.kind, nobody.error_type) == ("error", "RendezvousUnreachableError")
        assert ping.invoke({}).error_type == "BadInputError"
