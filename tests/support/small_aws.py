"""Who somebody is, told over real HTTP as AWS documents it: STS, IAM Identity Center, containers.

Beside them the objects of `small_s3`, which only the identity that is expected may touch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

from small_s3 import Answer, Asked, SmallS3, error, serving

ACCOUNT = "123456789012"
LONG_TERM = ("AKIALONGTERM", "long-term-secret", None)
"""Keys of a user, as they lie in variables and files."""
XML = {"Content-Type": "text/xml"}


@dataclass
class SmallAws:
    """The server, and what it gives to whom."""

    server: SmallS3
    expected: str = LONG_TERM[0]
    """The access key that may touch objects; all others are refused."""
    lifetime: timedelta = timedelta(hours=1)
    """Of what is issued."""

    def temporary(self, source: str) -> tuple[str, str, str]:
        """Key, secret and token that a source gives."""
        return f"ASIA{source.upper()}", f"{source}-secret", f"{source}-token"

    @property
    def expires(self) -> str:
        """When what is issued now ends."""
        return f"{datetime.now(UTC) + self.lifetime:%Y-%m-%dT%H:%M:%SZ}"

    def answer(self, asked: Asked) -> Answer | None:
        """What stands in `SmallS3.answer`."""
        if asked.method == "POST" and b"Action=" in asked.body:
            return self._sts(parse_qs(asked.body.decode())["Action"][0])
        if asked.key == "federation/credentials":
            key, secret, token = self.temporary("sso")
            until = int((datetime.now(UTC) + self.lifetime).timestamp() * 1000)
            given = {"accessKeyId": key, "secretAccessKey": secret, "sessionToken": token}
            return _json({"roleCredentials": {**given, "expiration": until}})
        if asked.key == "container":
            key, secret, token = self.temporary("container")
            given = {"AccessKeyId": key, "SecretAccessKey": secret, "Token": token}
            return _json({**given, "Expiration": self.expires, "RoleArn": "arn:aws:iam::1:role/r"})
        if asked.key.startswith("latest/"):
            return self._instance(asked)
        return self._refusal(asked)

    def _instance(self, asked: Asked) -> Answer:
        """The metadata of an EC2 instance, second version: nothing without a session's token."""
        if asked.method == "PUT":
            return Answer(200, b"session", {"Content-Type": "text/plain"})
        if asked.headers.get("x-aws-ec2-metadata-token") != "session":
            return Answer(401, b"", {})
        role = asked.key.removeprefix("latest/meta-data/iam/security-credentials/")
        if not role:
            return Answer(200, b"reader", {"Content-Type": "text/plain"})
        key, secret, token = self.temporary("instance")
        given = {"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z"}
        given |= {"AccessKeyId": key, "SecretAccessKey": secret, "Token": token}
        return _json({**given, "Expiration": self.expires})

    def _refusal(self, asked: Asked) -> Answer | None:
        if not asked.access_key:  # everybody may learn where a bucket lies
            return error(403, "AccessDenied", "Access Denied", x_amz_bucket_region="eu-north-1")
        if asked.access_key != self.expected:
            return error(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not "
                         "exist in our records.")  # fmt: skip
        temporary = self.expected.startswith("ASIA")
        token = asked.headers.get("x-amz-security-token")
        if temporary and token != f"{self.expected[4:].lower()}-token":
            return error(
                403, "InvalidToken", "The provided token is malformed or otherwise invalid."
            )
        return None

    def _sts(self, action: str) -> Answer:
        if action == "GetCallerIdentity":
            inner = f"<Arn>arn:aws:iam::{ACCOUNT}:user/u</Arn><UserId>U</UserId>"
            return _xml(action, f"{inner}<Account>{ACCOUNT}</Account>")
        key, secret, token = self.temporary("web" if "Web" in action else "role")
        return _xml(
            action,
            f"<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}"
            f"</SecretAccessKey><SessionToken>{token}</SessionToken><Expiration>{self.expires}"
            "</Expiration></Credentials><AssumedRoleUser><AssumedRoleId>R:s</AssumedRoleId>"
            f"<Arn>arn:aws:sts::{ACCOUNT}:assumed-role/r/s</Arn></AssumedRoleUser>",
        )

    def signed(self, part: str) -> set[tuple[str, str]]:
        """Access key and region of all requests to one service (``s3``, ``sts``)."""
        return {
            (asked.access_key, asked.region)
            for asked in list(self.server.asked)
            if f"/{part}/aws4_request" in asked.headers.get("authorization", "")
        }


@contextmanager
def small_aws() -> Iterator[SmallAws]:
    """The server for the time of a test."""
    with serving() as server:
        aws = SmallAws(server)
        server.answer = aws.answer
        yield aws


def _json(value: object) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _xml(action: str, inner: str) -> Answer:
    body = (
        f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result>'
        f"{inner}</{action}Result><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>"
        f"</{action}Response>"
    )
    return Answer(200, body.encode(), XML)
