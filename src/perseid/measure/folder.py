"""What a run's folder says, typed: its ranks' records, its summary and its engine's report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from perseid.measure.report_line import Report
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage

Bar = tuple[str, float, float]
"""(stage, start, end), seconds since the epoch."""
READERS = 16
"""Objects of a run's folder that are read at once."""


@dataclass(frozen=True)
class PartitionRead:
    """One partition that a rank read."""

    key: str
    bytes: float | None = None
    """Size of the file."""


@dataclass(frozen=True)
class RankMeasures:
    """What one rank's record says of its work. None or empty: the record does not say."""

    rank: int | None = None
    run_id: str | None = None
    attempt: int | None = None
    """Which attempt wrote it, from 1."""
    rows: int = 0
    """All rows that went through the model, flagged ones included."""
    flagged: int = 0
    """Rows of these that are in the catalogue without a prediction."""
    model_seconds: float | None = None
    """Inside the model's calls."""
    bits: float = 0.0
    """Of the images and magnitudes that went through the model."""
    batch_size: int | None = None
    world_size: int | None = None
    transport: str | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock seconds by stage."""
    timeline: tuple[Bar, ...] = ()
    partitions: tuple[PartitionRead, ...] = ()
    requests: int = 0
    """Read requests to the store."""
    peak_memory_mb: float | None = None
    """Highest resident memory of the rank's process, MiB."""
    cold: bool = False
    """Whether its process was started for it."""
    bands: tuple[str, ...] = ()
    """Names of the image's bands, as the model has them."""
    result_path: str | None = None
    """As the rank was told; a published record may lie elsewhere."""


@dataclass(frozen=True)
class ClassificationMeasures:
    """How good class probabilities are, as ``summary.json`` states it. None: not a number."""

    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Objects of the class of the row that are called by the column's name."""
    n: int
    """Objects that were compared."""
    excluded: int
    """Labeled objects without a prediction, or whose label is not a class."""
    accuracy: float | None
    calibration_error: float | None
    scores: tuple[tuple[float | None, float | None, float | None], ...]
    """Precision, recall and F1 of each class."""
    reliability: tuple[tuple[float, float, int], ...]
    """(mean probability, share that is right, objects) of each bin that is not empty."""


@dataclass(frozen=True)
class DistributionMeasures:
    """How good predicted distributions of redshifts are, as ``summary.json`` states it."""

    n: int
    """Objects of known redshift that have one."""
    crps: float | None
    """Mean, in units of redshift."""
    pit: tuple[int, ...]
    """Objects in bins of equal width from 0 to 1."""
    coverage: Mapping[str, float]
    """Share of true redshifts in the central intervals, by the probability of these."""


@dataclass(frozen=True)
class SummaryMeasures:
    """Figures of a run that ``summary.json`` states."""

    complete: bool
    lost: Mapping[str, str] = field(default_factory=dict)
    """Why each missing partition is missing, by its key, in natural order."""
    total_seconds: float | None = None
    map_seconds: float | None = None
    engine: str = ""
    warnings: tuple[str, ...] | None = None
    """None: the summary has none of its own."""
    classification: ClassificationMeasures | None = None
    distributions: DistributionMeasures | None = None
    coverage: Mapping[str, float] = field(default_factory=dict)
    """Share of true redshifts in calibrated intervals, by the probability that was promised."""


@dataclass(frozen=True)
class ExecutionTimes:
    """One of the executions of a run on AWS."""

    seconds: float | None
    map_seconds: float | None


@dataclass(frozen=True)
class EngineMeasures:
    """What ``engine.json`` says; all of it as for a local run where it says nothing."""

    name: str = ""
    """``local``, ``aws``, …; empty if there is no such file."""
    executions: tuple[ExecutionTimes, ...] = ()
    attempts: tuple[Report, ...] = ()
    wall_seconds: float | None = None
    unreported: int = 0
    """Invocations whose log has no REPORT."""
    notes: tuple[str, ...] = ()
    architecture: str | None = None
    tmp_mb: float | None = None
    transitions: int | None = None
    refused: int = 0
    """Transitions by which refused calls were repeated."""
    summarize_tmp_mb: float | None = None
    express_requests: int = 0
    express_gb_seconds: float = 0.0
    core_seconds: float = 0.0
    """Cores x time of all attempts; 0 where attempts do not say their cores."""

    @property
    def on_aws(self) -> bool:
        """Whether the run was billed by AWS."""
        return self.name == "aws"


@dataclass(frozen=True)
class RunFolder:
    """The objects below a run's prefix that pages and calibrations look into."""

    store: Storage
    keys: frozenset[str]
    """All keys below the prefix."""
    manifest: Manifest
    summary: SummaryMeasures | None
    """None: the run has no summary, or one that cannot be read."""
    engine: EngineMeasures
