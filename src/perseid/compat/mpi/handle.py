"""The common base of a communicator's interface: its group and the checks of arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from perseid.comm.shared_world import SharedGroup
from perseid.compat.mpi.constants import ANY_SOURCE, ANY_TAG, PROC_NULL
from perseid.compat.mpi.exceptions import failure


class Handle:
    """A named group of ranks; it is empty after the communicator was freed.

    Parameters
    ----------
    find
        Returns the group and joins the job if necessary; None for ``COMM_NULL``.
    """

    def __init__(self, find: Callable[[], SharedGroup] | None = None, name: str = "") -> None:
        self.find, self.name = find, name


class HasGroup:
    """A communicator with a group of ranks, and the checks of its arguments."""

    _handle: Handle

    @property
    def _group(self) -> SharedGroup:
        if self._handle.find is None:
            raise failure("ERR_COMM", "MPI.COMM_NULL has no ranks; a freed one becomes COMM_NULL.")
        return self._handle.find()

    def _root(self, root: Any) -> int:
        """Check the root of a collective."""
        # operator.index accepts NumPy integers and refuses floats.
        number, size = operator.index(root), self._group.size
        if not 0 <= number < size:
            raise failure("ERR_ROOT", f"root {number} is not in a communicator of {size} ranks.")
        return number

    def _dest(self, dest: Any) -> int | None:
        """Check the rank to send to; None for ``PROC_NULL``."""
        number, size = operator.index(dest), self._group.size
        # Messages to or from PROC_NULL are no-ops in MPI, which programs use at the edges of a
        # grid.
        if number == PROC_NULL:
            return None
        if not 0 <= number < size:
            raise failure("ERR_RANK", f"rank {number} is not in a communicator of {size} ranks.")
        return number

    def _tag(self, tag: Any) -> int:
        """Check the tag of a message to send."""
        number = operator.index(tag)
        if number < 0:
            raise failure("ERR_TAG", f"a tag must be 0 or more, not {number}.")
        return number

    def _from(self, source: Any) -> int | None:
        """Check the rank to receive from; None for ``ANY_SOURCE``."""
        return None if source == ANY_SOURCE else self._dest(source)

    def _with(self, tag: Any) -> int | None:
        """Check the tag of a message to receive; None for ``ANY_TAG``."""
        # Before the check of the tag, because ANY_TAG is negative.
        return None if tag == ANY_TAG else self._tag(tag)
