"""Ratings of a run's objects, in one small Parquet file that is complete after every rating.

The file is a history, so that a rating can be undone. Each change is written at once and only
replaces the version that was read, so that ratings from two pages or two servers are combined.
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
"""Number of tries to write the file while other processes keep changing it."""


@dataclass(frozen=True)
class Rating:
    """A user's rating of one object."""

    partition: str
    """Key of the object's partition."""
    row: int
    """Row in the partition, from 0."""
    object_id: str | None
    """Id of the object in the catalogue, as text; None if it has none."""
    rating: int
    """The rating, from 1 (not interesting) to 5 (more of these)."""
    rated_at: float
    """Time of the rating, in seconds since the epoch."""
    rater: str | None = None
    """Name of the rater; None if none was given."""

    @property
    def place(self) -> tuple[str, int]:
        """Partition and row of the object."""
        return self.partition, self.row


class RatingsFile:
    """The ratings of one run; safe to use from several threads and several processes.

    Parameters
    ----------
    store
        The store at the run's prefix.
    rater
        Name stored with each rating; empty for none.
    """

    def __init__(self, store: Storage, rater: str = "") -> None:
        self._store, self._rater = store, rater or None
        self._lock = threading.Lock()
        self._history: tuple[Rating, ...] = ()
        self._reload()

    @property
    def history(self) -> tuple[Rating, ...]:
        """Every rating that was not undone, oldest first."""
        return self._history

    def current(self) -> Mapping[tuple[str, int], Rating]:
        """The latest rating of each object."""
        return {one.place: one for one in self._history}

    def rate(self, partition: str, row: int, object_id: str | None, rating: int) -> Rating:
        """Store a rating; it has been written when this returns.

        Raises
        ------
        BadInputError
            The rating is not between 1 and 5.
        StorageError
            The file cannot be written.
        """
        if not LOWEST <= rating <= HIGHEST:
            raise BadInputError(f"a rating is {LOWEST} to {HIGHEST}, not {rating}")
        one = Rating(partition, row, object_id, rating, time.time(), self._rater)
        with self._lock:
            self._change(lambda history: (*history, one))
        return one

    def undo(self) -> Rating | None:
        """Undo and return the last rating of this rater, named or not; None if there is none."""
        taken: list[Rating] = []

        def without(history: Sequence[Rating]) -> tuple[Rating, ...]:
            taken.clear()  # this runs again if another process changed the file meanwhile
            own = [i for i, one in enumerate(history) if one.rater == self._rater]
            if not own:
                return tuple(history)
            # Only ratings of the same name, so that one visitor does not undo those of another.
            taken.append(history[own[-1]])
            return tuple(one for i, one in enumerate(history) if i != own[-1])

        with self._lock:
            self._change(without)
        return taken[0] if taken else None

    def _change(self, change: Callable[[Sequence[Rating]], tuple[Rating, ...]]) -> None:
        for attempt in range(TRIES):
            seen = self._reload()  # always, so that ratings from another server are kept
            changed = change(self._history)
            # Nothing to undo: the file is left alone.
            if changed == self._history:
                return
            data = _written(changed)
            try:
                if seen is None:
                    self._store.put(layout.RATINGS, data, new=True)
                else:
                    self._store.swap(layout.RATINGS, data, seen)
            except (AlreadyExistsError, NotFoundError):
                # A random wait, so that two processes do not collide again and again.
                time.sleep(random.uniform(0, 0.01 * (attempt + 1)))
                continue
            self._history = changed
            return
        where = self._store.where(layout.RATINGS)
        raise RunError(f"{where} is constantly changed by other processes")

    def _reload(self) -> ObjectInfo | None:
        """Read the file; return its version, or None if there is no file."""
        try:
            # The version first: if the file changes in between, the later swap fails.
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
    # A column of nothing but missing values would only puzzle readers of the file.
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
            f"{where} is not a readable file of ratings: move it away to start again"
        ) from error
    return tuple(sorted(found, key=lambda one: one.rated_at))
