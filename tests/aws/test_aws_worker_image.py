"""What a worker's image runs, without the image: AWS's bootstrap where torch is installed."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cfnlint.decode import cfn_yaml
from lambda_runtime import environment
from scripts import begin_script

from perseid.aws.deploy.template import Options
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage

HERE = Path(__file__).parents[1]
PAGES = HERE.parent / "docs/how-to"
SCRIPT = HERE / "support/inference_script.py"
PYTHON = """#!/bin/sh
if [ -z "$PRIVATE" ]; then PRIVATE=1 exec unshare --mount "$0" "$@"; fi
mount --bind /dev/null /etc/passwd && mount --bind {names} /etc/nsswitch.conf || exit 1
unset HOME USER LOGNAME
exec {python} "$@"
"""
"""As on Lambda: the system has no name for the user, and there is no home."""


@pytest.mark.s3
def test_a_torch_script_in_the_worker_of_an_image(s3, put_survey, tmp_path):
    url, name = s3.bucket(), "Image Worker"
    bucket = Storage(url)
    bucket.put(f"{name}/Inference/inference.py", SCRIPT.read_bytes())
    bucket.put(f"{name}/Inference/helpers/__init__.py", b"")
    helper = b"def bits_of(tensor):\n    return tensor.nbytes * 8\n"
    bucket.put(f"{name}/Inference/helpers/metrics.py", helper)
    weights = io.BytesIO()
    torch.save(torch.ones(5), weights)
    bucket.put(f"{name}/Fine Tuned/weights.pt", weights.getvalue())
    put_survey(f"{url}/25MB", 1, rows=10)
    begun = begin_script(RunRequest.parse({
        "bucket": url.removeprefix("s3://"), "data_bucket": url.removeprefix("s3://"),
        "data_prefix": "25MB", "batch_size": "4", "object_type": "folder", "S3_object_name": name,
        "script": f"/tmp/{name}/Inference/inference.py",
        "result_path": "result-partition-25MB/1GB/1",
    }))  # fmt: skip
    (tmp_path / "names").write_text("passwd: files\nhosts: files dns\n")
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable, names=tmp_path / "names"))
    python.chmod(0o755)
    handler = "perseid.aws.handlers.worker.handler"
    with environment(python, tmp_path, handler, tmp_path, s3.env) as image:
        done = image.invoke({"item": begun.items[0].to_json()}, 120, 120)
    assert done.kind == "response", (done.body, image.log.read_text())
    record = json.loads(bucket.get("result-partition-25MB/1GB/1/0.json"))
    assert record["data_path"] == "25MB/1.pt"
    assert record["num_batches"] == 3


def test_the_templates_of_pages_are_valid(tmp_path):
    linter = Path(sys.executable).parent / "cfn-lint"
    blocks = re.findall(r"```yaml\n(AWSTemplate.*?)```", _text("worker-image.md"), re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        done = subprocess.run([linter, path], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout


STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> {log}
[ "$1" = ecr ] && echo a-password
[ "$1" = login ] && cat >> {log}
exit 0
"""
"""Of aws and docker: they say what they were asked for."""


def test_the_commands_of_codebuild_make_push_and_name_the_image(tmp_path):
    """What the page's project runs, but for Docker and ECR."""
    [page] = re.findall(r"```yaml\n(AWSTemplate.*?)```", _text("worker-image.md"), re.DOTALL)
    template = cfn_yaml.loads(page)
    project = template["Resources"]["Build"]["Properties"]
    uri = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/perseid-worker:7"
    assert Options(worker_image=uri).worker_image == uri
    values = {name: entry.get("Default") for name, entry in template["Parameters"].items()}
    given = {"URI": uri}
    for entry in project["Environment"]["EnvironmentVariables"]:
        if "Ref" in entry["Value"]:
            given[entry["Name"]] = values[entry["Value"]["Ref"]]
        else:
            assert entry["Value"]["Fn::Sub"] == "${Repository.RepositoryUri}:${Tag}"
    log = tmp_path / "log"
    for name in ("aws", "docker"):
        (tmp_path / name).write_text(STAND_IN.format(log=log))
        (tmp_path / name).chmod(0o755)
    for command in yaml.safe_load(project["Source"]["BuildSpec"])["phases"]["build"]["commands"]:
        subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True, timeout=60,
                       env={"PATH": f"{tmp_path}:/usr/bin:/bin", **given})  # fmt: skip
    start, install, command = (tmp_path / "Dockerfile").read_text().splitlines()
    assert start == "FROM public.ecr.aws/lambda/python:3.12"
    first, second = install.removeprefix("RUN ").split(" && ")
    assert shlex.split(first)[-1] == "perseid[aws]"
    assert "torch" in shlex.split(second)
    assert json.loads(command.removeprefix("CMD ")) == ["perseid.aws.handlers.worker.handler"]
    assert sorted(log.read_text().splitlines()) == [  # both ends of a pipe write at once
        "a-password",
        "aws ecr get-login-password",
        f"docker build --provenance=false -t {uri} .",
        f"docker login --username AWS --password-stdin {uri.partition('/')[0]}",
        f"docker push {uri}",
    ]


def _text(page: str) -> str:
    return (PAGES / page).read_text(encoding="utf-8")
