"""Who works on a run: two drivers on one run would do everything twice."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from perseid.errors import AlreadyExistsError, NotFoundError, RunError, StorageError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.storage import Storage

TRIES = 20
"""How often a mark that changes under us is looked at again."""


class Owner:
    """This process works on the run while it is entered.

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
        mark = json.dumps(_self() | {"engine": "local", "since": time.time()}).encode()
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
    """Raise `RunError` where another live process of this machine works on the run."""
    other = read_mark(store)
    if other is not None and other["pid"] != os.getpid() and is_alive(other):
        began = time.strftime("%H:%M:%S UTC", time.gmtime(float(other.get("since", 0))))
        raise RunError(
            f"process {other['pid']} has been working on {store.where()} since {began}: "
            "wait for it, stop it first, or choose another place for results"
        )


def read_mark(store: Storage) -> dict[str, Any] | None:
    """What ``driver.json`` says of the process that works on the run; None where none does."""
    try:
        mark = parse_json(store.get(layout.DRIVER))
    except (NotFoundError, ValueError):
        return None
    return mark if isinstance(mark, dict) and "pid" in mark else None


def _self() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "born": _born(pid)}


def is_alive(mark: dict[str, Any]) -> bool:
    """Whether that very process runs on this machine: numbers are used again, birth ticks not."""
    same_host = mark.get("host") == socket.gethostname()
    return same_host and mark.get("born") == _born(int(mark["pid"])) != ""


def _born(pid: int) -> str:
    """When a process started: boot id and clock ticks since boot (proc(5)); empty if it is gone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{boot}/{fields[19]}"
