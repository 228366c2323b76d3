"""Sources of a file's bytes: a memory map, bytes in memory, or ranges of an object in a store.

Every reader works on a `ByteSource`, so one parser per format serves disks and object stores.
"""

from __future__ import annotations

import io
import mmap
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from perseid.errors import BadPartitionError, NotFoundError, PerseidError, StorageError
from perseid.storage import Storage

END_BYTES = (64 << 10, 1 << 20)
"""Fewest and most bytes of an object's head, and of its tail, that are fetched on opening, because
headers and directories are there."""
END_SHARE = 256
"""Head and tail are each 1 / 256 of the object: enough for everything but the pixels of a
partition, which take 340 times as much."""
RELEASE_BYTES = 4 << 20
"""After a library has copied this many bytes out of a file, the pages of its map are released."""
LARGEST_READ = 1 << 30
"""Largest single read. A longer one comes from a corrupt length, not from a block."""


@dataclass
class FetchStats:
    """Number and duration of requests to an object store; all zero for a memory map."""

    num_requests: int = 0
    num_bytes: int = 0
    total_time: float = 0.0
    """Seconds, summed over requests."""
    min_time: float = 0.0
    max_time: float = 0.0
    first_request_time: float = 0.0
    """Unix time when the first request was sent."""
    last_response_time: float = 0.0
    """Unix time when the last response was complete."""
    decode_seconds: float = 0.0
    """Seconds spent turning bytes into arrays, checksums included, requests excluded."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def avg_time(self) -> float:
        """Mean seconds per request."""
        return self.total_time / self.num_requests if self.num_requests else 0.0

    @property
    def fetch_seconds(self) -> float:
        """Seconds spent waiting for requests: `total_time` under the name of the stage."""
        return self.total_time

    def as_record(self) -> dict[str, float]:
        """The ``s3_*`` keys of a rank record (seconds; Unix times)."""
        return {
            "s3_num_requests": self.num_requests,
            "s3_total_time": self.total_time,
            "s3_avg_time": self.avg_time,
            "s3_min_time": self.min_time,
            "s3_max_time": self.max_time,
            "s3_first_request_time": self.first_request_time,
            "s3_last_response_time": self.last_response_time,
        }

    @contextmanager
    def request(self, length: int) -> Iterator[None]:
        """Time one request for `length` bytes."""
        sent, began = time.time(), time.perf_counter()
        yield
        seconds, received = time.perf_counter() - began, time.time()
        # Locked, because blocks are fetched in a thread while the caller reads others.
        with self._lock:
            if not self.num_requests:
                self.first_request_time, self.min_time = sent, seconds
            self.num_requests += 1
            self.num_bytes += length
            self.total_time += seconds
            self.min_time = min(self.min_time, seconds)
            self.max_time = max(self.max_time, seconds)
            self.last_response_time = received

    def add(self, other: FetchStats) -> None:
        """Add the requests of another partition."""
        if not other.num_requests:
            self.decode_seconds += other.decode_seconds
            return
        if not self.num_requests:
            self.min_time, self.first_request_time = other.min_time, other.first_request_time
        self.num_requests += other.num_requests
        self.num_bytes += other.num_bytes
        self.total_time += other.total_time
        self.decode_seconds += other.decode_seconds
        self.min_time = min(self.min_time, other.min_time)
        self.max_time = max(self.max_time, other.max_time)
        self.first_request_time = min(self.first_request_time, other.first_request_time)
        self.last_response_time = max(self.last_response_time, other.last_response_time)


class ByteSource(ABC):
    """The bytes of one file, read by position."""

    name: str
    """URL or path, for messages."""
    size: int
    """Bytes."""
    mapped: bool
    """Whether `read` gives views of a memory map, so that no read costs memory."""

    def __init__(self, name: str, size: int, *, mapped: bool = False) -> None:
        self.name, self.size, self.mapped = name, size, mapped
        self.stats = FetchStats()
        self.failure: PerseidError | None = None
        """The first error of a read through `SourceFile`, which a library may have swallowed."""

    def read(self, start: int, length: int) -> memoryview:
        """Read exactly `length` bytes from `start`; raises `BadPartitionError` if the file ends
        before."""
        if start < 0 or length < 0 or start + length > self.size:
            raise BadPartitionError(
                f"{self.name} is truncated or corrupt: it points to bytes {start} to "
                f"{start + length} but has {self.size}"
            )
        # A corrupt header can demand terabytes. In a memory map that costs nothing until it is
        # touched.
        if length > LARGEST_READ and not self.mapped:
            raise BadPartitionError(
                f"{self.name}: {length} bytes at {start} are too much for one read; split the file"
            )
        return self._read(start, length) if length else memoryview(b"")

    @abstractmethod
    def _read(self, start: int, length: int) -> memoryview: ...

    def release(self, start: int, length: int) -> None:  # noqa: B027 - optional
        """Hint that these bytes are not needed again soon; they can still be read."""

    def close(self) -> None:  # noqa: B027 - optional
        """Close the source; arrays that were returned before stay valid."""


class MapSource(ByteSource):
    """A file on this machine's disk, memory-mapped read-only."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        try:
            with open(path, "rb") as file:
                size = file.seek(0, io.SEEK_END)
                # mmap refuses empty files.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        except FileNotFoundError as error:
            raise NotFoundError(f"{path} is not there") from error
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        super().__init__(name or str(path), size, mapped=True)

    def _read(self, start: int, length: int) -> memoryview:
        assert self._map is not None
        return memoryview(self._map)[start : start + length]

    def release(self, start: int, length: int) -> None:
        """Let the kernel drop the pages from this process's resident memory."""
        page = mmap.PAGESIZE
        # Whole pages only, rounded inward: the neighbors of the range may still be in use.
        first, last = -(-start // page) * page, (start + length) // page * page
        if self._map is not None and last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Release the pages; the map itself is closed with the last array that refers to it."""
        self.release(0, self.size)


class BytesSource(ByteSource):
    """A file whose bytes are in memory."""

    def __init__(self, data: bytes | memoryview, name: str = "these bytes") -> None:
        self._data = memoryview(data)
        super().__init__(name, self._data.nbytes, mapped=True)

    def _read(self, start: int, length: int) -> memoryview:
        return self._data[start : start + length]


class RangeSource(ByteSource):
    """An object in a store, read by ranges; its head and tail are fetched once and kept.

    Every request names the entity tag that the object had at first, so an object that is
    replaced meanwhile is a `StorageError`, never a mixture.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        info = storage.info(key)
        super().__init__(storage.where(key), info.size)
        self._storage, self._key, self._etag = storage, key, info.etag
        self._kept: list[tuple[int, memoryview]] = []
        end = min(max(self.size // END_SHARE, END_BYTES[0]), END_BYTES[1])
        # Head and tail would overlap, so a single request fetches the whole object.
        if self.size <= 2 * end:
            self._kept = [(0, self._fetch(0, self.size))] if self.size else []
        else:
            start = self.size - end
            self._kept = [(0, self._fetch(0, end)), (start, self._fetch(start, end))]

    def _read(self, start: int, length: int) -> memoryview:
        for at, data in self._kept:
            if at <= start and start + length <= at + len(data):
                return data[start - at : start - at + length]
        return self._fetch(start, length)

    def _fetch(self, start: int, length: int) -> memoryview:
        with self.stats.request(length):
            data = self._storage.view(self._key, start, length, etag=self._etag)
        if len(data) != length:
            raise StorageError(f"{self.name}: {len(data)} bytes came instead of {length}")
        return data


def open_source(storage: Storage, key: str) -> ByteSource:
    """Open an object as a memory map if it is on this machine's disk, otherwise by ranges."""
    path = storage.local_path(key)
    if path is not None:
        return MapSource(path, storage.where(key))
    return RangeSource(storage, key)


class SourceFile(io.RawIOBase):
    """A `ByteSource` as a read-only, seekable file, for libraries that want one."""

    def __init__(self, source: ByteSource) -> None:
        self._source, self._at, self._copied = source, 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to byte {base + offset}")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._source.size - self._at)
        return bytes(self._view(left if size is None or size < 0 else min(size, left)))

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._view(min(len(buffer), max(0, self._source.size - self._at)))
        buffer[: len(data)] = data
        return len(data)

    def _view(self, length: int) -> memoryview:
        try:
            data = self._source.read(self._at, length)
        except PerseidError as error:
            # C libraries tend to replace an exception in a callback by one of their own, so keep
            # it.
            self._source.failure = self._source.failure or error
            raise
        self._at += length
        self._copied += length
        if self._copied > RELEASE_BYTES:  # pages of a map count as this process's memory
            self._source.release(0, self._source.size)
            self._copied = 0
        return data


def corrupt(source: ByteSource, library: str, error: Exception) -> PerseidError:
    """The error for a file that a format's library cannot read; `error` is the library's exception.

    If one of our own reads failed first, its error is returned, since it tells more.
    """
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return source.failure or BadPartitionError(
        f"{source.name} is truncated or corrupt: {library} says: {first}"
    )
