"""Kill a program before its n-th change of an object, whichever of its processes makes it.

Python imports this file at its start where the folder is on ``PYTHONPATH``. ``KILL_COUNTER`` is a
file to which every process appends a line per change (put or delete of one key), and ``KILL_AT``
the number of the change before which the process ``KILL_PID`` (the first that gets here) is killed
with SIGKILL. Without ``KILL_COUNTER`` nothing is counted.
"""

import fcntl
import os
import signal
import sys
import threading
import time

COUNTER = os.environ.get("KILL_COUNTER", "")
AT = int(os.environ.get("KILL_AT", "0"))
VICTIM = int(os.environ.setdefault("KILL_PID", str(os.getpid())))
_lock = threading.Lock()


def change(what: str, key: object) -> None:
    """Count one change; kill the victim if it is the one."""
    with _lock, open(COUNTER, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        number = len(file.readlines()) + 1
        file.write(f"{what} {key}\n")
        file.flush()
        if number != AT:
            return
        os.kill(VICTIM, signal.SIGKILL)
        # A worker ends with the driver, before it could make the change.
        time.sleep(60)


def _install() -> None:
    import obstore

    put, delete, unlink = obstore.put, obstore.delete, os.unlink

    def counted_put(store, path, *words, **more):
        change("put", path)
        return put(store, path, *words, **more)

    def counted_delete(store, paths, **more):
        for path in [paths] if isinstance(paths, str) else list(paths):
            change("delete", path)
            delete(store, path, **more)

    def counted_unlink(path, *words, **more):
        # Temporary files are nobody's objects.
        if sys._getframe(1).f_code.co_filename.endswith("pipeline/claim.py"):
            change("delete", path)
        return unlink(path, *words, **more)

    obstore.put, obstore.delete, os.unlink = counted_put, counted_delete, counted_unlink


if COUNTER:
    _install()
