"""Communicators with the interface of ``mpi4py.MPI.Intracomm``."""

from __future__ import annotations

from typing import Any, NoReturn, Self

from perseid.comm.shared_world import SharedGroup
from perseid.compat.mpi.collectives import Collectives
from perseid.compat.mpi.constants import (
    COMM_TYPE_SHARED,
    CONGRUENT,
    IDENT,
    SIMILAR,
    UNDEFINED,
    UNEQUAL,
)
from perseid.compat.mpi.exceptions import UnsupportedError, failure
from perseid.compat.mpi.groups import Group
from perseid.compat.mpi.handle import Handle
from perseid.compat.mpi.messages import Messages
from perseid.compat.mpi.requests import Request
from perseid.compat.mpi.world import PROCESS

_MISSING = {
    "Create_cart": "topologies", "Create_graph": "topologies", "Create_dist_graph": "topologies",
    "Create_dist_graph_adjacent": "topologies", "Create_intercomm": "intercommunicators",
    "Spawn": "starting further ranks", "Spawn_multiple": "starting further ranks",
    "Accept": "joining another job", "Connect": "joining another job",
    "Alltoallw": "types derived from others", "Ialltoallw": "types derived from others",
    "mprobe": "matched probes", "improbe": "matched probes", "Mprobe": "matched probes",
    "Improbe": "matched probes", "Send_init": "persistent requests",
    "Ssend_init": "persistent requests", "Bsend_init": "persistent requests",
    "Rsend_init": "persistent requests", "Recv_init": "persistent requests",
    "Set_errhandler": "error handlers: every error is an exception",
    "Get_errhandler": "error handlers: every error is an exception",
    "Get_attr": "attributes", "Set_attr": "attributes",
}  # fmt: skip
"""Methods of mpi4py that are not available, and the part of MPI that each belongs to."""


