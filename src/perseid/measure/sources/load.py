"""Finds runs and reads what was measured of them: run folders, result trees, log files.

A source is a folder or URL (everything below it is searched), a glob, a ``combined_data.json``, a
log file, or the history of an execution that belongs to the logs. All kinds of runs become one
type, `MeasuredRun`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from perseid.errors import BadInputError, NotFoundError, StorageError
from perseid.measure.execution import Execution
from perseid.measure.folder import READERS
from perseid.measure.measured_run import MeasuredRun
from perseid.measure.sources.documents import Document, document, read_document
from perseid.measure.sources.exports import LogText, invocations_of, read_log_text
from perseid.measure.sources.history import history_of
from perseid.measure.sources.load_options import LoadOptions
from perseid.measure.sources.logruns import execution_run, invocation_runs
from perseid.measure.sources.published import combined_run, time_tables
from perseid.measure.sources.run_objects import read_json, read_stored
from perseid.pipeline import layout
from perseid.storage import Storage
from perseid.storage.listing import scan
from perseid.survey import natural_key
from perseid.textfile import decode, is_there

_FILE = re.compile(r"\.(json|jsonl|ndjson|log|txt|csv|tsv|ya?ml|md)(\.gz)?$|\.gz$", re.IGNORECASE)
"""Names of objects that are read as files; any other URL is a folder."""
_MORE_RECORDS = re.compile(r"combined_data_\d+\.json")
"""Further files of records in the published tree, which were never part of its figures."""


@dataclass(frozen=True)
class _Source:
    """A source that was named, with its content if it is a file."""

    name: str
    document: Document | None = None
    """Content of the file; None for a folder."""
    execution: Execution | None = None
    """The execution, if the file is the history of one."""


def load_runs(sources: Iterable[str], options: LoadOptions | None = None) -> list[MeasuredRun]:
    """Read all runs of the sources, in their order; within a source, in natural order of paths.

    Raises
    ------
    BadInputError
        A source contains no run, or is neither a log nor a list of records.
    NotFoundError
        A source does not exist.
    """
    options = options or LoadOptions()
    opened = [_open(name) for source in sources for name in _globbed(source)]
    # All histories first: a log may be named before the history that it belongs to.
    executions = [one.execution for one in opened if one.execution is not None]
    options = replace(options, executions=(*options.executions, *executions))
    found: list[MeasuredRun] = []
    for one in opened:
        if one.execution is None:
            runs = list(_load(one, options))
            if not runs:
                raise BadInputError(_nothing_in(one))
            found += runs
    # An execution whose log was not given is still a run, with its times only.
    accounted = {run.execution.arn for run in found if run.execution is not None}
    found += [
        execution_run(one.execution, one.name)
        for one in opened
        if one.execution is not None and one.execution.arn not in accounted
    ]
    return found


def _globbed(source: str) -> list[str]:
    # A file whose name has a bracket or a star in it is meant literally.
    if "://" in source or not glob.has_magic(source) or is_there(source):
        return [source]
    matches = sorted(glob.glob(source, recursive=True), key=natural_key)  # noqa: PTH207 (absolute too)
    if not matches:
        raise NotFoundError(f"nothing matches {source}")
    return matches


def _open(source: str) -> _Source:
    """Read a source that is a file; a folder, or a file in a run's own folder, is not read yet."""
    path = Path(source)
    if "://" not in source:
        if not is_there(source):
            raise NotFoundError(f"{source} is not there")
        if path.is_dir() or (path.parent / layout.MANIFEST).exists():
            return _Source(source)
    elif not _FILE.search(source):
        return _Source(source)
    found = read_document(source)
    return _Source(source, found, history_of(found) if found.is_history else None)


def _load(source: _Source, options: LoadOptions) -> Iterator[MeasuredRun]:
    if source.document is None:
        path = Path(source.name)
        # A file that was not read yet is part of a run's own folder: the folder is the run.
        inside = "://" not in source.name and path.is_file()
        yield from _load_tree(Storage(path.parent if inside else source.name), options)
    elif source.document.is_records:
        values = (source.document.values or ((),))[0]
        yield combined_run(values, source.name, options, time_tables(source.name))
    else:
        log = read_log_text(source.document.text, source.document.values, source.name)
        yield from _runs_of([log], source.name, options)


