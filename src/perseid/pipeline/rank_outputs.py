"""Read what the ranks left in the store, concurrently, and validate all of it."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from perseid.errors import BadInputError, NotFoundError, RunError
from perseid.jsontext import parse_json
from perseid.pipeline import columns, layout
from perseid.pipeline.catalogue_reader import catalogue_bytes
from perseid.pipeline.columns import PartitionResult, Stamp
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.recordcheck import parse_result
from perseid.pipeline.schema import to_plain
from perseid.pipeline.stored import Findings, Plain, Records, StoredRecord
from perseid.science import Moments
from perseid.storage import Storage
from perseid.survey.bytesource import SourceFile, open_source

READERS = 32
"""Number of concurrent requests: at 20 ms each, 517 records take a third of a second."""
WINDOW = 16
"""Number of ranks whose features are read ahead of the one being scored; bounds the memory."""
ROWS_AHEAD = 250_000
"""Number of rows read ahead, which bounds the memory if ranks have many rows: 100 MB at 100
features."""
READ_BYTES = 1 << 18
"""Most bytes per read of columns: those of a partition of 100 MB."""

T = TypeVar("T")
R = TypeVar("R")


class BrokenRankError(Exception):
    """A rank's objects do not match its record; `reason` says why in one sentence."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(rank, reason)
        self.rank, self.reason = rank, reason


def read_records(
    storage: Storage, manifest: Manifest, ranks: Iterable[int] | None = None
) -> tuple[dict[int, StoredRecord], dict[int, str]]:
    """Records of these ranks (None: of all ranks), and for each rank without a valid record one
    sentence saying why."""
    wanted = range(manifest.world_size) if ranks is None else tuple(ranks)

    def read(rank: int) -> StoredRecord | str:
        try:
            return _record(storage, manifest, rank)
        except NotFoundError:
            return "it left no record"
        except RunError as error:
            return str(error)

    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(wanted, pool.map(read, wanted), strict=True))
    records = {rank: value for rank, value in found.items() if isinstance(value, StoredRecord)}
    missing = {rank: value for rank, value in found.items() if isinstance(value, str)}
    others = _of_other_models(records, manifest)
    return {rank: r for rank, r in records.items() if rank not in others}, missing | others


def read_results(storage: Storage, records: Records) -> tuple[dict[int, Plain], dict[int, str]]:
    """Results that scripts left, with our measurements, by rank; one sentence for each rank whose
    result is gone.

    A rank without data may have left nothing; it is then in neither of the two.
    """

    def read(rank: int) -> Plain | str | None:
        key = layout.record(rank)
        try:
            return {**records[rank].plain, **parse_result(storage.get(key), key)}
        except NotFoundError:
            return "it left no record" if records[rank].has_data else None
        except RunError as error:
            return str(error)

    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(records, pool.map(read, records), strict=True))
    results = {rank: value for rank, value in found.items() if isinstance(value, Mapping)}
    return results, {rank: value for rank, value in found.items() if isinstance(value, str)}