class Comm(Messages, Collectives):
    """A group of ranks that communicate among themselves.

    Parameters
    ----------
    comm
        Communicator whose ranks are shared; None for ``COMM_NULL``.
    """

    def __init__(self, comm: Comm | None = None) -> None:
        if not (comm is None or isinstance(comm, Comm)):
            raise TypeError(f"a communicator is made from another one, not from {comm!r}")
        self._handle = Handle(name="MPI_COMM_NULL") if comm is None else comm._handle

    @classmethod
    def of(cls, handle: Handle) -> Self:
        """Create a communicator of a group."""
        made = cls()
        made._handle = handle
        return made

    # --- Properties --------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Number of this process in the communicator, 0 <= rank < size."""
        return self._group.rank

    @property
    def size(self) -> int:
        """Number of ranks in the communicator."""
        return self._group.size

    def Get_rank(self) -> int:
        """Number of this process in the communicator."""
        return self.rank

    def Get_size(self) -> int:
        """Number of ranks in the communicator."""
        return self.size

    @property
    def name(self) -> str:
        """Name of the communicator, for display."""
        return self._handle.name

    @name.setter
    def name(self, name: str) -> None:
        self._handle.name = name

    def Get_name(self) -> str:
        """Name of the communicator, for display."""
        return self.name

    def Set_name(self, name: str) -> None:
        """Set the name."""
        self.name = name

    def Get_group(self) -> Group:
        """The group of the communicator's ranks."""
        return Group.of(self._group.ranks, self._group.world.rank)

    @property
    def group(self) -> Group:
        """The group of the communicator's ranks."""
        return self.Get_group()

    is_intra, is_inter, topology = True, False, UNDEFINED

    def Is_intra(self) -> bool:
        """True: there are no intercommunicators."""
        return True

    def Is_inter(self) -> bool:
        """False: there are no intercommunicators."""
        return False

    def Get_topology(self) -> int:
        """``UNDEFINED``: there are no topologies."""
        return UNDEFINED

    def Compare(self, comm: Comm) -> int:
        """Return ``IDENT``, ``CONGRUENT`` (same ranks), ``SIMILAR`` (another order) or
        ``UNEQUAL``."""
        mine = self.Get_group()
        if self._handle is comm._handle:
            return IDENT
        found = mine.Compare(comm.Get_group())
        return {IDENT: CONGRUENT, SIMILAR: SIMILAR}.get(found, UNEQUAL)

    # --- Derived communicators ---------------------------------------------------------------

    def Split(self, color: int = 0, key: int = 0) -> Intracomm:
        """Create a communicator of the ranks with the same color, ordered by key, then rank;
        ``COMM_NULL`` for a color of ``UNDEFINED``."""
        if color != UNDEFINED and color < 0:
            raise failure("ERR_ARG", f"a color must be 0 or more, not {color}.")
        return _owned(self._group.split(None if color == UNDEFINED else color, key))

    def Split_type(self, split_type: int, key: int = 0, info: Any = None) -> Intracomm:
        """Create a communicator of the ranks on this machine (``COMM_TYPE_SHARED``)."""
        if split_type not in (COMM_TYPE_SHARED, UNDEFINED):
            raise UnsupportedError(
                "Split_type knows MPI.COMM_TYPE_SHARED only: use Split for other sets of ranks."
            )
        # None leaves this rank out, which UNDEFINED asks for.
        host = None if split_type == UNDEFINED else _host()
        return _owned(self._group.split(host, key))

    def Dup(self, info: Any = None) -> Intracomm:
        """Create a communicator of the same ranks whose messages are separate from this one's."""
        return _owned(self._group.split(0, 0))

    Clone = Dup

    def Dup_with_info(self, info: Any) -> Intracomm:
        """Like `Dup`; hints are ignored."""
        return self.Dup()

    def Idup(self, info: Any = None) -> tuple[Intracomm, Request]:
        """Like `Dup`, with a request that is already done."""
        return self.Dup(), Request.begun(None, None)

    def Create(self, group: Group) -> Intracomm:
        """Create a communicator of some of the ranks; all ranks of this one must call it."""
        # The rank in the group is the key, so the new communicator has the order of the group.
        inside = self._group.world.rank in group.ranks
        return _owned(self._group.split(0 if inside else None, group.rank if inside else 0))

    def Free(self) -> None:
        """Release the communicator, which becomes ``COMM_NULL``."""
        # MPI forbids this: every other communicator is derived from these two.
        if self in (COMM_WORLD, COMM_SELF):
            raise failure("ERR_COMM", f"{self!r} cannot be freed.")
        # On the handle, so that all copies of the communicator are freed.
        self._handle.find, self._handle.name = None, "MPI_COMM_NULL"

    Disconnect = Free

    def Abort(self, errorcode: int = 0) -> NoReturn:
        """End this process at once with an exit status; all other ranks raise
        ``PeerLostError``."""
        PROCESS.abort(errorcode)

    # --- Python ------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return self._handle.find is not None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Comm):
            return False
        return self._handle is other._handle or not (self or other)

    def __hash__(self) -> int:
        return id(self._handle)

    def __repr__(self) -> str:
        return f"<MPI communicator {self.name or 'of a program'}>"

    def __reduce__(self) -> Any:
        # mpi4py programs pickle objects that hold COMM_WORLD; it is the same by name elsewhere.
        for name, comm in (("COMM_WORLD", COMM_WORLD), ("COMM_SELF", COMM_SELF)):
            if self == comm:
                return name if self is comm else (type(self), (comm,))
        if not self:
            return "COMM_NULL" if self is COMM_NULL else (type(self), (COMM_NULL,))
        # Another process may not have the group, or under another id.
        raise ValueError("only COMM_WORLD and COMM_SELF can be pickled")

    def __getattr__(self, name: str) -> NoReturn:
        if name in _MISSING:
            raise UnsupportedError(f"MPI's {name} is not available here ({_MISSING[name]}).")
        raise AttributeError(f"{type(self).__name__} has no {name}")


class Intracomm(Comm):
    """A communicator of one group of ranks, which is the only kind available."""


def _owned(group: SharedGroup | None) -> Intracomm:
    return Intracomm() if group is None else Intracomm.of(Handle(lambda: group))


def _host() -> str:
    """A name of this machine that is the same in all its processes."""
    import socket
    from pathlib import Path

    # Host names may repeat, as in containers; the boot id tells machines apart.
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text().strip() if boot.exists() else ''}"


COMM_NULL = Comm()
COMM_WORLD = Intracomm.of(Handle(lambda: PROCESS.world().world, "MPI_COMM_WORLD"))
COMM_SELF = Intracomm.of(Handle(PROCESS.own, "MPI_COMM_SELF"))