def _nothing_in(source: _Source) -> str:
    found = source.document
    if found is not None and found.why_not:
        return f"{source.name} is not a list of records, nor a log: {found.why_not}"
    return (
        f"there is no run in {source.name}: no {layout.MANIFEST}, no {layout.COMBINED} and no "
        "REPORT line; name a run's folder, a result tree or a log file"
    )


def _runs_of(
    logs: Sequence[LogText], source: str, options: LoadOptions, notes: tuple[str, ...] = ()
) -> Iterator[MeasuredRun]:
    invocations = invocations_of(logs)
    size = sum(log.size for log in logs)
    for run in invocation_runs(invocations, source, size, options):
        yield replace(run, notes=(*run.notes, *notes))


def _load_tree(store: Storage, options: LoadOptions) -> Iterator[MeasuredRun]:
    found = scan(store)
    keys = {info.key for info in found.objects}
    hidden = [one for one in found.skipped if one.reason.startswith("cannot be ")]
    if hidden and not keys:
        raise StorageError(f"{store.where(hidden[0].key)} {hidden[0].reason}")
    homes = {
        key.rpartition("/")[0]
        for key in keys
        if key.rpartition("/")[2] in (layout.MANIFEST, layout.COMBINED)
    }
    for home in sorted(homes, key=natural_key):
        prefix = f"{home}/" if home else ""
        own = {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
        try:
            yield _load_home(store.at(home) if home else store, own, options)
        # One broken run must not hide the others of a tree; if it is the only one, its error is
        # what the user needs.
        except (BadInputError, StorageError) as error:
            if len(homes) == 1:
                raise
            name = store.where(home)
            yield MeasuredRun(name, complete=False, notes=(f"it cannot be read: {error}",))
    # There may be runs in what cannot be read: the table must not look whole.
    for one in hidden:
        why = f"it {one.reason}: there may be runs in it"
        yield MeasuredRun(store.where(one.key), complete=False, notes=(why,))
    # Plain log files count only if the folder contains no run: a run's own logs are read with it.
    if not homes:
        yield from _load_logs(store, keys, options)


def _load_home(store: Storage, own: set[str], options: LoadOptions) -> MeasuredRun:
    if layout.MANIFEST in own:
        return read_stored(store, own, options.architecture)
    tables = time_tables(store.where(layout.COMBINED))
    run = combined_run(
        read_json(store, layout.COMBINED), store.where(layout.COMBINED), options, tables
    )
    more = sorted(key for key in own if _MORE_RECORDS.fullmatch(key))
    notes = [f"{', '.join(more)} beside it, of other executions, left out"] if more else []
    return replace(run, notes=(*run.notes, *notes, *tables.notes))


def _load_logs(store: Storage, keys: set[str], options: LoadOptions) -> Iterator[MeasuredRun]:
    """Read the log files of a folder as one log: they are streams or parts of it."""
    names = sorted((key for key in keys if _FILE.search(key)), key=natural_key)
    # In parallel: reading from a store is mostly waiting.
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda name: _read_log(store, name), names))
    notes = tuple(one for one in found if isinstance(one, str))
    logs = [one for one in found if isinstance(one, LogText)]
    if notes and not logs:
        raise BadInputError(notes[0])
    yield from _runs_of(logs, store.where(), options, notes)


def _read_log(store: Storage, key: str) -> LogText | str:
    """Read one file of a log; returns a text that says why if it cannot be read."""
    where = store.where(key)
    try:
        found = document(decode(store.get(key), where), where)
    except (BadInputError, StorageError) as error:
        return str(error)
    # These are read as sources of their own, if they are named.
    if found.is_history or found.is_records:
        return LogText()
    return read_log_text(found.text, found.values, where)
