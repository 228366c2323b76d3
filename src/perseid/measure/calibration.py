"""How fast a worker is, out of a small run or of this machine: what plans are made from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, stdev

from perseid.errors import BadInputError
from perseid.measure.folder import RankMeasures
from perseid.measure.measured_run import MeasuredRun
from perseid.pipeline.schema import from_plain
from perseid.textfile import read_object

MB_A_VCPU = 1769.0
"""Lambda gives one vCPU with this memory (AWS Lambda developer guide, "Configure memory")."""
MOST_VCPUS = 6.0
NETWORK_MB_S = 75.0
"""About 600 Mbit/s a function, as measured by others; MB of 10^6 bytes per second."""
FEATURE_BYTES = 400.0
"""A row's features, kept until its rank is done."""
ELSEWHERE = 2.0
"""Another machine's core may be so many times slower or faster than a vCPU of Lambda."""
THERE = 1.25
"""How much a repetition on the same service may differ."""
SDSS_ROW_BYTES = 20_508.0
DEFAULT_READY = 2.0
DEFAULT_RANK = 0.3
FEWEST_ROWS = 40
"""Records of fewer rows say more about padded batches than about the model."""


@dataclass(frozen=True)
class Pace:
    """What one worker does when nothing else computes."""

    rows_per_second: float
    """Through the model alone; reading overlaps with it."""
    ready_seconds: float
    """From the process' start until the model is loaded."""
    peak_mb: float
    """Resident memory with model and one batch, MiB; a partition's features come on top."""
    row_bytes: int
    """Bytes of one object in a partition: pixels, magnitudes, redshift."""


@dataclass(frozen=True)
class Calibration:
    """What one worker does, and how sure that is."""

    rows_per_second: float
    """Through the model on one vCPU."""
    scaling: float
    """Rows a second with twice the vCPUs over those with one: 1 to 2."""
    ready_seconds: float
    """From a cold environment's start until the model is loaded."""
    rank_seconds: float
    """A rank's own beginning and end beyond model and reading: first bytes, writing results."""
    base_mb: float
    """Memory of a worker without its rows' features, MB."""
    row_bytes: float
    """Bytes of one object in a partition."""
    variation: float
    """Standard deviation of the logarithm of the workers' paces."""
    doubt: float
    """Factor by which the pace may be off, either way, where the plan is carried out."""
    network_mb_s: float = NETWORK_MB_S
    """MB a second that a worker reads."""
    ranks: int = 0
    """Ranks it was measured on; 0: on this machine alone."""
    rows: int = 0
    """Rows of all these ranks."""
    source: str = ""
    measured: str = ""
    """When, ISO."""

    def __post_init__(self) -> None:
        for name in ("rows_per_second", "base_mb", "row_bytes", "network_mb_s", "doubt"):
            if not getattr(self, name) > 0:
                raise BadInputError(
                    f"{name} of a calibration must be above 0, not {getattr(self, name)}"
                )
        if not 1.0 <= self.scaling <= 2.0:
            raise BadInputError(f"scaling of a calibration must be from 1 to 2, not {self.scaling}")

    def rate(self, memory_mb: float) -> float:
        """Rows a second of a function with so much memory; below one vCPU its share of one."""
        cpus = vcpus(memory_mb)
        if cpus <= 1:
            return self.rows_per_second * cpus
        # Each doubling of the vCPUs gives the same factor.
        return float(self.rows_per_second * cpus ** math.log2(self.scaling))

    def worker_mb(self, rows: float) -> float:
        """Peak memory of a worker with so many rows, MB."""
        return self.base_mb + rows * FEATURE_BYTES / 2**20

    def to_json(self) -> dict[str, object]:
        """The calibration as JSON values, as its file holds them."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write it to a file for `perseid.plan`; raises `BadInputError` if that fails."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise BadInputError(
                f"the calibration cannot be written to {path}: {error.strerror}"
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """From a file that ``perseid calibrate --out`` wrote; raises `BadInputError`."""
        plain = read_object(path, "the calibration")
        known = {field.name for field in fields(cls)}
        given = {key: value for key, value in plain.items() if key in known}
        return from_plain(cls, given, f"the calibration {path}")


def vcpus(memory_mb: float) -> float:
    """vCPUs that Lambda gives with this memory."""
    return min(MOST_VCPUS, memory_mb / MB_A_VCPU)


def from_paces(one: Sequence[Pace], two: Sequence[Pace]) -> Calibration:
    """From timings of this machine with one thread (at least one) and with two (or none).

    How the pace grows with threads is from the best of each: others may use the machine, too.
    """
    rates = [pace.rows_per_second for pace in one]
    scaling = 1.8 if not two else max(pace.rows_per_second for pace in two) / max(rates)
    return Calibration(
        rows_per_second=median(rates),
        scaling=min(2.0, max(1.0, scaling)),
        ready_seconds=median(pace.ready_seconds for pace in one),
        rank_seconds=DEFAULT_RANK,
        base_mb=max(pace.peak_mb for pace in one),
        row_bytes=one[0].row_bytes,
        variation=_variation(rates),
        doubt=ELSEWHERE,
        source="this machine, the model alone",
        measured=_now(),
    )


def from_runs(runs: Sequence[MeasuredRun], memory_mb: float | None = None) -> Calibration:
    """From the rank records and REPORT lines of small runs.

    Parameters
    ----------
    runs
        Of any engine, or records of the existing system. Two memory sizes tell how the pace grows
        with it.
    memory_mb
        What the workers were configured with, where no REPORT says so.

    Raises
    ------
    BadInputError
        No run has the record of a rank with at least 40 rows, or nothing says what memory
        (and so what share of a processor) its workers had.
    """
    found = [pace for run in runs for pace in _paces(run, memory_mb)]
    paces = [(cpus, rate) for cpus, rate, _ in found]
    if not paces:
        names = ", ".join(run.name for run in runs)
        raise BadInputError(
            f"nothing to calibrate from in {names}: no rank with {FEWEST_ROWS} rows or more has "
            "left a record; run some more rows"
        )
    scaling, one = _scaling(paces)
    records = [record for run in runs for record in run.records]
    on_aws = any(_on_aws(run) for run in runs)
    return Calibration(
        rows_per_second=one,
        scaling=scaling,
        ready_seconds=_median_of(_ready(runs), DEFAULT_READY),
        rank_seconds=_median_of(_own(records), DEFAULT_RANK),
        base_mb=_base(runs),
        row_bytes=_row_bytes(runs),
        variation=_variation([rate / _speed(cpus, scaling) for cpus, rate in paces]),
        doubt=THERE if on_aws else ELSEWHERE,
        network_mb_s=_network(records) if on_aws else NETWORK_MB_S,
        ranks=len(paces),
        rows=round(sum(rows for *_, rows in found)),
        source=", ".join(run.name for run in runs[:3]) + (" and more" if len(runs) > 3 else ""),
        measured=_now(),
    )


def _paces(run: MeasuredRun, memory_mb: float | None) -> list[tuple[float, float, float]]:
    """(vCPUs, rows per second, rows) of each rank with enough rows."""
    found = []
    for record in run.records:
        seconds = record.model_seconds or 0.0
        if record.rows >= FEWEST_ROWS and seconds > 0:
            found.append((record.rows / seconds, float(record.rows)))
    return [(_cpus(run, memory_mb), rate, rows) for rate, rows in found]


def _cpus(run: MeasuredRun, memory_mb: float | None) -> float:
    """The processors that a worker of this run had."""
    if run.folder is not None and not _on_aws(run):
        return float(run.folder.manifest.settings.options.threads or 1)
    configured = memory_mb or max((r.memory_mb for r in run.reports), default=None)
    if configured is None:
        raise BadInputError(
            f"{run.name} does not say what memory its workers had: give --memory MB "
            "(10240 in the published runs)"
        )
    return vcpus(configured)


def _on_aws(run: MeasuredRun) -> bool:
    return run.folder is None or run.folder.engine.on_aws


def _scaling(paces: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """How the pace grows with the vCPUs, and that of one; by least squares of the logarithms."""
    xs = [math.log2(cpus) for cpus, _ in paces]
    ys = [math.log2(rate) for _, rate in paces]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = 0.85  # where all had the same memory: 1.8 times with twice the vCPUs
    if spread > 1e-9:
        slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    scaling = min(2.0, max(1.0, 2.0**slope))
    return scaling, median(rate / _speed(cpus, scaling) for cpus, rate in paces)


def _speed(cpus: float, scaling: float) -> float:
    return float(cpus if cpus <= 1 else cpus ** math.log2(scaling))


def _ready(runs: Sequence[MeasuredRun]) -> list[float]:
    """Cold starts: the environment's init, and the loading of the model where that is apart."""
    records = [record for run in runs for record in run.records]
    loads = [r.stages["init"] for r in records if r.cold and "init" in r.stages]
    inits = [r.init_ms / 1e3 for run in runs for r in run.reports if r.init_ms is not None]
    return [max(_median_of(loads, 0.0), _median_of(inits, 0.0))] if loads or inits else []


