"""Objects by URL: one small class on top of obstore for disks, S3 and memory.

A plain path or ``file://`` is a directory, ``s3://bucket/prefix`` a bucket on AWS or any other S3
server, and ``memory://`` a store in this process.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError as KeyTakenError
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import LocalStore, MemoryStore, S3Store

from perseid.errors import (
    AlreadyExistsError,
    BadInputError,
    NotFoundError,
    PerseidError,
    StorageError,
)
from perseid.plaintext import html_table
from perseid.storage.listing_pages import in_time, pages
from perseid.storage.location import Location
from perseid.storage.reasons import UNCONDITIONAL, answer_of, is_conflict, reason_of
from perseid.storage.s3 import Bucket, open_bucket

Data = bytes | memoryview | Path
"""Content of an object: bytes, or the path of a file."""
_MEMORY: dict[str, MemoryStore] = {}
_DELETED_AT_ONCE = 1000
"""Most keys per DeleteObjects request: S3's limit."""
_CONFLICTS, _CONFLICT_SECONDS = 5, 0.2
"""Attempts of a conditional write that conflicts with another one in progress, and the first wait
between them, seconds."""


@dataclass(frozen=True)
class ObjectInfo:
    """One line of a listing."""

    key: str
    """Key relative to the store's URL, with ``/`` between parts."""
    size: int
    """Bytes."""
    etag: str | None = None
    """The server's entity tag, if it has one."""


