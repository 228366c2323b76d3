"""Every error that perseid raises on purpose; each message is one sentence that says what to do.

``PerseidError`` is the root: the command line prints its message and exits with ``exit_code``.
This module needs nothing but the standard library, so that every folder may import it.
"""

from __future__ import annotations

from collections.abc import Iterable


class PerseidError(Exception):
    """Root of all errors with a sentence for the user."""

    exit_code = 2


class BadInput(PerseidError):
    """What the user gave cannot be used: a request, an option, a file."""


class BadPartition(BadInput):
    """A partition file is corrupt, truncated, empty, or not of the shape that the model takes."""


class UnsafePickle(BadPartition):
    """A pickle names something outside the allow-list; nothing of it was run."""


class BadModel(BadInput):
    """A model file cannot be loaded, or does not fit the survey."""


class NotInstalled(BadInput):
    """An optional extra is missing; the message names the ``pip install`` line."""


class StorageError(PerseidError):
    """The object store refused or failed; the message names bucket and key."""


class NotFound(StorageError):
    """No such object or prefix."""


class Forbidden(StorageError):
    """The store refuses these credentials, or they may not do this."""


class AlreadyExists(StorageError):
    """An object that must be new is there already."""


class AwsError(PerseidError):
    """AWS refused or failed; the message names the call and what to do."""


class RunError(PerseidError):
    """A run could not be started or finished."""


class RunIncomplete(RunError):
    """A run ended with ranks or partitions missing; the message names them."""

    exit_code = 3


class WorkerFailed(RunError):
    """A rank failed after all of its attempts."""


class Interrupted(RunError):
    """The user stopped the run; ``perseid resume`` goes on."""

    exit_code = 130


class RendezvousError(PerseidError):
    """Workers could not find or reach each other; the message says why and what to do."""


class RendezvousUnreachable(RendezvousError):
    """No address of the rendezvous server answered within the deadline."""


class RendezvousRefused(RendezvousError):
    """The rendezvous server said no: limits, a world size that differs, an old generation."""


class JobKeyRefused(RendezvousRefused):
    """The job key is missing or wrong, or the server could not prove that it has it."""


class RendezvousTimeout(RendezvousError):
    """Ranks did not register, or could not be reached, within the deadline."""

    def __init__(self, message: str, missing: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.missing = sorted(missing)


class NoPath(RendezvousError):
    """Neither a direct connection nor a relay to these ranks could be had; use the store."""

    def __init__(self, message: str, ranks: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.ranks = sorted(ranks)


class PeerLost(RendezvousError):
    """A rank of the job died, stopped answering, or was replaced by a newer registration."""

    def __init__(self, message: str, rank: int = -1) -> None:
        super().__init__(message)
        self.rank = rank


class Replaced(RendezvousError):
    """A newer registration of this very rank (or a newer generation of the job) took over."""


class Closed(RendezvousError):
    """The registration or the communicator was closed already."""


class MismatchedCollective(PerseidError):
    """Ranks called different operations, or the same with other arguments; no value was given."""

    def __init__(self, message: str, mine: str = "", theirs: str = "", rank: int = -1) -> None:
        super().__init__(message)
        self.mine = mine
        self.theirs = theirs
        self.rank = rank
