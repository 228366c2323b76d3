"""A role of a profile, assumed at a double of AWS: storage and AWS calls act as that role."""

from __future__ import annotations

import os

import boto3
import ministack
import moto_server
import pytest

from perseid.aws.session import Aws
from perseid.storage import Storage

KEYS = "aws_access_key_id = test\naws_secret_access_key = test\n"


@pytest.mark.parametrize("double", [moto_server, ministack])
def test_storage_and_aws_act_as_the_role(double, tmp_path, monkeypatch):
    with double.running() as server:
        for name in [n for n in os.environ if n.startswith("AWS_") and n != "AWS_CA_BUNDLE"]:
            monkeypatch.delenv(name)
        role = {"RoleName": "reader", "AssumeRolePolicyDocument": "{}"}
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        admin = boto3.Session(region_name="us-east-1", **keys)
        arn = admin.client("iam", endpoint_url=server.endpoint).create_role(**role)["Role"]["Arn"]
        admin.client("s3", endpoint_url=server.endpoint).create_bucket(Bucket="assumed")
        (tmp_path / ".aws").mkdir()
        where = f"region = us-east-1\nendpoint_url = {server.endpoint}\n"
        (tmp_path / ".aws" / "config").write_text(
            f"[profile base]\n{where}{KEYS}[profile work]\n{where}role_arn = {arn}\n"
            "source_profile = base\nrole_session_name = perseid-test\n"
        )
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("AWS_PROFILE", "work")
        Storage("s3://assumed/a b").put("k", b"v")
        aws = Aws()
        acting = aws.client("sts").get_caller_identity()["Arn"]
        assert acting.endswith("assumed-role/reader/perseid-test")
        listed = aws.client("s3").list_objects_v2(Bucket="assumed")["Contents"]
        assert [entry["Key"] for entry in listed] == ["a b/k"]
        (cached,) = (tmp_path / ".aws" / "cli" / "cache").iterdir()
        assert cached.stat().st_mode & 0o077 == 0, "temporary credentials are their owner's"
