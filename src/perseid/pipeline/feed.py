"""A rank's partitions as a stream of blocks: the next block is fetched while the model computes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError, BadPartitionError, NotFoundError, StorageError
from perseid.model.signature import ModelSignature
from perseid.pipeline.items import PartitionRef
from perseid.pipeline.model_inputs import (
    chosen_bands,
    fitted,
    flags,
    names_of_bands,
    refuse_empty,
    unfit,
    with_bands,
)
from perseid.storage import Storage
from perseid.survey.bytesource import FetchStats
from perseid.survey.cutouts import Cutouts
from perseid.survey.missing import MissingValues
from perseid.survey.read_options import PLAIN, ReadOptions
from perseid.survey.reader import PartitionReader, open_partition

BLOCK_BYTES = 4 << 20
"""Bytes of pixels per block; the reader fetches more than this in one request."""
GPU_BLOCK_BYTES = 48 << 20
"""The same for a GPU: two of its micro-batches of the usual images, so that one of them is copied
to it while the other is computed."""
AHEAD = 1
"""Number of steps that wait for the model, besides the block in use and the one being fetched."""
GPU_AHEAD = 4
"""The same for a GPU, which must not wait at the end of a partition either: the first two blocks of
the next partition are read before the last block of this one is computed."""
_POLL = 0.2


@dataclass(frozen=True)
class Begun:
    """A partition was opened; its blocks follow."""

    ref: PartitionRef
    rows: int


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive rows of the partition that was opened last."""

    cutouts: Cutouts
    flag: NDArray[np.int32]
    """Flags (n,): 0 if the row has all inputs of the model, else `NOT_FINITE` or
    `MISSING_INPUT`."""


@dataclass(frozen=True)
class Ended:
    """The whole partition was read, and it has not changed since the run began."""

    stats: FetchStats


@dataclass(frozen=True)
class Failed:
    """The partition cannot be used, and neither can those of its blocks that were already
    delivered."""

    ref: PartitionRef
    error: str
    """One sentence saying why."""


Step = Begun | Block | Ended | Failed


class Feed:
    """Iterates over a rank's partitions, which a separate thread reads; a context manager.

    A bad partition is reported as `Failed`, and the feed goes on with the next one. If the store
    fails, `StorageError` is raised: another attempt at the rank may succeed.

    Parameters
    ----------
    storage
        Storage that holds the partitions.
    partitions
        The rank's partitions, in order.
    signature
        Signature of the model; a partition of another shape fails.
    micro_batch
        Each block holds a multiple of this many rows, except the last one of a partition.
    missing
        Values that mean a missing magnitude or redshift.
    options
        Names of columns in the files, further columns, layout of images.
    fit
        How images larger or smaller than the model's are made to fit: see `fitted`.
    block_bytes
        Bytes of pixels per block, at most, unless a micro-batch is larger.
    ahead
        Number of steps that may wait to be iterated over.
    """

    def __init__(
        self,
        storage: Storage,
        partitions: Sequence[PartitionRef],
        signature: ModelSignature,
        micro_batch: int,
        *,
        missing: MissingValues = MissingValues(),  # noqa: B008 - frozen
        options: ReadOptions = PLAIN,
        fit: str = "",
        block_bytes: int = BLOCK_BYTES,
        ahead: int = AHEAD,
    ) -> None:
        self._storage, self._partitions = storage, partitions
        self._missing, self._options = missing, options
        self._signature = signature
        self._micro_batch, self._fit, self._block_bytes = micro_batch, fit, block_bytes
        # Bounded, or a fast store would fill the memory of a slow model.
        self._queue: queue.Queue[Step | BaseException | None] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self.spans: list[tuple[float, float]] = []
        """(start, end) of reading each block, seconds since the epoch."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60.0)  # the thread may be inside a request, which has its own deadline

    def __iter__(self) -> Iterator[Step]:
        while (step := self._next()) is not None:
            if isinstance(step, BaseException):
                raise step
            yield step

    def _next(self) -> Step | BaseException | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=_POLL)
            # Checked only when the queue stayed empty for a while, so that the last element is
            # never missed.
            if not self._thread.is_alive() and self._queue.empty():
                return BadPartitionError("the reading thread ended without reporting a result")

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            for ref in self._partitions:
                self._partition(ref)
        except _StoppedError:
            return
        except BaseException as error:
            last = error
        with contextlib.suppress(_StoppedError):
            # None at the end, or an exception, which is raised in the thread that iterates.
            self._put(last)

    def _put(self, step: Step | BaseException | None) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                return self._queue.put(step, timeout=_POLL)
        raise _StoppedError

    def _partition(self, ref: PartitionRef) -> None:
        try:
            with open_partition(self._storage, ref.key, self._missing, self._options) as reader:
                self._blocks(ref, reader)
                # Checked after the last block: only then is it certain that all blocks were read
                # from one version of the object.
                self._unchanged(ref)
                self._put(Ended(reader.stats))
        except (BadInputError, NotFoundError) as error:
            self._put(Failed(ref, str(error)))
        except StorageError as error:
            # If the object changed while it was being read, the reader fails like a failing store.
            change = self._change(ref)
            if change is None:
                raise
            self._put(Failed(ref, f"{change} ({error})"))

    def _blocks(self, ref: PartitionRef, reader: PartitionReader) -> None:
        where = self._storage.where(ref.key)
        local = self._storage.local_path(ref.key) is not None
        refuse_empty(reader.rows, where)
        bands = reader.bands if self._signature.bands else ()
        said = unfit(self._signature, reader.columns, self._fit, bands=bands)
        if said:
            raise BadPartitionError(f"{where} has {said}")
        places = chosen_bands(names_of_bands(self._signature), reader.shape[0], bands)
        self._put(Begun(ref, reader.rows))
        step = block_rows(reader.columns.image_bytes, self._micro_batch, self._block_bytes)
        blocks = iter(reader.blocks(step))
        while True:
            began = time.time()
            cutouts = next(blocks, None)
            if cutouts is None:
                return
            read = cutouts.images
            cutouts = with_bands(cutouts, places)
            cutouts = replace(cutouts, images=fitted(cutouts.images, self._signature, self._fit))
            if local and cutouts.images is read:
                # The reader gives a block's pages of the memory map back when the next is asked
                # for, which is before the model sees this one: it would map them again, to stay.
                cutouts = replace(cutouts, images=read.copy())
            flag = flags(self._signature, cutouts)
            self.spans.append((began, time.time()))
            self._put(Block(cutouts, flag))

    def _unchanged(self, ref: PartitionRef) -> None:
        change = self._change(ref)
        if change is not None:
            raise BadPartitionError(change)

    def _change(self, ref: PartitionRef) -> str | None:
        """One sentence if the object is not the one that the run began with; empty otherwise."""
        info = self._storage.info(ref.key)
        # Not every store has entity tags; without them only the size can be compared.
        same = (info.size == ref.size and None in (info.etag, ref.etag)) or info.etag == ref.etag
        if same:
            return None
        return (
            f"{self._storage.where(ref.key)} was changed after the run began ({ref.size} bytes "
            f"then, {info.size} now): start a new run"
        )


class _StoppedError(Exception):
    """The feed was closed while its thread was reading."""


def block_rows(row_bytes: int, micro_batch: int, block_bytes: int = BLOCK_BYTES) -> int:
    """Number of rows per block: the largest multiple of `micro_batch` within `block_bytes`, but at
    least one.

    `row_bytes` is the size of one image in the file.
    """
    return max(1, block_bytes // row_bytes // micro_batch) * micro_batch
