"""Where credentials, region and server come from: sources x commands, with and without the SDK.

Files, the program of ``credential_process``, servers and tokens are real; the objects can be
touched only by the identity that the source is to give.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore.credentials import SSOProvider
from botocore.tokens import SSOTokenProvider
from small_aws import ACCOUNT, LONG_TERM, SmallAws, small_aws
from small_s3 import BUCKET
from tiny import tiny_model, tiny_survey

from perseid.aws.session import Aws
from perseid.cli import main
from perseid.errors import AwsError, BadInputError, NotInstalledError, StorageError
from perseid.storage import Storage, credentials

REGION = "eu-north-1"
KEYS = f"aws_access_key_id = {LONG_TERM[0]}\naws_secret_access_key = {LONG_TERM[1]}\n"
WRONG = {"AWS_ACCESS_KEY_ID": "AKIAWRONG", "AWS_SECRET_ACCESS_KEY": "wrong"}


class Home:
    """A user's home with AWS files, and the environment of a shell in it."""

    def __init__(self, folder: Path, aws: SmallAws, monkeypatch: pytest.MonkeyPatch) -> None:
        self.aws = aws
        self.folder = folder / ".aws"
        self.folder.mkdir(parents=True)
        self.env = monkeypatch
        self.config = ""
        self.credentials = ""
        self.flags: list[str] = []
        for name in list(os.environ):
            if name.startswith("AWS_") or name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for holder in (SSOProvider, SSOTokenProvider):  # botocore looks for the home once
            monkeypatch.setattr(holder, "_SSO_TOKEN_CACHE_DIR", str(self.folder / "sso" / "cache"))

    def profile(self, name: str, settings: str) -> None:
        """Add a profile to the config file, with the region and the server."""
        section = name if name == "default" else f"profile {name}"
        self.config += f"[{section}]\nregion = {REGION}\n"
        self.config += f"endpoint_url = {self.aws.server.endpoint}\n{settings}\n"

    def write(self) -> None:
        """Write the files."""
        (self.folder / "config").write_text(self.config)
        (self.folder / "credentials").write_text(self.credentials)


def variables(home: Home) -> None:
    home.profile("default", "")
    home.env.setenv("AWS_ACCESS_KEY_ID", LONG_TERM[0])
    home.env.setenv("AWS_SECRET_ACCESS_KEY", LONG_TERM[1])


def variables_before_a_profile(home: Home) -> None:
    variables(home)
    home.profile("work", "aws_access_key_id = AKIAWRONG\naws_secret_access_key = wrong")
    home.env.setenv("AWS_PROFILE", "work")


def shared_file(home: Home) -> None:
    home.profile("work", "")
    home.credentials += f"[work]\n{KEYS}"
    home.env.setenv("AWS_PROFILE", "work")
    home.env.setenv("AWS_SESSION_TOKEN", "left-over-of-another-shell")


def config_file(home: Home) -> None:
    home.profile("work", KEYS)
    home.env.setenv("AWS_PROFILE", "work")


def flag(home: Home) -> None:
    """``--profile`` overrides keys and a role in the environment."""
    home.profile("work", KEYS)
    home.flags += ["--profile", "work"]
    for name, value in {**WRONG, "AWS_DEFAULT_PROFILE": "other", "AWS_ROLE_ARN": "arn"}.items():
        home.env.setenv(name, value)