def _own(records: Sequence[RankMeasures]) -> list[float]:
    """Seconds of each rank beside its init, its fetching and its inference."""
    found = []
    for stages in (record.stages for record in records):
        if "total" in stages:
            init, inference, fetch = (
                stages.get(name, 0.0) for name in ("init", "inference", "fetch")
            )
            # Fetching goes on beside inference: the longer of them counts, not the sum.
            found.append(max(0.0, stages["total"] - init - max(inference, fetch)))
    return found


def _base(runs: Sequence[MeasuredRun]) -> float:
    rows = [float(record.rows) for run in runs for record in run.records]
    peak = max((r.max_memory_mb for run in runs for r in run.reports), default=0.0)
    return max(64.0, peak - max(rows, default=0.0) * FEATURE_BYTES / 2**20) if peak else 256.0


def _row_bytes(runs: Sequence[MeasuredRun]) -> float:
    stored = 0.0
    rows = 0
    for run in runs:
        if run.folder is not None and run.rows and run.is_complete:
            stored += sum(ref.size for ref in run.folder.manifest.partitions)
            rows += run.rows
    return stored / rows if rows and stored else SDSS_ROW_BYTES


def _network(records: Sequence[RankMeasures]) -> float:
    """Median MB/s at which the ranks fetched their partitions."""
    speeds = [
        sum(part.bytes or 0.0 for part in record.partitions) / 1e6 / record.stages["fetch"]
        for record in records
        if record.stages.get("fetch")
    ]
    return max(1.0, _median_of(speeds, NETWORK_MB_S))


def _median_of(values: Sequence[float], default: float) -> float:
    return float(median(values)) if values else default


def _variation(values: Sequence[float]) -> float:
    logs = [math.log(value) for value in values if value > 0]
    return stdev(logs) if len(logs) > 1 else 0.1


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
