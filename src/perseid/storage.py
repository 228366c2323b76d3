"""Objects by URL: one small class over obstore, the same for a disk, S3 and memory.

A plain path or ``file://`` is a directory, ``s3://bucket/prefix`` any S3 endpoint (credentials,
region and endpoint from the usual ``AWS_*`` variables), ``memory://`` a store of this process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, S3Store

from perseid.errors import AlreadyExists, BadInput, NotFound, StorageError

_MEMORY: dict[str, MemoryStore] = {}


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

    Each method raises `NotFound`, `AlreadyExists` or `StorageError`, naming URL and key.
    Writes are atomic: an object is there whole or not at all.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = normalise_url(url)
        self._store, self._prefix = _connect(self.url)

    def at(self, prefix: str) -> Storage:
        """The store of everything below `prefix`."""
        return Storage(join_url(self.url, prefix))

    def where(self, key: str = "") -> str:
        """The full URL (a plain path on disk) of a key, for messages and records."""
        path = self.local_path(key)
        return join_url(self.url, key) if path is None else str(path)

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
        """Write an object; `new` refuses to replace one (`AlreadyExists`)."""
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
        except NotFound:
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

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those already gone do not matter."""
        for key in keys:
            try:
                with _sentences(self, key):
                    obstore.delete(self._store, self._path(key))
            except NotFound:
                continue

    def local_path(self, key: str = "") -> Path | None:
        """Where the object lies on this machine's disk, or None: for memory maps."""
        if not self.url.startswith("file://"):
            return None
        return Path(unquote(urlsplit(self.url).path)) / key

    def _path(self, key: str) -> str:
        return "/".join(part for part in (self._prefix, key.strip("/")) if part)


def normalise_url(url: str | Path) -> str:
    """A URL with a scheme and no trailing slash; plain paths become absolute ``file://``."""
    text = str(url)
    if "://" not in text:
        return Path(text).expanduser().absolute().as_uri()
    scheme = text.split("://", 1)[0]
    if scheme not in ("file", "s3", "memory"):
        raise BadInput(f"no store for {text!r}: use a path, file://, s3:// or memory://")
    return text.rstrip("/") if text != "memory://" else text


def join_url(url: str, key: str) -> str:
    """`url` with `key` below it."""
    base = url if url.endswith("://") else url.rstrip("/") + "/"
    return (base + key.strip("/")).rstrip("/") if key.strip("/") else url


def split_url(url: str | Path) -> tuple[str, str]:
    """The URL of the folder and the last part: ``("s3://b/p", "1.pt")`` from ``s3://b/p/1.pt``."""
    base, _, name = normalise_url(url).rpartition("/")
    return base, name


def _connect(url: str) -> tuple[Any, str]:
    parts = urlsplit(url)
    prefix = unquote(parts.path).strip("/")
    if parts.scheme == "file":
        return LocalStore(), prefix  # rooted at /, so that reading creates no folder
    if parts.scheme == "memory":
        return _MEMORY.setdefault(parts.netloc, MemoryStore()), prefix
    return _s3(parts.netloc), prefix


def _s3(bucket: str) -> S3Store:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {}
    if endpoint:
        options = {"endpoint": endpoint, "virtual_hosted_style_request": False}
    if not os.environ.get("AWS_REGION"):
        options["region"] = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
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


class _sentences:
    """Turn obstore's errors into ours, with the place in the message."""

    def __init__(self, store: Storage, key: str) -> None:
        self.where = store.where(key)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise NotFound(f"{self.where} is not there") from error
        if isinstance(error, AlreadyExistsError):
            raise AlreadyExists(f"{self.where} is there already") from error
        if isinstance(error, (BaseError, OSError)):
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise StorageError(f"{self.where}: {first}") from error
