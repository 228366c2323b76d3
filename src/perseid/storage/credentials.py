"""Credentials for S3 requests, from the AWS SDK's provider chain if botocore is installed.

Plain keys in a variable or a profile are used without the chain: it would return the same, and a
worker need not import it. ``docs/reference/storage.md`` describes the full order.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perseid.errors import NotInstalledError, StorageError
from perseid.storage.settings import AwsSettings, Keys, aws_folder

if TYPE_CHECKING:
    from obstore.store import S3Credential

ASKED_EVERY = timedelta(minutes=1)
"""How often the chain is asked again. It renews credentials that expire within 10 minutes
(botocore's limit)."""
PROGRAM_SECONDS = 120.0
"""How long the program of a profile's ``credential_process`` may take, seconds: it may ask its user
for a code."""
_RENEWED_BEFORE = timedelta(minutes=5)
"""The S3 client asks for new credentials this long before the old ones expire."""
NO_CREDENTIALS = (
    "there are no AWS credentials: run `aws configure` or `aws sso login`, or set AWS_PROFILE, or "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket set AWS_SKIP_SIGNATURE=true"
)
_OF_A_PROFILE = (
    "PartialCredentialsError", "InvalidConfigError", "InfiniteLoopConfigError",
    "UnknownCredentialError", "ConfigParseError", "ProfileNotFound", "MissingDependencyException",
    "RefreshWithMFAUnsupportedError",
)  # fmt: skip
"""Errors of botocore whose message says what is wrong with a profile."""
Provider = Callable[[], "S3Credential"]


def has_sdk() -> bool:
    """Whether botocore is installed."""
    return importlib.util.find_spec("botocore") is not None


def provider_of(settings: AwsSettings) -> Provider | None:
    """The function that the S3 client calls for credentials; None if the client finds them itself,
    which it does for keys in variables and, without botocore, for a web identity, a container's
    role and an EC2 instance's role.

    Raises
    ------
    NotInstalledError
        Only the SDK can get the profile's credentials, but it is not installed.
    StorageError
        There are no credentials, or their source failed: a session expired, say, or a program
        stopped.
    """
    # The client reads these by itself, in Rust, without calling Python before each request.
    if settings.unsigned or settings.keys_from_environment:
        return None
    if settings.keys is not None:
        return functools.partial(_as_they_are, settings.keys)
    if has_sdk():
        return _Chain(settings)
    if settings.sdk_source:
        raise NotInstalledError(
            f"the AWS profile {settings.profile} takes its credentials {settings.sdk_source}, "
            "which needs boto3: pip install 'perseid[aws]'"
        )
    return None


def sdk_session(profile: str | None, region: str | None) -> Any:
    """A botocore session that caches temporary credentials where the AWS command line does, so that
    a role is assumed (and a code asked for) once, not once per worker.

    Without `profile`, botocore's own order applies; `region` lets AWS_REGION count, which botocore
    ignores.
    """
    import botocore.session
    from botocore.credentials import create_credential_resolver
    from botocore.utils import JSONFileCache

    from perseid.storage.sdk_programs import hold_programs

    session = botocore.session.Session(profile=profile)
    if region is not None:
        session.set_config_variable("region", region)
    folder = _cache_folder()
    # Without a cache on disk each of a thousand workers would assume the role, and be throttled.
    cache = None if folder is None else JSONFileCache(str(folder))
    place = session.get_config_variable("region")
    resolver = create_credential_resolver(session, cache, place)
    hold_programs(resolver, session, cache, place, PROGRAM_SECONDS)
    session.register_component("credential_provider", resolver)
    return session


def _cache_folder() -> Path | None:
    """The folder in which the AWS command line caches temporary credentials; None if it is not
    writable."""
    folder = aws_folder()
    if folder is None or not folder.is_dir() or not os.access(folder, os.W_OK):
        return None
    return folder / "cli" / "cache"


def sdk_sentence(error: BaseException, profile: str) -> str | None:
    """Say why botocore's chain gives no credentials, and what to do; None for its other errors."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if kind == "NoCredentialsError":
        return NO_CREDENTIALS
    if "SSO" in kind or kind == "TokenRetrievalError":
        return (
            f"the sign-in of the AWS profile {profile} has expired or was never made ({kind}): run "
            "`aws"
            f" sso login --profile {profile}`"
        )
    if kind.startswith("Login"):
        return f"the AWS profile {profile} is not logged in ({kind}): run `aws login`"
    if kind == "CredentialRetrievalError":
        reason = re.sub(r"^Error when retrieving credentials from \S+: *", "", text)
        return f"the AWS profile {profile} gives no credentials: its source failed ({reason})"
    if isinstance(error, EOFError):
        return (
            f"the AWS profile {profile} asks for a code, which cannot be typed here: run "
            f"`aws sts get-caller-identity --profile {profile}` in a terminal first"
        )
    if kind in _OF_A_PROFILE:
        return f"the AWS profile {profile} gives no credentials: {text} ({kind})"
    return None


class _Chain:
    """Asks botocore's chain regularly; `failure` is the error of the last attempt, if any."""

    def __init__(self, settings: AwsSettings) -> None:
        self.failure: StorageError | None = None
        self._profile = settings.profile
        self._credentials: Any = None
        try:
            self._session = sdk_session(None, settings.region)
        except Exception as error:  # of a profile that is not there, or an address that is none
            raise StorageError(self._sentence(error)) from error
        self()  # fail now rather than after all of the client's retries

    def __call__(self) -> S3Credential:
        try:
            keys = self._ask()
        except Exception as error:  # providers of the chain raise many kinds of errors
            self.failure = StorageError(self._sentence(error))
            raise self.failure from error
        self.failure = None
        return {
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            "token": keys.session_token,
            # Not the real expiry, which botocore tracks: this only makes the client ask again every
            # minute.
            "expires_at": datetime.now(UTC) + _RENEWED_BEFORE + ASKED_EVERY,
        }

    def _sentence(self, error: Exception) -> str:
        if (said := sdk_sentence(error, self._profile)) is not None:
            return said
        text = " ".join(str(error).split())
        if hasattr(error, "response"):  # an error response of STS or SSO
            return f"the AWS profile {self._profile} may not take its role: {text}"
        return f"the AWS profile {self._profile} gives no credentials: {text}"

    def _ask(self) -> Keys:
        from botocore.exceptions import NoCredentialsError

        self._credentials = self._credentials or self._session.get_credentials()
        if self._credentials is None:
            raise NoCredentialsError
        found = self._credentials.get_frozen_credentials()
        return Keys(found.access_key, found.secret_key, found.token)


def failure_of(provider: Provider | None) -> StorageError | None:
    """The error of a provider that failed inside the S3 client, whose own report is less clear."""
    return provider.failure if isinstance(provider, _Chain) else None


def _as_they_are(keys: Keys) -> S3Credential:
    return {
        "access_key_id": keys.access_key_id,
        "secret_access_key": keys.secret_access_key,
        "token": keys.session_token,
        "expires_at": None,
    }
