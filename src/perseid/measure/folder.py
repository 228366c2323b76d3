"""Typed content of a run's folder: the ranks' records, the summary and the engine's report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from perseid.measure.report_line import Report
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage

Bar = tuple[str, float, float]
"""A stage in a timeline: (stage, start, end), times in seconds since the epoch."""
READERS = 16
"""Number of objects of a run's folder that are read at the same time."""


@dataclass(frozen=True)
class PartitionRead:
    """One partition that a rank read."""

    key: str
    bytes: float | None = None
    """Size of the file in bytes; None if the record does not say it."""


@dataclass(frozen=True)
class RankMeasures:
    """What one rank's record says about its work. None or empty: the record does not say it."""

    rank: int | None = None
    run_id: str | None = None
    attempt: int | None = None
    """Number of the attempt that wrote the record, from 1."""
    rows: int = 0
    """Rows that went through the model, flagged ones included."""
    flagged: int = 0
    """Rows among them that are in the catalogue without a prediction."""
    model_seconds: float | None = None
    """Seconds inside the calls of the model."""
    bits: float = 0.0
    """Bits of the images and magnitudes that went through the model."""
    batch_size: int | None = None
    world_size: int | None = None
    transport: str | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock seconds by stage."""
    timeline: tuple[Bar, ...] = ()
    """When each stage was active."""
    partitions: tuple[PartitionRead, ...] = ()
    requests: int = 0
    """Number of read requests to the store."""
    peak_memory_mb: float | None = None
    """Peak resident memory of the rank's process, in MiB."""
    cold: bool = False
    """Whether the process was started for this rank."""
    bands: tuple[str, ...] = ()
    """Names of the image's bands, as in the model."""
    result_path: str | None = None
    """Result path that the rank was given; a published record may be stored elsewhere."""


@dataclass(frozen=True)
class ClassificationMeasures:
    """How good class probabilities are, from ``summary.json``. None: the value is not a number."""

    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Confusion matrix: number of objects of the row's class that are predicted as the column's."""
    n: int
    """Number of objects that were compared."""
    excluded: int
    """Number of labeled objects without a prediction, or whose label is not a class."""
    accuracy: float | None
    calibration_error: float | None
    scores: tuple[tuple[float | None, float | None, float | None], ...]
    """Precision, recall and F1 of each class."""
    reliability: tuple[tuple[float, float, int], ...]
    """(mean probability, share of correct predictions, objects) of each bin that is not empty."""


@dataclass(frozen=True)
class DistributionMeasures:
    """How good predicted distributions of redshifts are, from ``summary.json``."""

    n: int
    """Number of objects of known redshift that have a predicted distribution."""
    crps: float | None
    """Mean continuous ranked probability score, in units of redshift."""
    pit: tuple[int, ...]
    """Number of objects by PIT value, in bins of equal width from 0 to 1."""
    coverage: Mapping[str, float]
    """Share of true redshifts inside central intervals, by the probability of the interval."""


@dataclass(frozen=True)
class SummaryMeasures:
    """Figures of a run from its ``summary.json``."""

    complete: bool
    lost: Mapping[str, str] = field(default_factory=dict)
    """Reason why a partition is missing, by its key, in natural order."""
    total_seconds: float | None = None
    map_seconds: float | None = None
    execution: str = ""
    """ARN of the execution that summarized the run; empty unless it ran on AWS."""
    warnings: tuple[str, ...] | None = None
    """Warnings; None if the summary has no such list."""
    classification: ClassificationMeasures | None = None
    distributions: DistributionMeasures | None = None
    coverage: Mapping[str, float] = field(default_factory=dict)
    """Share of true redshifts inside calibrated intervals, by the promised probability."""


@dataclass(frozen=True)
class ExecutionTimes:
    """Times of one execution of a run on AWS, in seconds; None if unknown."""

    seconds: float | None
    map_seconds: float | None


@dataclass(frozen=True)
class EngineMeasures:
    """What ``engine.json`` says; the default values are those of a local run."""

    name: str = ""
    """Name of the engine, ``local``, ``aws``, …; empty if there is no such file."""
    executions: tuple[ExecutionTimes, ...] = ()
    attempts: tuple[Report, ...] = ()
    wall_seconds: float | None = None
    unreported: int = 0
    """Number of invocations whose log has no REPORT."""
    notes: tuple[str, ...] = ()
    architecture: str | None = None
    tmp_mb: float | None = None
    transitions: int | None = None
    refused: int = 0
    """State transitions that repeated refused calls."""
    summarize_tmp_mb: float | None = None
    express_requests: int = 0
    express_gb_seconds: float = 0.0
    core_seconds: float = 0.0
    """Cores x seconds of all attempts; 0 if the attempts do not say their cores."""

    @property
    def on_aws(self) -> bool:
        """Whether the run was billed by AWS."""
        return bool(self.executions)


@dataclass(frozen=True)
class RunFolder:
    """The objects below a run's prefix that pages and calibrations use."""

    store: Storage
    keys: frozenset[str]
    """All keys below the prefix."""
    manifest: Manifest
    summary: SummaryMeasures | None
    """The summary; None if the run has none."""
    engine: EngineMeasures
