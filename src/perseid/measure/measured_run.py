"""A measured run, wherever it was measured: one type, in which each number has its meaning."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from perseid.measure.cost import Usage
from perseid.measure.execution import Execution
from perseid.measure.folder import RankMeasures, RunFolder
from perseid.measure.report_line import Report

T = TypeVar("T", bound=Hashable)

MIB = 2.0**20
GRID_TOTAL_GB = 12.6
"""Size in GB that ``total`` stands for in a published ``result-partition-…/total/…`` path."""
PERCENTILES = (50, 90, 99, 100)
# Partition size, data size, anything between, repetition ("3" or "run 3").
_PLACE = re.compile(r"result-partition-([^/]+)/([^/]+)/((?:[^/]+/)*?)(?:run )?([^/]+?)/?$")
_SIZE = re.compile(r"^([0-9.]+)\s*(KB|MB|GB|TB)$", re.IGNORECASE)
# In MB.
_UNITS = {"KB": 1 / 1024, "MB": 1.0, "GB": 1024.0, "TB": 1024.0**2}
_BATCH = re.compile(r"(?:^|/)(?:Batches/|batch-)(\d+)(?:/|$)")


@dataclass(frozen=True)
class ResultPath:
    """Parts of a published result path: partition size / data size / … / repetition."""

    partition: str
    """Partition size, e.g. ``25MB``."""
    data: str
    """Data size, e.g. ``1GB``; ``total`` is 12.6 GB; ``total100GB`` uses these files repeatedly, up
    to 100 GB."""
    repetition: str
    """Name of the repetition, usually a number."""
    variant: str = ""
    """Part between data size and repetition, e.g. ``Batches/32``; empty for a plain run."""

    @classmethod
    def of(cls, path: str) -> ResultPath | None:
        """Find the last such parts in a path; None if it has none."""
        match = _PLACE.search(path.rstrip("/"))
        if match is None:
            return None
        return cls(match[1], match[2], match[4], match[3].strip("/"))

    @property
    def batch_size(self) -> int | None:
        """Batch size in a sweep over batch sizes; None for any other run."""
        match = _BATCH.search(self.variant)
        return int(match[1]) if match else None

    @property
    def is_whole_survey(self) -> bool:
        """Whether the run read every file of the published survey exactly once."""
        return self.data in ("total", f"{GRID_TOTAL_GB:g}GB")

    @property
    def data_gb(self) -> float | None:
        """Size of the data, in GB of 1,024 MB; None if the path does not say it."""
        if self.data == "total":
            return GRID_TOTAL_GB
        size = size_mb(self.data.removeprefix("total"))
        return None if size is None else size / 1024

    @property
    def workers(self) -> int | None:
        """Number of workers by the published rule, one per partition: ceil(GB x 1024 / MB).

        None if the data size is not a size, or if files were used more than once.
        """
        gb, mb = self.data_gb, size_mb(self.partition)
        if gb is None or not mb or (self.data != "total" and self.data.startswith("total")):
            return None
        # Rounded first, so that an error in the last binary digit does not add a worker.
        return math.ceil(round(gb * 1024 / mb, 6))

    @property
    def fewest_workers(self) -> int | None:
        """Number of workers if a GB is counted as 1,000 MB, as some runs did.

        The whole survey has the same number of files, however a GB is counted.
        """
        gb, mb, most = self.data_gb, size_mb(self.partition), self.workers
        if most is None or gb is None or not mb or self.is_whole_survey:
            return most
        return math.floor(round(gb * 1000 / mb, 6)) if self.data.upper().endswith("GB") else most


@dataclass(frozen=True)
class Span:
    """A duration, and what it is the duration of."""

    seconds: float
    what: str
    """What was timed, in words."""


@dataclass(frozen=True)
class ModelTime:
    """Time that one rank spent in the model, and on how much data."""

    seconds: float
    bits: float
    """Bits of images and magnitudes."""


@dataclass(frozen=True)
class MeasuredRun:
    """Everything that was measured of one run."""

    name: str
    """Folder, URL or file that the run was read from."""
    partition: str | None = None
    """Partition size, e.g. ``25MB``."""
    data: str | None = None
    """Data size, e.g. ``1GB``."""
    batch_size: int | None = None
    expected: int | None = None
    """Number of ranks that should have left a result; None if unknown."""
    expected_from: str = ""
    """Source of `expected`, in words."""
    received: int = 0
    """Number of ranks that left a result."""
    complete: bool | None = None
    """Whether the run itself says that it is complete; None if it says nothing."""
    missing: tuple[int, ...] = ()
    """Ranks that left no result, as far as known."""
    rows: int | None = None
    whole: Span | None = None
    """Duration of the whole execution."""
    map: Span | None = None
    """Duration of all workers, from the first start to the last end."""
    durations: tuple[float, ...] = ()
    """Seconds of every worker, as `duration_of` defines them; none is left out."""
    duration_of: str = "REPORT Duration"
    """Definition of `durations`, in words."""
    model: tuple[ModelTime, ...] = ()
    """Model time of each rank that left a record."""
    reports: tuple[Report, ...] = ()
    """REPORTs of all invocations, including failed ones and retries."""
    unreported: int = 0
    """Number of invocations that started and have no REPORT line."""
    usage: Usage | None = None
    """Billed usage; None if no REPORT says what was configured."""
    function: str = ""
    """Kind of function that the workers are; empty if the source does not say it."""
    bits: float | None = None
    """Bits of all images and magnitudes that were read."""
    notes: tuple[str, ...] = ()
    records: tuple[RankMeasures, ...] = ()
    """Records that the ranks wrote, in rank order."""
    folder: RunFolder | None = None
    """Further objects of a run of perseid, for its pages; None for other runs."""
    execution: Execution | None = None
    """Execution of the state machine; None if its history is not given."""

    @property
    def transport(self) -> str | None:
        """Transports of the ranks' statistics; None if the source does not say it."""
        found = {record.transport for record in self.records if record.transport}
        return ", ".join(sorted(found)) or None

    @property
    def collectives_seconds(self) -> float | None:
        """Seconds of the slowest rank in collectives; None without a collective merge."""
        times = (record.stages.get("collectives", 0.0) for record in self.records)
        return max(times, default=0.0) or None

    @property
    def is_complete(self) -> bool | None:
        """Whether all expected ranks left a result; None if that is unknown."""
        if self.complete is not None:
            return self.complete
        return None if self.expected is None else self.received >= self.expected

    @property
    def duration(self) -> Span | None:
        """The most complete duration that is known: whole run, map, or slowest worker."""
        if self.whole is not None:
            return self.whole
        if self.map is not None:
            return self.map
        if not self.durations:
            return None
        return Span(max(self.durations), "slowest worker")

    @property
    def core_hours(self) -> float | None:
        """Cores x hours of all attempts; None if unknown, as for runs on AWS."""
        return (self.usage.core_seconds / 3600 or None) if self.usage else None

    @property
    def max_memory_mb(self) -> float | None:
        """Highest `Max Memory Used` of all invocations, in MB; None without REPORT lines."""
        return max((r.max_memory_mb for r in self.reports), default=None)

    def throughput(self) -> dict[str, float]:
        """Throughput in Gb/s by each of three definitions, as far as they can be computed.

        ``a``: sum of bits / model time over the ranks that left a record; ``b``: all bits / time of
        the map; ``c``: all bits / time of the whole execution.
        """
        found: dict[str, float] = {}
        # A rank without rows has no model time.
        each = [part.bits / part.seconds for part in self.model if part.seconds]
        if each:
            found["a"] = sum(each) / 1e9
        if self.bits and self.map and self.map.seconds:
            found["b"] = self.bits / self.map.seconds / 1e9
        if self.bits and self.whole and self.whole.seconds:
            found["c"] = self.bits / self.whole.seconds / 1e9
        return found


