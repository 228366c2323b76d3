"""Libraries that are missing or cannot be loaded, and processes at their limits, as sentences.

A library may be installed and still not load: the process may take too little memory to map it, or
a library that it needs is missing on this system. "Install it" would be wrong advice then.
"""

from __future__ import annotations

import errno
import sys
from contextlib import suppress

from perseid.errors import NotInstalledError

_NO_ROOM = ("failed to map segment", "cannot allocate memory", "no memory")
"""How the loader of shared libraries says that it got no memory (glibc, musl)."""
_NO_THREAD = "start new thread"
"""Part of what Python says if a thread cannot be started."""
_UNSAID = "without exception set"
"""What Python says of a function in C that failed without giving a reason."""
_LIMITS = {
    errno.ENOMEM: "there is too little memory",
    errno.EAGAIN: "no more processes or threads can be started",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open on this machine",
}


def library_error(error: ImportError, needs: str) -> NotInstalledError:
    """The error for a library that was needed and could not be imported.

    Parameters
    ----------
    error
        Error of the import.
    needs
        Sentence for a library that is not installed, with the command that installs it.

    Examples
    --------
    >>> str(library_error(ModuleNotFoundError("h5py"), "HDF5 needs h5py: pip install h5py"))
    'HDF5 needs h5py: pip install h5py'
    """
    if isinstance(error, ModuleNotFoundError):
        return NotInstalledError(needs)
    return NotInstalledError(_load_failure(error))


def limit_reached(error: BaseException) -> str | None:
    """What is wrong, if an error means that this process has no room for what it needs.

    None for any other error, which is a fault of the program.

    Examples
    --------
    >>> limit_reached(OSError(24, "Too many open files"))
    'too many files are open: raise the limit (`ulimit -n`)'
    """
    # A module that is cut off, or that Python's parser lacks memory for, is a SyntaxError.
    if isinstance(error, ImportError | SyntaxError):
        return _load_failure(error)
    # A function in C that got no memory, and did not say so, fails without an exception.
    unsaid = isinstance(error, SystemError) and _UNSAID in str(error) and _allowed()
    if isinstance(error, MemoryError) or unsaid:
        return f"{_LIMITS[errno.ENOMEM]}{_allowed()}: give this process more"
    if isinstance(error, OSError) and error.errno in _LIMITS:
        option = "-n" if error.errno in (errno.EMFILE, errno.ENFILE) else "-v, ulimit -u"
        return f"{_LIMITS[error.errno]}: raise the limit (`ulimit {option}`)"
    # Rust's libraries raise a class of their own, which is not an Exception.
    panic = type(error).__name__ == "PanicException" and "thread" in str(error)
    if _NO_THREAD in str(error) or panic:
        return f"{_LIMITS[errno.EAGAIN]}{_allowed()}: raise the limit (`ulimit -v, ulimit -u`)"
    return None


def not_started(error: OSError) -> str:
    """Say that no further process of this Python can be started, and why."""
    reason = limit_reached(error) or f"{error.strerror}; check that you may run it"
    return f"no further process of {sys.executable} can be started: {reason}"


def _load_failure(error: ImportError | SyntaxError) -> str:
    # NumPy writes a page on what may be wrong, and the loader's own words at its end.
    reason = str(error).rpartition("Original error was:")[2].strip()
    if any(words in reason.lower() for words in _NO_ROOM):
        return f"a library cannot be loaded, because memory is short{_allowed()}: {reason}"
    if isinstance(error, SyntaxError):
        reason = f"{reason}, {error.filename}"
    return f"a library that is installed cannot be loaded{_allowed()}: {reason}; install it again"


def no_room_for_a_thread(error: RuntimeError) -> bool:
    """Whether Python could not start a thread because the address space is limited: its stack had
    no room in it. Python gives the same error for too many threads."""
    return _NO_THREAD in str(error) and _address_space() is not None


def _allowed() -> str:
    limit = _address_space()
    return "" if limit is None else f" (`ulimit -v` allows {limit / 1e6:,.0f} MB)"


def _address_space() -> int | None:
    """Largest address space of this process, in bytes; None if it is not limited."""
    with suppress(ImportError):  # other systems have no such limits
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            return soft
    return None
