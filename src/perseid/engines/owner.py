"""Ownership of a run by one driver process: two drivers would do all work twice."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Self

from perseid.errors import AlreadyExistsError, NotFoundError, RunError, StorageError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.schema import from_plain
from perseid.storage import Storage

TRIES = 20
"""How often a mark that changes under us is looked at again."""


@dataclass(frozen=True)
class DriverMark:
    """Which process works on a run, as ``driver.json`` says."""

    host: str
    """Its machine's name."""
    pid: int
    born: str
    """When it started; see `_born`. A number is used again, a number and its birth are not."""
    engine: str = "local"
    since: float = 0.0
    """When it began to work on the run, seconds since the epoch."""

    @classmethod
    def of_this_process(cls) -> DriverMark:
        """This process, from now on."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _born(pid), since=time.time())

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine, which can be asked."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether that very process runs on this machine."""
        return self.here and self.born == _born(self.pid) != ""


class Owner:
    """Mark this process as the run's driver while the context is entered.

    A driver that was killed leaves its mark; it is passed over when the process is gone. A driver
    on another machine cannot be asked, so its mark is passed over, too: ranks that are worked on
    twice write the same objects.

    Raises
    ------
    RunError
        Another live process of this machine works on the run.
    """

    def __init__(self, store: Storage) -> None:
        self._store = store

    def __enter__(self) -> Self:
        mark = json.dumps(asdict(DriverMark.of_this_process())).encode()
        for _ in range(TRIES):
            refuse_if_owned(self._store)
            if _marked(self._store, mark):
                return self
        raise RunError(f"{self._store.where()} is wanted by several processes at once: try again")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._store.delete([layout.DRIVER])
        except StorageError:
            if kind is None:
                raise


def _marked(store: Storage, mark: bytes) -> bool:
    """Whether the mark replaced what was there, before another process could replace it."""
    try:
        seen = store.info(layout.DRIVER)
    except NotFoundError:
        try:
            store.put(layout.DRIVER, mark, new=True)
        except AlreadyExistsError:
            return False
        return True
    refuse_if_owned(store)
    try:
        store.swap(layout.DRIVER, mark, seen)
    except (AlreadyExistsError, NotFoundError):
        return False
    return True


def refuse_if_owned(store: Storage) -> None:
    """Raise `RunError` if another live process of this machine works on the run."""
    other = read_mark(store)
    if other is not None and other.pid != os.getpid() and other.is_alive:
        began = time.strftime("%H:%M:%S UTC", time.gmtime(other.since))
        raise RunError(
            f"process {other.pid} has been working on {store.where()} since {began}: "
            "wait for it, stop it first, or choose another place for results"
        )


def read_mark(store: Storage) -> DriverMark | None:
    """What ``driver.json`` says of the process that works on the run; None if none does."""
    try:
        mark = parse_json(store.get(layout.DRIVER))
        names = [field.name for field in fields(DriverMark) if field.name in mark]
        return from_plain(DriverMark, {name: mark[name] for name in names}, layout.DRIVER)
    except (NotFoundError, ValueError, TypeError):
        return None


def _born(pid: int) -> str:
    """When a process started: boot id and clock ticks since boot (proc(5)); empty if it is gone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{boot}/{fields[19]}"
