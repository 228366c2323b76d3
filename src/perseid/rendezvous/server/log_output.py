"""The server's log: one line for each event, as JSON or for people.

Names that clients chose are escaped; other bytes of clients are never logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import queue
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

MAX_QUEUED = 10_000
"""Lines kept for a slow reader of the log; beyond that, lines are dropped."""
LAST_LINES_SECONDS = 2.0
"""Longest wait at the end until the kept lines are written."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, event, and the fields of ``extra={"data": …}``."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {"time": at, "level": record.levelname.lower(), "event": record.getMessage()}
        entry.update(getattr(record, "data", {}))
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """The same as text: time, level, event, and ``field=value``."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        data = "".join(
            f" {key}={_one_line(value)}" for key, value in getattr(record, "data", {}).items()
        )
        line = f"{at} {record.levelname.lower():7} {record.getMessage()}{data}"
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


def _one_line(value: object) -> str:
    """A value as text that cannot forge a line or control a terminal."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class DroppingQueueHandler(logging.handlers.QueueHandler):
    """Passes records to a writing thread: a full pipe behind the log must not stop the server."""

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue the record, or drop it if the queue is full."""
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Leave the record as it is: it stays in this process."""
        return record


@contextlib.contextmanager
def logging_to_stdout(form: str, level: str) -> Iterator[None]:
    """Write the server's log to stdout while the block runs.

    Parameters
    ----------
    form
        ``json`` or ``text``.
    level
        ``debug``, ``info`` or ``warning``.
    """
    writer = logging.StreamHandler(sys.stdout)
    writer.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    lines: queue.Queue[logging.LogRecord | None] = queue.Queue(MAX_QUEUED)
    handler = DroppingQueueHandler(lines)
    thread = threading.Thread(target=_write, args=(lines, writer), name="log", daemon=True)
    logger = logging.getLogger("perseid.rendezvous")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    thread.start()
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with contextlib.suppress(queue.Full):
            lines.put(None, timeout=LAST_LINES_SECONDS)
        thread.join(LAST_LINES_SECONDS)


def _write(lines: queue.Queue[logging.LogRecord | None], writer: logging.Handler) -> None:
    while (record := lines.get()) is not None:
        writer.handle(record)
