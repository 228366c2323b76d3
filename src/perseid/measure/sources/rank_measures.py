"""Reads rank records, ours and those of the existing system, as `RankMeasures`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from perseid.errors import BadInputError
from perseid.measure.fields import Fields, as_number
from perseid.measure.folder import Bar, PartitionRead, RankMeasures


def read_record(plain: object, rank: int | None = None) -> RankMeasures:
    """Read a record; values of the wrong type count as missing.

    Parameters
    ----------
    plain
        The JSON object, in which a script may have written anything under any key.
    rank
        Rank from the name of the record, used if the record itself does not say it.
    """
    record = Fields(plain)
    seconds = record.number("total_cpu_time (seconds)")
    per_second = record.number("sample_persec")
    rows = record.count("rows")
    if rows is None:
        # Records of the existing system have no count of rows, only rows per second and seconds.
        rows = round((per_second or 0.0) * (seconds or 0.0))
    own = record.count("rank")
    return RankMeasures(
        rank=rank if own is None else own,
        run_id=record.text("run_id"),
        attempt=record.count("attempt"),
        rows=max(0, rows),
        flagged=record.count("rows_flagged") or 0,
        model_seconds=seconds,
        bits=(record.number("throughput_bps") or 0.0) * (seconds or 0.0),
        batch_size=record.count("batch_size"),
        world_size=record.count("world_size"),
        transport=record.text("transport"),
        stages=_stages(record.inner("stages")),
        timeline=tuple(_timeline(record.items("timeline"))),
        partitions=tuple(_partitions(record.rows("partitions"))),
        requests=record.count("s3_num_requests") or 0,
        peak_memory_mb=record.number("peak_memory_mb"),
        cold=record.flag("cold_start"),
        bands=record.texts("bands"),
        result_path=record.text("result_path"),
    )


def published_records(values: object, source: str) -> tuple[RankMeasures, ...]:
    """Read the records in a ``combined_data.json`` of the existing system.

    Raises
    ------
    BadInputError
        It is not a list of records, or a record lacks its model time or its throughput.
    """
    if not isinstance(values, Sequence) or not all(isinstance(r, Mapping) for r in values):
        raise BadInputError(f"{source} is not a list of rank records")
    for number, plain in enumerate(values, start=1):
        record = Fields(plain)
        for name in ("total_cpu_time (seconds)", "throughput_bps"):
            if record.number(name) is None:
                raise BadInputError(
                    f"record {number} of {source} cannot be read: {name!r} is wrong or missing"
                )
    return tuple(read_record(plain) for plain in values)


def _stages(stages: Fields) -> dict[str, float]:
    times = {name: stages.number(name) for name in stages.names()}
    return {name: time for name, time in times.items() if time is not None and time >= 0}


def _timeline(entries: Iterable[object]) -> Iterable[Bar]:
    for entry in entries:
        # Scripts may write a timeline of their own: entries of another form are left out.
        if not isinstance(entry, (list, tuple)) or len(entry) != 3 or not isinstance(entry[0], str):
            continue
        start, end = as_number(entry[1]), as_number(entry[2])
        # Times of zero or in reverse order would stretch the whole timeline.
        if start is not None and end is not None and 0 < start <= end:
            yield entry[0], start, end


def _partitions(parts: Iterable[Fields]) -> Iterable[PartitionRead]:
    for part in parts:
        key = part.text("key")
        if key is not None:
            yield PartitionRead(key, part.number("bytes"))