class Storage:
    """All objects below one URL; keys are relative to it.

    Each method raises `NotFoundError`, `AlreadyExistsError` or `StorageError`, naming URL, key and,
    for S3, the server's error code. Writes are atomic: an object exists completely or not at all.

    Examples
    --------
    >>> store = Storage("memory://docs")
    >>> store.put("a/1.pt", b"0123")
    >>> [info.key for info in store.list()], store.get_range("a/1.pt", 1, 2)
    (['a/1.pt'], b'12')
    """

    def __init__(self, location: Location | str | Path) -> None:
        self.location = Location.parse(location)
        self._prefix = self.location.key
        self._bucket: Bucket | None = None
        self._store: LocalStore | MemoryStore | S3Store
        if self.location.scheme == "file":
            # Rooted at /, because obstore would create a missing root folder.
            self._store = LocalStore()
        elif self.location.scheme == "memory":
            # Shared by name, so that all `Storage` objects of this process see the same data.
            self._store = _MEMORY.setdefault(self.location.bucket, MemoryStore())
        else:
            self._bucket = open_bucket(self.location.bucket)
            self._store = self._bucket.store

    @property
    def url(self) -> str:
        """URL of the prefix."""
        return self.location.url

    def _repr_html_(self) -> str:
        return html_table(("storage", self.url), ())

    @property
    def is_conditional(self) -> bool:
        """Whether only one of two simultaneous writers of a new object, or of a swap, succeeds."""
        return self._bucket is None or self._bucket.is_conditional

    @property
    def client(self) -> LocalStore | MemoryStore | S3Store:
        """The underlying obstore object, for this package only."""
        return self._store

    @classmethod
    def holding(cls, place: Location | str | Path) -> tuple[Storage, str]:
        """The store of the folder that contains an object, and the object's key in it."""
        location = Location.parse(place)
        return cls(location.parent), location.name

    def at(self, prefix: str) -> Storage:
        """A store for everything below `prefix`."""
        return Storage(self.location / prefix)

    def where(self, key: str = "") -> str:
        """The full URL (a plain path on a disk) of a key, for messages and records."""
        return str(self.location / key)

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        with self._reading(key):
            found = obstore.get(self._store, self._path(key))
            data = bytes(found.bytes())
        # A captive portal answers every request with status 200 and its own page.
        self._doubt(key, not _is_s3_tag(found.meta.get("e_tag")))
        return data

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read `length` bytes from `start`; fewer if the object ends before."""
        with self._reading(key):
            return bytes(
                obstore.get_range(self._store, self._path(key), start=start, length=length)
            )

    def view(self, key: str, start: int, length: int, *, etag: str | None = None) -> memoryview:
        """Like `get_range`, without a copy; with `etag`, only from exactly that version of the
        object."""
        with self._reading(key):
            if etag is None:
                result = obstore.get(
                    self._store, self._path(key), options={"range": (start, start + length)}
                )
            else:
                result = obstore.get(
                    self._store,
                    self._path(key),
                    options={"range": (start, start + length), "if_match": etag},
                )
            return memoryview(result.bytes())

    def get_ranges(self, key: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Read several ranges; nearby ones are joined into one request."""
        with self._reading(key):
            parts = obstore.get_ranges(
                self._store, self._path(key), starts=list(starts), lengths=list(lengths)
            )
            return [bytes(part) for part in parts]

    def put(self, key: str, data: Data, *, new: bool = False) -> None:
        """Write an object; `new` refuses to replace one (`AlreadyExistsError`)."""
        with self._reasons(key):
            if not new:
                done = obstore.put(self._store, self._path(key), data, mode="overwrite")
                self._doubt(key, not _is_s3_tag(done["e_tag"]))
            elif self._bucket is None:
                self._create(self._store, key, data)
            elif self.is_conditional:
                self._create_in_bucket(self._bucket, key, data)
            else:
                self._create_unless_seen(key, data)

    def _create(self, store: LocalStore | MemoryStore | S3Store, key: str,
                data: Data) -> None:  # fmt: skip
        done = obstore.put(store, self._path(key), data, mode="create", use_multipart=False)
        self._doubt(key, not _is_s3_tag(done["e_tag"]))

    def _create_in_bucket(self, bucket: Bucket, key: str, data: Data) -> None:
        for attempt in range(_CONFLICTS):
            try:
                again = self._conditionally(bucket, key, lambda to: self._create(to, key, data))
                # The first attempt may have succeeded although its answer was lost. Then the object
                # exists because we wrote it, which only its content can show.
                if again and self.get(key) != _bytes(data):
                    raise AlreadyExistsError(f"{self.where(key)} is there already")
                return
            except KeyTakenError as error:
                if not is_conflict(error):
                    raise
                if self.exists(key):
                    raise AlreadyExistsError(f"{self.where(key)} is there already") from error
                time.sleep(_CONFLICT_SECONDS * (attempt + 1))
        raise StorageError(
            f"{self.where(key)}: it keeps being written by others (ConditionalRequestConflict): "
            "try again later"
        )

    def _conditionally(self, bucket: Bucket, key: str, write: Callable[[S3Store], object]) -> bool:
        """Write conditionally, first without retries to find out whether the server supports it.

        Returns whether the write was finally refused although an attempt without an answer may have
        succeeded, so that the existing object may be our own.
        """
        try:
            # Without the client's own retries: if its first attempt succeeded but the answer was
            # lost, a retry would get "exists already" and take our own object for another writer's.
            write(bucket.once)
            return False
        except BaseError as error:
            answer = answer_of(error)
            # Some servers that speak S3 refuse the condition. Writing without it would silently
            # lose the guarantee that two runs never share a prefix.
            if answer.status == "501":
                raise UNCONDITIONAL.error(f"{self.where(key)}: {UNCONDITIONAL.advice}") from error
            # Certainly not carried out. After other failures (a time-out, a 500) that is unknown.
            if answer.is_final:
                raise
        try:
            write(bucket.store)
        except (KeyTakenError, PreconditionError):
            return True
        return False

    def _create_unless_seen(self, key: str, data: Data) -> None:
        """Without the server's help: two writers at the same moment may both succeed."""
        if self.exists(key):
            raise AlreadyExistsError(f"{self.where(key)} is there already")
        obstore.put(self._store, self._path(key), data, mode="overwrite")

    def swap(self, key: str, data: bytes, seen: ObjectInfo) -> None:
        """Replace exactly the version of an object that was seen before.

        Raises
        ------
        AlreadyExistsError
            Another process has replaced it since.
        NotFoundError
            It no longer exists.
        """
        path = self.local_path(key)
        with self._reasons(key):
            if path is not None:
                # File systems have no conditional replace, so a lock makes check and write one
                # step.
                with _locked(path):
                    self._refuse_other(key, seen)
                    obstore.put(self._store, self._path(key), data)
            elif seen.etag is None or not self.is_conditional:
                self._refuse_other(key, seen)  # without the server's help: both may succeed
                obstore.put(self._store, self._path(key), data)
            else:
                self._swap_on_server(key, data, seen.etag)

    def _swap_on_server(self, key: str, data: bytes, etag: str) -> None:
        def write(to: LocalStore | MemoryStore | S3Store) -> None:
            obstore.put(to, self._path(key), data, mode={"e_tag": etag}, use_multipart=False)

        try:
            if self._bucket is None:
                write(self._store)
            elif self._conditionally(self._bucket, key, write) and self.get(key) != data:
                raise AlreadyExistsError(f"{self.where(key)} was replaced meanwhile")
        except PreconditionError as error:
            raise AlreadyExistsError(f"{self.where(key)} was replaced meanwhile") from error

    def _refuse_other(self, key: str, seen: ObjectInfo) -> None:
        if self.info(key).etag != seen.etag:
            raise AlreadyExistsError(f"{self.where(key)} was replaced meanwhile")

    def info(self, key: str) -> ObjectInfo:
        """Size and entity tag of an object."""
        with self._reasons(key):
            try:
                meta = obstore.head(self._store, self._path(key))
            except BaseError as error:
                if self._bucket is not None and answer_of(error).status.startswith("4"):
                    # An answer to HEAD has no body and so no error code; an answer to GET has one.
                    obstore.get_range(self._store, self._path(key), start=0, length=1)
                raise
        self._doubt(key, not _is_s3_tag(meta.get("e_tag")))
        return ObjectInfo(key, int(meta["size"]), meta.get("e_tag"))

    def size(self, key: str) -> int:
        """Size of an object, bytes."""
        return self.info(key).size

    def exists(self, key: str) -> bool:
        """Whether the object exists."""
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Iterate over all objects below `prefix` (a path prefix of whole parts)."""
        path = self._path(prefix)
        empty = True
        with self._reasons(prefix):
            for page in pages(self._store, path, self.where(prefix)):
                for meta in page:
                    empty = False
                    key = meta["path"]
                    if self._prefix:
                        # The client's paths start at the bucket, our keys at this store's URL.
                        key = key.removeprefix(self._prefix + "/")
                    yield ObjectInfo(key, int(meta["size"]), meta.get("e_tag"))
        self._doubt(prefix, empty)

    def names(self) -> Sequence[str]:
        """All keys directly below the store's URL, without those in folders."""
        with self._reasons(""):
            found = in_time(
                lambda: obstore.list_with_delimiter(self._store, self._prefix or None),
                self.where(),
            )
        self._doubt("", not found["objects"])
        return [str(meta["path"]).rpartition("/")[2] for meta in found["objects"]]

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; missing ones are ignored."""
        many = _DELETED_AT_ONCE if self._bucket is not None else 1
        for start in range(0, len(keys), many):
            part = keys[start : start + many]
            try:
                with self._reasons(part[0]):
                    obstore.delete(self._store, [self._path(key) for key in part])
            # DeleteObjects ignores missing keys, but a disk does not.
            except NotFoundError:
                continue

    def local_path(self, key: str = "") -> Path | None:
        """The path of an object on this machine's disk, for memory maps; None for other stores;
        raises `BadInputError` for a key that would leave the store."""
        path = (self.location / key).path
        if path is not None and ".." in key.split("/"):
            raise BadInputError(f"{key!r} leaves {self.url}: a key must not contain '..'")
        return path

    def _path(self, key: str) -> str:
        return "/".join(part for part in (self._prefix, key.strip("/")) if part)

    def _doubt(self, key: str, doubtful: bool) -> None:
        """If the answer could be any web page, check that it comes from an S3 server."""
        if doubtful and self._bucket is not None:
            self._bucket.check_genuine(self.where(key))

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        path = self.local_path(key)
        # Opening a FIFO that nobody writes to would wait forever.
        if path is not None and _is_special(path):
            raise StorageError(f"{self.where(key)} is not a regular file: remove it")
        with self._reasons(key):
            yield

    @contextmanager
    def _reasons(self, key: str) -> Iterator[None]:
        """Raise perseid's errors instead of the client's."""
        try:
            yield
        except PerseidError:
            raise
        except (BaseError, OSError, ValueError, NotImplementedError) as error:
            where, bucket = self.where(key), self._bucket
            if bucket is None:
                raise reason_of(error, where) from error
            raise bucket.failure() or reason_of(error, where, bucket.region) from error


def _is_special(path: Path) -> bool:
    """Whether it is a pipe, a socket or a device."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _is_s3_tag(etag: str | None) -> bool:
    """Whether an entity tag looks like S3's; a web page has none, or a different form."""
    return re.fullmatch(r'"?[0-9a-f]{32}(-\d+)?"?', etag or "") is not None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a file, not its name, so that of several writers one at a time checks and replaces it; a
    writer that had to wait then finds a new file under the name."""
    import fcntl  # does not exist on Windows, where runs can only be read

    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _bytes(data: Data) -> bytes:
    return data.read_bytes() if isinstance(data, Path) else bytes(data)
