"""Every error that perseid raises on purpose; each message is one sentence that says what to do.

``PerseidError`` is the root: the command line prints its message and exits with ``exit_code``.
Each class is also the built-in error that a Python programmer would catch: a `NotFoundError` is a
``FileNotFoundError``. So a handler of ``OSError`` or ``ValueError`` around code of ours comes after
one of ``PerseidError`` that raises it on.
This module needs nothing but the standard library, so that every folder may import it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

FORMER_NAMES = {
    "BadInput": "BadInputError",
    "BadPartition": "BadPartitionError",
    "UnsafePickle": "UnsafePickleError",
    "BadModel": "BadModelError",
    "NotInstalled": "NotInstalledError",
    "NotFound": "NotFoundError",
    "Forbidden": "ForbiddenError",
    "AlreadyExists": "AlreadyExistsError",
    "RunIncomplete": "RunIncompleteError",
    "WorkerFailed": "WorkerFailedError",
    "Interrupted": "RunInterruptedError",
    "RendezvousUnreachable": "RendezvousUnreachableError",
    "RendezvousRefused": "RendezvousRefusedError",
    "JobKeyRefused": "JobKeyRefusedError",
    "RendezvousTimeout": "RendezvousTimeoutError",
    "NoPath": "NoPathError",
    "PeerLost": "PeerLostError",
    "Replaced": "ReplacedError",
    "Closed": "ClosedError",
    "MismatchedCollective": "MismatchedCollectiveError",
}
"""Names of version 0.1, which can still be imported in 0.2 and are gone in 0.3."""


class PerseidError(Exception):
    """Root of all errors with a sentence for the user."""

    exit_code = 2


class BadInputError(PerseidError, ValueError):
    """What the user gave cannot be used: a request, an option, a file."""


class BadPartitionError(BadInputError):
    """A partition file is corrupt, truncated, empty, or not of the shape that the model takes."""


class UnsafePickleError(BadPartitionError):
    """A pickle names something outside the allow-list; nothing of it was run."""


class BadModelError(BadInputError):
    """A model file cannot be loaded, or does not fit the survey."""


class NotInstalledError(BadInputError, ImportError):
    """An optional extra is missing; the message names the ``pip install`` line."""


class UnsupportedPlatformError(PerseidError, NotImplementedError):
    """This part of perseid needs Linux; the message says what works here."""


class StorageError(PerseidError, OSError):
    """The object store refused or failed; the message names bucket and key."""


class NotFoundError(StorageError, FileNotFoundError):
    """No such object or prefix."""


class ForbiddenError(StorageError, PermissionError):
    """The store refuses these credentials, or they may not do this."""


class AlreadyExistsError(StorageError, FileExistsError):
    """An object that must be new is there already."""


class AwsError(PerseidError, RuntimeError):
    """AWS refused or failed; the message names the call and what to do."""


class RunError(PerseidError, RuntimeError):
    """A run could not be started or finished."""


class RunIncompleteError(RunError):
    """A run ended with ranks or partitions missing; the message names them."""

    exit_code = 3


class WorkerFailedError(RunError):
    """A rank failed after all of its attempts."""


class RunInterruptedError(RunError):
    """The user stopped the run; ``perseid resume`` goes on."""

    exit_code = 130


class RendezvousError(PerseidError, ConnectionError):
    """Workers could not find or reach each other; the message says why and what to do."""


class RendezvousUnreachableError(RendezvousError):
    """No address of the rendezvous server answered within the deadline."""


class RendezvousRefusedError(RendezvousError, ConnectionRefusedError):
    """The rendezvous server said no: limits, a world size that differs, an old generation."""


class JobKeyRefusedError(RendezvousRefusedError, PermissionError):
    """The job key is missing or wrong, or the server could not prove that it has it."""


class RendezvousTimeoutError(RendezvousError, TimeoutError):
    """Ranks did not register, or could not be reached, within the deadline."""

    def __init__(self, message: str, missing: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.missing = sorted(missing)


class NoPathError(RendezvousError):
    """Neither a direct connection nor a relay to these ranks could be had; use the store."""

    def __init__(self, message: str, ranks: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.ranks = sorted(ranks)


class PeerLostError(RendezvousError):
    """A rank of the job died, stopped answering, or was replaced by a newer registration."""

    def __init__(self, message: str, rank: int = -1) -> None:
        super().__init__(message)
        self.rank = rank


class ReplacedError(RendezvousError, ConnectionAbortedError):
    """A newer registration of this very rank (or a newer generation of the job) took over."""


class ClosedError(RendezvousError):
    """The registration or the communicator was closed already."""


class MismatchedCollectiveError(PerseidError, ValueError):
    """Ranks called different operations, or the same with other arguments; no value was given."""

    def __init__(self, message: str, mine: str = "", theirs: str = "", rank: int = -1) -> None:
        super().__init__(message)
        self.mine = mine
        self.theirs = theirs
        self.rank = rank


def current_name(name: str) -> str:
    """The class name of today for one that an older deployed worker or a stored log reports."""
    return FORMER_NAMES.get(name, name)


def __getattr__(name: str) -> type[PerseidError]:
    """A class by its name of version 0.1, with a warning that names the new one."""
    if name not in FORMER_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"perseid.errors.{name} is now {FORMER_NAMES[name]}; the old name goes in version 0.3",
        DeprecationWarning,
        stacklevel=2,
    )
    found: type[PerseidError] = globals()[FORMER_NAMES[name]]
    return found
