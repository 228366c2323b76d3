"""Temporary folders of runs: create one for this process, and remove those of dead processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

with contextlib.suppress(ImportError):  # missing on Windows, where runs can only be read
    import fcntl

PREFIX = "perseid-run-"
NEW_PREFIX = "perseid-new-"
"""Prefix of a folder whose lock is not yet taken."""
LOCK = "in-use"
"""File in each folder that the owning process locks; the kernel releases the lock when it ends."""
UNLOCKED_SECONDS = 60.0
"""Age in seconds from which a folder without a lock counts as abandoned, not as being created."""


class ScratchFolder:
    """A folder that belongs to this process as long as the process lives.

    Raises
    ------
    OSError
        The folder for temporary files is full or not writable.
    """

    def __init__(self) -> None:
        remove_abandoned()
        made = Path(tempfile.mkdtemp(prefix=NEW_PREFIX))
        self._lock = os.open(made / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Renamed only now to the name that `remove_abandoned` checks, so no other process can take
        # the lock first.
        self.path = made.rename(made.with_name(PREFIX + made.name.removeprefix(NEW_PREFIX)))

    def release(self) -> None:
        """Release the lock; the owner of the folder removes it."""
        os.close(self._lock)


def remove_abandoned() -> None:
    """Remove folders of this user whose processes have ended in any way.

    Links and the folders of other users or living processes are left alone. Errors are ignored,
    since this process does not depend on the cleanup.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            if not entry.name.startswith((PREFIX, NEW_PREFIX)):
                continue
            with contextlib.suppress(OSError):
                # Names are predictable, so a folder or link may have been planted by another user.
                ours = entry.stat(follow_symlinks=False).st_uid == os.getuid()
                if ours and entry.is_dir(follow_symlinks=False) and _abandoned(Path(entry.path)):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    if folder.name.startswith(NEW_PREFIX):
        return time.time() - folder.stat().st_mtime > UNLOCKED_SECONDS
    try:
        # Without following links: the folder for temporary files is writable by everyone.
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime > UNLOCKED_SECONDS
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