def percentiles(values: Sequence[float]) -> tuple[float, float, float, float]:
    """p50, p90, p99 and maximum of all values, interpolated linearly; no value is left out.

    All four are NaN if there is no value.
    """
    if not values:
        return (math.nan,) * 4
    p50, p90, p99, top = np.percentile(np.asarray(values, np.float64), PERCENTILES)
    return float(p50), float(p90), float(p99), float(top)


def size_mb(label: str) -> float | None:
    """MB of 2^20 bytes in a label such as ``25MB`` or ``12.6GB``; None if it is not a size."""
    match = _SIZE.match(label.strip())
    return float(match[1]) * _UNITS[match[2].upper()] if match else None


def size_label(size_bytes: float) -> str:
    """Label of a size, such as ``25MB``, ``1GB``, ``12.6GB``, in MB of 2^20 bytes.

    Rounded to three figures (two below 10), so that a partition of 1,278 rows (24.995 MB) gets its
    nominal size.
    """
    # From 1,000 MB on a size is shown in GB; 0.95 MB already rounds to 1 MB.
    for unit, size in (("GB", 1000 * MIB), ("MB", 0.95 * MIB), ("KB", 0.0)):
        if size_bytes >= size:
            value = size_bytes / MIB / _UNITS[unit]
            return f"{value:.{2 if value < 9.95 else 3}g}{unit}"
    return "0KB"


def common(values: Iterable[T | None]) -> T | None:
    """The value that all agree on, ignoring None; None if they disagree or there is none."""
    distinct = {value for value in values if value is not None}
    return distinct.pop() if len(distinct) == 1 else None