def read_merged(
    storage: Storage, manifest: Manifest
) -> tuple[dict[int, StoredRecord], Findings] | None:
    """Records by rank and the findings, as rank 0 of a communicator left them.

    None if it did not merge, or if its results are incomplete. They must hold every rank's record,
    each partition once, and one row of the catalogue for each predicted row.
    """
    try:
        merged = _json(storage, layout.MERGED)
        if (merged["run_id"], merged["world_size"]) != (manifest.run_id, manifest.world_size):
            return None
        combined = [_plain(value) for value in parse_json(storage.get(layout.COMBINED))]
        found = [_checked(one, manifest, _rank(one), layout.COMBINED) for one in combined]
        records = {record.rank: record for record in found}
        rows = sum(record.rows for record in found)
        surplus = {rank for rank, count in enumerate(manifest.assignment) if not count}
        # Ranks without partitions write records, but are not in the combined file.
        records |= read_records(storage, manifest, surplus - records.keys())[0]
        records = {rank: records[rank] for rank in range(manifest.world_size)}
        findings, size = Findings.from_json(merged["found"]), catalogue_bytes(storage)
        # In any doubt the run is merged from the store, which costs time but is always correct.
        if _of_other_models(records, manifest) or len({r.rank for r in found}) != len(found):
            return None
        if (rows, size) != (findings.rows, merged["catalogue_bytes"]):
            return None
    except (NotFoundError, RunError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return records, findings


def stream_moments(
    storage: Storage, records: Records
) -> Iterator[tuple[int, Stamp, list[tuple[str, Moments]]]]:
    """Each rank's statistics in rank order, so that partitions are in natural order.

    Raises `BrokenRankError` if a rank's statistics do not agree with its record.
    """

    def get(rank: int) -> tuple[int, columns.Source]:
        return rank, _fetch(storage, rank, layout.moments(rank))

    for rank, data in ahead(get, _with_data(records), READERS):
        where = storage.where(layout.moments(rank))
        stamp, parts = _whole(rank, columns.read_moments, data, where)
        _belongs(records[rank], stamp, rank)
        if stamp.groups and [key for key, _ in parts] != [
            key for key, _ in records[rank].read or ()
        ]:
            raise BrokenRankError(
                rank, "its statistics belong to other partitions than its record names"
            )
        yield rank, stamp, parts


def stream_results(
    storage: Storage, records: Records, *, features: bool = True
) -> Iterator[tuple[int, list[PartitionResult]]]:
    """Each rank's columns and features in rank order, a few ranks read ahead.

    If `features` is False, only the bytes of the columns are fetched. Raises `BrokenRankError` if a
    rank's objects do not agree with its record.
    """
    fetch = _fetch if features else _open

    def read(rank: int) -> tuple[int, list[PartitionResult]]:
        key = layout.features(rank)
        load = partial(columns.read_results, features=features)
        stamp, parts = _whole(rank, load, fetch(storage, rank, key), storage.where(key))
        _belongs(records[rank], stamp, rank)
        got = [(part.key, len(part)) for part in parts]
        if got != list(records[rank].read or ()):
            raise BrokenRankError(rank, "its features belong to other rows than its record names")
        return rank, parts

    return ahead(read, _with_data(records), WINDOW, lambda rank: records[rank].rows, ROWS_AHEAD)


def _fetch(storage: Storage, rank: int, key: str) -> columns.Source:
    """Fetch an object of a rank as a whole."""
    try:
        return storage.get(key)
    except NotFoundError as error:
        raise BrokenRankError(rank, f"its record is there, but {error}") from error


def _open(storage: Storage, rank: int, key: str) -> columns.Source:
    """Open an object of a rank, from which only the requested bytes are fetched."""
    try:
        return io.BufferedReader(SourceFile(open_source(storage, key)), READ_BYTES)
    except NotFoundError as error:
        raise BrokenRankError(rank, f"its record is there, but {error}") from error


def ahead(
    call: Callable[[T], R],
    over: Iterable[T],
    window: int,
    weigh: Callable[[T], int] = lambda _: 0,
    most: int = 1,
) -> Iterator[R]:
    """Compute results in threads ahead of the one being consumed, and yield them in order.

    At most `window` results are held, of a total weight of at most `most`; a single result may
    weigh more.
    """
    waiting: deque[tuple[Future[R], int]] = deque()
    load = 0
    with ThreadPoolExecutor(min(window, READERS)) as pool:
        try:
            for value in over:
                weight = weigh(value)
                # The oldest result is yielded before more is fetched: memory stays bounded, and the
                # order is kept.
                while waiting and (len(waiting) >= window or load + weight > most):
                    future, done = waiting.popleft()
                    load -= done
                    yield future.result()
                waiting.append((pool.submit(call, value), weight))
                load += weight
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                # The caller stopped early: do not fetch results that nobody will read.
                future.cancel()


def _record(storage: Storage, manifest: Manifest, rank: int) -> StoredRecord:
    """A rank's record; raises `RunError` saying why it is not valid."""
    key = layout.done_record(rank, script=manifest.script is not None)
    record = _checked(_json(storage, key), manifest, rank, key)
    if manifest.script is not None and manifest.assignment[rank]:
        storage.size(layout.record(rank))  # the script's own result must exist, too
    return record


def _checked(plain: Plain, manifest: Manifest, rank: int, key: str) -> StoredRecord:
    """A validated record; raises `RunError` saying why it is not valid."""
    # A retried worker of a replaced run can still write here, minutes after the new run began.
    if plain.get("run_id") != manifest.run_id:
        raise RunError(f"{key} belongs to another run ({plain.get('run_id', 'no run id')})")
    record = StoredRecord.of(plain, key)
    if record.rank != rank:
        raise RunError(f"{key} is not a record of rank {rank}: 'rank' is wrong in it")
    if manifest.script is None:
        named = [part for part, _ in (*(record.read or ()), *record.failed)]
        if sorted(named) != sorted(ref.key for ref in manifest.of_rank(rank)):
            raise RunError(f"{key} does not account for each of its partitions once")
        _check_settings(record, manifest, key)
    return record


def _of_other_models(records: Records, manifest: Manifest) -> dict[int, str]:
    """Ranks that used another model than the run's, with one sentence each.

    A run of an earlier version does not say with which model it began: the model of the first rank
    that names one is then taken for the run's. Records whose model the user allowed to differ are
    kept; see `other_models`.
    """
    return {
        rank: f"it used another model than the run ({difference})"
        for rank, difference in other_models(records, manifest).items()
        if not records[rank].model_change
    }


def other_models(records: Records, manifest: Manifest) -> dict[int, str]:
    """How the models of accepted records differ from the run's, in ranks where the user allowed
    it."""
    found = {rank: record.model for rank, record in sorted(records.items())}
    wanted = manifest.model or next((m for m in found.values() if m is not None), None)
    return {
        rank: difference
        for rank, model in found.items()
        if model is not None and wanted is not None and (difference := wanted.difference(model))
    }


def _check_settings(record: StoredRecord, manifest: Manifest, key: str) -> None:
    for name, value in record.settings.items():
        wanted = to_plain(getattr(manifest.settings, name, value))
        if wanted != value:
            raise RunError(f"{key} was made with {name} {value!r}, but the run has {wanted!r}")


def _json(storage: Storage, key: str) -> Plain:
    try:
        value = parse_json(storage.get(key))
    except ValueError as error:
        raise RunError(f"{key} is not JSON") from error
    if not isinstance(value, dict):
        raise RunError(f"{key} is not a JSON object")
    return value


def _plain(value: object) -> Plain:
    if not isinstance(value, dict):
        raise ValueError("this is not a record")
    return value


def _rank(plain: Plain) -> int:
    return rank if isinstance(rank := plain.get("rank"), int) else -1


def _with_data(records: Records) -> Sequence[int]:
    return [rank for rank in sorted(records) if records[rank].has_data]


def _whole(
    rank: int, read: Callable[[columns.Source, str], T], data: columns.Source, where: str
) -> T:
    try:
        return read(data, where)
    except (RunError, BadInputError, TypeError) as error:
        raise BrokenRankError(rank, str(error)) from error


def _belongs(record: StoredRecord, stamp: Stamp, rank: int) -> None:
    if (stamp.run_id, stamp.rank) != (record.run_id, rank):
        raise BrokenRankError(rank, f"its objects belong to run {stamp.run_id}, rank {stamp.rank}")
