"""Reads the logs in a run's folder, and the REPORTs in them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from perseid.errors import BadInputError, NotFoundError, StorageError
from perseid.measure.folder import READERS, EngineMeasures, RunFolder
from perseid.measure.report_line import Report, failed_init_ms, find_reports
from perseid.pipeline import layout
from perseid.storage import Storage
from perseid.textfile import decode

SUMMARIZE_LOG = f"{layout.LOGS}/summarize.log"


@dataclass(frozen=True)
class RunLogs:
    """What the logs in a run's folder say."""

    ranks: tuple[Report, ...]
    """REPORTs of the workers."""
    others: tuple[Report, ...]
    """REPORTs of initialize and summarize."""
    summarize: tuple[Report, ...]
    """REPORTs of summarize alone."""
    failed_init_ms: float
    """Milliseconds of failed inits of workers' environments."""
    count: int
    """Number of log files."""
    bytes: float
    """Size of all of them together."""


def read_logs(folder: RunFolder, notes: list[str]) -> RunLogs:
    """Read the logs in a run's folder; adds a note for each log that cannot be read."""
    wanted = sorted(key for key in folder.keys if key.startswith(layout.LOGS + "/"))
    # In parallel: reading from a store is mostly waiting, and a run has a log per rank.
    with ThreadPoolExecutor(READERS) as pool:
        texts = list(pool.map(lambda key: _text(folder.store, key), wanted))
    notes += [text.reason for text in texts if text.reason]
    of_rank = [_of_rank(key) for key in wanted]
    return RunLogs(
        ranks=_reports(t.text for t, ours in zip(texts, of_rank, strict=True) if ours),
        others=_reports(t.text for t, ours in zip(texts, of_rank, strict=True) if not ours),
        summarize=_reports(
            t.text for t, key in zip(texts, wanted, strict=True) if key == SUMMARIZE_LOG
        ),
        failed_init_ms=sum(
            failed_init_ms(t.text) for t, ours in zip(texts, of_rank, strict=True) if ours
        ),
        count=len(wanted),
        bytes=float(sum(len(text.text.encode()) for text in texts)),
    )


@dataclass(frozen=True)
class _LogFile:
    text: str
    reason: str = ""
    """Why the log cannot be read; empty if it was read."""


def _text(store: Storage, key: str) -> _LogFile:
    try:
        return _LogFile(decode(store.get(key), store.where(key)))
    # Deleted since it was listed: a log is no reason to refuse the whole run.
    except NotFoundError:
        return _LogFile("")
    except (BadInputError, StorageError) as error:
        return _LogFile("", str(error))


def _reports(texts: Iterable[str]) -> tuple[Report, ...]:
    return tuple(report for text in texts for report in find_reports(text))


def _of_rank(key: str) -> bool:
    """Whether a log is that of a rank; the others are named initialize and summarize."""
    return key.removeprefix(layout.LOGS + "/").removesuffix(".log").isdecimal()


def reports_of(engine: EngineMeasures, logs: RunLogs) -> tuple[Report, ...]:
    """REPORTs of the workers.

    A local engine measured its attempts itself, which is more reliable: the ranks' logs also hold
    what scripts printed, and that may look like a REPORT.
    """
    if engine.name == "local" and engine.attempts:
        return engine.attempts
    return logs.ranks or engine.attempts
