"""How fast a worker is, measured on a small run or on this machine: the basis of plans."""

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
from perseid.plaintext import html_table, option
from perseid.textfile import read_object

MB_A_VCPU = 1769.0
"""MB of memory for which Lambda gives one vCPU (its developer guide, "Configure memory")."""
MOST_VCPUS = 6.0
"""vCPUs of a function with the largest memory."""
NETWORK_MB_S = 75.0
"""Network speed of a function, in MB (10^6 bytes) per second: others measured about 600 Mbit/s."""
FEATURE_BYTES = 400.0
"""Bytes of a row's features, which are kept until its rank is done."""
ELSEWHERE = 2.0
"""Factor by which a core of another machine may be slower or faster than a vCPU of Lambda."""
THERE = 1.25
"""Factor by which a repetition on the same service may differ."""
SDSS_ROW_BYTES = 20_508.0
"""Bytes of a row of the published survey: float32 pixels of five 32 x 32 bands,
magnitudes and a float64 redshift."""
DEFAULT_READY = 2.0
"""Seconds of a cold start, if no run says it."""
DEFAULT_RANK = 0.3
"""Seconds of a rank beyond its model and its reading, if no run says it."""
AVX2_SHARE = 0.72
"""Speed of the worker's loop with AVX2 and nothing newer, as a share of that with AVX-512: 10.7 s
of 14.9 s, by ``benchmarks/worker.py --avx2`` on an Intel Xeon (26 November 2026)."""
FEWEST_ROWS = 40
"""Fewest rows of a usable record: with fewer, its time says more about padded batches than about
the model."""


@dataclass(frozen=True)
class Pace:
    """Measured speed and memory of one worker while nothing else computes."""

    rows_per_second: float
    """Rows per second through the model alone; reading overlaps with it."""
    ready_seconds: float
    """Seconds from the start of the process until the model is loaded."""
    peak_mb: float
    """Peak resident memory with the model and one batch, in MiB; features are added to it."""
    row_bytes: int
    """Bytes of one object in a partition: pixels, magnitudes, redshift."""


@dataclass(frozen=True)
class Calibration:
    """Speed and memory of one worker, and how reliable these numbers are."""

    rows_per_second: float
    """Rows per second through the model on one vCPU."""
    scaling: float
    """Factor on the rows per second if the vCPUs are doubled, from 1 to 2."""
    ready_seconds: float
    """Seconds from the start of a cold environment until the model is loaded."""
    rank_seconds: float
    """Seconds of a rank beyond its model and its reading: first bytes, writing results."""
    base_mb: float
    """Memory of a worker without its rows' features, in MB."""
    row_bytes: float
    """Bytes of one object in a partition."""
    variation: float
    """Standard deviation of the natural logarithm of the workers' speeds."""
    doubt: float
    """Factor by which the speed may be off in either direction where the plan is carried out."""
    network_mb_s: float = NETWORK_MB_S
    """MB (10^6 bytes) per second that a worker reads."""
    ranks: int = 0
    """Number of ranks that it was measured on; 0: on this machine, without a run."""
    rows: int = 0
    """Number of rows of all these ranks."""
    source: str = ""
    """What was measured, in words."""
    measured: str = ""
    """Time of the measurement, ISO 8601."""

    def __post_init__(self) -> None:
        for name in ("rows_per_second", "base_mb", "row_bytes", "network_mb_s", "doubt"):
            if not getattr(self, name) > 0:
                raise BadInputError(
                    f"{name} of a calibration must be above 0, not {getattr(self, name)}"
                )
        if not 1.0 <= self.scaling <= 2.0:
            raise BadInputError(f"scaling of a calibration must be from 1 to 2, not {self.scaling}")

    def rate(self, memory_mb: float) -> float:
        """Rows per second of a function with this memory; below one vCPU, in proportion to its
        share of one."""
        cpus = vcpus(memory_mb)
        if cpus <= 1:
            return self.rows_per_second * cpus
        # Each doubling of the vCPUs multiplies the speed by the same factor.
        return float(self.rows_per_second * cpus ** math.log2(self.scaling))

    def worker_mb(self, rows: float) -> float:
        """Peak memory of a worker with this number of rows, in MB."""
        return self.base_mb + rows * FEATURE_BYTES / 2**20

    def _repr_html_(self) -> str:
        rows = [("rows per second of one vCPU", f"{self.rows_per_second:,.1f}"),
                ("seconds until the model is loaded", f"{self.ready_seconds:.2f}"),
                ("memory without features (MB)", f"{self.base_mb:,.0f}"),
                ("measured", self.measured or "not known")]  # fmt: skip
        return html_table(("calibration", self.source), rows)

    def to_json(self) -> dict[str, object]:
        """The calibration as JSON values, as its file holds them."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the calibration to a file for `perseid.plan`; `BadInputError` if that fails."""
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
        """Read a file of ``perseid calibrate --out``; raises `BadInputError` if it is wrong."""
        plain = read_object(path, "the calibration")
        known = {field.name for field in fields(cls)}
        # Further keys are ignored: a newer version may have written them.
        given = {key: value for key, value in plain.items() if key in known}
        return from_plain(cls, given, f"the calibration {path}")


def vcpus(memory_mb: float) -> float:
    """Number of vCPUs that Lambda gives to a function with this memory."""
    return min(MOST_VCPUS, memory_mb / MB_A_VCPU)


