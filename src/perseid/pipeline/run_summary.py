"""The keys of ``summary.json`` with their types; summaries of earlier versions lack some of
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict


class MissingRank(TypedDict):
    """A rank without a valid record."""

    rank: int
    reason: str


class RankCounts(TypedDict):
    """Number of expected ranks, and the missing ones."""

    expected: int
    received: int
    missing: list[MissingRank]


class MissingPartition(TypedDict):
    """A partition without any row in the catalogue."""

    key: str
    bytes: int
    reason: str


class PartitionCounts(TypedDict):
    """Number of expected partitions, and the missing ones."""

    expected: int
    received: int
    missing: list[MissingPartition]


class RowCounts(TypedDict):
    """Row counts of the catalogue."""

    expected: int | None
    """Expected rows; None if a partition is missing, because its rows are known only after reading
    it."""
    received: int
    flagged: NotRequired[int]
    """Number of rows without a prediction."""


class OtherModel(TypedDict):
    """A rank that used another model than the run began with."""

    rank: int
    difference: str


class Completeness(TypedDict):
    """Whether everything that was expected is in the catalogue."""

    status: str
    """Status of the run: ``complete``, ``incomplete`` or ``mixed``."""
    ranks: RankCounts
    partitions: PartitionCounts
    rows: RowCounts
    other_models: NotRequired[list[OtherModel]]


class Timing(TypedDict):
    """Seconds that each step of the run took."""

    initialize: float
    map: float
    summarize: float
    total: float


class RedshiftSummary(TypedDict):
    """Metrics over the objects with a known redshift; see `perseid.science.RedshiftMetrics`."""

    n: int
    mae: float | None
    bias: float | None
    nmad: float | None
    r2: float | None
    outliers: float | None
    outlier_threshold: float
    coverage: NotRequired[Mapping[str, float]]
    """Share of the true redshifts that lie inside the intervals, by the nominal probability."""


class ClassSummary(TypedDict):
    """How well the model distinguishes one class from the others; see
    `perseid.science.ClassScores`."""

    name: str
    n: int
    precision: float | None
    recall: float | None
    f1: float | None


class ReliabilitySummary(TypedDict):
    """One point of a reliability diagram; see `perseid.science.ReliabilityBin`."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


class ClassificationSummary(TypedDict):
    """How good the class probabilities are, over the objects with a label."""

    classes: list[str]
    n: int
    excluded: int
    accuracy: float | None
    calibration_error: float | None
    confusion: list[list[int]]
    by_class: list[ClassSummary]
    reliability: list[ReliabilitySummary]


class DistributionSummary(TypedDict):
    """How good the predicted redshift distributions are, over the objects with a known redshift."""

    n: int
    excluded: int
    crps: float | None
    pit: list[int]
    coverage: Mapping[str, float]


class DetectionSummary(TypedDict):
    """How well the score finds one kind of anomaly; see `perseid.science.Detection`."""

    kind: str
    n: int
    plain: int
    roc_auc: float | None
    average_precision: float | None


class AnomalySummary(TypedDict):
    """Summary of the anomaly score."""

    use: str
    features: Mapping[str, int]
    detection: Sequence[DetectionSummary]


class AttemptEntry(TypedDict):
    """One attempt at a rank; the keys are explained in `perseid.pipeline.attempts.Attempt`."""

    rank: int
    attempt: int
    request_id: str
    ending: str
    message: str
    started: float
    duration_ms: float
    memory_mb: int
    max_memory_mb: float
    init_ms: float | None
    work_seconds: float
    rows: int
    cores: int
    billed_ms: int
    cold: bool


class EngineSummary(TypedDict):
    """The engine's measurements, over all drivers that worked on the run."""

    engine: NotRequired[str]
    drivers: NotRequired[int]
    """Number of drivers; more than one after a resumption."""
    wall_seconds: float
    meeting_seconds: float
    concurrency: int
    work_seconds: float
    overhead_seconds: float
    overhead_seconds_per_rank: float
    cold_starts: int
    failures: dict[str, str]


class ExecutionSummary(TypedDict):
    """The state machine's execution that worked on the run."""

    engine: str
    execution: str
    children: str
    drivers: NotRequired[int]


class EngineDocument(EngineSummary):
    """All of ``engine.json``, from which `perseid.pipeline.attempts.EngineReport` is made."""

    attempts: list[AttemptEntry]


class RunSummary(Completeness):
    """All of ``summary.json``."""

    run_id: str
    timing: Timing
    version: NotRequired[str]
    model: NotRequired[Mapping[str, object] | None]
    redshift: NotRequired[RedshiftSummary | None]
    classification: NotRequired[ClassificationSummary | None]
    distributions: NotRequired[DistributionSummary | None]
    anomaly: NotRequired[AnomalySummary | None]
    top: NotRequired[Sequence[Mapping[str, object]]]
    catalogue_bytes: NotRequired[int | None]
    missing: NotRequired[dict[str, int]]
    """Number of rows that lack an input, a redshift, an id or a label."""
    throughput: NotRequired[Mapping[str, object]]
    workers: NotRequired[Mapping[str, object]]
    transport: NotRequired[Mapping[str, object]]
    warnings: NotRequired[list[str]]
    engine: NotRequired[EngineSummary | ExecutionSummary]
    cost: NotRequired[Mapping[str, object] | None]
    """The run's cost in USD; see `perseid.measure.cost.Cost.to_json`."""
