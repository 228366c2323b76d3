"""Reads runs of the existing system from their rank records and from tables of times.

The tables were kept by hand. The published repository has its trees
``result-partition-<size>/<data>/…/<repetition>`` beside a folder ``results`` with
``total_execution_time.csv`` (plain runs) and ``state_machine_logs.csv`` (whole execution and map
state, also of the batch sweep and of the scaling runs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from perseid.errors import BadInputError
from perseid.measure.folder import RankMeasures
from perseid.measure.measured_run import MeasuredRun, ModelTime, ResultPath, Span, common
from perseid.measure.sources.load_options import LoadOptions
from perseid.measure.sources.rank_measures import published_records
from perseid.pipeline import layout
from perseid.textfile import csv_rows, decimal, read_text

MODEL_TIME = "model time (total_cpu_time)"
EXECUTION_TIMES = "total_execution_time.csv"
STATE_MACHINE_LOGS = "state_machine_logs.csv"
TIME_TABLES = (EXECUTION_TIMES, STATE_MACHINE_LOGS)
"""Tables of times; the first that has a run is used for it."""
RESULTS = "results"
"""Folder beside the result trees in which the published repository has its tables."""
LISTED = 1000
"""Most records that the existing summarizer could see: one page of a listing."""
DISAGREE = 0.05
"""Relative difference above which a note says that two tables disagree."""
TimeKey = tuple[str, str, int | None, str]
"""Key of a run in a table: (partition, data, batch size in a batch sweep or None, repetition)."""


@dataclass(frozen=True)
class Times:
    """Times of one run from a table."""

    whole: float
    """Seconds of the whole execution."""
    map: float | None
    """Seconds of the map state; None if the table does not have them."""
    table: str
    """Name of the table's file."""


@dataclass(frozen=True)
class TimeTables:
    """All tables that belong to a result tree."""

    times: tuple[Mapping[TimeKey, Times], ...] = ()
    """Times by run for each table, in the order of `TIME_TABLES`."""
    notes: tuple[str, ...] = ()
    """Notes on tables that could not be read."""

    def of(self, place: ResultPath | None) -> list[Times]:
        """Times of the run at a place from all tables that have it, the one to use first."""
        if place is None:
            return []
        keys = _keys(place)
        return [table[key] for table in self.times for key in keys if key in table]


def combined_run(
    values: object,
    source: str,
    options: LoadOptions | None = None,
    tables: TimeTables | None = None,
) -> MeasuredRun:
    """Read a run of the existing system from its ``combined_data.json``.

    The records contain model time, but nothing that Lambda billed. So the durations are model
    times, and neither peak memory nor cost is known.

    Raises `BadInputError` if `values` is not a list of rank records.
    """
    options, tables = options or LoadOptions(), tables or TimeTables()
    records = published_records(values, source)
    home = ResultPath.of(source.removesuffix(layout.COMBINED))
    said = ResultPath.of(records[0].result_path or "") if records else None
    # Where the file is, if that is a result path: records may have been copied from another run.
    place = home or said
    received = len({_who(record, i) for i, record in enumerate(records)})
    expected, why, doubt = _expected(records, place, received, options)
    known = tables.of(said or home)
    model = tuple(ModelTime(record.model_seconds or 0.0, record.bits) for record in records)
    return MeasuredRun(
        name=source.removesuffix("/" + layout.COMBINED),
        partition=place.partition if place else None,
        data=place.data if place else None,
        batch_size=common(record.batch_size for record in records),
        expected=expected,
        expected_from=why,
        received=received,
        rows=sum(record.rows for record in records),
        whole=Span(known[0].whole, "whole execution") if known else None,
        map=Span(known[0].map, "map state") if known and known[0].map else None,
        durations=tuple(part.seconds for part in model),
        duration_of=MODEL_TIME,
        model=model,
        function="inference worker",
        bits=sum(part.bits for part in model),
        notes=(*doubt, *_place_notes(home, said, records), *_time_notes(known, model)),
        records=records,
    )


def time_tables(source: str) -> TimeTables:
    """Read the tables of times in a folder above a result, or in a folder ``results`` beside it.

    A table that cannot be read becomes a note, since the runs can be shown without it.
    """
    if "://" in source:
        return TimeTables()
    found: list[Mapping[TimeKey, Times]] = []
    notes: list[str] = []
    for name in TIME_TABLES:
        try:
            path = _above(Path(source).absolute(), name)
            if path is not None:
                found.append(read_times(path))
        except BadInputError as error:
            notes.append(str(error))
        except OSError as error:  # its folder cannot be looked into
            notes.append(f"{error.filename} cannot be read: {error.strerror}")
    return TimeTables(tuple(found), tuple(notes))


