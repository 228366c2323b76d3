"""A rank's partitions as a stream of blocks: the next is fetched while the model computes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
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
"""Pixels handed over at once; the reader fetches more of them in one request."""
AHEAD = 1
"""Blocks waiting for the model, beside the one that it has and the one being fetched."""
_POLL = 0.2


@dataclass(frozen=True)
class Begun:
    """A partition was opened; its blocks follow."""

    ref: PartitionRef
    rows: int


@dataclass(frozen=True, eq=False)
class Block:
    """Some consecutive rows of the partition that was begun last."""

    cutouts: Cutouts
    flag: NDArray[np.int32]
    """(n,): 0 where the row has all that the model uses, else `NOT_FINITE` or `MISSING_INPUT`."""


@dataclass(frozen=True)
class Ended:
    """The partition is read, unchanged since the run began."""

    stats: FetchStats


@dataclass(frozen=True)
class Failed:
    """The partition cannot be used, including the blocks of it that were already delivered."""

    ref: PartitionRef
    error: str
    """One sentence."""


Step = Begun | Block | Ended | Failed


class Feed:
    """Iterates over a rank's partitions in a thread of its own; a context manager.

    A partition that is bad in itself comes as `Failed` and the next one goes on. A store that
    fails raises `StorageError`: another attempt at the rank may succeed.

    Parameters
    ----------
    storage
        Of the partition keys.
    partitions
        In order.
    signature
        What the model takes: a partition of another shape fails.
    micro_batch
        Blocks hold a multiple of so many rows, except a partition's last.
    missing
        Which magnitudes and redshifts mean that there is none.
    options
        Names of columns in the files, further columns, layout of images.
    fit
        What becomes of images that are larger or smaller than the model's: see `fitted`.
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
    ) -> None:
        self._storage, self._partitions = storage, partitions
        self._missing, self._options = missing, options
        self._signature = signature
        self._micro_batch, self._fit = micro_batch, fit
        # Bounded, or a fast store would fill the memory of a slow model.
        self._queue: queue.Queue[Step | BaseException | None] = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self.spans: list[tuple[float, float]] = []
        """(start, end) of reading each block, seconds since the epoch."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(60.0)  # it may be inside a request, which has its own deadline

    def __iter__(self) -> Iterator[Step]:
        while (step := self._next()) is not None:
            if isinstance(step, BaseException):
                raise step
            yield step

    def _next(self) -> Step | BaseException | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=_POLL)
            # Looked at only after a pause without anything, so that the last element is never
            # missed.
            if not self._thread.is_alive() and self._queue.empty():
                return BadPartitionError("the reading thread ended without a word")

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
            # None at the end, or what went wrong: it is raised in the thread that iterates.
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
                # After the last block: only then is it certain that all of them were of one
                # version.
                self._unchanged(ref)
                self._put(Ended(reader.stats))
        except (BadInputError, NotFoundError) as error:
            self._put(Failed(ref, str(error)))
        except StorageError as error:
            # A reader that saw the object change under it fails as if the store had.
            change = self._change(ref)
            if change is None:
                raise
            self._put(Failed(ref, f"{change} ({error})"))

    def _blocks(self, ref: PartitionRef, reader: PartitionReader) -> None:
        where = self._storage.where(ref.key)
        local = self._storage.local_path(ref.key) is not None
        if not reader.rows:
            raise BadPartitionError(f"{where} holds no rows: take it out of the survey")
        bands = reader.bands if self._signature.bands else ()
        said = unfit(self._signature, reader.columns, self._fit, bands=bands)
        if said:
            raise BadPartitionError(f"{where} has {said}")
        places = chosen_bands(names_of_bands(self._signature), reader.shape[0], bands)
        self._put(Begun(ref, reader.rows))
        blocks = iter(reader.blocks(block_rows(reader.columns.image_bytes, self._micro_batch)))
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
        """A sentence, if the object is not the one that the run began with."""
        info = self._storage.info(ref.key)
        # Not every store gives entity tags; then the size has to do.
        same = (info.size == ref.size and None in (info.etag, ref.etag)) or info.etag == ref.etag
        if same:
            return None
        return (
            f"{self._storage.where(ref.key)} was changed after the run began ({ref.size} bytes "
            f"then, {info.size} now): start a new run"
        )


class _StoppedError(Exception):
    """The feed was closed while its thread was reading."""


def block_rows(row_bytes: int, micro_batch: int) -> int:
    """Rows of a block: the multiple of `micro_batch` within `BLOCK_BYTES`, at least one.

    `row_bytes` are those of an image in the file.
    """
    return max(1, BLOCK_BYTES // row_bytes // micro_batch) * micro_batch
