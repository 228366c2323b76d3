"""Groups of ranks with the interface of ``mpi4py.MPI.Group``."""

from __future__ import annotations

from collections.abc import Sequence

from perseid.compat.mpi.constants import IDENT, SIMILAR, UNDEFINED, UNEQUAL
from perseid.compat.mpi.exceptions import failure


class Group:
    """An ordered set of ranks of the world.

    Parameters
    ----------
    group
        Group to copy; None for ``GROUP_NULL``.
    """

    def __init__(self, group: Group | None = None) -> None:
        self._ranks: tuple[int, ...] | None = None if group is None else group._ranks
        self._own: int = -1 if group is None else group._own

    @classmethod
    def of(cls, ranks: Sequence[int], own: int) -> Group:
        """Create the group of some ranks of the world.

        Parameters
        ----------
        own
            World rank of this process.
        """
        made = cls()
        made._ranks, made._own = tuple(ranks), own
        return made

    @property
    def ranks(self) -> tuple[int, ...]:
        """World ranks, indexed by rank in the group."""
        if self._ranks is None:
            raise failure("ERR_GROUP", "MPI.GROUP_NULL has no ranks; a freed group becomes it.")
        return self._ranks

    @property
    def size(self) -> int:
        """Number of ranks in the group."""
        return len(self.ranks)

    @property
    def rank(self) -> int:
        """Rank of this process in the group; ``UNDEFINED`` if it is not a member."""
        return self.ranks.index(self._own) if self._own in self.ranks else UNDEFINED

    def Get_size(self) -> int:
        """Number of ranks in the group."""
        return self.size

    def Get_rank(self) -> int:
        """Rank of this process in the group; ``UNDEFINED`` if it is not a member."""
        return self.rank

    def Incl(self, ranks: Sequence[int]) -> Group:
        """Create the group of the given ranks of this group, in this order."""
        return Group.of([self.ranks[rank] for rank in self._checked(ranks)], self._own)

    def Excl(self, ranks: Sequence[int]) -> Group:
        """Create the group of all ranks of this group except the given ones."""
        # A set, since a group may have thousands of ranks.
        left_out = set(self._checked(ranks))
        kept = [world for rank, world in enumerate(self.ranks) if rank not in left_out]
        return Group.of(kept, self._own)

    def _checked(self, ranks: Sequence[int]) -> Sequence[int]:
        for rank in ranks:
            if not 0 <= rank < self.size:
                raise failure("ERR_RANK", f"rank {rank} is not in a group of {self.size} ranks.")
        return ranks

    @classmethod
    def Union(cls, group1: Group, group2: Group) -> Group:
        """Create the group of the ranks of both groups."""
        # First the ranks of group1, then the rest of group2, as the MPI standard orders them.
        more = [rank for rank in group2.ranks if rank not in group1.ranks]
        return cls.of([*group1.ranks, *more], group1._own)

    @classmethod
    def Intersection(cls, group1: Group, group2: Group) -> Group:
        """Create the group of the ranks that are in both groups."""
        return cls.of([rank for rank in group1.ranks if rank in group2.ranks], group1._own)

    Intersect = Intersection

    @classmethod
    def Difference(cls, group1: Group, group2: Group) -> Group:
        """Create the group of the ranks that are only in the first group."""
        return cls.of([rank for rank in group1.ranks if rank not in group2.ranks], group1._own)

    def Translate_ranks(
        self, ranks: Sequence[int] | None = None, group: Group | None = None
    ) -> list[int]:
        """The ranks in another group of the given ranks of this one."""
        other = (group or self).ranks
        chosen = range(self.size) if ranks is None else self._checked(ranks)
        # World ranks are what two groups have in common.
        worlds = [self.ranks[rank] for rank in chosen]
        return [other.index(world) if world in other else UNDEFINED for world in worlds]

    def Compare(self, group: Group) -> int:
        """Return ``IDENT``, ``SIMILAR`` (another order) or ``UNEQUAL``."""
        if self.ranks == group.ranks:
            return IDENT
        return SIMILAR if sorted(self.ranks) == sorted(group.ranks) else UNEQUAL

    def Dup(self) -> Group:
        """Create a copy of the group."""
        return Group(self)

    def Free(self) -> None:
        """Release the group, which becomes ``GROUP_NULL``."""
        self._ranks = None

    def __bool__(self) -> bool:
        return self._ranks is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Group) and self._ranks == other._ranks

    def __hash__(self) -> int:
        return hash(self._ranks)


GROUP_NULL = Group()
GROUP_EMPTY = Group.of((), -1)
