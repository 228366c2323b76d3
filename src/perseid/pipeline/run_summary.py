"""The keys of ``summary.json``, typed as they are written; earlier versions lack some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict


class MissingRank(TypedDict):
    """A rank without a record that counts."""

    rank: int
    reason: str


class RankCounts(TypedDict):
    """How many ranks were expected, and which are missing."""

    expected: int
    received: int
    missing: list[MissingRank]


class MissingPartition(TypedDict):
    """A partition of which no row is in the catalogue."""

    key: str
    bytes: int
    reason: str


class PartitionCounts(TypedDict):
    """How many partitions were expected, and which are missing."""

    expected: int
    received: int
    missing: list[MissingPartition]


class RowCounts(TypedDict):
    """Rows of the catalogue."""

    expected: int | None
    """None if a partition is missing: its rows are known only once it was read."""
    received: int
    flagged: NotRequired[int]
    """Rows without a prediction."""


class OtherModel(TypedDict):
    """A rank that used another model than the run began with."""

    rank: int
    difference: str


class Completeness(TypedDict):
    """Whether everything that was expected is there."""

    status: str
    """``complete``, ``incomplete`` or ``mixed``."""
    ranks: RankCounts
    partitions: PartitionCounts
    rows: RowCounts
    other_models: NotRequired[list[OtherModel]]


class Timing(TypedDict):
    """Seconds of the run's steps."""

    initialize: float
    map: float
    summarize: float
    total: float


class RedshiftSummary(TypedDict):
    """Metrics over the objects of known redshift; see `perseid.science.RedshiftMetrics`."""

    n: int
    mae: float | None
    bias: float | None
    nmad: float | None
    r2: float | None
    outliers: float | None
    outlier_threshold: float
    coverage: NotRequired[Mapping[str, float]]
    """Share of the true redshifts inside the intervals, by the probability that was promised."""


class ClassSummary(TypedDict):
    """How well one class is told from the others; see `perseid.science.ClassScores`."""

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
    """How good class probabilities are, over the objects with a label."""

    classes: list[str]
    n: int
    excluded: int
    accuracy: float | None
    calibration_error: float | None
    confusion: list[list[int]]
    by_class: list[ClassSummary]
    reliability: list[ReliabilitySummary]


class DistributionSummary(TypedDict):
    """How good predicted distributions of redshifts are, over the objects of known redshift."""

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
    """One attempt at a rank; `perseid.pipeline.attempts.Attempt` has what each key means."""

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
    """Measurements of the engine, over all drivers that worked on the run."""

    engine: NotRequired[str]
    drivers: NotRequired[int]
    """More than one after a resumption."""
    wall_seconds: float
    meeting_seconds: float
    concurrency: int
    work_seconds: float
    overhead_seconds: float
    overhead_seconds_per_rank: float
    cold_starts: int
    failures: dict[str, str]


class ExecutionSummary(TypedDict):
    """Which execution of a state machine worked on the run."""

    engine: str
    execution: str
    children: str
    drivers: NotRequired[int]


class EngineDocument(EngineSummary):
    """All of ``engine.json``; `perseid.pipeline.attempts.EngineReport` is made of it."""

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
    """Rows that lack an input, a redshift, an id, a label."""
    throughput: NotRequired[Mapping[str, object]]
    workers: NotRequired[Mapping[str, object]]
    transport: NotRequired[Mapping[str, object]]
    warnings: NotRequired[list[str]]
    engine: NotRequired[EngineSummary | ExecutionSummary]
    cost: NotRequired[Mapping[str, object] | None]
    """The bill in USD; see `perseid.measure.cost.Cost.to_json`."""
