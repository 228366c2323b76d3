"""Every error that perseid raises on purpose; each message is one sentence that says what to do.

``PerseidError`` is the root: the command line prints its message and exits with ``exit_code``.
This module needs nothing but the standard library, so that every folder may import it.
"""


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


class AlreadyExists(StorageError):
    """An object that must be new is there already."""


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