def from_paces(
    one: Sequence[Pace], two: Sequence[Pace], *, newer_than_avx2: bool = False
) -> Calibration:
    """Calibrate from timings on this machine with one thread and, if any, with two threads.

    The gain from a second thread compares the best timing of each, since other programs may use the
    machine at the same time. Where the timings used instructions newer than AVX2, which is all that
    Lambda promises, the speed is lowered to `AVX2_SHARE`.
    """
    rates = [pace.rows_per_second for pace in one]
    # 1.8: what the second thread gives if it was not measured.
    scaling = 1.8 if not two else max(pace.rows_per_second for pace in two) / max(rates)
    share = AVX2_SHARE if newer_than_avx2 else 1.0
    source = "this machine, the model alone"
    return Calibration(
        rows_per_second=median(rates) * share,
        scaling=min(2.0, max(1.0, scaling)),
        ready_seconds=median(pace.ready_seconds for pace in one),
        rank_seconds=DEFAULT_RANK,
        base_mb=max(pace.peak_mb for pace in one),
        row_bytes=one[0].row_bytes,
        variation=_variation(rates),
        doubt=ELSEWHERE,
        source=f"{source}, x {share} for AVX2" if newer_than_avx2 else source,
        measured=_now(),
    )


def from_runs(runs: Sequence[MeasuredRun], memory_mb: float | None = None) -> Calibration:
    """Calibrate from the rank records and REPORT lines of small runs.

    Parameters
    ----------
    runs
        Runs of any engine, or records of the existing system. Runs with two memory sizes show how
        the speed grows with the memory.
    memory_mb
        Memory that the workers were configured with, in MB; needed if no REPORT line says it.

    Raises
    ------
    BadInputError
        No run has the record of a rank with at least 40 rows, or nothing says how much memory
        (and so which share of a processor) its workers had.
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
    """Number of vCPUs, or of threads on our own machine, that a worker of this run had."""
    if run.folder is not None and not _on_aws(run):
        return float(run.folder.manifest.settings.options.threads or 1)
    configured = memory_mb or max((r.memory_mb for r in run.reports), default=None)
    if configured is None:
        raise BadInputError(
            f"{run.name} does not say what memory its workers had: give "
            f"{option('memory_mb')} in MB "
            "(10240 in the published runs)"
        )
    return vcpus(configured)


def _on_aws(run: MeasuredRun) -> bool:
    # Records without a folder are those of the existing system, which runs on AWS only.
    return run.folder is None or run.folder.engine.on_aws


def _scaling(paces: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Factor per doubling of the vCPUs, and speed of one vCPU; by least squares of logarithms."""
    xs = [math.log2(cpus) for cpus, _ in paces]
    ys = [math.log2(rate) for _, rate in paces]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    # If all had the same memory, nothing shows the slope: assume 1.8 times with twice the vCPUs.
    slope = 0.85
    if spread > 1e-9:
        slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    # Noise of two memory sizes can give an impossible slope.
    scaling = min(2.0, max(1.0, 2.0**slope))
    return scaling, median(rate / _speed(cpus, scaling) for cpus, rate in paces)


def _speed(cpus: float, scaling: float) -> float:
    # Below one vCPU, a function gets a share of its time.
    return float(cpus if cpus <= 1 else cpus ** math.log2(scaling))


def _ready(runs: Sequence[MeasuredRun]) -> list[float]:
    """Seconds of a cold start: the longer of the environment's init and the record's own init."""
    records = [record for run in runs for record in run.records]
    loads = [r.stages["init"] for r in records if r.cold and "init" in r.stages]
    inits = [r.init_ms / 1e3 for run in runs for r in run.reports if r.init_ms is not None]
    # The two may overlap, and either may be missing: the longer one counts.
    return [max(_median_of(loads, 0.0), _median_of(inits, 0.0))] if loads or inits else []


def _own(records: Sequence[RankMeasures]) -> list[float]:
    """Seconds of each rank beyond its init, its fetching and its inference."""
    found = []
    for stages in (record.stages for record in records):
        if "total" in stages:
            init, inference, fetch = (
                stages.get(name, 0.0) for name in ("init", "inference", "fetch")
            )
            # Fetching overlaps with inference: the longer of the two counts, not their sum.
            found.append(max(0.0, stages["total"] - init - max(inference, fetch)))
    return found


def _base(runs: Sequence[MeasuredRun]) -> float:
    rows = [float(record.rows) for run in runs for record in run.records]
    peak = max((r.max_memory_mb for run in runs for r in run.reports), default=0.0)
    # A worker has at least the interpreter and the model; without any REPORT line, 256 MB are
    # assumed.
    return max(64.0, peak - max(rows, default=0.0) * FEATURE_BYTES / 2**20) if peak else 256.0


def _row_bytes(runs: Sequence[MeasuredRun]) -> float:
    stored = 0.0
    rows = 0
    for run in runs:
        if run.folder is not None and run.rows and run.is_complete:
            # Only complete runs: otherwise the bytes would belong to more rows than were counted.
            stored += sum(ref.size for ref in run.folder.manifest.partitions)
            rows += run.rows
    return stored / rows if rows and stored else SDSS_ROW_BYTES


def _network(records: Sequence[RankMeasures]) -> float:
    """Median speed at which the ranks fetched their partitions, in MB (10^6 bytes) per second."""
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
    # One rank alone shows no variation: 10 % are assumed.
    return stdev(logs) if len(logs) > 1 else 0.1


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
