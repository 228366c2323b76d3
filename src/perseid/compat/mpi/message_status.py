"""The status of a received message."""

from __future__ import annotations

from perseid.compat.mpi.constants import ANY_SOURCE, ANY_TAG, SUCCESS, UNDEFINED
from perseid.compat.mpi.datatypes import DATATYPES, Datatype

_BYTE = DATATYPES["BYTE"]


class Status:
    """Source, tag and size of a message, like ``mpi4py.MPI.Status``.

    Parameters
    ----------
    status
        Status to copy; None for the status of no message.
    """

    def __init__(self, status: Status | None = None) -> None:
        if not (status is None or isinstance(status, Status)):
            raise TypeError(f"a Status is copied from a Status, not from {status!r}")
        self.source: int = ANY_SOURCE if status is None else status.source
        self.tag: int = ANY_TAG if status is None else status.tag
        self.error: int = SUCCESS if status is None else status.error
        self.count: int = 0 if status is None else status.count
        """Size of the message, in bytes."""
        self.cancelled: bool = False if status is None else status.cancelled

    def fill(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, nbytes: int = 0) -> None:
        """Set the status to that of a message."""
        self.source, self.tag, self.count = source, tag, nbytes
        # A status may be reused for another message.
        self.error, self.cancelled = SUCCESS, False

    def Get_source(self) -> int:
        """The rank that sent the message."""
        return self.source

    def Set_source(self, source: int) -> None:
        """Set the source."""
        self.source = source

    def Get_tag(self) -> int:
        """The tag of the message."""
        return self.tag

    def Set_tag(self, tag: int) -> None:
        """Set the tag."""
        self.tag = tag

    def Get_error(self) -> int:
        """0, since a call that fails raises an exception."""
        return self.error

    def Set_error(self, error: int) -> None:
        """Set the error."""
        self.error = error

    def Get_count(self, datatype: Datatype = _BYTE) -> int:
        """Number of elements of the message; ``UNDEFINED`` if that is not a whole number."""
        # MPI wants UNDEFINED, not an error, if the type does not fit the message.
        count, rest = divmod(self.count, datatype.size)
        return UNDEFINED if rest else count

    def Get_elements(self, datatype: Datatype = _BYTE) -> int:
        """Number of elements of the message."""
        return self.Get_count(datatype)

    def Set_elements(self, datatype: Datatype, count: int) -> None:
        """Set the number of elements."""
        self.count = count * datatype.size

    def Is_cancelled(self) -> bool:
        """Whether the operation was canceled."""
        return self.cancelled

    def Set_cancelled(self, flag: bool) -> None:
        """Set whether the operation was canceled."""
        self.cancelled = flag
