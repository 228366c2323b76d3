"""Objects by URL: one small class over obstore, the same for a disk, S3 and memory.

A plain path or ``file://`` is a directory, ``s3://bucket/prefix`` any S3 endpoint (credentials,
region and endpoint from the usual ``AWS_*`` variables), ``memory://`` a store of this process.
"""

from __future__ import annotations

import configparser
import functools
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError as KeyTakenError
from obstore.exceptions import (
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, MemoryStore, S3Store

from perseid.errors import (
    AlreadyExistsError,
    BadInputError,
    ForbiddenError,
    NotFoundError,
    PerseidError,
    StorageError,
)
from perseid.storage.location import Location

_MEMORY: dict[str, MemoryStore] = {}
_CONNECT_SECONDS = 3.0
"""How long a server that an endpoint names may take to accept a first connection."""
_OTHER_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)
"""Variables that say where credentials come from; a profile's keys give way to them."""
_METADATA_ADDRESS = "169.254.169.254"
"""Where EC2 keeps credentials; asked last, so an error there means that none were found."""
_DELETED_AT_ONCE = 1000
"""Keys of one DeleteObjects request: S3's limit."""


@dataclass(frozen=True)
class ObjectInfo:
    """One line of a listing."""

    key: str
    """Relative to the store's URL, ``/`` between parts."""
    size: int
    """Bytes."""
    etag: str | None = None
    """The server's entity tag, where it gives one."""


class Storage:
    """All objects below one URL; keys are relative to it.

    Each method raises `NotFoundError`, `AlreadyExistsError` or `StorageError`, naming URL and key.
    Writes are atomic: an object is there whole or not at all.
    """

    def __init__(self, location: Location | str | Path) -> None:
        self.location = Location.parse(location)
        self._store, self._prefix = _connect(self.location), self.location.key

    @property
    def url(self) -> str:
        """Of the location."""
        return self.location.url

    @property
    def client(self) -> Any:
        """The obstore object below it, for this package alone."""
        return self._store

    @classmethod
    def holding(cls, place: Location | str | Path) -> tuple[Storage, str]:
        """The store of the folder that an object lies in, and the object's key in it."""
        location = Location.parse(place)
        return cls(location.parent), location.name

    def at(self, prefix: str) -> Storage:
        """The store of everything below `prefix`."""
        return Storage(self.location / prefix)

    def where(self, key: str = "") -> str:
        """The full URL (a plain path on disk) of a key, for messages and records."""
        return str(self.location / key)

    def get(self, key: str) -> bytes:
        """The whole object."""
        with _sentences(self, key):
            return bytes(obstore.get(self._store, self._path(key)).bytes())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer where the object ends before."""
        with _sentences(self, key):
            return bytes(
                obstore.get_range(self._store, self._path(key), start=start, length=length)
            )

    def view(self, key: str, start: int, length: int, *, etag: str | None = None) -> memoryview:
        """`get_range` without a copy; with `etag`, only of that very version of the object."""
        options: dict[str, Any] = {"range": (start, start + length)}
        if etag is not None:
            options["if_match"] = etag
        with _sentences(self, key):
            result = obstore.get(self._store, self._path(key), options=options)  # type: ignore[arg-type]
            return memoryview(result.bytes())

    def get_ranges(self, key: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Several ranges, near ones joined into one request."""
        with _sentences(self, key):
            parts = obstore.get_ranges(
                self._store, self._path(key), starts=list(starts), lengths=list(lengths)
            )
            return [bytes(part) for part in parts]

    def put(self, key: str, data: bytes | memoryview | Path, *, new: bool = False) -> None:
        """Write an object; `new` refuses to replace one (`AlreadyExistsError`)."""
        with _sentences(self, key):
            obstore.put(
                self._store,
                self._path(key),
                data,
                mode="create" if new else "overwrite",
                use_multipart=False if new else None,
            )

    def info(self, key: str) -> ObjectInfo:
        """Size and entity tag of an object."""
        with _sentences(self, key):
            meta = obstore.head(self._store, self._path(key))
            return ObjectInfo(key, int(meta["size"]), meta.get("e_tag"))

    def size(self, key: str) -> int:
        """Bytes of an object."""
        return self.info(key).size

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object below `prefix` (a path prefix, whole parts), all pages, as a stream."""
        path = self._path(prefix)
        with _sentences(self, prefix):
            for page in obstore.list(self._store, path or None):
                for meta in page:
                    key = meta["path"]
                    if self._prefix:
                        key = key.removeprefix(self._prefix + "/")
                    yield ObjectInfo(key, int(meta["size"]), meta.get("e_tag"))

    def names(self) -> Sequence[str]:
        """Keys right below the store's URL, those in folders left out; all pages."""
        with _sentences(self, ""):
            found = obstore.list_with_delimiter(self._store, self._prefix or None)
        return [str(meta["path"]).rpartition("/")[2] for meta in found["objects"]]

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those already gone do not matter."""
        many = _DELETED_AT_ONCE if isinstance(self._store, S3Store) else 1
        for start in range(0, len(keys), many):
            part = keys[start : start + many]
            try:
                with _sentences(self, part[0]):
                    obstore.delete(self._store, [self._path(key) for key in part])
            except NotFoundError:
                continue

    def local_path(self, key: str = "") -> Path | None:
        """Where the object lies on this machine's disk, or None: for memory maps.

        Raises `BadInputError` for a key that would leave the store.
        """
        path = (self.location / key).path
        if path is not None and ".." in key.split("/"):
            raise BadInputError(f"{key!r} leaves {self.url}: a key has no '..'")
        return path

    def _path(self, key: str) -> str:
        return "/".join(part for part in (self._prefix, key.strip("/")) if part)


def _connect(location: Location) -> Any:
    if location.scheme == "file":
        return LocalStore()  # rooted at /, so that reading creates no folder
    if location.scheme == "memory":
        return _MEMORY.setdefault(location.bucket, MemoryStore())
    return _s3(location.bucket)


def _s3(bucket: str) -> S3Store:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {}
    if endpoint:
        _reachable(endpoint)
        options = {"endpoint": endpoint, "virtual_hosted_style_request": False}
    options |= _profile()
    return S3Store(
        bucket,
        **options,
        client_options={
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "timeout": timedelta(seconds=60),
            "connect_timeout": timedelta(seconds=5),
        },
        retry_config={
            "max_retries": 10,
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
            "retry_timeout": timedelta(seconds=120),
        },
    )


def _profile() -> dict[str, str]:
    """Region and keys of the AWS profile, where the environment does not give them.

    The S3 client knows environment variables and the roles of Lambda, ECS and EC2, not the files
    of ``aws configure`` (https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html).
    """
    env, home = os.environ, Path.home() / ".aws"
    name = env.get("AWS_PROFILE", "default")
    found = configparser.RawConfigParser()
    try:
        found.read(env.get("AWS_CONFIG_FILE", home / "config"))
        settings = dict(found[section]) if (section := f"profile {name}") in found else {}
        settings |= dict(found[name]) if name in found else {}
        found.clear()
        found.read(env.get("AWS_SHARED_CREDENTIALS_FILE", home / "credentials"))
        settings |= dict(found[name]) if name in found else {}
    except configparser.Error as error:
        raise BadInputError(
            f"the AWS profile {name} cannot be read: {_first_line(error)}"
        ) from error
    default = env.get("AWS_DEFAULT_REGION") or settings.get("region", "us-east-1")
    options = {} if env.get("AWS_REGION") else {"region": default}
    if any(env.get(other) for other in _OTHER_CREDENTIALS):
        return options
    keys = {"access_key_id": "aws_access_key_id", "secret_access_key": "aws_secret_access_key"}
    keys |= {"session_token": "aws_session_token"}
    return options | {ours: settings[key] for ours, key in keys.items() if key in settings}


@functools.lru_cache(maxsize=64)
def _reachable(endpoint: str) -> None:
    """Raise `StorageError` where nothing listens at the endpoint.

    The S3 client retries refused connections for half a minute, as it should in a run; a mistyped
    endpoint is found here at once. Successes are remembered.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInputError(f"the endpoint {endpoint!r} is not a URL such as http://localhost:8333")
    address = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            socket.create_connection(address, timeout=_CONNECT_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"no S3 server answers at {endpoint} ({error.strerror or error}); "
                    "check AWS_ENDPOINT_URL"
                ) from error
            time.sleep(0.1)


