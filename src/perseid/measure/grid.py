"""The grid of a sweep: its runs, and the result path of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perseid.errors import BadInputError
from perseid.measure.measured_run import size_mb

DEFAULT_BATCH = 512
"""Batch size of the published runs, which their paths do not name."""
WHOLE = "all"
"""Data size that stands for the whole survey."""


@dataclass(frozen=True)
class GridCell:
    """One cell of a sweep's grid: the settings of one run."""

    partition: str
    """Partition size, e.g. ``25MB``."""
    data: str
    """Data size, e.g. ``1GB``, or ``all``."""
    batch_size: int
    world_size: int | None
    """Number of ranks; None: one rank per partition."""
    repetition: int
    """Number of the repetition, from 1."""

    @property
    def path(self) -> str:
        """Result path in the published scheme: ``result-partition-25MB/1GB/1``.

        Settings other than its defaults (batch size 512, one rank per partition) stand between the
        data size and the repetition.
        """
        parts = [f"result-partition-{self.partition}", self.data]
        if self.batch_size != DEFAULT_BATCH:
            parts.append(f"batch-{self.batch_size}")
        if self.world_size is not None:
            parts.append(f"ranks-{self.world_size}")
        return "/".join([*parts, str(self.repetition)])

    @property
    def files(self) -> int | None:
        """Number of partitions, by the published rule ceil(data / partition); None for all."""
        data, partition = size_mb(self.data), size_mb(self.partition)
        return None if data is None or not partition else -int(-data // partition)


def grid(
    partitions: Sequence[str],
    data: Sequence[str],
    batches: Sequence[int],
    worlds: Sequence[int | None],
    repeat: int,
) -> list[GridCell]:
    """All cells, repetitions outermost, so that a drift in time does not affect one cell only.

    Raises `BadInputError` if a size cannot be parsed, a number is below 1, or a value is repeated.
    """
    for size in (*partitions, *(d for d in data if d != WHOLE)):
        if not size_mb(size):
            raise BadInputError(f"{size!r} is not a size: write it like 25MB or 1GB")
    if any(number is not None and number < 1 for number in (*batches, *worlds, repeat)):
        raise BadInputError("batch sizes, world sizes and repetitions are whole numbers from 1")
    cells = [
        GridCell(p, d, b, w, r)
        # Outermost, so that all cells of a repetition run close together in time.
        for r in range(1, repeat + 1)
        for p in partitions
        for d in data
        for b in batches
        for w in worlds
    ]
    # The second run would find the objects of the first under its prefix.
    if len({cell.path for cell in cells}) != len(cells):
        raise BadInputError(
            "a value of the grid is given twice: its runs would have one result path"
        )
    return cells
