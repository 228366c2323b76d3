"""Typed views of JSON in the store: a rank's record and a run's findings."""

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
    """A rank's record as it is in the store, written by this version or an earlier one."""

    plain: Plain
    """All keys of the record, kept so that it can be written again unchanged."""
    run_id: str
    rank: int
    attempt: int
    """Number of the attempt; 1 if the record does not say."""
    rows: int
    """Number of rows predicted."""
    rows_flagged: int
    """Number of rows without a prediction."""
    rows_missing: Mapping[str, int]
    """Number of rows that lack an input, a redshift, an id or a label."""
    read: tuple[tuple[str, int | None], ...] | None
    """Key and rows of each partition that was read; None if the record does not say."""
    failed: tuple[tuple[str, str], ...]
    """Key and error of each partition that could not be read."""
    stages: Mapping[str, float]
    """Seconds per stage; empty if the record does not say."""
    timeline: tuple[tuple[str, float, float], ...]
    """Intervals (stage, start, end), in seconds since the epoch."""
    throughput_bps: float
    pixel_bits: int
    peak_memory_mb: float | None
    """Peak memory in MiB; None if the record does not say."""
    cold_start: bool
    transport: str
    """Transport of the rank's statistics; empty if the record does not say."""
    transport_note: str
    routes: Mapping[str, str]
    """Transport of the connection to each peer."""
    precision: str
    """The precision that was used; empty if the record does not say."""
    model: ModelIdentity | None
    """The model that ran; None in records of scripts and of earlier versions."""
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
        """Whether the rank had partitions at all. One without partitions is not in
        ``combined_data.json``."""
        return bool(self.read or self.failed)

    @classmethod
    def of(cls, plain: Plain, where: str) -> StoredRecord:
        """Parse a record; raises `RunError` naming the first key whose value has the wrong type."""
        wrong = wrong_key(plain)
        if wrong is not None or "rank" not in plain or "run_id" not in plain:
            raise RunError(f"{where} is not a rank's record: {wrong or 'rank'!r} is wrong in it")
        known = cast(Any, plain)  # every key that is present has the right type
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
"""Records by rank."""


@dataclass(frozen=True)
class Findings:
    """A run's findings about the survey, with the same keys as ``merged.json``."""

    redshift: Plain | None = None
    """Redshift metrics; None if no redshift is known."""
    anomaly: Plain | None = None
    """How well the score finds labeled anomalies; None if nothing is scored."""
    top: Sequence[object] = ()
    """The objects with the highest scores, highest first."""
    rows: int = 0
    """Number of rows in the catalogue."""
    repeated_ids: int = 0
    """Number of objects whose id also belongs to an earlier object."""
    classification: Plain | None = None
    """Accuracy, confusion matrix and reliability; None if no labeled object has class
    probabilities."""
    distributions: Plain | None = None
    """PIT, CRPS and coverage; None if no object with a known redshift has a predicted
    distribution."""

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
