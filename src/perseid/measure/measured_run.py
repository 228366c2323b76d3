"""A run as the tables see it, wherever it was measured: one type, each number with its meaning."""

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
"""What ``total`` means in a published ``result-partition-…/total/…`` path."""
PERCENTILES = (50, 90, 99, 100)
_PLACE = re.compile(r"result-partition-([^/]+)/([^/]+)/((?:[^/]+/)*?)(?:run )?([^/]+?)/?$")
_SIZE = re.compile(r"^([0-9.]+)\s*(KB|MB|GB|TB)$", re.IGNORECASE)
_UNITS = {"KB": 1 / 1024, "MB": 1.0, "GB": 1024.0, "TB": 1024.0**2}
_BATCH = re.compile(r"(?:^|/)(?:Batches/|batch-)(\d+)(?:/|$)")


@dataclass(frozen=True)
class ResultPath:
    """What a published result path says: partition size / data size / … / repetition."""

    partition: str
    """E.g. ``25MB``."""
    data: str
    """E.g. ``1GB``; ``total`` is 12.6 GB; ``total100GB`` re-uses its files up to 100 GB."""
    repetition: str
    variant: str = ""
    """What stands between data size and repetition, e.g. ``Batches/32``."""

    @classmethod
    def of(cls, path: str) -> ResultPath | None:
        """The last such place in a path, or None."""
        match = _PLACE.search(path.rstrip("/"))
        if match is None:
            return None
        return cls(match[1], match[2], match[4], match[3].strip("/"))

    @property
    def batch_size(self) -> int | None:
        """Of a sweep over batch sizes; None for a plain run."""
        match = _BATCH.search(self.variant)
        return int(match[1]) if match else None

    @property
    def is_whole_survey(self) -> bool:
        """Whether the run read every file of the published survey exactly once."""
        return self.data in ("total", f"{GRID_TOTAL_GB:g}GB")

    @property
    def data_gb(self) -> float | None:
        """Size of the data, GB of 1024 MB."""
        if self.data == "total":
            return GRID_TOTAL_GB
        size = size_mb(self.data.removeprefix("total"))
        return None if size is None else size / 1024

    @property
    def workers(self) -> int | None:
        """The published rule: ceil(GB x 1024 / MB), one worker per partition.

        None if the data size is not a size, or if files were used more than once.
        """
        gb, mb = self.data_gb, size_mb(self.partition)
        if gb is None or not mb or (self.data != "total" and self.data.startswith("total")):
            return None
        return math.ceil(round(gb * 1024 / mb, 6))

    @property
    def fewest_workers(self) -> int | None:
        """Partitions in the same data where a GB is counted as 1000 MB, as some runs did.

        The whole survey has one number of files, whatever a GB is.
        """
        gb, mb, most = self.data_gb, size_mb(self.partition), self.workers
        if most is None or gb is None or not mb or self.is_whole_survey:
            return most
        return math.floor(round(gb * 1000 / mb, 6)) if self.data.upper().endswith("GB") else most


@dataclass(frozen=True)
class Span:
    """A duration and what it is the duration of."""

    seconds: float
    what: str


@dataclass(frozen=True)
class ModelTime:
    """What one rank spent in the model, and on how much."""

    seconds: float
    bits: float
    """Of images and magnitudes."""


