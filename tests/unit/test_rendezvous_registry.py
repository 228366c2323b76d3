"""Who is registered and what each member is told; no socket, no clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseid.rendezvous.protocol import (
    FROM_SERVER,
    Complete,
    DepartureReason,
    Departures,
    NatBehavior,
    NatFiltering,
    NatMapping,
    Peers,
    RankFailure,
    RefusalCode,
    Register,
    decode,
)
from perseid.rendezvous.protocol.wire import Address, FrameReader, merge_ranges
from perseid.rendezvous.server.registry import (
    MAX_FAILURES,
    Registry,
    RegistryLimits,
    RegistryRefusalError,
)

PUBLIC = Address("192.0.2.1", 4000)


def hello(rank=0, world=3, job="job", generation=0, instance=None, interest=None):
    instance = instance if instance is not None else bytes([rank]) * 8
    ranges = (range(world),) if interest is None else interest
    return Register(job, rank, world, generation, instance, bytes(16), interest=ranges)


def told(job):
    """What each rank is sent: {rank: [frames]}."""
    result = {}
    for member, message in job.flush():
        frames = FrameReader(1 << 20).feed(message)
        result[member.rank] = [decode(FROM_SERVER, kind, body) for kind, body in frames]
    return result


def ranks_of(frames):
    return sorted(peer.rank for f in frames if isinstance(f, Peers) for peer in f.peers)


def test_each_hears_of_the_others_as_they_come():
    registry = Registry()
    member, replaced = registry.register(hello(0), PUBLIC, "c0")
    assert replaced == []
    assert ranks_of(told(member.job)[0]) == [0]
    registry.register(hello(1), PUBLIC, "c1")
    news = told(member.job)
    assert ranks_of(news[0]) == [1]
    assert ranks_of(news[1]) == [0, 1]
    registry.register(hello(2), PUBLIC, "c2")
    news = told(member.job)
    assert all(Complete(3) in frames for frames in news.values())
    assert [ranks_of(news[rank]) for rank in range(3)] == [[2], [2], [0, 1, 2]]
    assert told(member.job) == {}


def test_others_are_told_few_of_the_addresses_that_a_rank_claims():
    registry = Registry()
    claimed = tuple(Address(f"10.0.0.{n}", 4000) for n in range(1, 9))
    member, _ = registry.register(replace(hello(0), candidates=claimed), PUBLIC, "c0")
    [peers] = [frame for frame in told(member.job)[0] if isinstance(frame, Peers)]
    assert peers.peers[0].private == claimed[:2]


def test_only_the_ranks_of_interest_are_told():
    registry = Registry()
    member, _ = registry.register(hello(0, interest=(range(2, 3),)), PUBLIC, "c0")
    registry.register(hello(1, interest=()), PUBLIC, "c1")
    assert told(member.job) == {}
    registry.register(hello(2, interest=(range(0, 2),)), PUBLIC, "c2")
    news = told(member.job)
    assert ranks_of(news[0]) == [2]
    assert ranks_of(news[1]) == []
    assert ranks_of(news[2]) == [0, 1]


def test_a_newer_registration_replaces_the_older_and_the_others_hear_of_it():
    registry = Registry()
    old, _ = registry.register(hello(0), PUBLIC, "old")
    registry.register(hello(1), PUBLIC, "c1")
    told(old.job)
    new, replaced = registry.register(hello(0, instance=b"retried!"), PUBLIC, "new")
    assert replaced == [old]
    news = told(new.job)
    (lost,) = [frame for frame in news[1] if isinstance(frame, Departures)]
    assert lost.departures == ((0, bytes(8), DepartureReason.REPLACED),)
    assert ranks_of(news[1]) == [0]
    assert registry.remove(old, DepartureReason.CLOSED) is False
    assert registry.members == 2


def test_the_same_process_coming_again_is_no_loss():
    registry = Registry()
    registry.register(hello(0), PUBLIC, "before")
    member, _ = registry.register(hello(1), PUBLIC, "c1")
    told(member.job)
    _, replaced = registry.register(hello(0), PUBLIC, "after")
    assert [one.handle for one in replaced] == ["before"]
    assert not any(isinstance(frame, Departures) for frame in told(member.job)[1])


def test_a_lost_rank_is_told_to_all_and_then_missing():
    registry = Registry()
    members = [registry.register(hello(rank, interest=()), PUBLIC, rank)[0] for rank in range(3)]
    told(members[0].job)
    assert registry.remove(members[1], DepartureReason.SILENT)
    news = told(members[0].job)
    for rank in (0, 2):
        assert news[rank] == [Departures(((1, b"\1" * 8, DepartureReason.SILENT),))]
    assert members[0].job.missing() == (range(1, 2),)
    registry.register(hello(1, instance=b"retried!"), PUBLIC, "again")
    assert Complete(3) in told(members[0].job)[0]


def test_a_newer_generation_ends_the_older_and_an_older_is_refused():
    registry = Registry()
    old = [registry.register(hello(rank), PUBLIC, rank)[0] for rank in range(2)]
    _, replaced = registry.register(hello(0, world=5, generation=1), PUBLIC, "new")
    assert replaced == old
    assert registry.members == 1
    with pytest.raises(RegistryRefusalError) as refusal:
        registry.register(hello(1, generation=0), PUBLIC, "late")
    assert refusal.value.code is RefusalCode.STALE


def test_another_world_size_is_refused():
    registry = Registry()
    registry.register(hello(0, world=3), PUBLIC, 0)
    with pytest.raises(RegistryRefusalError, match="3 ranks, not 4") as refusal:
        registry.register(hello(1, world=4), PUBLIC, 1)
    assert refusal.value.code is RefusalCode.WORLD


def test_limits_of_jobs_and_members():
    registry = Registry(RegistryLimits(jobs=1, members=2))
    registry.register(hello(0), PUBLIC, 0)
    with pytest.raises(RegistryRefusalError):
        registry.register(hello(0, job="other"), PUBLIC, 1)
    registry.register(hello(1), PUBLIC, 1)
    with pytest.raises(RegistryRefusalError):
        registry.register(hello(2), PUBLIC, 2)


def test_nothing_is_remembered_of_jobs_without_members():
    registry = Registry()
    member, _ = registry.register(hello(0), PUBLIC, 0)
    registry.remove(member, DepartureReason.CLOSED)
    assert registry.jobs == {}
    assert registry.members == 0


def test_a_nat_kind_is_passed_on():
    registry = Registry()
    member, _ = registry.register(hello(0), PUBLIC, 0)
    registry.register(hello(1), PUBLIC, 1)
    told(member.job)
    nat = NatBehavior(NatMapping.SYMMETRIC, NatFiltering.FILTERED)
    registry.update_nat(member, nat)
    (peers,) = told(member.job)[1]
    assert peers.peers[0].nat == nat
    less = NatBehavior(NatMapping.INDEPENDENT, NatFiltering.FILTERED)
    assert less < nat
    registry.update_nat(member, less)
    (peers,) = told(member.job)[1]
    assert peers.peers[0].nat == less
    registry.update_nat(member, less)
    assert not member.job.pending(), "no news"


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["register", "retry", "lose", "flush"]), st.integers(0, 4)),
    max_size=40,
)


@given(ACTIONS)
def test_whoever_is_interested_knows_exactly_the_registered_ranks(actions):
    """After any history and a flush, each member's view is the truth."""
    registry = Registry()
    alive, views, fresh = {}, {}, 0

    def flush():
        for job in list(registry.jobs.values()):
            for member, message in job.flush():
                view = views[member.handle]
                for kind, body in FrameReader(1 << 20).feed(message):
                    frame = decode(FROM_SERVER, kind, body)
                    if isinstance(frame, Departures):
                        for gone in frame.departures:
                            if view.get(gone.rank) == gone.instance:
                                del view[gone.rank]
                    elif isinstance(frame, Peers):
                        view.update((peer.rank, peer.instance) for peer in frame.peers)

    for action, rank in actions:
        if action in ("register", "retry") and (action == "retry" or rank not in alive):
            fresh += 1
            instance = fresh.to_bytes(8, "big")
            member, _ = registry.register(hello(rank, 5, instance=instance), PUBLIC, instance)
            alive[rank] = member
            views[instance] = {}
        elif action == "lose" and rank in alive:
            registry.remove(alive.pop(rank), DepartureReason.CLOSED)
        elif action == "flush":
            flush()
    flush()
    truth = {rank: member.instance for rank, member in alive.items()}
    for member in alive.values():
        assert views[member.handle] == truth
    assert registry.members == len(alive)


