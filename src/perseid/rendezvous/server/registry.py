"""The registered jobs, ranks and generations: pure state, without sockets or a clock.

Rules
-----
- A job exists while it has members; the first of them sets its world size.
- A rank has one member. A newer registration of the rank replaces the older one, which is
  informed. The same instance registering again, after a broken connection, is not a loss.
- A registration of a newer generation ends the older generation; one of an older is refused.
- Updates are collected: ``flush`` gives what each member is to be sent. Losses go to all members,
  addresses to those that subscribed to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from perseid.rendezvous.liveness import unpack_silence
from perseid.rendezvous.protocol import (
    Complete,
    Departure,
    DepartureReason,
    Departures,
    NatBehavior,
    PeerRecord,
    RankFailure,
    RefusalCode,
    Register,
    pack_peers,
)
from perseid.rendezvous.protocol.candidates import usable_candidates
from perseid.rendezvous.protocol.wire import Address

MAX_FAILURES = 8
"""Most reports of failures that are forwarded in a job: the first of them ends it."""
UNKNOWN_NAT = NatBehavior()
"""Shared by all members that have not reported theirs: one for each would take 72 bytes."""


class RegistryRefusalError(Exception):
    """A registration is refused."""

    def __init__(self, code: RefusalCode, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True, slots=True)
class RegistryLimits:
    """Limits of the registry."""

    jobs: int = 10_000
    """Most jobs at once."""
    members: int = 100_000
    """Most registered ranks at once, of all jobs; file descriptors are a further limit."""


class Member:
    """One registered rank."""

    __slots__ = (
        "_record",
        "deadline",
        "handle",
        "hears_failures",
        "heartbeat",
        "instance",
        "interest",
        "job",
        "nat",
        "private",
        "public",
        "rank",
    )

    def __init__(self, job: Job, hello: Register, public: Address, handle: object) -> None:
        self.job = job
        self.rank = hello.rank
        self.instance = hello.instance
        self.public = public
        self.private = usable_candidates(hello.candidates, public)
        self.nat = UNKNOWN_NAT
        self.interest = hello.interest
        self.handle = handle
        """The member's connection."""
        self.heartbeat = unpack_silence(hello.heartbeat)
        """Seconds of silence after which the member is lost; 0: never."""
        self.deadline = 0.0
        """When the member will be lost, on the server's clock; each sign of life moves it."""
        self.hears_failures = False
        """Whether the member asked for the others' reports of failures."""
        self._record = b""

    @property
    def record(self) -> bytes:
        """The encoded `PeerRecord`, made when it is first needed."""
        if not self._record:
            peer = PeerRecord(self.rank, self.instance, self.nat, self.public, self.private)
            self._record = peer.pack()
        return self._record

    def as_peers(self) -> bytes:
        """A ``Peers`` frame with this member only."""
        return pack_peers([self.record])

    def set_nat(self, nat: NatBehavior) -> None:
        """Store what the member found out about its NAT."""
        self.nat, self._record = nat, b""

    def subscribes_to_all(self) -> bool:
        """Whether one range covers the world; such members share one encoded frame."""
        return len(self.interest) == 1 and len(self.interest[0]) >= self.job.world

    def subscribes_to(self, rank: int) -> bool:
        """Whether the member is to be sent the address of a rank."""
        return any(rank in part for part in self.interest)


@dataclass(slots=True)
class Job:
    """The members of a job, and the updates that they have not been sent yet."""

    name: str
    world: int
    generation: int
    members: dict[int, Member] = field(default_factory=dict)
    updated: dict[int, Member] = field(default_factory=dict)
    """New members, and those with news of their NAT."""
    newcomers: set[int] = field(default_factory=set)
    """Ranks that have not been sent any addresses yet."""
    departed: list[Departure] = field(default_factory=list)
    """Departures that have not been sent yet."""
    completed: bool = False
    """Whether ``Complete`` was sent since the last departure."""
    scheduled: bool = False
    """Whether a call of ``flush`` is scheduled."""
    failures: list[bytes] = field(default_factory=list)
    """`RankFailure` frames of ranks that gave up."""

    def add_failure(self, member: Member, report: bytes) -> bytes:
        """Store a rank's report; return the frame for the others, empty if there are too many."""
        if len(self.failures) >= MAX_FAILURES:
            return b""
        self.failures.append(RankFailure(member.rank, member.instance, report).pack())
        return self.failures[-1]

    def missing(self) -> tuple[range, ...]:
        """Ranks that are not registered, as the gaps between those that are."""
        gaps, start = [], 0
        for rank in sorted(self.members):
            if rank > start:
                gaps.append(range(start, rank))
            start = rank + 1
        if start < self.world:
            gaps.append(range(start, self.world))
        return tuple(gaps)

    def pending(self) -> bool:
        """Whether ``flush`` has something to send."""
        return bool(self.updated or self.departed)

    def flush(self) -> Iterator[tuple[Member, bytes]]:
        """Yield what each member is to be sent: departures, addresses, completeness."""
        updated, self.updated = self.updated, {}
        newcomers, self.newcomers = self.newcomers, set()
        departed, self.departed = self.departed, []
        lost = Departures(tuple(departed)).pack() if departed else b""
        tail = b""
        if not self.completed and len(self.members) == self.world:
            self.completed = True
            tail = Complete(self.world).pack()
        shared_all = shared_updates = b""
        for member in list(self.members.values()):
            addresses = b""
            # A message is put together once and shared by all whose content is the same: in a job
            # of n ranks that all want all addresses, encoding for each would take n times n
            # records.
            if not member.interest:
                pass
            elif member.rank in newcomers:
                if member.subscribes_to_all():
                    addresses = shared_all = shared_all or _encode(self.members)
                else:
                    addresses = self.peers_in(member.interest)
            elif updated:
                if member.subscribes_to_all():
                    addresses = shared_updates = shared_updates or _encode(updated)
                else:
                    addresses = self._subscribed_records(member, updated)
            message = lost + addresses + tail
            if message:
                yield member, message

    @staticmethod
    def _subscribed_records(member: Member, updated: dict[int, Member]) -> bytes:
        records = [one.record for one in updated.values() if member.subscribes_to(one.rank)]
        return pack_peers(records) if records else b""

    def peers_in(self, ranges: Iterable[range]) -> bytes:
        """Encode ``Peers`` of the registered ranks in the ranges; empty bytes if there are none."""
        members = self.members
        found: dict[int, bytes] = {}
        for part in ranges:
            # Walk over whatever is shorter: a job may have announced a million ranks and have ten
            # so far.
            if len(part) > len(members):
                found.update((r, m.record) for r, m in members.items() if r in part)
            else:
                found.update((r, members[r].record) for r in part if r in members)
        return pack_peers(list(found.values())) if found else b""


