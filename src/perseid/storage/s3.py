"""S3 clients, one per bucket: settings, credentials, and a first check of the server."""

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
"""The region if none is configured; most servers other than AWS accept it."""
CONNECT_SECONDS = 5.0
"""Deadline for establishing a connection."""
_START_SECONDS = 3.0
"""How long to retry a server that refuses connections, which may still be starting."""
_ATTEMPTS = 10
_FOREIGN = ("200", "511")
"""Statuses that no S3 server returns for an object that does not exist."""
_ABSENT = ".perseid-probe-" + os.urandom(8).hex()
"""Key of an object that cannot exist. A server that claims to have it gives the same answer to
every request, so it is not S3."""


@dataclass(frozen=True)
class Bucket:
    """The clients of one bucket."""

    store: S3Store
    """Retries temporary failures."""
    once: S3Store
    """Never retries: for requests that must not be repeated before the answer is known."""
    settings: AwsSettings
    """The settings in use, with the region of the bucket."""
    provider: Provider | None
    """Source of the credentials; None if the client finds them itself."""

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        return self.settings.region or DEFAULT_REGION

    @property
    def is_conditional(self) -> bool:
        """Whether the server supports writing an object only if it does not exist yet."""
        return os.environ.get("AWS_CONDITIONAL_PUT", "").lower() != "disabled"

    def check_genuine(self, where: str) -> None:
        """Raise `StorageError` if the answers do not come from an S3 server."""
        # No answer now, although there was one just before: nothing to conclude.
        with contextlib.suppress(BaseError):
            if _status_of_nothing(self.once) in _FOREIGN:
                raise not_s3(where, f"{server_of(self.settings)} claims to have every object")

    def failure(self) -> StorageError | None:
        """Why the credentials could not be renewed; None if they could."""
        return failure_of(self.provider)


def open_bucket(name: str) -> Bucket:
    """The clients of a bucket, cached per settings.

    Raises
    ------
    BadInputError
        The AWS files or variables are contradictory.
    StorageError
        There are no credentials, no server answers, or the answering server is not S3.
    """
    # Settings are read at every call, so that changed variables lead to other clients.
    return _open(name, read_settings(), _surroundings())


def _surroundings() -> tuple[str, ...]:
    """Everything else that the clients depend on, as part of the cache key."""
    names = sorted(n for n in os.environ if n.startswith("AWS_") or n.lower().endswith("_proxy"))
    # With the process id, because a forked child must not use its parent's connections.
    return (str(os.getpid()), os.environ.get("HOME", ""), *(f"{n}={os.environ[n]}" for n in names))


@functools.lru_cache(maxsize=64)
def _open(name: str, settings: AwsSettings, surroundings: tuple[str, ...]) -> Bucket:
    provider = provider_of(settings)
    bucket = _clients(name, settings, provider)
    status = _first_answer(bucket.once, settings)
    # S3 tells the bucket's region, so users need not know it.
    # An answer to HEAD does not tell whether the credentials or the region are wrong.
    if status in ("301", "307", "400"):
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
        # Other servers have no DNS name per bucket.
        config |= {"endpoint": settings.endpoint, "virtual_hosted_style_request": False}
        options["allow_http"] = settings.endpoint.startswith("http://")
    if (os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")).strip() == "*":
        # To the client, the asterisk means all names of hosts, but no addresses.
        options |= {"proxy_url": "http://unused.invalid", "proxy_excludes": "*,0.0.0.0/0,::/0"}
    # The SDKs' variable for another metadata service, such as an IPv6 one; the client uses its own.
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
    """The status of the answer to a harmless request, which exposes a wrong server immediately.

    The client alone would retry for half a minute, as it should in a run, and then tell less.
    """
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            status = _status_of_nothing(store)
        except BaseError as error:
            # The credential chain ended at EC2's metadata service, but this machine is not on EC2.
            if METADATA_ADDRESS in str(error):
                raise StorageError(NO_CREDENTIALS) from error
            reason = network_reason(error)
            if reason is None or "kind: Connect" not in str(error):
                return ""  # the server can be reached; the next request retries what failed
            # A server that refuses connections may still be starting; any other failure will not
            # pass soon.
            if "refused" not in reason or time.monotonic() > deadline:
                raise _unreachable(settings, reason) from error
            time.sleep(0.1)
        else:
            if status in _FOREIGN:
                raise not_s3(
                    server_of(settings), f"it claims to have every object, with status {status}"
                )
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
    import urllib.request  # imported here because it would slow down the start of a worker

    parts = urllib.parse.urlsplit(url)
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    proxies: Mapping[str, str] = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy.rpartition("@")[2].rpartition("://")[2].rstrip("/") if proxy else None


def _status_of_nothing(store: S3Store) -> str:
    """The HTTP status for an object that does not exist; raises only if there was no answer."""
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
    """Send a request without the client, but with the same certificates and proxies."""
    import ssl
    import urllib.request

    context = ssl.create_default_context()
    if settings.ca_bundle:
        context.load_verify_locations(Path(settings.ca_bundle).expanduser())
    answer: HTTPResponse = urllib.request.urlopen(url, timeout=timeout, context=context)
    return answer


def bucket_region(name: str, settings: AwsSettings) -> str | None:
    """The region of a bucket, which S3 tells everyone; None if the server does not."""
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
