"""Find runs and read what was measured of them: run folders, result trees, log files.

A source is a folder or URL (everything below it is searched), a glob, a ``combined_data.json``, a
log file, or the history of an execution that goes with the logs. Three kinds of run come out as
one type, `MeasuredRun`.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from perseid.errors import BadInputError, NotFoundError
from perseid.measure.runs import MeasuredRun, ModelTime, Place, Span
from perseid.measure.sources.history import Execution, parse_history
from perseid.measure.sources.logruns import LoadOptions, common, invocation_runs, log_runs, number
from perseid.measure.sources.stored import read_json, read_stored
from perseid.measure.sources.streams import LogEvent, trace
from perseid.pipeline import layout
from perseid.storage import Storage
from perseid.survey import natural_key

MODEL_TIME = "model time (total_cpu_time)"
EXECUTION_TIMES = "total_execution_time.csv"
"""Hand-kept times of whole executions, as published beside the result trees."""
READERS = 16
"""Objects read at once: collecting one by one costs 50 ms each on S3."""


def load_runs(sources: Iterable[str], options: LoadOptions | None = None) -> list[MeasuredRun]:
    """Every run of the sources, in their order; within a source in natural order of its path.

    Raises
    ------
    BadInputError
        A source has no run in it, or is neither a log nor a list of records.
    NotFoundError
        There is no such source.
    """
    options = options or LoadOptions()
    found: list[MeasuredRun] = []
    names = [one for source in sources for one in _globbed(source)]
    read = {name: _history(name) for name in names}
    histories = {name: execution for name, execution in read.items() if execution is not None}
    options = replace(options, executions=(*options.executions, *histories.values()))
    for one in names:
        if one not in histories:
            runs = list(_load(one, options))
            if not runs:
                raise BadInputError(
                    f"there is no run in {one}: no {layout.MANIFEST}, no {layout.COMBINED} and no "
                    "REPORT line; name a run's folder, a result tree or a log file"
                )
            found += runs
    return found


def _history(source: str) -> Execution | None:
    """The execution of a history file; None where it is none."""
    path = Path(source)
    if "://" in source or path.suffix != ".json" or not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(4096)
    if '"events"' not in head or '"message"' in head or '"type"' not in head:
        return None
    return parse_history(path.read_text(encoding="utf-8"), source)


def _globbed(source: str) -> list[str]:
    if "://" in source or not glob.has_magic(source) or Path(source).exists():
        return [source]
    matches = sorted(glob.glob(source, recursive=True), key=natural_key)  # noqa: PTH207 (absolute too)
    if not matches:
        raise NotFoundError(f"nothing matches {source}")
    return matches


def _load(source: str, options: LoadOptions) -> Iterator[MeasuredRun]:
    path = Path(source)
    if "://" not in source and path.is_file():
        yield from _load_file(path, options)
        return
    if "://" not in source and not path.exists():
        raise NotFoundError(f"{source} is not there")
    if "://" in source and source.endswith((".json", ".log", ".txt")):
        store, name = Storage.holding(source)
        yield from _from_text(store.get(name).decode(), source, options)
        return
    yield from _load_tree(Storage(source), options)


def _load_file(path: Path, options: LoadOptions) -> Iterator[MeasuredRun]:
    if path.name == layout.COMBINED and (path.parent / layout.MANIFEST).exists():
        yield from _load_tree(Storage(path.parent), options)
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    yield from _from_text(text, str(path), options)


def _from_text(text: str, source: str, options: LoadOptions) -> Iterator[MeasuredRun]:
    """A list of records, or else a log."""
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except ValueError as error:
            raise BadInputError(f"{source} is not a list of records: {error}") from error
        yield combined_run(records, source, options, _execution_times(source))
        return
    if text.lstrip().startswith("{") and '"logStreamName"' in text[:4096]:
        events = _events(text, source)
        size = float(sum(len(event.text) for event in events))
        traced = [traced.invocation for traced in trace(events)]
        yield from invocation_runs(traced, source, size, options)
        return
    yield from log_runs(text, source, options)


def _events(text: str, source: str) -> list[LogEvent]:
    """What ``aws logs filter-log-events`` writes."""
    try:
        return [
            LogEvent(str(e["logStreamName"]), float(e["timestamp"]) / 1e3, str(e["message"]))
            for e in json.loads(text)["events"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{source} is not a list of log events: {error!r}") from error


def _load_tree(store: Storage, options: LoadOptions) -> Iterator[MeasuredRun]:
    keys = {info.key for info in store.list()}
    homes = {
        key.rpartition("/")[0]
        for key in keys
        if key.rpartition("/")[2] in (layout.MANIFEST, layout.COMBINED)
    }
    for home in sorted(homes, key=natural_key):
        inside = store.at(home) if home else store
        prefix = f"{home}/" if home else ""
        own = {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
        if layout.MANIFEST in own:
            yield read_stored(inside, own, options.architecture)
        else:
            records = read_json(inside, layout.COMBINED)
            yield combined_run(records, inside.where(), options, _execution_times(inside.where()))
    if homes:
        return
    logs = sorted((key for key in keys if key.endswith((".log", ".txt"))), key=natural_key)
    with ThreadPoolExecutor(READERS) as pool:  # a stream a file: together they are one log
        texts = [data.decode("utf-8", "replace") for data in pool.map(store.get, logs)]
    yield from log_runs("\n".join(texts), store.where(), options)


def combined_run(
    records: Sequence[Mapping[str, Any]],
    source: str,
    options: LoadOptions | None = None,
    times: Mapping[tuple[str, str, str], float] | None = None,
) -> MeasuredRun:
    """A run of the existing system, of which only the rank records are left.

    They hold model time and nothing of what Lambda billed: duration is model time, and there is
    neither a peak of memory nor a cost. How many ranks there should have been follows from the
    published rule for the path (partition size / data size), if `options` does not say.
    """
    options = options or LoadOptions()
    if not isinstance(records, list) or not all(isinstance(r, Mapping) for r in records):
        raise BadInputError(f"{source} is not a list of rank records")
    place = Place.of(source.removesuffix(layout.COMBINED))
    said = Place.of(str(records[0].get("result_path", ""))) if records else None
    place = place or said
    expected, why = options.expected, "given"
    if expected is None:
        expected, why = number(common(r.get("world_size") for r in records)), "its records"
    if expected is None and place is not None:
        expected, why = place.workers, "published rule: ceil(GB x 1024 / MB)"
    notes, whole = [], None
    if place and said and said != place:
        notes.append(f"its records name another place: {records[0]['result_path']}")
    elif place and times:
        seconds = times.get((place.partition, place.data, place.repetition))
        whole = Span(seconds, "whole run") if seconds else None
    model = tuple(_model_time(record) for record in records)
    if whole is not None:
        notes.append(f"whole run from {EXECUTION_TIMES}")
        if max(part.seconds for part in model) > whole.seconds:
            notes.append("its slowest worker took longer than that: the sources disagree")
    return MeasuredRun(
        name=source.removesuffix("/" + layout.COMBINED),
        partition=place.partition if place else None,
        data=place.data if place else None,
        batch_size=common(record.get("batch_size") for record in records),
        expected=expected,
        expected_from=why if expected is not None else "",
        received=len({str(_who(record, i)) for i, record in enumerate(records)}),
        rows=sum(_rows(record) for record in records),
        whole=whole,
        durations=tuple(part.seconds for part in model),
        duration_of=MODEL_TIME,
        model=model,
        function="inference worker",
        bits=sum(part.bits for part in model),
        notes=tuple(notes),
        extra={"records": list(records)},
    )


def _who(record: Mapping[str, Any], place: int) -> Any:
    """What tells a rank from the others: its number, else the partitions it took."""
    return record.get("rank", record.get("data_path") or place)


def _model_time(record: Mapping[str, Any]) -> ModelTime:
    try:
        seconds = float(record["total_cpu_time (seconds)"])
        return ModelTime(seconds, float(record["throughput_bps"]) * seconds)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(
            f"a rank record cannot be read: {error!r} is wrong or missing"
        ) from error


def _rows(record: Mapping[str, Any]) -> int:
    return round(float(record["sample_persec"]) * float(record["total_cpu_time (seconds)"]))


def _execution_times(source: str) -> dict[tuple[str, str, str], float]:
    """The published table of whole executions, where it lies beside the result tree."""
    if "://" in source:
        return {}
    for parent in Path(source).absolute().parents:
        path = parent / EXECUTION_TIMES
        if path.is_file():
            return read_execution_times(path)
    return {}


def read_execution_times(path: Path) -> dict[tuple[str, str, str], float]:
    """Seconds by (partition, data, repetition), e.g. ``("25MB", "1GB", "1")``.

    Raises `BadInputError` where the file is not such a table.
    """
    times: dict[tuple[str, str, str], float] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                minutes, _, seconds = row["duration"].partition(":")
                label = f"{float(row['data(GB)']):g}GB"
                data = "total" if label == "12.6GB" else label
                key = (f"{row['partition(MB)']}MB", data, row["run"])
                times[key] = 60 * float(minutes) + float(seconds)
    except (KeyError, ValueError, AttributeError) as error:
        raise BadInputError(f"{path} is not a table of execution times: {error!r}") from error
    return times
