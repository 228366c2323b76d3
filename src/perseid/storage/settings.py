"""S3 settings from the environment and the AWS files (``docs/reference/storage.md``).

Region, endpoint and certificates are read here, whether or not boto3 is installed. Of the
credentials, only plain keys in variables or files are read here; `perseid.storage.credentials` does
the rest.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from perseid.errors import BadInputError

_KEY, _SECRET, _TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
_OTHER_IDENTITIES = (
    _KEY, _SECRET, _TOKEN, "AWS_SECURITY_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN",
    "AWS_DEFAULT_PROFILE",
)  # fmt: skip
"""Variables that would take precedence over ``AWS_PROFILE``."""
_OF_THE_SDK = {
    "role_arn": "from an assumed role (role_arn)",
    "sso_session": "from IAM Identity Center (sso_session)",
    "sso_start_url": "from IAM Identity Center (sso_start_url)",
    "web_identity_token_file": "from a web identity (web_identity_token_file)",
    "login_session": "from `aws login` (login_session)",
    "credential_process": "from a program (credential_process)",
}
"""Profile settings that only the AWS SDK can use, in words for messages."""
_AFTER_KEYS = ("login_session", "credential_process")
"""Those of them over which keys in the credentials file take precedence."""


@dataclass(frozen=True)
class Keys:
    """Access keys, which are never shown."""

    access_key_id: str = field(repr=False)
    """Identifies the user."""
    secret_access_key: str = field(repr=False)
    """Signs the requests."""
    session_token: str | None = field(default=None, repr=False)
    """Only for temporary credentials."""


@dataclass(frozen=True)
class AwsSettings:
    """Settings of all storage and AWS calls of this process."""

    profile: str
    """Profile in the AWS files; ``default`` if none is named."""
    region: str | None
    """E.g. ``eu-central-1``; None if it is not configured."""
    endpoint: str | None
    """URL of an S3 server other than AWS, with ``http`` or ``https``."""
    ca_bundle: str | None
    """A file of certificates (PEM) to trust in addition to the system's."""
    keys: Keys | None
    """Keys from the variables, else from the profile; None if they come from another source."""
    keys_from_environment: bool
    """Whether `keys` come from the variables."""
    unsigned: bool
    """Whether requests are not signed (``AWS_SKIP_SIGNATURE``), for public buckets."""
    sdk_source: str
    """The source, in words, from which only the SDK can get the profile's credentials; empty if
    there is none."""


def use_aws(
    *, profile: str | None = None, region: str | None = None, endpoint: str | None = None
) -> None:
    """Set the identity, region and server for this process and its child processes.

    Storage, AWS calls, workers and users' scripts all read the same variables, so that one command
    never acts as two identities. Arguments that are None change nothing.

    Parameters
    ----------
    profile
        Profile in the AWS files; takes precedence over keys and roles in the environment.
    region
        E.g. ``eu-central-1``.
    endpoint
        URL of a server to use instead of AWS.

    Raises
    ------
    BadInputError
        The endpoint is not a URL.
    """
    if profile is not None:
        for name in _OTHER_IDENTITIES:
            # The SDK prefers keys in the environment to a profile, but an explicit profile must
            # win.
            os.environ.pop(name, None)
        os.environ["AWS_PROFILE"] = profile
    if region is not None:
        # Set both: botocore reads only the second, other tools only the first.
        os.environ["AWS_REGION"] = os.environ["AWS_DEFAULT_REGION"] = region
    if endpoint is not None:
        check_endpoint(endpoint, "--endpoint")
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        os.environ.pop("AWS_ENDPOINT_URL_S3", None)


def check_endpoint(endpoint: str, source: str) -> None:
    """Raise `BadInputError` unless it is an HTTP or HTTPS URL; `source` names the setting."""
    if not _is_url(endpoint):
        raise BadInputError(
            f"{source} is {endpoint!r}, which is not a URL: give one such as http://localhost:8333"
        )


def _is_url(text: str) -> bool:
    # Checked thoroughly because the S3 client panics at what no URL can be.
    from urllib.parse import urlsplit  # not imported by workers without an endpoint

    try:
        parts = urlsplit(text)
        port = parts.port  # a ValueError for one that is no number, or too large
    except ValueError:
        return False
    has_place = parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
    return has_place and text.isprintable() and " " not in text


def read_settings() -> AwsSettings:
    """Read the current settings.

    Raises
    ------
    BadInputError
        A named profile does not exist, a file cannot be parsed, or one of two keys is missing.
    """
    env = os.environ
    profile, services = _profile(profile_name())
    keys = _environment_keys()
    region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or profile.get("region")
    if region and (" " in region or not region.isprintable()):
        raise BadInputError(
            f"the AWS region {region!r} is none: check --region, AWS_REGION and the profile"
        )
    return AwsSettings(
        profile=profile_name(),
        region=region,
        endpoint=_endpoint(profile, services),
        ca_bundle=env.get("AWS_CA_BUNDLE") or profile.get("ca_bundle"),
        keys=keys or _profile_keys(profile),
        keys_from_environment=keys is not None,
        unsigned=_true("AWS_SKIP_SIGNATURE"),
        sdk_source=_sdk_source(profile),
    )


