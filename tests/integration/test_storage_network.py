"""Storage and AWS calls through proxies and TLS, with a certificate authority of one's own.

The proxy is a process, TLS and the S3 server behind it are real (seaweedfs).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from small_proxy import proxy
from small_tls import Authority, tls_front
from tiny import tiny_model, tiny_survey

from perseid.aws.session import Aws
from perseid.errors import AwsError, StorageError
from perseid.storage import Storage

pytestmark = pytest.mark.s3
HOST = "s3.perseid.invalid"
"""No name server knows it: only a proxy leads there."""
SECONDS = 20.0
"""Ten times what a first look takes on a busy machine; attempts alone took 26."""


@pytest.fixture
def bucket(s3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A bucket's URL; an environment without proxies, certificates and home of its own."""
    url: str = s3.bucket()
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return url


def address(s3) -> tuple[str, int]:
    parts = urlsplit(s3.endpoint)
    return str(parts.hostname), int(parts.port or 0)


def same_answers(bucket: str) -> None:
    """Storage and boto3 see the same object in the same server."""
    store = Storage(f"{bucket}/a b")
    store.put("k", b"v")
    assert [info.key for info in store.list()] == ["k"]
    name = bucket.removeprefix("s3://")
    found = Aws().client("s3").list_objects_v2(Bucket=name)["Contents"]
    assert [entry["Key"] for entry in found] == ["a b/k"]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_through_a_proxy(
    s3, bucket: str, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host, port = address(s3)
    with proxy(tmp_path, s3_perseid_invalid=f"{host}:{port}") as way:
        monkeypatch.setenv(variable, way.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}")
        if variable == "ALL_PROXY":  # botocore does not know it
            Storage(bucket).put("k", b"v")
        else:
            same_answers(bucket)
        assert f"PUT {HOST}" in way.asked


def test_a_run_through_a_proxy_with_a_password_and_tls(
    s3, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority.make(tmp_path)
    tiny_survey(tmp_path / "survey", 20, 10)
    model = tiny_model(tmp_path / "tiny.onnx")
    with (
        tls_front(authority.context(tmp_path, [HOST]), address(s3)) as port,
        proxy(tmp_path, "me:secret", s3_perseid_invalid=f"127.0.0.1:{port}") as way,
    ):
        monkeypatch.setenv("HTTPS_PROXY", way.url.replace("://", "://me:secret@"))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.file))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{HOST}")
        same_answers(bucket)
        for words in (
            ["split", str(tmp_path / "survey"), f"{bucket}/survey", "--rows", "10"],
            ["run", "--data", f"{bucket}/survey", "--out", f"{bucket}/run", "--model", str(model),
             "--workers", "1", "--quiet"],
        ):  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-m", "perseid", *words], capture_output=True, timeout=200
            )
            assert done.returncode == 0, done.stderr.decode()
        assert set(way.asked) == {f"CONNECT {HOST}"}
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    assert Storage(f"{bucket}/run").exists("summary.json")


def test_hosts_without_a_proxy(s3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    same_answers(bucket)


def test_no_host_at_all_through_the_proxy(s3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The asterisk of ``NO_PROXY`` counts for hosts that are given as addresses, too."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")
    same_answers(bucket)


def said_of(bucket: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The sentence of a server that cannot be used, which comes soon."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    began = time.monotonic()
    with pytest.raises(StorageError) as caught:
        Storage(bucket).exists("k")
    assert time.monotonic() - began < SECONDS
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_proxies_that_do_not_help(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
    said = said_of(bucket, f"https://{HOST}", monkeypatch)
    assert f"no S3 server answers at https://{HOST} (through the proxy 127.0.0.1:9)" in said
    assert "secret" not in said
    with proxy(tmp_path, "me:secret") as way:
        monkeypatch.setenv("HTTPS_PROXY", way.url)
        assert "requires a user name and a password" in said_of(
            bucket, f"https://{HOST}", monkeypatch
        )
        monkeypatch.setenv("HTTP_PROXY", way.url)
        assert "requires a user name and a password" in said_of(
            bucket, f"http://{HOST}", monkeypatch
        )
        monkeypatch.setenv("HTTPS_PROXY", way.url.replace("://", "://me:secret@"))
        assert "refuses the connection" in said_of(bucket, f"https://{HOST}", monkeypatch)


def test_certificates_that_nobody_trusts(
    s3, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority.make(tmp_path)
    here = ["127.0.0.1"]
    with tls_front(authority.context(tmp_path, here), address(s3)) as port:
        said = said_of(bucket, f"https://127.0.0.1:{port}", monkeypatch)
        assert "authority that this machine does not trust" in said
        assert "AWS_CA_BUNDLE" in said
        with pytest.raises(AwsError, match="AWS_CA_BUNDLE"):
            _ = Aws().account
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws" / "config").write_text(f"[default]\nca_bundle = {authority.file}\n")
        same_answers(bucket)
    with tls_front(authority.context(tmp_path, here, days=-1), address(s3)) as port:
        assert "has expired" in said_of(bucket, f"https://127.0.0.1:{port}", monkeypatch)
    with tls_front(authority.context(tmp_path, ["other.invalid"]), address(s3)) as port:
        assert "is for another name" in said_of(bucket, f"https://127.0.0.1:{port}", monkeypatch)


def test_tls_where_there_is_none(s3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host, port = address(s3)
    said = said_of(bucket, f"https://{host}:{port}", monkeypatch)
    assert "does not use TLS" in said


def test_a_name_that_cannot_be_looked_up(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be resolved" in said_of(bucket, f"http://{HOST}", monkeypatch)


@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_a_user_without_a_home(s3, bucket: str, home: str | None) -> None:
    """As in a container that runs under any number: no entry in /etc/passwd, no HOME."""
    if os.getuid() or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to become a user without an entry in /etc/passwd")
    env = {name: value for name, value in os.environ.items() if name != "HOME"}
    rights = "+dac_override,+dac_read_search"  # Python itself may lie where nobody else may read
    user = ["setpriv", "--reuid=64321", "--regid=64321", "--clear-groups",
            f"--inh-caps={rights}", f"--ambient-caps={rights}"]  # fmt: skip
    program = (
        "from perseid.storage import Storage\n"
        "from perseid.aws.session import Aws\n"
        f"store = Storage({bucket!r}); store.put('k', b'v'); assert store.get('k') == b'v'\n"
        f"print(Aws().client('s3').list_objects_v2(Bucket={bucket[5:]!r})['KeyCount'])"
    )
    done = subprocess.run(
        [*user, sys.executable, "-c", program],
        env=env if home is None else {**env, "HOME": home},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"