RANGE = st.tuples(st.integers(0, 30), st.integers(0, 10)).map(lambda x: range(x[0], x[0] + x[1]))


@given(st.lists(RANGE, max_size=4), st.lists(RANGE, max_size=4))
def test_merged_interests_hold_all_ranks_of_both(one, two):
    found = merge_ranges(tuple(one), tuple(two), 35)
    expected = {rank for part in (*one, *two) for rank in part if rank < 35}
    assert [rank for part in found for rank in part] == sorted(expected)


def test_reports_of_failures_are_kept_for_a_job_up_to_a_limit_and_a_generation():
    """The first of them ends a job; hundreds of ranks that fail at once must not flood it."""
    registry = Registry()
    members = [registry.register(hello(rank, 20), PUBLIC, None)[0] for rank in range(20)]
    job = members[0].job
    frames = [job.add_failure(member, b"why") for member in members]
    assert [bool(frame) for frame in frames] == [True] * MAX_FAILURES + [False] * (
        20 - MAX_FAILURES
    )
    assert job.failures == frames[:MAX_FAILURES]
    ((kind, body),) = FrameReader(1 << 20).feed(frames[3])
    assert decode(FROM_SERVER, kind, body) == RankFailure(3, members[3].instance, b"why")
    registry.register(hello(0, 20, generation=1), PUBLIC, None)
    assert job.failures == []
