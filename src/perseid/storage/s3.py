"""S3 clients, one a bucket: settings, credentials, and a first look whether the server is one."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from perseid.errors import BadInputError, StorageError
from perseid.storage.credentials import NO_CREDENTIALS, Provider, failure_of, provider_of
from perseid.storage.reasons import METADATA_ADDRESS, answer_of, network_reason, not_s3
from perseid.storage.settings import AwsSettings, read_settings

if TYPE_CHECKING:
    import urllib.request
    from http.client import HTTPResponse

    from obstore.store import ClientConfig, RetryConfig, S3Config

DEFAULT_REGION = "us-east-1"
"""Where nothing names one; servers that are not AWS mostly take it."""
CONNECT_SECONDS = 5.0
"""Of one connection."""
_START_SECONDS = 3.0
"""A server that refuses connections may be starting: it is asked again for so long."""
_ATTEMPTS = 10
_FOREIGN = ("200", "511")
"""Statuses of an answer about an object that exists nowhere which no S3 server gives."""
_ABSENT = ".perseid-probe-" + os.urandom(8).hex()
"""No such object exists anywhere: a server that has it answers everything alike, and is no S3."""


@dataclass(frozen=True)
class Bucket:
    """The clients of one bucket."""

    store: S3Store
    """Tries again what fails in passing."""
    once: S3Store
    """Tries once: for what must not be repeated before the answer was understood."""
    settings: AwsSettings
    """As they were used, the region that of the bucket."""
    provider: Provider | None
    """Of the credentials, where the client does not find them itself."""

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        return self.settings.region or DEFAULT_REGION

    @property
    def is_conditional(self) -> bool:
        """Whether the server is trusted to write on the condition that an object is new."""
        return os.environ.get("AWS_CONDITIONAL_PUT", "").lower() != "disabled"

    def check_genuine(self, where: str) -> None:
        """Raise `StorageError` if what answers here is not an S3 server."""
        with contextlib.suppress(BaseError):  # no answer: then there was one just before
            if _status_of_nothing(self.once) in _FOREIGN:
                raise not_s3(where, f"{server_of(self.settings)} has anything that is asked for")

    def failure(self) -> StorageError | None:
        """Why the credentials could not be renewed, if that was so."""
        return failure_of(self.provider)


def open_bucket(name: str) -> Bucket:
    """The clients of a bucket, made once for the same settings.

    Raises
    ------
    BadInputError
        The AWS files or variables contradict themselves.
    StorageError
        There are no credentials, no server answers, or what answers is no S3 server.
    """
    return _open(name, read_settings(), _surroundings())


def _surroundings() -> tuple[str, ...]:
    """Everything else that the clients depend on; another process never shares connections."""
    names = sorted(n for n in os.environ if n.startswith("AWS_") or n.lower().endswith("_proxy"))
    # The process id, because a forked child must not use its parent's connections.
    return (str(os.getpid()), os.environ.get("HOME", ""), *(f"{n}={os.environ[n]}" for n in names))


@functools.lru_cache(maxsize=64)
def _open(name: str, settings: AwsSettings, surroundings: tuple[str, ...]) -> Bucket:
    provider = provider_of(settings)
    bucket = _clients(name, settings, provider)
    status = _first_answer(bucket.once, settings)
    # Asking S3 for the bucket's region is cheaper than failing the user for not knowing it.
    if status in ("301", "307", "400"):  # HEAD says no more: the credentials, or the region
        region = bucket_region(name, settings)
        if region not in (None, bucket.region):
            return _clients(name, replace(settings, region=region), provider)
    return bucket


def _clients(name: str, settings: AwsSettings, provider: Provider | None) -> Bucket:
    store = _client(name, settings, provider, _ATTEMPTS)
    return Bucket(store, _client(name, settings, provider, 0), settings, provider)


def _client(name: str, settings: AwsSettings, provider: Provider | None, attempts: int) -> S3Store:
    config: S3Config = {"region": settings.region or DEFAULT_REGION}
    options: ClientConfig = {
        "timeout": timedelta(seconds=60),
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
    }
    if settings.endpoint:
        # Other servers have no DNS name for each bucket.
        config |= {"endpoint": settings.endpoint, "virtual_hosted_style_request": False}
        options["allow_http"] = settings.endpoint.startswith("http://")
    # The SDKs' name for another metadata service, such as an IPv6 one; the client has its own.
    if metadata := os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT"):
        config["metadata_endpoint"] = metadata.rstrip("/")
    if settings.ca_bundle:
        options["root_certificate"] = _certificates(settings.ca_bundle)
    retry: RetryConfig = {
        "max_retries": attempts,
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=5),
            "base": 2,
        },
        "retry_timeout": timedelta(seconds=120),
    }
    try:
        return S3Store(
            name, config=config, client_options=options, retry_config=retry,
            credential_provider=provider,
        )  # fmt: skip
    except (BaseError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise BadInputError(f"s3://{name} cannot be opened with these settings: {line}") from error


def _certificates(path: str) -> bytes:
    try:
        found = Path(path).expanduser().read_bytes()
    except (OSError, RuntimeError) as error:
        raise BadInputError(
            f"AWS_CA_BUNDLE (ca_bundle) names {path}, which cannot be read: give a file of "
            "certificates in PEM form"
        ) from error
    if b"-----BEGIN CERTIFICATE-----" not in found:
        raise BadInputError(
            f"AWS_CA_BUNDLE (ca_bundle) names {path}, which holds no certificate: give a file of "
            "certificates in PEM form"
        )
    return found


def _first_answer(store: S3Store, settings: AwsSettings) -> str:
    """The status of the answer to a harmless question, so that a server that is none is said now.

    The client alone would try for half a minute, as it should in a run, and then say less.
    """
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            status = _status_of_nothing(store)
        except BaseError as error:
            # The chain of credentials ended at EC2's metadata service, and this machine is not on
            # EC2.
            if METADATA_ADDRESS in str(error):
                raise StorageError(NO_CREDENTIALS) from error
            reason = network_reason(error)
            if reason is None or "kind: Connect" not in str(error):
                return ""  # it can be reached: what broke is tried again by the next request
            # A refused connection may be a server that is still starting; an unknown name never
            # gets better.
            if "refused" not in reason or time.monotonic() > deadline:
                raise _unreachable(settings, reason) from error
            time.sleep(0.1)
        else:
            if status in _FOREIGN:
                raise not_s3(server_of(settings), f"it has anything, with status {status}")
            return status


def _unreachable(settings: AwsSettings, reason: str) -> StorageError:
    server = server_of(settings)
    if proxy := proxy_of(server):
        server = f"{server} (through the proxy {proxy})"
    return StorageError(f"no S3 server answers at {server}: {reason}")


def server_of(settings: AwsSettings) -> str:
    """The URL of the server."""
    region = settings.region or DEFAULT_REGION
    return settings.endpoint or f"https://s3.{region}.amazonaws.com"


def proxy_of(url: str) -> str | None:
    """Host and port of the proxy that requests to a URL go through; never its password."""
    import urllib.parse
    import urllib.request  # here: of a worker's start it would be a good part

    parts = urllib.parse.urlsplit(url)
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    proxies: Mapping[str, str] = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy.rpartition("@")[2].rpartition("://")[2].rstrip("/") if proxy else None


def _status_of_nothing(store: S3Store) -> str:
    """The HTTP status for an object that exists nowhere; raises only where no answer came."""
    try:
        obstore.head(store, _ABSENT)
    except FileNotFoundError:
        return "404"
    except BaseError as error:
        status = answer_of(error).status
        if not status:
            raise
        return status
    return "200"


def open_url(
    url: str | urllib.request.Request, timeout: float, settings: AwsSettings
) -> HTTPResponse:
    """Ask a server beside the client, with the same certificates and proxies."""
    import ssl
    import urllib.request

    context = ssl.create_default_context()
    if settings.ca_bundle:
        context.load_verify_locations(Path(settings.ca_bundle).expanduser())
    answer: HTTPResponse = urllib.request.urlopen(url, timeout=timeout, context=context)
    return answer


def bucket_region(name: str, settings: AwsSettings) -> str | None:
    """Where a bucket lies, which S3 tells everybody; None where it does not."""
    import urllib.request

    request = urllib.request.Request(f"{server_of(settings)}/{name}", method="HEAD")
    try:
        with open_url(request, CONNECT_SECONDS, settings) as answer:
            found = answer.headers.get("x-amz-bucket-region")
    except urllib.request.HTTPError as error:
        found = error.headers.get("x-amz-bucket-region")
    except (OSError, ValueError):
        return None
    return str(found) if found else None
