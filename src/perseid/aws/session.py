"""boto3 clients, and AWS's errors as single sentences of ours."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from perseid.errors import AwsError, NotFoundError
from perseid.libraries import library_error
from perseid.plaintext import option
from perseid.storage.credentials import NO_CREDENTIALS, sdk_sentence, sdk_session
from perseid.storage.settings import profile_name

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 5, 60, 8
"""Time limits and attempts of each call. AWS throttles its control plane, so calls are retried."""
LONGEST_READ_SECONDS = 900
"""Longest time in seconds that a function can run."""
LONGEST = 300
"""Number of characters of an answer that a message quotes."""
_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError")
_BAD_CREDENTIALS = (
    "InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch",
    "InvalidAccessKeyId", "AuthFailure", "InvalidSignatureException",
)  # fmt: skip
_INVALID_TOKEN = ("InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure")
EVERYWHERE = frozenset({
    "us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1", "eu-central-1",
    "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3", "ap-northeast-1", "ap-northeast-2",
    "ap-northeast-3", "ap-south-1", "ap-southeast-1", "ap-southeast-2",
})  # fmt: skip
"""Regions that every account has; an account must enable any other one first
(https://docs.aws.amazon.com/accounts/latest/reference/manage-acct-regions.html)."""
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
_CLOCK = ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture")
_CLOCK_WORDS = ("Signature expired", "Signature not yet current")
"""Services other than S3 report a clock error as a wrong signature, with this text."""
_ABSENT = (
    "404", "NoSuchBucket", "ResourceNotFoundException", "ParameterNotFound",
    "StateMachineDoesNotExist", "ExecutionDoesNotExist", "ClusterNotFoundException",
)  # fmt: skip


class Aws:
    """Clients of one account and region, the same that storage uses.

    Parameters
    ----------
    region, profile
        If they are given, `perseid.storage.use_aws` must have been called with the same values;
        otherwise variables and files decide, for storage as well.

    Raises
    ------
    NotInstalledError
        boto3 is missing.
    AwsError
        No region is set, or the profile does not exist.
    """

    def __init__(self, region: str | None = None, profile: str | None = None) -> None:
        boto3 = _boto3()
        # boto3 knows AWS_DEFAULT_REGION only; Lambda, other SDKs and our storage say AWS_REGION.
        region = region or os.environ.get("AWS_REGION") or None
        with aws_errors():
            self._session = boto3.Session(botocore_session=sdk_session(profile, region))
        if self._session.region_name is None:
            raise AwsError(f"no AWS region is set: give {option('region')}, or set AWS_REGION")
        self._clients: dict[tuple[str, int], Any] = {}

    @property
    def region(self) -> str:
        """The region that the clients use, e.g. ``eu-central-1``."""
        return str(self._session.region_name)

    @functools.cached_property
    def account(self) -> str:
        """The account's twelve-digit number."""
        return str(self.caller_identity()["Account"])

    def caller_identity(self) -> Mapping[str, str]:
        """Ask STS whose credentials these are.

        Raises
        ------
        AwsError
            STS rejects them, possibly because the account has not enabled the region.
        """
        try:
            with aws_errors():
                return cast(Mapping[str, str], self.client("sts").get_caller_identity())
        except AwsError as error:
            # A region that the account has not enabled rejects even valid credentials.
            if error_code(error) in _INVALID_TOKEN and self.region not in EVERYWHERE:
                raise AwsError(
                    f"{error}, or enable the region {self.region} first, which an account does not "
                    f"have by itself (`aws account enable-region --region-name {self.region}`)"
                ) from error
            raise

    def check_partition(self) -> None:
        """Raise `AwsError` in any partition but AWS's standard one, because no ARN would be right
        there."""
        arn = str(self.caller_identity()["Arn"])
        partition = arn.split(":")[1]
        if partition != "aws":
            raise AwsError(
                f"this account is in the partition {partition} ({self.region}), where perseid "
                "cannot be deployed: use an account of AWS's standard regions"
            )

    def client(self, service: str) -> Any:
        """The client of a service, created once."""
        return self._client(service, READ_SECONDS, ATTEMPTS)

    def client_that_asks_once(self, service: str) -> Any:
        """A client that waits as long as a function can run and never repeats a request, since each
        may cost something."""
        return self._client(service, LONGEST_READ_SECONDS, 0)

    def _client(self, service: str, read_seconds: int, attempts: int) -> Any:
        key = (service, attempts)
        if key not in self._clients:
            from botocore.config import Config

            config = Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=read_seconds,
                retries={"mode": "standard", "max_attempts": attempts},
            )
            with aws_errors():
                self._clients[key] = self._session.client(service, config=config)
        return self._clients[key]


@contextmanager
def aws_errors() -> Iterator[None]:
    """Convert botocore's errors to `AwsError`, or to `NotFoundError` if something does not
    exist."""
    _boto3()
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, SSLError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise _of_client(error) from error
    except NoCredentialsError as error:
        raise AwsError(NO_CREDENTIALS) from error
    except SSLError as error:
        raise AwsError(
            f"AWS could not be asked: {_line(error)}; if a company's proxy or a private "
            "server signs certificates, name its authority's file in AWS_CA_BUNDLE"
        ) from error
    except (BotoCoreError, EOFError) as error:
        if (said := sdk_sentence(error, profile_name())) is not None:
            raise AwsError(said) from error
        raise AwsError(f"AWS could not be asked: {_line(error)}") from error
    except ResponseParserError as error:
        raise AwsError(
            f"what answered is not AWS (a proxy, or a wrong AWS_ENDPOINT_URL?): {_line(error)}"
        ) from error


def error_code(error: BaseException) -> str:
    """AWS's code of an error, or of the botocore error that caused one of ours; otherwise empty."""
    cause = error if hasattr(error, "response") else error.__cause__
    response = getattr(cause, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _of_client(error: Any) -> AwsError | NotFoundError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    text = _line(error.response.get("Error", {}).get("Message", "")) or code
    call = error.operation_name
    if code in _CLOCK or any(words in text for words in _CLOCK_WORDS):
        return AwsError(
            f"AWS refuses {call}, for the clock of this machine and AWS's differ too much ({code}: "
            f"{text}): set the clock (`timedatectl set-ntp true`) and try again"
        )
    if code in _EXPIRED:
        return AwsError(
            f"these temporary credentials have expired ({code} in {call}): get new ones (`aws sso "
            "login`, or where AWS_SESSION_TOKEN came from); a run on AWS goes on meanwhile"
        )
    if code in _BAD_CREDENTIALS:
        return AwsError(f"AWS does not accept these credentials ({code} in {call}): renew them")
    if code in _DENIED:
        return AwsError(
            f"these credentials may not call {call}: {text}; `perseid aws policy` prints what is "
            "needed"
        )
    if code in _ABSENT:
        return NotFoundError(f"{call}: {text}")
    return AwsError(f"{call} failed: {text} ({code})")


def _line(text: object) -> str:
    """The text on one line, because a proxy may answer with a whole page."""
    line = " ".join(str(text).split())
    return line if len(line) <= LONGEST else line[:LONGEST] + " ..."


def _boto3() -> Any:
    try:
        import boto3
    except ImportError as error:
        raise library_error(error, "AWS needs boto3: pip install 'perseid[aws]'") from error
    return boto3