def _encode(members: dict[int, Member]) -> bytes:
    return pack_peers([member.record for member in members.values()])


class Registry:
    """All jobs of a server."""

    def __init__(self, limits: RegistryLimits | None = None) -> None:
        self.limits = limits or RegistryLimits()
        self.jobs: dict[str, Job] = {}
        self.members = 0

    def register(
        self, hello: Register, public: Address, handle: object
    ) -> tuple[Member, list[Member]]:
        """Add a registration.

        Returns
        -------
        member, replaced
            The new member, and those that it replaced: they must be informed and closed.

        Raises
        ------
        RegistryRefusalError
            The job has another world size or a newer generation, or a limit is reached.
        """
        job = self.jobs.get(hello.job)
        replaced: list[Member] = []
        if job is None:
            if len(self.jobs) >= self.limits.jobs:
                raise RegistryRefusalError(
                    RefusalCode.LIMIT, f"{len(self.jobs)} jobs are registered already"
                )
            self._check_room()
            job = self.jobs[hello.job] = Job(hello.job, hello.world, hello.generation)
        else:
            _check_same_run(job, hello)
            # Checked again for every rank: a job that was let in may still grow beyond the server's
            # limit.
            self._check_room()
            # The whole job was started again. Ranks of the former attempt must not join this one.
            if hello.generation > job.generation:
                replaced = self._end_generation(job, hello)
            elif (old := job.members.get(hello.rank)) is not None:
                replaced = [old]
                self._forget(old, DepartureReason.REPLACED, hello.instance)
        member = Member(job, hello, public, handle)
        job.members[hello.rank] = member
        job.updated[hello.rank] = member
        job.newcomers.add(hello.rank)
        self.members += 1
        return member, replaced

    def _check_room(self) -> None:
        if self.members >= self.limits.members:
            raise RegistryRefusalError(
                RefusalCode.LIMIT, f"{self.members} ranks are registered already"
            )

    def _end_generation(self, job: Job, hello: Register) -> list[Member]:
        ended = list(job.members.values())
        self.members -= len(ended)
        job.members.clear()
        job.updated.clear()
        job.newcomers.clear()
        # These would be told to the new generation, whose ranks never knew the old members.
        job.departed.clear()
        job.failures.clear()
        job.world, job.generation, job.completed = hello.world, hello.generation, False
        return ended

    def remove(self, member: Member, why: DepartureReason) -> bool:
        """Remove a member; False if it was replaced or removed before."""
        job = member.job
        # A newer registration has taken its place, whose owner must not be removed by the old one's
        # end.
        if job.members.get(member.rank) is not member:
            return False
        self._forget(member, why)
        if not job.members:
            del self.jobs[job.name]
        return True

    def _forget(self, member: Member, why: DepartureReason, successor: bytes = b"") -> None:
        job = member.job
        del job.members[member.rank]
        self.members -= 1
        job.completed = False
        job.updated.pop(member.rank, None)
        job.newcomers.discard(member.rank)
        # The same process with a new connection: for the others nothing has happened.
        if member.instance != successor:
            job.departed.append(Departure(member.rank, member.instance, why))

    def update_nat(self, member: Member, nat: NatBehavior) -> None:
        """Store what a member found out about its NAT; its subscribers will be informed."""
        if member.job.members.get(member.rank) is member and nat != member.nat:
            member.set_nat(nat)
            member.job.updated.setdefault(member.rank, member)

    def find(self, job: str, generation: int, rank: int) -> Member | None:
        """The member with this rank, if it is registered."""
        found = self.jobs.get(job)
        # A worker of an older attempt gets nothing, although its job's name is known.
        if found is None or found.generation != generation:
            return None
        return found.members.get(rank)


def _check_same_run(job: Job, hello: Register) -> None:
    if hello.generation < job.generation:
        raise RegistryRefusalError(
            RefusalCode.STALE,
            f"generation {hello.generation} of this job is over, {job.generation} is registered",
        )
    if hello.generation == job.generation and hello.world != job.world:
        raise RegistryRefusalError(
            RefusalCode.WORLD,
            f"this job has {job.world} ranks, not {hello.world}; do two runs use the same name?",
        )
