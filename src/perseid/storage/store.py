"""Objects by URL: one small class over obstore, the same for a disk, S3 and memory.

A plain path or ``file://`` is a directory, ``s3://bucket/prefix`` a bucket of AWS or of any server
that speaks S3's language, ``memory://`` a store of this process.
"""

from __future__ import annotations

import os
import re
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
from perseid.storage.location import Location
from perseid.storage.reasons import UNCONDITIONAL, answer_of, reason_of
from perseid.storage.s3 import Bucket, open_bucket

Data = bytes | memoryview | Path
"""What an object is written from."""
_MEMORY: dict[str, MemoryStore] = {}
_DELETED_AT_ONCE = 1000
"""Keys of one DeleteObjects request: S3's limit."""
_CONFLICTS, _CONFLICT_SECONDS = 5, 0.2
"""Attempts of a conditional write that meets another one under way, and the wait between them."""


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

    Each method raises `NotFoundError`, `AlreadyExistsError` or `StorageError`, naming URL and key,
    and of S3 the server's own code. Writes are atomic: an object is there whole or not at all.

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
            self._store = LocalStore()  # rooted at /, so that reading creates no folder
        elif self.location.scheme == "memory":
            self._store = _MEMORY.setdefault(self.location.bucket, MemoryStore())
        else:
            self._bucket = open_bucket(self.location.bucket)
            self._store = self._bucket.store

    @property
    def url(self) -> str:
        """URL of the prefix that this store is of."""
        return self.location.url

    @property
    def is_conditional(self) -> bool:
        """Whether of two that write a new object, or swap one, at one moment only one succeeds."""
        return self._bucket is None or self._bucket.is_conditional

    @property
    def client(self) -> LocalStore | MemoryStore | S3Store:
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
        """Read a whole object."""
        with self._reasons(key):
            found = obstore.get(self._store, self._path(key))
            data = bytes(found.bytes())
        # A captive portal answers everything with status 200 and a page of its own.
        self._doubt(key, not _is_s3_tag(found.meta.get("e_tag")))
        return data

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer where the object ends before."""
        with self._reasons(key):
            return bytes(
                obstore.get_range(self._store, self._path(key), start=start, length=length)
            )

    def view(self, key: str, start: int, length: int, *, etag: str | None = None) -> memoryview:
        """`get_range` without a copy; with `etag`, only of that very version of the object."""
        with self._reasons(key):
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
        """Several ranges, near ones joined into one request."""
        with self._reasons(key):
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
                # The first attempt may have been carried out although its answer was lost; then the
                # object is there because we wrote it, and only its content can tell.
                if again and self.get(key) != _bytes(data):
                    raise AlreadyExistsError(f"{self.where(key)} is there already")
                return
            except KeyTakenError as error:
                # S3 says "conflict" of another write under way, which may fail and leave nothing.
                if "409 Conflict" not in str(error) or self.exists(key):
                    raise
                time.sleep(_CONFLICT_SECONDS * (attempt + 1))
        raise StorageError(
            f"{self.where(key)}: other writes of it go on and on (ConditionalRequestConflict): try "
            "again later"
        )

    def _conditionally(self, bucket: Bucket, key: str, write: Callable[[S3Store], object]) -> bool:
        """Write once, and tell where the server cannot do it; only after that there are attempts.

        Returns whether it was refused in the end though an attempt without an answer may have done
        it: what is there may be our own.
        """
        try:
            # Without the client's own retries: one whose first attempt succeeded unseen would then
            # be told "exists already" and report its own object as another writer's.
            write(bucket.once)
            return False
        except BaseError as error:
            answer = answer_of(error)
            # Some servers that speak S3 refuse the condition. Writing without it would silently
            # lose the guarantee that two runs never share a prefix.
            if answer.status == "501":
                raise UNCONDITIONAL.error(f"{self.where(key)}: {UNCONDITIONAL.advice}") from error
            # Not carried out for certain. Of anything else (a time-out, a 500) nobody knows.
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
        """Replace the very version of an object that was seen.

        Raises
        ------
        AlreadyExistsError
            Another process replaced it meanwhile.
        NotFoundError
            It is gone.
        """
        path = self.local_path(key)
        with self._reasons(key):
            if path is not None:
                # A file system has no conditional replace: a lock makes look and write one step.
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
                    # The answer to HEAD has no body and so no code: this one has.
                    obstore.get_range(self._store, self._path(key), start=0, length=1)
                raise
        self._doubt(key, not _is_s3_tag(meta.get("e_tag")))
        return ObjectInfo(key, int(meta["size"]), meta.get("e_tag"))

    def size(self, key: str) -> int:
        """Size of an object, bytes."""
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
        empty = True
        with self._reasons(prefix):
            for page in obstore.list(self._store, path or None):
                for meta in page:
                    empty = False
                    key = meta["path"]
                    if self._prefix:
                        # The store's paths start at the bucket, the keys of this object at its own
                        # URL.
                        key = key.removeprefix(self._prefix + "/")
                    yield ObjectInfo(key, int(meta["size"]), meta.get("e_tag"))
        self._doubt(prefix, empty)

    def names(self) -> Sequence[str]:
        """Keys right below the store's URL, those in folders left out; all pages."""
        with self._reasons(""):
            found = obstore.list_with_delimiter(self._store, self._prefix or None)
        self._doubt("", not found["objects"])
        return [str(meta["path"]).rpartition("/")[2] for meta in found["objects"]]

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those already gone do not matter."""
        many = _DELETED_AT_ONCE if self._bucket is not None else 1
        for start in range(0, len(keys), many):
            part = keys[start : start + many]
            try:
                with self._reasons(part[0]):
                    obstore.delete(self._store, [self._path(key) for key in part])
            # DeleteObjects does not mind missing keys, a disk does.
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

    def _doubt(self, key: str, doubtful: bool) -> None:
        """See whether the server is one, where its answer might be any web page."""
        if doubtful and self._bucket is not None:
            self._bucket.check_genuine(self.where(key))

    @contextmanager
    def _reasons(self, key: str) -> Iterator[None]:
        """Raise perseid's errors in place of the client's."""
        try:
            yield
        except PerseidError:
            raise
        except (BaseError, OSError, ValueError, NotImplementedError) as error:
            where, bucket = self.where(key), self._bucket
            if bucket is None:
                raise reason_of(error, where) from error
            raise bucket.failure() or reason_of(error, where, bucket.region) from error


def _is_s3_tag(etag: str | None) -> bool:
    """Whether an entity tag looks like S3's; a web page has none, or one of another form."""
    return re.fullmatch(r'"?[0-9a-f]{32}(-\d+)?"?', etag or "") is not None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file: of several that want to replace it, one looks and writes at a time.

    The lock is the file's, not the name's: who had to wait finds another file there afterwards.
    """
    import fcntl  # not on Windows, where runs can be read

    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _bytes(data: Data) -> bytes:
    return data.read_bytes() if isinstance(data, Path) else bytes(data)