def process(home: Home) -> None:
    key, secret, token = home.aws.temporary("process")
    given = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret, "SessionToken": token}
    given["Expiration"] = home.aws.expires
    program = home.folder / "a helper.py"
    program.write_text(f"#!{sys.executable}\nprint({json.dumps(json.dumps(given))})\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    home.profile("work", f'credential_process = "{program}"')
    home.env.setenv("AWS_PROFILE", "work")
    home.aws.expected = key


def role(home: Home) -> None:
    home.profile("base", KEYS)
    home.profile("work", f"role_arn = arn:aws:iam::{ACCOUNT}:role/r\nsource_profile = base")
    home.env.setenv("AWS_PROFILE", "work")
    home.aws.expected = home.aws.temporary("role")[0]


def sso(home: Home) -> None:
    session = "[sso-session org]\nsso_region = eu-north-1\nsso_start_url = https://org.invalid/s\n"
    home.profile("work", f"sso_session = org\nsso_account_id = {ACCOUNT}\nsso_role_name = Reader")
    home.config += session + "sso_registration_scopes = sso:account:access\n"
    signed_in(home, datetime.now(UTC) + timedelta(hours=8))
    home.env.setenv("AWS_PROFILE", "work")
    home.aws.expected = home.aws.temporary("sso")[0]


def signed_in(home: Home, until: datetime) -> None:
    """What ``aws sso login`` leaves."""
    cache = home.folder / "sso" / "cache"
    cache.mkdir(parents=True)
    token = {"accessToken": "t", "expiresAt": f"{until:%Y-%m-%dT%H:%M:%SZ}", "region": REGION}
    (cache / f"{hashlib.sha1(b'org').hexdigest()}.json").write_text(json.dumps(token))


def web_identity(home: Home) -> None:
    home.profile("default", "")
    token = home.folder / "token"
    token.write_text("header.payload.signature")
    home.env.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    home.env.setenv("AWS_ROLE_ARN", f"arn:aws:iam::{ACCOUNT}:role/r")
    home.aws.expected = home.aws.temporary("web")[0]


def container(home: Home) -> None:
    home.profile("default", "")
    url = f"{home.aws.server.endpoint}/container"
    home.env.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
    home.env.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(home.folder / "auth"))
    (home.folder / "auth").write_text("token")
    home.aws.expected = home.aws.temporary("container")[0]


def instance(home: Home) -> None:
    home.profile("default", "")
    home.env.delenv("AWS_EC2_METADATA_DISABLED")
    home.env.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", home.aws.server.endpoint)
    home.aws.expected = home.aws.temporary("instance")[0]


SOURCES: dict[str, Callable[[Home], None]] = {
    made.__name__: made
    for made in (
        variables, variables_before_a_profile, shared_file, config_file, flag, process, role, sso,
        web_identity, container, instance,
    )
}  # fmt: skip
NEED_THE_SDK = ("process", "role", "sso")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    before = dict(os.environ)
    with small_aws() as aws:
        yield Home(tmp_path / "home", aws, monkeypatch)
    os.environ.clear()
    os.environ.update(before)


def arranged(home: Home, source: str) -> str:
    """The files of a source; the survey's URL in its store."""
    SOURCES[source](home)
    home.write()
    return f"s3://{BUCKET}/survey"


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "flag"])
def test_storage_and_aws_are_the_same_identity_in_the_same_region(home: Home, source: str) -> None:
    arranged(home, source)
    store = Storage(f"s3://{BUCKET}")
    store.put("k", b"v")
    assert store.get("k") == b"v"
    assert Aws().account == ACCOUNT
    assert home.aws.signed("s3") == {(home.aws.expected, REGION)}
    assert (home.aws.expected, REGION) in home.aws.signed("sts")


