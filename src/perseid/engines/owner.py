"""Ownership of a run by one driver process, since two drivers would do all work twice."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from perseid.errors import AlreadyExistsError, NotFoundError, RunError, StorageError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.schema import from_plain
from perseid.storage import Storage

TRIES = 20
"""Number of tries to set the mark while other processes keep changing it."""


@dataclass(frozen=True)
class DriverMark:
    """The process that works on a run, as stated in ``driver.json``."""

    host: str
    """Host name of the machine that the process runs on."""
    pid: int
    born: str
    """Start of the process; see `_born`. A pid is reused, a pid with its start time is not."""
    engine: str = "local"
    since: float = 0.0
    """Time at which the process began to work on the run, in seconds since the epoch."""

    @classmethod
    def of_this_process(cls) -> DriverMark:
        """The mark of this process, from now on."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _born(pid), since=time.time())

    @property
    def here(self) -> bool:
        """Whether the process runs on this machine, where it can be checked."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether exactly this process is running on this machine."""
        # A pid alone would take an unrelated process for the driver after a crash.
        return self.here and self.born == _born(self.pid) != ""


class Owner:
    """Mark this process as the run's driver while the context is entered.

    A driver that was killed leaves its mark behind; the mark is ignored once its process is gone.
    A driver on another machine cannot be checked, so its mark is ignored as well: ranks that are
    processed twice write the same objects.

    Raises
    ------
    RunError
        Another live process on this machine works on the run.
    """

    def __init__(self, store: Storage) -> None:
        self._store = store

    def __enter__(self) -> Self:
        mark = json.dumps(asdict(DriverMark.of_this_process())).encode()
        # Compare and swap: of several processes that find no owner, one succeeds.
        for _ in range(TRIES):
            refuse_if_owned(self._store)
            if _marked(self._store, mark):
                return self
        raise RunError(f"several processes try to work on {self._store.where()} at once: try again")

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._store.delete([layout.DRIVER])
        except StorageError:
            if kind is None:  # otherwise it would hide the error that is under way
                raise


def _marked(store: Storage, mark: bytes) -> bool:
    """Set the mark; return False if another process changed it at the same time."""
    try:
        seen = store.info(layout.DRIVER)
    except NotFoundError:
        try:
            store.put(layout.DRIVER, mark, new=True)
        except AlreadyExistsError:
            return False
        return True
    # Checked again: a process may have set its mark since the caller looked.
    refuse_if_owned(store)
    try:
        store.swap(layout.DRIVER, mark, seen)
    except (AlreadyExistsError, NotFoundError):
        return False
    return True


def refuse_if_owned(store: Storage) -> None:
    """Raise `RunError` if another live process on this machine works on the run."""
    other = read_mark(store)
    # Its own mark does not stop a process: a notebook may run, resume and run again.
    if other is not None and other.pid != os.getpid() and other.is_alive:
        began = time.strftime("%H:%M:%S UTC", time.gmtime(other.since))
        raise RunError(
            f"process {other.pid} has been working on {store.where()} since {began}: "
            "wait for it, stop it first, or choose another place for results"
        )


def read_mark(store: Storage) -> DriverMark | None:
    """The mark of the process that works on the run, from ``driver.json``; None without one."""
    try:
        mark = parse_json(store.get(layout.DRIVER))
        # Marks of other engines have further keys.
        names = [field.name for field in fields(DriverMark) if field.name in mark]
        return from_plain(DriverMark, {name: mark[name] for name in names}, layout.DRIVER)
    except (NotFoundError, ValueError, TypeError):
        return None


def _born(pid: int) -> str:
    """Start of a process as boot id and clock ticks since boot (proc(5)); empty if it has ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name of the program, in parentheses, may itself contain spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{boot}/{fields[19]}"  # field 22, starttime
