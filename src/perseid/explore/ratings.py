"""Ratings of a run's objects: one small Parquet file beside the run, whole after every rating.

The file is a history, so that a rating can be taken back. Each change is written at once, and in
the place of the very version that was read: what two pages or two servers rate is joined.
"""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from perseid.errors import AlreadyExistsError, BadInputError, NotFoundError, RunError
from perseid.pipeline import layout
from perseid.science.preference import HIGHEST, LOWEST
from perseid.storage import ObjectInfo, Storage

TRIES = 20
"""How often a file that others change under us is written again."""


@dataclass(frozen=True)
class Rating:
    """What somebody thinks of one object."""

    partition: str
    """Key of its partition."""
    row: int
    """Row in the partition, from 0."""
    object_id: str | None
    """As the catalogue has it, as text; None if it has none."""
    rating: int
    """1 (uninteresting) to 5 (more of these)."""
    rated_at: float
    """Seconds since the epoch."""
    rater: str | None = None
    """A name, where one was given."""

    @property
    def place(self) -> tuple[str, int]:
        """Which object it is of."""
        return self.partition, self.row


class RatingsFile:
    """The ratings of one run; safe to use from several threads and several processes.

    Parameters
    ----------
    store
        Of the run's own prefix.
    rater
        A name that is kept with each rating; empty: none is.
    """

    def __init__(self, store: Storage, rater: str = "") -> None:
        self._store, self._rater = store, rater or None
        self._lock = threading.Lock()
        self._history: tuple[Rating, ...] = ()
        self._reload()

    @property
    def history(self) -> tuple[Rating, ...]:
        """Every rating that was not taken back, oldest first."""
        return self._history

    def current(self) -> Mapping[tuple[str, int], Rating]:
        """The last rating of each object."""
        return {one.place: one for one in self._history}

    def rate(self, partition: str, row: int, object_id: str | None, rating: int) -> Rating:
        """Keep a rating; it is on the disk when this returns.

        Raises
        ------
        BadInputError
            The rating is not 1 to 5.
        StorageError
            It cannot be written.
        """
        if not LOWEST <= rating <= HIGHEST:
            raise BadInputError(f"a rating is {LOWEST} to {HIGHEST}, not {rating}")
        one = Rating(partition, row, object_id, rating, time.time(), self._rater)
        with self._lock:
            self._change(lambda history: (*history, one))
        return one

    def undo(self) -> Rating | None:
        """Take the last rating back (of this rater, where there is a name); None: there is none."""
        taken: list[Rating] = []

        def without(history: Sequence[Rating]) -> tuple[Rating, ...]:
            taken.clear()
            own = [i for i, one in enumerate(history) if one.rater == self._rater]
            if not own:
                return tuple(history)
            taken.append(history[own[-1]])
            return tuple(one for i, one in enumerate(history) if i != own[-1])

        with self._lock:
            self._change(without)
        return taken[0] if taken else None

    def _change(self, change: Callable[[Sequence[Rating]], tuple[Rating, ...]]) -> None:
        for attempt in range(TRIES):
            seen = self._reload()  # always: what another server wrote since must not be lost
            changed = change(self._history)
            if changed == self._history:
                return
            data = _written(changed)
            try:
                if seen is None:
                    self._store.put(layout.RATINGS, data, new=True)
                else:
                    self._store.swap(layout.RATINGS, data, seen)
            except (AlreadyExistsError, NotFoundError):
                time.sleep(random.uniform(0, 0.01 * (attempt + 1)))
                continue
            self._history = changed
            return
        raise RunError(f"{self._store.where(layout.RATINGS)} is changed by others all the time")

    def _reload(self) -> ObjectInfo | None:
        """Read the file; the version that is at least as old as what was read, or None."""
        try:
            seen = self._store.info(layout.RATINGS)
            data = self._store.get(layout.RATINGS)
        except NotFoundError:
            self._history = ()
            return None
        self._history = _read(data, self._store.where(layout.RATINGS))
        return seen


def _written(history: Sequence[Rating]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = {
        "partition": pyarrow.array([one.partition for one in history], "string"),
        "row": pyarrow.array([one.row for one in history], "int64"),
        "object_id": pyarrow.array([one.object_id for one in history], "string"),
        "rating": pyarrow.array([one.rating for one in history], "int8"),
        "rated_at": pyarrow.array([one.rated_at for one in history], "float64"),
        "rater": pyarrow.array([one.rater for one in history], "string"),
    }
    if not any(one.rater for one in history):
        del columns["rater"]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def _read(data: bytes, where: str) -> tuple[Rating, ...]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(io.BytesIO(data)).to_pylist()
        found = [
            Rating(
                str(row["partition"]), int(row["row"]), row["object_id"], int(row["rating"]),
                float(row["rated_at"]), row.get("rater"),
            )
            for row in rows
        ]  # fmt: skip
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise BadInputError(
            f"{where} holds no ratings that can be read: move it away to begin again"
        ) from error
    return tuple(sorted(found, key=lambda one: one.rated_at))