# The store's own client asks STS over TLS only, so that a web identity is not among them.
@pytest.mark.parametrize("source", [n for n in SOURCES if n not in ("flag", "web_identity")])
def test_without_the_sdk_the_same_order_or_a_sentence(
    home: Home, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arranged(home, source)
    monkeypatch.setitem(sys.modules, "botocore", None)
    monkeypatch.setitem(sys.modules, "boto3", None)
    if source in NEED_THE_SDK:
        with pytest.raises(
            NotInstalledError, match=r"profile work .* pip install 'perseid\[aws\]'"
        ):
            Storage(f"s3://{BUCKET}")
        return
    store = Storage(f"s3://{BUCKET}")
    store.put("k", b"v")
    assert home.aws.signed("s3") == {(home.aws.expected, REGION)}


def commands(survey: str, model: str, flags: list[str]) -> list[list[str]]:
    run = f"s3://{BUCKET}/runs/one"
    return [
        ["split", survey, f"s3://{BUCKET}/survey", "--rows", "40", *flags],
        ["run", "--data", f"s3://{BUCKET}/survey", "--out", run, "--model", model, "--quiet",
         "--workers", "1", *flags],
        ["resume", run, "--quiet", *flags],
        ["table", run, *flags],
        ["report", run, *flags],
        ["status", run, *flags],
        ["logs", run, *flags],
        ["calibrate", run, "--out", "paces.json", *flags],
        ["plan", "--data", f"s3://{BUCKET}/survey", "--calibration", "paces.json", *flags],
        ["model", "info", model, *flags],
        ["aws", "policy", "run", *flags],
    ]  # fmt: skip


@pytest.mark.parametrize("source", ["flag", "process", "role", "sso"])
def test_every_command_follows_the_chain(
    home: Home, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arranged(home, source)
    home.env.chdir(tmp_path)
    tiny_survey(tmp_path / "survey", 80, 40)
    model = f"s3://{BUCKET}/models/tiny.onnx"
    local = tiny_model(tmp_path / "tiny.onnx")
    before = dict(os.environ)
    for words in [
        ["model", "info", str(local)],
        *commands(str(tmp_path / "survey"), model, home.flags),
    ]:
        home.aws.server.objects.setdefault("models/tiny.onnx", local.read_bytes())
        assert main(words) == 0, (words, capsys.readouterr())
        os.environ.clear()
        os.environ.update(before)
    assert home.aws.signed("s3") == {(home.aws.expected, REGION)}
    assert {region for _, region in home.aws.signed("sts")} == {REGION}
    assert ACCOUNT in capsys.readouterr().out


REGIONS = [
    ({}, [], REGION),
    ({"AWS_DEFAULT_REGION": "eu-west-1"}, [], "eu-west-1"),
    ({"AWS_DEFAULT_REGION": "eu-west-1", "AWS_REGION": "eu-west-2"}, [], "eu-west-2"),
    ({"AWS_REGION": "eu-west-2"}, ["--region", "eu-west-3"], "eu-west-3"),
]


@pytest.mark.parametrize(("env", "flags", "region"), REGIONS)
def test_one_region_for_storage_and_aws(
    home: Home, env: dict[str, str], flags: list[str], region: str, tmp_path: Path
) -> None:
    arranged(home, "shared_file")
    for name, value in env.items():
        home.env.setenv(name, value)
    model = tiny_model(tmp_path / "tiny.onnx")
    home.aws.server.objects["tiny.onnx"] = model.read_bytes()
    assert main(["model", "info", f"s3://{BUCKET}/tiny.onnx", *flags]) == 0
    assert main(["aws", "policy", "run", *flags]) == 0
    assert home.aws.signed("s3") == {(LONG_TERM[0], region)}
    assert home.aws.signed("sts") == {(LONG_TERM[0], region)}


ENDPOINTS = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "services", "profile", "--endpoint"]


@pytest.mark.parametrize("given", ENDPOINTS)
def test_one_server(home: Home, given: str, tmp_path: Path) -> None:
    """Each comes before those after it, which lead nowhere."""
    nowhere, here = "http://127.0.0.1:9", home.aws.server.endpoint
    later = ENDPOINTS[ENDPOINTS.index(given) :] if given != "--endpoint" else ENDPOINTS
    at = dict.fromkeys(later, nowhere) | {given: here}
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if name in at:
            home.env.setenv(name, at[name])
    home.config = f"[profile work]\nregion = {REGION}\nservices = mine\n{KEYS}"
    home.config += f"endpoint_url = {at['profile']}\n" if "profile" in at else ""
    home.config += "[services mine]\n"
    home.config += f"s3 =\n  endpoint_url = {at['services']}\n" if "services" in at else ""
    home.write()
    home.aws.server.objects["tiny.onnx"] = tiny_model(tmp_path / "tiny.onnx").read_bytes()
    flags = ["--profile", "work", *(["--endpoint", here] if given == "--endpoint" else [])]
    assert main(["model", "info", f"s3://{BUCKET}/tiny.onnx", *flags]) == 0


def failing_process(home: Home) -> None:
    program = home.folder / "helper"
    program.write_text("#!/bin/sh\necho 'the vault is sealed' >&2\nexit 3\n")
    program.chmod(0o700)
    home.profile("work", f"credential_process = {program}")


def signed_out(home: Home) -> None:
    sso(home)
    token = next((home.folder / "sso" / "cache").iterdir())
    token.unlink()


def expired_sign_in(home: Home) -> None:
    sso(home)
    token = next((home.folder / "sso" / "cache").iterdir())
    token.write_text(token.read_text().replace("20", "19", 1))


def no_such_source(home: Home) -> None:
    home.profile("work", f"role_arn = arn:aws:iam::{ACCOUNT}:role/r\nsource_profile = nobody")


def nothing(home: Home) -> None:
    home.profile("work", "")


def code_needed(home: Home) -> None:
    role(home)
    home.config = home.config.replace(
        "source_profile", "mfa_serial = arn:aws:iam::1:mfa/me\nsource_profile"
    )


def program_that(home: Home, does: str) -> None:
    program = home.folder / "helper"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o700)
    home.profile("work", f"credential_process = {program}")


def hanging_process(home: Home) -> None:
    program_that(home, "exec sleep 600")


def hanging_process_of_a_roles_source(home: Home) -> None:
    hanging_process(home)
    home.config = home.config.replace("[profile work]", "[profile base]")
    home.profile("work", f"role_arn = arn:aws:iam::{ACCOUNT}:role/r\nsource_profile = base")


