"""What all parts of a communicator's interface stand on: its group, its arguments, its messages."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from perseid.comm.shared_world import SharedGroup
from perseid.compat.mpi.constants import ANY_SOURCE, ANY_TAG, PROC_NULL
from perseid.compat.mpi.exceptions import failure


class Handle:
    """A group of ranks under a name; empty once it is freed.

    Parameters
    ----------
    find
        Gives the group, joining the job if need be; None: ``COMM_NULL``.
    """

    def __init__(self, find: Callable[[], SharedGroup] | None = None, name: str = "") -> None:
        self.find, self.name = find, name


class HasGroup:
    """A communicator as its calls see it."""

    _handle: Handle

    @property
    def _group(self) -> SharedGroup:
        if self._handle.find is None:
            raise failure("ERR_COMM", "MPI.COMM_NULL has no ranks, and a freed communicator is it.")
        return self._handle.find()

    def _root(self, root: Any) -> int:
        """A rank as the root of a collective."""
        number, size = operator.index(root), self._group.size
        if not 0 <= number < size:
            raise failure("ERR_ROOT", f"root {number} is not in a communicator of {size} ranks.")
        return number

    def _dest(self, dest: Any) -> int | None:
        """A rank to send to; None for ``PROC_NULL``."""
        number, size = operator.index(dest), self._group.size
        if number == PROC_NULL:
            return None
        if not 0 <= number < size:
            raise failure("ERR_RANK", f"rank {number} is not in a communicator of {size} ranks.")
        return number

    def _tag(self, tag: Any) -> int:
        """The tag of a message that is sent."""
        number = operator.index(tag)
        if number < 0:
            raise failure("ERR_TAG", f"a tag is a whole number from 0, not {number}.")
        return number

    def _from(self, source: Any) -> int | None:
        """A rank to receive from; None for ``ANY_SOURCE``."""
        return None if source == ANY_SOURCE else self._dest(source)

    def _with(self, tag: Any) -> int | None:
        """The tag of a message that is received; None for ``ANY_TAG``."""
        return None if tag == ANY_TAG else self._tag(tag)
