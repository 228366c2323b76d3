"""Temporary folders of runs: create one for this process, remove those of killed processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

with contextlib.suppress(ImportError):  # not on Windows, where runs can be read
    import fcntl

PREFIX = "perseid-run-"
NEW_PREFIX = "perseid-new-"
"""Of a folder whose lock is about to be taken."""
LOCK = "in-use"
"""File in each folder that its process holds a lock on; the kernel releases it with the process."""
UNLOCKED_SECONDS = 60.0
"""Age at which a folder without a lock file counts as left behind, not as just being made."""


class ScratchFolder:
    """A folder that belongs to this process while the process lives.

    Raises
    ------
    OSError
        The folder for temporary files is full or cannot be written.
    """

    def __init__(self) -> None:
        remove_abandoned()
        made = Path(tempfile.mkdtemp(prefix=NEW_PREFIX))
        self._lock = os.open(made / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Only now under the name that is looked for: nobody can take the lock in between.
        self.path = made.rename(made.with_name(PREFIX + made.name.removeprefix(NEW_PREFIX)))

    def release(self) -> None:
        """Release the lock; the owner of the folder removes it."""
        os.close(self._lock)


def remove_abandoned() -> None:
    """Remove folders of this user whose processes are gone, however they went.

    Folders of other users, of living processes and links are left alone. Errors are, too: clearing
    up after others is no reason to fail.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            if not entry.name.startswith((PREFIX, NEW_PREFIX)):
                continue
            with contextlib.suppress(OSError):
                ours = entry.stat(follow_symlinks=False).st_uid == os.getuid()
                if ours and entry.is_dir(follow_symlinks=False) and _abandoned(Path(entry.path)):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    if folder.name.startswith(NEW_PREFIX):
        return time.time() - folder.stat().st_mtime > UNLOCKED_SECONDS
    try:
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