def garbage(home: Home) -> None:
    program_that(home, "echo Please log in first")


def silent_process(home: Home) -> None:
    program_that(home, ":")


def binary_garbage(home: Home) -> None:
    program_that(home, "printf '\\377\\376\\000'")


def binary_complaint(home: Home) -> None:
    program_that(home, "printf 'sealed \\377' >&2; exit 1")


def a_list(home: Home) -> None:
    program_that(home, "echo '[1]'")


def bad_expiration(home: Home) -> None:
    answer = '{"Version":1,"AccessKeyId":"A","SecretAccessKey":"B","Expiration":"yesterday"}'
    program_that(home, f"echo '{answer}'")


def no_such_program(home: Home) -> None:
    home.profile("work", "credential_process = /no/such/program")


def open_quote(home: Home) -> None:
    home.profile("work", 'credential_process = "helper')


def no_metadata_service(home: Home) -> None:
    nothing(home)
    home.env.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "::::")


BROKEN = {
    hanging_process: r"profile work .*helper.* did not end within 1 s",
    hanging_process_of_a_roles_source: r"profile work .*helper.* did not end within 1 s",
    garbage: r"profile work .*helper.* printed 'Please log in first', not .*JSON",
    silent_process: r"profile work .*helper.* printed nothing, not .*JSON",
    binary_garbage: r"profile work .*helper.* printed .*, not .*JSON",
    binary_complaint: r"profile work .*sealed",
    a_list: r"profile work .*helper.* printed '\[1\]', not .*JSON",
    bad_expiration: r"profile work .*yesterday",
    no_such_program: r"profile work .*/no/such/program.*No such file",
    open_quote: r"profile work .*\"helper.*quot",
    no_metadata_service: r"::::",
    failing_process: r"the vault is sealed",
    signed_out: r"aws sso login --profile work",
    expired_sign_in: r"aws sso login --profile work",
    no_such_source: r"nobody",
    nothing: r"there are no AWS credentials",
    code_needed: r"get-caller-identity --profile work",
}