def profile_name() -> str:
    """The profile that the variables name, or ``default``."""
    return os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE") or "default"


def aws_folder() -> Path | None:
    """``~/.aws``, or None if the user has no home folder."""
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises if HOME is not set
    return None if home == "~" else Path(home) / ".aws"


def _profile(name: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The settings of a profile, and the S3 settings in the ``services`` section that it names."""
    config = _read("AWS_CONFIG_FILE", "config")
    shared = _read("AWS_SHARED_CREDENTIALS_FILE", "credentials")
    profiles = {_profile_of(section): dict(config[section]) for section in config.sections()}
    if name != "default" and name not in profiles and name not in shared:
        known = ", ".join(sorted({*profiles, *shared.sections()} - {""})) or "none"
        raise BadInputError(
            f"there is no AWS profile {name!r} (there are: {known}): check --profile, AWS_PROFILE "
            "and the file ~/.aws/config"
        )
    found = profiles.get(name, {})
    keys = dict(shared[name]) if name in shared else {}
    section = f"services {found.get('services', '')}"
    services = _nested(config[section].get("s3", "")) if section in config else {}
    # Keys in the credentials file take precedence over a program or a login; keys in the config
    # file do not.
    ignored = _AFTER_KEYS if "aws_access_key_id" in keys else ()
    merged = {**found, **keys}
    return {key: value for key, value in merged.items() if key not in ignored}, services


def _profile_of(section: str) -> str:
    """The profile that a section of the config file describes; empty for other sections."""
    import shlex

    try:
        parts = shlex.split(section)
    except ValueError:
        return ""
    if len(parts) == 2 and parts[0] == "profile":
        return parts[1]
    return "default" if parts == ["default"] else ""


def _read(variable: str, name: str) -> configparser.RawConfigParser:
    # In AWS files [default] is a profile, not a set of defaults for all sections.
    found = configparser.RawConfigParser(default_section="")
    folder = aws_folder()
    path = os.environ.get(variable) or (folder and folder / name)
    if path is None:
        return found
    try:
        found.read(os.path.expanduser(path), encoding="utf-8")  # noqa: PTH111
    except (configparser.Error, UnicodeDecodeError) as error:
        line = str(error).strip().splitlines()[0]
        raise BadInputError(f"the AWS file {path} cannot be read: {line}") from error
    except OSError as error:
        raise BadInputError(f"the AWS file {path} cannot be read: {error.strerror}") from error
    return found


def _nested(value: str) -> Mapping[str, str]:
    """Parse the indented lines below a setting."""
    pairs = (line.partition("=") for line in value.splitlines() if "=" in line)
    return {name.strip(): given.strip() for name, _, given in pairs}


def _endpoint(profile: Mapping[str, str], services: Mapping[str, str]) -> str | None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if given := os.environ.get(name):
            check_endpoint(given, name)
            return given
    ignored = profile.get("ignore_configured_endpoint_urls", "").lower() == "true"
    if ignored or _true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"):
        return None
    given = services.get("endpoint_url") or profile.get("endpoint_url")
    if given:
        check_endpoint(given, "endpoint_url of the AWS profile")
    return given or None


def _environment_keys() -> Keys | None:
    key, secret = os.environ.get(_KEY), os.environ.get(_SECRET)
    for name in (_KEY, _SECRET, _TOKEN):
        # Typical of values that were pasted; no HTTP header can hold one.
        if not _is_header(os.environ.get(name, "")):
            raise BadInputError(
                f"{name} contains a line break or another control character: set it again"
            )
    if bool(key) != bool(secret):
        there, missing = (_KEY, _SECRET) if key else (_SECRET, _KEY)
        raise BadInputError(f"{there} is set without {missing}: set both, or neither")
    return Keys(key, secret, os.environ.get(_TOKEN) or None) if key and secret else None


def _is_header(value: str) -> bool:
    return not any(letter < " " or letter == "\x7f" for letter in value)


def _profile_keys(profile: Mapping[str, str]) -> Keys | None:
    """The keys of the profile, unless another source takes precedence."""
    if os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") or _sdk_source(profile):
        return None
    key, secret = profile.get("aws_access_key_id"), profile.get("aws_secret_access_key")
    if bool(key) != bool(secret):
        raise BadInputError(
            "the AWS profile has one of aws_access_key_id and aws_secret_access_key without the "
            "other: give both"
        )
    return Keys(key, secret, profile.get("aws_session_token")) if key and secret else None


def _sdk_source(profile: Mapping[str, str]) -> str:
    return next((words for name, words in _OF_THE_SDK.items() if profile.get(name)), "")


def _true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes")