@dataclass(frozen=True)
class MeasuredRun:
    """What was measured of one run."""

    name: str
    """Where it was read."""
    partition: str | None = None
    """Partition size, e.g. ``25MB``."""
    data: str | None = None
    """Data size, e.g. ``1GB``."""
    batch_size: int | None = None
    expected: int | None = None
    """Ranks that should have left a result; None if nothing says."""
    expected_from: str = ""
    """What says so."""
    received: int = 0
    """Ranks that left a result."""
    complete: bool | None = None
    """As the run says itself; None if it does not, and `expected` is not known."""
    missing: tuple[int, ...] = ()
    rows: int | None = None
    whole: Span | None = None
    """The whole execution."""
    map: Span | None = None
    """All workers: first start to last end."""
    durations: tuple[float, ...] = ()
    """Seconds of every worker, as `duration_of` defines them; none left out."""
    duration_of: str = "REPORT Duration"
    """What `durations` are."""
    model: tuple[ModelTime, ...] = ()
    """One a rank that left a record."""
    reports: tuple[Report, ...] = ()
    """All invocations, failed ones and retries included."""
    unreported: int = 0
    """Invocations that started and have no REPORT line."""
    usage: Usage | None = None
    """What is billed; None if no REPORT says what was configured."""
    function: str = ""
    """Which function the workers are, where the source says."""
    bits: float | None = None
    """All bits of images and magnitudes that were read."""
    notes: tuple[str, ...] = ()
    records: tuple[RankMeasures, ...] = ()
    """What the ranks wrote, in rank order."""
    folder: RunFolder | None = None
    """Of a run of perseid: what else its pages are made from."""
    execution: Execution | None = None
    """Of the state machine, where its history is at hand."""

    @property
    def transport(self) -> str | None:
        """Transports of the ranks' statistics; None if the source does not say."""
        found = {record.transport for record in self.records if record.transport}
        return ", ".join(sorted(found)) or None

    @property
    def collectives_seconds(self) -> float | None:
        """Of the slowest rank; None without a collective merge, or if the source does not say."""
        times = (record.stages.get("collectives", 0.0) for record in self.records)
        return max(times, default=0.0) or None

    @property
    def is_complete(self) -> bool | None:
        """All expected ranks left a result, as far as can be known."""
        if self.complete is not None:
            return self.complete
        return None if self.expected is None else self.received >= self.expected

    @property
    def duration(self) -> Span | None:
        """The longest-reaching time that is known: whole run, map, else the slowest worker."""
        if self.whole is not None:
            return self.whole
        if self.map is not None:
            return self.map
        if not self.durations:
            return None
        return Span(max(self.durations), "slowest worker")

    @property
    def core_hours(self) -> float | None:
        """Cores x hours of all attempts; None if the source does not say, as of AWS."""
        return (self.usage.core_seconds / 3600 or None) if self.usage else None

    @property
    def max_memory_mb(self) -> float | None:
        """Highest `Max Memory Used` of all invocations, MB."""
        return max((r.max_memory_mb for r in self.reports), default=None)

    def throughput(self) -> dict[str, float]:
        """Gb/s under each of the three meanings, where they can be computed.

        ``a``: sum over the ranks that left a record of bits / model time; ``b``: all bits / map
        time; ``c``: all bits / whole execution.
        """
        found: dict[str, float] = {}
        each = [part.bits / part.seconds for part in self.model if part.seconds]
        if each:
            found["a"] = sum(each) / 1e9
        if self.bits and self.map and self.map.seconds:
            found["b"] = self.bits / self.map.seconds / 1e9
        if self.bits and self.whole and self.whole.seconds:
            found["c"] = self.bits / self.whole.seconds / 1e9
        return found


def percentiles(values: Sequence[float]) -> tuple[float, float, float, float]:
    """p50, p90, p99 and maximum of all values (none left out), linear between neighbors.

    NaN four times where there is no value.
    """
    if not values:
        return (math.nan,) * 4
    p50, p90, p99, top = np.percentile(np.asarray(values, np.float64), PERCENTILES)
    return float(p50), float(p90), float(p99), float(top)


def size_mb(label: str) -> float | None:
    """MB of 2^20 bytes in a label such as ``25MB``, ``12.6GB``; None if it is not a size."""
    match = _SIZE.match(label.strip())
    return float(match[1]) * _UNITS[match[2].upper()] if match else None


def size_label(size_bytes: float) -> str:
    """``25MB``, ``1GB``, ``12.6GB``: MB of 2^20 bytes, three figures, below 10 two.

    Rounded, so that a partition of 1,278 rows (24.995 MB) is called by its nominal size.
    """
    for unit, size in (("GB", 1000 * MIB), ("MB", 0.95 * MIB), ("KB", 0.0)):
        if size_bytes >= size:
            value = size_bytes / MIB / _UNITS[unit]
            return f"{value:.{2 if value < 9.95 else 3}g}{unit}"
    return "0KB"


def common(values: Iterable[T | None]) -> T | None:
    """The one value that all have that have any; otherwise None."""
    distinct = {value for value in values if value is not None}
    return distinct.pop() if len(distinct) == 1 else None