@pytest.mark.filterwarnings("ignore::getpass.GetPassWarning")
@pytest.mark.parametrize("broken", BROKEN)
def test_a_source_that_fails_says_what_to_do(
    home: Home, broken: Callable[[Home], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(home)
    home.write()
    home.env.setenv("AWS_PROFILE", "work")
    if "hanging" in broken.__name__:
        monkeypatch.setattr(credentials, "PROGRAM_SECONDS", 1.0)
    with open(os.devnull) as empty:
        monkeypatch.setattr(sys, "stdin", empty)
        with pytest.raises(StorageError, match=BROKEN[broken]) as caught:
            Storage(f"s3://{BUCKET}")
        assert "\n" not in str(caught.value)
        with pytest.raises(AwsError, match=BROKEN[broken]):
            _ = Aws().account
    assert home.aws.signed("s3") == set()


def test_a_role_is_assumed_once_and_not_once_a_process(home: Home) -> None:
    arranged(home, "role")
    for _ in range(2):
        Aws()._session.get_credentials().get_frozen_credentials()
        Storage(f"s3://{BUCKET}").put("k", b"v")
    asked = [a for a in home.aws.server.asked if b"Action=AssumeRole" in a.body]
    assert len(asked) == 1


def test_a_home_that_cannot_be_written_is_no_reason_to_fail(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    arranged(home, "role")
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write everywhere
    Storage(f"s3://{BUCKET}").put("k", b"v")
    assert not (home.folder / "cli").exists()


def numbered_process(home: Home) -> Path:
    """A program that gives other keys each time, soon to end, until a file says that it fails."""
    broken = home.folder / "broken"
    program = home.folder / "helper"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib, sys\n"
        f"if pathlib.Path({str(broken)!r}).exists(): sys.exit('the vault is sealed')\n"
        f"count = pathlib.Path({str(home.folder / 'count')!r})\n"
        "number = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (number + 1))\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'AKIA{number}', 'SecretAccessKey': 's',\n"
        f"    'SessionToken': 't', 'Expiration': {home.aws.expires!r}}}))\n"
    )
    program.chmod(0o700)
    home.profile("work", f"credential_process = {program}")
    home.env.setenv("AWS_PROFILE", "work")
    home.write()
    return broken


def test_credentials_that_end_are_renewed_and_a_failure_is_told(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.aws.lifetime = timedelta(minutes=5)  # less than what botocore lets pass
    monkeypatch.setattr(credentials, "ASKED_EVERY", timedelta(0))
    home.aws.server.answer = lambda asked: None  # all identities may do all
    broken = numbered_process(home)
    store = Storage(f"s3://{BUCKET}")
    for _ in range(4):
        store.put("k", b"v")
        time.sleep(0.15)  # the client does not ask again sooner than after 0.1 s
    assert len(home.aws.signed("s3")) > 2
    broken.touch()
    time.sleep(0.15)
    with pytest.raises(StorageError, match=r"profile work gives no .*the vault is sealed"):
        store.put("k", b"w")
    broken.unlink()
    time.sleep(0.15)
    store.put("k", b"x")
    assert home.aws.server.objects == {"k": b"x"}


def test_a_public_bucket_is_read_without_credentials(home: Home) -> None:
    home.profile("default", "")
    home.write()
    home.env.setenv("AWS_SKIP_SIGNATURE", "true")
    home.aws.server.answer = lambda asked: None
    home.aws.server.objects["k"] = b"v"
    assert Storage(f"s3://{BUCKET}").get("k") == b"v"
    assert home.aws.signed("s3") == set()


WRONG_FILES = {
    "[profile work\nregion = x\n": r"config cannot be read",
    "[profile work]\naws_access_key_id = A\n": r"without the other",
    "[profile work]\nendpoint_url = localhost:9\n" + KEYS: r"endpoint_url .* is not a URL",
    "[profile other]\n" + KEYS: r"no AWS profile 'work' \(there are: other\)",
    "[profile work]\nca_bundle = /nowhere.pem\n" + KEYS: r"/nowhere\.pem, which cannot be read",
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_a_file_that_is_wrong_is_a_sentence(home: Home, text: str) -> None:
    home.config = text
    home.write()
    home.env.setenv("AWS_PROFILE", "work")
    with pytest.raises(BadInputError, match=WRONG_FILES[text]):
        Storage(f"s3://{BUCKET}")


ODD_VALUES = {
    "bad port": ("AWS_ENDPOINT_URL", "http://localhost:99999", r"AWS_ENDPOINT_URL is .*not a URL"),
    "no port": ("AWS_ENDPOINT_URL", "http://localhost:nine", r"AWS_ENDPOINT_URL is .*not a URL"),
    "space": ("AWS_ENDPOINT_URL", "http://local host", r"AWS_ENDPOINT_URL is .*not a URL"),
    "no host": ("AWS_ENDPOINT_URL", "http://:80", r"AWS_ENDPOINT_URL is .*not a URL"),
    "open bracket": ("AWS_ENDPOINT_URL", "http://[::1", r"AWS_ENDPOINT_URL is .*not a URL"),
    "control": ("AWS_ENDPOINT_URL", "http://a\x01b", r"AWS_ENDPOINT_URL is .*not a URL"),
    "key": ("AWS_ACCESS_KEY_ID", "a\nb", r"AWS_ACCESS_KEY_ID .*line break"),
    "token": ("AWS_SESSION_TOKEN", "a\rb", r"AWS_SESSION_TOKEN .*line break"),
    "region": ("AWS_REGION", "us\neast", r"region 'us\\neast'"),
    "region of two words": ("AWS_REGION", "no where", r"region 'no where'"),
}


@pytest.mark.parametrize("odd", ODD_VALUES)
def test_values_that_no_request_can_carry_are_a_sentence(home: Home, odd: str) -> None:
    name, value, sentence = ODD_VALUES[odd]
    home.config = f"[default]\nendpoint_url = {home.aws.server.endpoint}\n{KEYS}"
    home.write()
    home.env.setenv("AWS_ACCESS_KEY_ID", "a")
    home.env.setenv("AWS_SECRET_ACCESS_KEY", "b")
    home.env.setenv(name, value)
    with pytest.raises(BadInputError, match=sentence) as caught:
        Storage(f"s3://{BUCKET}")
    assert str(caught.value).isprintable()


def test_an_empty_profile_is_a_sentence(home: Home) -> None:
    home.env.setenv("AWS_PROFILE", "")
    with pytest.raises(StorageError, match=r"profile .*could not be found"):
        Storage(f"s3://{BUCKET}")


@pytest.mark.parametrize("name", WRONG)
def test_half_a_pair_of_keys_is_a_sentence(home: Home, name: str) -> None:
    home.env.setenv(name, WRONG[name])
    with pytest.raises(BadInputError, match=rf"{name} is set without"):
        Storage(f"s3://{BUCKET}")