def read_times(path: Path) -> dict[TimeKey, Times]:
    """Read a table of either kind; raises `BadInputError` if the file is not such a table."""
    times: dict[TimeKey, Times] = {}
    where = str(path)
    rows = list(csv_rows(read_text(path, ""), where))
    if not rows:
        raise BadInputError(f"{where} is not a table of execution times: it has no rows")
    for row in rows:
        cells = {_plain(name): value.strip() for name, value in row.items()}
        try:
            times[_row_key(cells)] = _row_times(cells, path.name)
        except (KeyError, ValueError) as error:
            raise BadInputError(f"{where} is not a table of execution times: {error!r}") from error
    return times


def _expected(
    records: Iterable[RankMeasures], place: ResultPath | None, received: int, options: LoadOptions
) -> tuple[int | None, str, list[str]]:
    """Expected number of ranks, the source of that number, and notes on what is unknown."""
    # The most reliable source first: the user, then the records, then the rule of the published
    # paths.
    if options.expected is not None:
        return options.expected, "what was given", []
    told = common(record.world_size for record in records)
    if told is not None:
        return told, "its records", []
    most, fewest = (place.workers, place.fewest_workers) if place else (None, None)
    if place is None or most is None or fewest is None:
        page = ["its 1,000 records are the most that the existing summarizer could list"]
        return None, "", page if received == LISTED else []
    # Fewer results than 1,024 MB per GB would give may still be all of them.
    if fewest <= received < most:
        words = f"{place.data} may be {fewest} partitions (GB of 1,000 MB) or {most} (of 1,024 MB)"
        return None, "", [words]
    return most, "published rule: ceil(GB x 1024 / MB)", []


def _who(record: RankMeasures, place: int) -> tuple[str, int]:
    """Key that identifies a rank; a record without a rank counts as a rank of its own."""
    return ("record", place) if record.rank is None else ("rank", record.rank)


def _place_notes(
    home: ResultPath | None, said: ResultPath | None, records: tuple[RankMeasures, ...]
) -> list[str]:
    if home is None or said is None or said == home:
        return []
    return [f"its records name another place: {records[0].result_path}"]


def _time_notes(known: list[Times], model: tuple[ModelTime, ...]) -> list[str]:
    if not known:
        return []
    first = known[0]
    notes = [f"whole execution from {first.table}"]
    for other in known[1:]:
        # The tables were kept by hand, and small differences are roundings.
        if abs(other.whole - first.whole) > DISAGREE * first.whole:
            notes.append(f"{other.table} says {other.whole:g} s")
    # No worker can take longer than the run: the table or the records belong to another one.
    if model and max(part.seconds for part in model) > first.whole:
        notes.append("its slowest worker took longer than that: the sources disagree")
    return notes


def _above(path: Path, name: str) -> Path | None:
    """The nearest file with a name above a path, or in a folder ``results`` there."""
    for parent in path.parents:
        for candidate in (parent / name, parent / RESULTS / name):
            if candidate.is_file():
                return candidate
    return None


def _keys(place: ResultPath) -> list[TimeKey]:
    """Keys under which a table may have a run; scaling runs are listed by their variant."""
    if place.batch_size is not None:
        return [(place.partition, place.data, place.batch_size, place.repetition)]
    if place.variant:
        return [(place.partition, place.variant, None, place.repetition)]
    return [(place.partition, place.data, None, place.repetition)]


def _plain(head: str) -> str:
    """Normalize a column name: ``partition (MB)`` and ``partition(MB)`` are the same column."""
    return head.replace(" ", "").lower()


def _row_key(cells: Mapping[str, str]) -> TimeKey:
    partition = cells["partition(mb)"]
    batch = None
    if cells.get("batch_varying", "").lower() == "true":
        batch = int(cells["batch_size"])
    size = partition if partition.upper().endswith("MB") else f"{decimal(partition):g}MB"
    return size, _data_label(cells["data(gb)"]), batch, cells["run"].removeprefix("run ")


def _data_label(text: str) -> str:
    """Data size as in result paths.

    ``12.6`` -> ``total``; ``1.0`` -> ``1GB``; ``768GB`` and ``timing`` stay unchanged.
    """
    try:
        value = decimal(text)
    except ValueError:
        return text
    return "total" if f"{value:g}" == "12.6" else f"{value:g}GB"


def _row_times(cells: Mapping[str, str], table: str) -> Times:
    if "duration" in cells:
        return Times(_clock(cells["duration"]), None, table)
    inference = cells.get("inference_duration(s)", "")
    return Times(
        decimal(cells["total_duration(s)"]), decimal(inference) if inference else None, table
    )


def _clock(text: str) -> float:
    """Seconds of a clock time such as ``00:26.642`` or ``1:02:03.5``."""
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + decimal(part)
    return total