class _sentences:
    """Turn obstore's errors into ours, with the place in the message."""

    def __init__(self, store: Storage, key: str) -> None:
        self.where = store.where(key)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, PerseidError):
            return
        if isinstance(error, FileNotFoundError):
            raise NotFoundError(f"{self.where} is not there") from error
        if isinstance(error, BaseError) and "NoSuchBucket" in str(error):  # of a listing
            raise NotFoundError(f"{self.where} is not there: there is no such bucket") from error
        if isinstance(error, KeyTakenError):
            raise AlreadyExistsError(f"{self.where} is there already") from error
        if isinstance(error, PreconditionError):
            raise StorageError(f"{self.where} was replaced while it was being read") from error
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or (
            isinstance(error, BaseError)
            and "403 Forbidden" in str(error)  # of a listing
            and _METADATA_ADDRESS not in str(error)
        ):
            raise ForbiddenError(
                f"{self.where}: the store refuses these credentials, or they may not do this"
            ) from error
        if isinstance(error, BaseError) and _METADATA_ADDRESS in str(error):
            raise StorageError(
                f"{self.where}: there are no AWS credentials; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from error
        if isinstance(error, (BaseError, OSError, ValueError)):
            raise StorageError(f"{self.where}: {_plainly(error)}") from error


def _plainly(error: BaseException) -> str:
    """The first line; of a disk's error what was tried and why it failed, without numbers."""
    line = _first_line(error)
    found = re.fullmatch(
        r"Generic LocalFileSystem error: Unable to (.*): (.*) \(os error \d+\)", line
    )
    if found is None:
        return line
    tried = " ".join(found[1].split()[:2])
    return f"cannot {tried} ({found[2]}); choose another place, or check its permissions"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)
