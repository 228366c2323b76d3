"""A rank's record: the existing keys with their meanings, and ours beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from perseid.model.identity import ModelIdentity
from perseid.pipeline.schema import to_plain
from perseid.pipeline.stored import StoredRecord

STAGES = ("init", "rendezvous", "fetch", "decode", "inference", "collectives", "publish", "total")
"""Stages of a worker, in order; fetch and decode overlap with inference, so they do not add up."""

STORE = "store"
"""Transport: summarize merges from the objects in the store."""
ALONE = "alone"
"""Transport of a world of one rank: nothing is exchanged."""


def had_data(record: Mapping[str, object]) -> bool:
    """Whether the rank had partitions: one without is not in ``combined_data.json``.

    The existing system has no record of such a rank, and means over the records have no zeros.
    """
    return bool(record.get("partitions") or record.get("failed_partitions"))


@dataclass(frozen=True)
class RankRecord:
    """Content of ``<rank>.json`` and of each entry of ``combined_data.json``."""

    run_id: str
    rank: int
    world_size: int
    attempt: int
    """1 for the first; the newest complete record counts."""
    rows: int
    """Rows predicted."""
    rows_flagged: int
    """Rows without a prediction: with missing or non-finite input, or without a finite answer."""
    partitions: tuple[Mapping[str, object], ...]
    """One a partition that was read: key, rows, bytes."""
    failed_partitions: tuple[Mapping[str, str], ...]
    """One a partition that could not be read: key, error."""
    result_path: str
    data_path: str | list[str] | None
    batch_size: int
    micro_batch: int
    num_batches: int
    device: str
    precision: str
    """The precision that was used: ``float32`` or ``int8``."""
    transport: str
    """How this rank's statistics went to the others: ``direct``, ``relay``, both with a ``+``,
    ``store``; ``alone`` where there are no others, ``none`` for a script."""
    stages: Mapping[str, float]
    """Wall-clock seconds a stage, keys of `STAGES`."""
    timeline: tuple[tuple[str, float, float], ...]
    """(stage, start, end), seconds since the epoch (UTC)."""
    model_seconds: float
    """Wall-clock seconds inside the model calls (`total_cpu_time (seconds)`)."""
    allocated_mb: float
    """Sum of what the model's operators allocate for their outputs, MB: `total_cpu_memory (MB)`,
    the profiler's sum in the existing system. Not a peak."""
    peak_memory_mb: float
    """Peak resident memory of the worker process, MiB."""
    cold_start: bool
    pixel_bits: int
    """Bits of images and magnitudes read, for `throughput_bps`."""
    routes: Mapping[str, str] = field(default_factory=dict)
    """Transport of the connection to each peer, by the peer's rank: ``direct``, ``relay``;
    ``store`` where neither could be had."""
    transport_note: str = ""
    """Why the statistics went through the store although they were not to; otherwise empty."""
    environment: Mapping[str, object] = field(default_factory=dict)
    """`environment.RankEnvironment` as JSON; empty for a script."""
    bands: tuple[str, ...] = ()
    """Names of the image's bands, as the model's signature has them; empty for a script."""
    model: ModelIdentity | None = None
    """The model that ran; None for a script."""
    model_change: bool = False
    """The user let the rank use another model than the run began with."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """The item's options that change results: see `WorkItem.result_settings`."""
    rows_missing: Mapping[str, int] = field(default_factory=dict)
    """Rows that lack an ``input`` which the model uses, a ``redshift``, an ``object_id`` or a
    ``label``; the last three of partitions that have such a column."""
    s3: Mapping[str, float] = field(default_factory=dict)
    """num_requests, total_time, avg_time, min_time, max_time, first_request_time,
    last_response_time: prefixed with ``s3_`` in the JSON."""

    def to_json(self) -> dict[str, object]:
        """The record with the existing system's keys first."""
        seconds = self.model_seconds
        existing: dict[str, object] = {
            "total_cpu_time (seconds)": seconds,
            "total_cpu_memory (MB)": self.allocated_mb,
            # As published: the last, partly filled batch counts as the part that it is.
            "execution_time (seconds/batch)": (
                seconds * self.batch_size / self.rows if self.rows else 0.0
            ),
            "num_batches": self.num_batches,
            "batch_size": self.batch_size,
            "device": self.device,
            "throughput_bps": self.pixel_bits / seconds if seconds else 0.0,
            "sample_persec": self.rows / seconds if seconds else 0.0,
            "result_path": self.result_path,
            "data_path": self.data_path,
            **{f"s3_{name}": value for name, value in self.s3.items()},
        }
        ours = {f.name: to_plain(getattr(self, f.name)) for f in fields(self) if f.name != "s3"}
        return existing | ours

    def stored(self) -> StoredRecord:
        """Convert to a record as read from the store."""
        return StoredRecord.of(self.to_json(), f"the record of rank {self.rank}")
