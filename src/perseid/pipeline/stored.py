"""Typed views of JSON in the store: a rank's record, and the findings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from perseid.errors import BadInputError, RunError
from perseid.model.identity import ModelIdentity
from perseid.pipeline.recordcheck import wrong_key

Plain = Mapping[str, object]
"""A JSON object as it was written."""


@dataclass(frozen=True)
class StoredRecord:
    """A rank's record as it lies in the store, of this version or an earlier one."""

    plain: Plain
    """All of its keys; what is written again is this."""
    run_id: str
    rank: int
    attempt: int
    """1 where it does not say."""
    rows: int
    """Rows predicted."""
    rows_flagged: int
    """Rows without a prediction."""
    rows_missing: Mapping[str, int]
    """Rows that lack an input, a redshift, an id, a label."""
    read: tuple[tuple[str, int | None], ...] | None
    """(key, rows) of each partition that was read; None if it does not say."""
    failed: tuple[tuple[str, str], ...]
    """(key, error) of each partition that could not be read."""
    stages: Mapping[str, float]
    """Seconds; empty if it does not say."""
    timeline: tuple[tuple[str, float, float], ...]
    """(stage, start, end), seconds since the epoch."""
    throughput_bps: float
    pixel_bits: int
    peak_memory_mb: float | None
    """MiB; None if it does not say."""
    cold_start: bool
    transport: str
    """Empty if it does not say."""
    transport_note: str
    routes: Mapping[str, str]
    """Way to each peer."""
    precision: str
    """The precision that was used; empty if the record does not say."""
    model: ModelIdentity | None
    """None in records of scripts and of earlier versions."""
    model_change: bool
    settings: Plain
    """Options that change results; empty in records of earlier versions."""
    environment: Plain = field(default_factory=dict)
    """The rank's environment; empty in records of earlier versions."""

    @property
    def has_data(self) -> bool:
        """Whether the rank had partitions that it could read."""
        return bool(self.read)

    @property
    def had_data(self) -> bool:
        """Whether the rank had partitions at all: one without is not in ``combined_data.json``."""
        return bool(self.read or self.failed)

    @classmethod
    def of(cls, plain: Plain, where: str) -> StoredRecord:
        """Raises `RunError` naming the first key whose value is not of its type."""
        wrong = wrong_key(plain)
        if wrong is not None or "rank" not in plain or "run_id" not in plain:
            raise RunError(f"{where} is not a rank's record: {wrong or 'rank'!r} is wrong in it")
        known = cast(Any, plain)  # each key that is there has its type
        parts = known.get("partitions")
        read = None if parts is None else tuple((p["key"], p.get("rows")) for p in parts)
        failed = tuple((p["key"], p.get("error", "")) for p in known.get("failed_partitions", ()))
        memory = known.get("peak_memory_mb")
        return cls(
            plain=plain,
            run_id=known["run_id"],
            rank=known["rank"],
            attempt=known.get("attempt", 1),
            rows=known.get("rows", 0),
            rows_flagged=known.get("rows_flagged", 0),
            rows_missing=known.get("rows_missing", {}),
            read=read,
            failed=failed,
            stages={name: float(value) for name, value in known.get("stages", {}).items()},
            timeline=tuple((s, float(a), float(b)) for s, a, b in known.get("timeline", ())),
            throughput_bps=float(known.get("throughput_bps", 0)),
            pixel_bits=known.get("pixel_bits", 0),
            peak_memory_mb=None if memory is None else float(memory),
            cold_start=bool(plain.get("cold_start")),
            transport=known.get("transport", ""),
            transport_note=known.get("transport_note", ""),
            routes=known.get("routes", {}),
            precision=known.get("precision", ""),
            model=_model(plain.get("model")),
            model_change=plain.get("model_change") is True,
            settings=_object(plain.get("settings")),
            environment=known.get("environment", {}),
        )

    def through(self, transport: str) -> StoredRecord:
        """The record with another transport of its statistics."""
        return StoredRecord.of({**self.plain, "transport": transport}, "this record")


Records = Mapping[int, StoredRecord]
"""By rank."""


@dataclass(frozen=True)
class Findings:
    """A run's findings about the survey, with the same keys as ``merged.json``."""

    redshift: Plain | None = None
    """Metrics; None if no redshift is known."""
    anomaly: Plain | None = None
    """How well the score finds labeled anomalies; None if nothing is scored."""
    top: Sequence[object] = ()
    """The objects of the highest scores, highest first."""
    rows: int = 0
    """Rows of the catalogue."""
    repeated_ids: int = 0
    """Objects whose id an earlier one has, too."""
    classification: Plain | None = None
    """Accuracy, confusion and reliability; None if no labeled object has class probabilities."""
    distributions: Plain | None = None
    """PIT, CRPS and coverage; None if no object of known redshift has quantiles."""

    @classmethod
    def from_json(cls, value: object) -> Findings:
        """Parse the JSON of `merged.json`; raises `ValueError` if it does not have this form."""
        plain = _object(value)
        rows, repeated = plain.get("rows"), plain.get("repeated_ids")
        top, redshift, anomaly = plain.get("top"), plain.get("redshift"), plain.get("anomaly")
        answers = plain.get("classification"), plain.get("distributions")
        whole = isinstance(rows, int) and isinstance(repeated, int) and isinstance(top, list)
        objects = (redshift, anomaly, *answers)
        if not whole or not all(one is None or isinstance(one, dict) for one in objects):
            raise ValueError("these are no findings")
        return cls(*cast(Any, (redshift, anomaly, top, rows, repeated, *answers)))


def _model(value: object) -> ModelIdentity | None:
    try:
        return ModelIdentity.from_json(value)
    except BadInputError:
        return None


def _object(value: object) -> Plain:
    return value if isinstance(value, dict) else {}
