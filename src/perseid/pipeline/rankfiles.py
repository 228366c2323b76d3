"""A rank's output files: written to the local disk as they grow, then published to the store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from perseid.errors import PerseidError, StorageError
from perseid.pipeline import columns, layout
from perseid.pipeline.columns import NpzWriter, PartitionResult, Stamp
from perseid.pipeline.ids import common_kind
from perseid.pipeline.parquet_writer import ParquetType, ParquetWriter
from perseid.pipeline.tables import PREDICTIONS, predictions_table, with_ids, with_outputs
from perseid.science import Moments
from perseid.storage import Storage


@contextmanager
def temporary_folder(who: str, keep: Path | None = None) -> Iterator[Path]:
    """A folder that is removed when the block ends; raises `StorageError` if its disk is full or
    read-only.

    If `keep` is given, that folder is used instead, and not removed.
    """
    try:
        if keep is not None:
            yield keep
            return
        with tempfile.TemporaryDirectory(prefix="perseid-") as folder:
            yield Path(folder)
    except PerseidError:
        raise
    except OSError as error:
        place = os.environ.get("TMPDIR", "/tmp")
        raise StorageError(
            f"{who} cannot write to the temporary folder {place} ({error.strerror or error}): "
            "free some space there, or point TMPDIR elsewhere"
        ) from error


class RankFiles:
    """``predictions.parquet``, ``features.npz`` and ``moments.npz`` of a rank.

    A context manager: when it ends, the files are complete and `publish` uploads them.
    """

    def __init__(self, folder: Path, stamp: Stamp) -> None:
        self._rank = stamp.rank
        self._paths = [folder / name for name in ("predictions", "features", "moments")]
        with ExitStack() as stack:
            self._stamp = stamp
            self._file = stack.enter_context(open(self._paths[0], "wb"))
            self._predictions: tuple[ParquetWriter, ParquetType] | None = None
            self._features = stack.enter_context(NpzWriter(self._paths[1], stamp))
            self._moments = stack.enter_context(NpzWriter(self._paths[2], stamp))
            self._stack = stack.pop_all()

    def add(self, result: PartitionResult) -> None:
        """Append the results of one partition to each of the files."""
        writer, kind = self._predictions or self._begin(result)
        writer.write(predictions_table(result, kind, self._stamp.output_columns))
        columns.add_result(self._features, result)
        if result.features is not None:
            columns.add_moments(self._moments, result.key, Moments.of(result.features))

    def _begin(self, result: PartitionResult | None) -> tuple[ParquetWriter, ParquetType]:
        """Begin the table of predictions; the first partition determines the type of its ids."""
        kind = common_kind([result.object_id if result else None])
        about = {"run_id": self._stamp.run_id, "rank": str(self._rank)}
        columns = with_ids(with_outputs(PREDICTIONS, self._stamp.output_columns), kind)
        writer = ParquetWriter(self._file, columns, about)
        self._predictions = writer, kind
        return self._predictions

    def publish(self, storage: Storage) -> None:
        """Upload the objects to the run's prefix."""
        # Only the record marks a rank as done. It is written later, so the order of these is free.
        keys = (layout.predictions, layout.features, layout.moments)
        for path, key in zip(self._paths, keys, strict=True):
            storage.put(key(self._rank), path)
        self._paths[0].unlink()  # the local copy is not needed any more

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            # A rank without any row still leaves a table, so that readers need not tell the cases
            # apart.
            writer, _ = self._predictions or self._begin(None)
            writer.close()
        self._stack.__exit__(kind, error, trace)
