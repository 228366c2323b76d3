"""A rank's record: the existing system's keys with their meanings, and our additional keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final

from perseid.model.identity import ModelIdentity
from perseid.pipeline.schema import to_plain
from perseid.pipeline.stored import StoredRecord

STAGES = ("init", "rendezvous", "fetch", "decode", "inference", "collectives", "publish", "total")
"""Stages of a worker, in order. Fetch and decode overlap with inference, so their times do not add
up."""

STORE: Final = "store"
"""Transport value: summarize merges from the objects in the store."""
ALONE = "alone"
"""Transport value of a world of one rank: nothing is exchanged."""


def had_data(record: Mapping[str, object]) -> bool:
    """Whether the rank had partitions. One without partitions is not in ``combined_data.json``.

    The existing system writes no record for such a rank, so means over its records contain no
    zeros.
    """
    return bool(record.get("partitions") or record.get("failed_partitions"))


@dataclass(frozen=True)
class RankRecord:
    """The content of ``<rank>.json`` and of each entry of ``combined_data.json``."""

    run_id: str
    rank: int
    world_size: int
    attempt: int
    """Number of the attempt, from 1; the newest complete record counts."""
    rows: int
    """Number of rows predicted."""
    rows_flagged: int
    """Number of rows without a prediction: an input is missing or not finite, or the answer is not
    finite."""
    partitions: tuple[Mapping[str, object], ...]
    """Key, rows and bytes of each partition that was read."""
    failed_partitions: tuple[Mapping[str, str], ...]
    """Key and error of each partition that could not be read."""
    result_path: str
    data_path: str | list[str] | None
    batch_size: int
    micro_batch: int
    num_batches: int
    device: str
    precision: str
    """The precision that was used: ``float32`` or ``int8``."""
    transport: str
    """Transport of this rank's statistics: ``direct``, ``relay``, both joined by ``+``, or
    ``store``; ``alone`` if there is only one rank, ``none`` for a script."""
    stages: Mapping[str, float]
    """Wall-clock seconds per stage, with the keys of `STAGES`."""
    timeline: tuple[tuple[str, float, float], ...]
    """Intervals (stage, start, end), in seconds since the epoch (UTC)."""
    model_seconds: float
    """Wall-clock seconds inside the model calls (`total_cpu_time (seconds)`)."""
    allocated_mb: float
    """Sum of what the model's operators allocate for their outputs, MB: `total_cpu_memory (MB)`,
    the profiler's sum in the existing system. Not a peak."""
    peak_memory_mb: float
    """Peak resident memory of the worker process, in MiB."""
    cold_start: bool
    pixel_bits: int
    """Bits of images and magnitudes that were read, for `throughput_bps`."""
    routes: Mapping[str, str] = field(default_factory=dict)
    """Transport of the connection to each peer, by the peer's rank: ``direct`` or ``relay``, or
    ``store`` if neither was possible."""
    transport_note: str = ""
    """Why the statistics went through the store although another transport was requested; empty if
    they did not."""
    environment: Mapping[str, object] = field(default_factory=dict)
    """`environment.RankEnvironment` as JSON; empty for a script."""
    bands: tuple[str, ...] = ()
    """Names of the image's bands in the model's signature; empty for a script."""
    model: ModelIdentity | None = None
    """The model that ran; None for a script."""
    model_change: bool = False
    """Whether the user let the rank use another model than the run began with."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Options of the item that change results; see `WorkItem.result_settings`."""
    rows_missing: Mapping[str, int] = field(default_factory=dict)
    """Number of rows that lack an ``input`` of the model, a ``redshift``, an ``object_id`` or a
    ``label``; the last three are counted only in partitions that have such a column."""
    s3: Mapping[str, float] = field(default_factory=dict)
    """Statistics of requests to the store: num_requests, total_time, avg_time, min_time, max_time,
    first_request_time, last_response_time. In the JSON their names begin with ``s3_``."""

    def to_json(self) -> dict[str, object]:
        """The record as JSON values, with the existing system's keys first."""
        seconds = self.model_seconds
        existing: dict[str, object] = {
            "total_cpu_time (seconds)": seconds,
            "total_cpu_memory (MB)": self.allocated_mb,
            # As in the existing system: a last, partly filled batch counts as a fraction of a
            # batch.
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
        """Convert to the form in which a record is read from the store."""
        return StoredRecord.of(self.to_json(), f"the record of rank {self.rank}")
