"""The cost model, and the shapes of trees and plans that it and the algorithms rest on."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseid.comm.collectives.allreduce import cuts, fold, plan
from perseid.comm.collectives.trees import branch
from perseid.comm.cost_model import (
    OPERATIONS,
    RATES,
    TRANSPORTS,
    Constants,
    Rates,
    TransportCosts,
    choose,
    choose_for_job,
    estimate,
)
from perseid.errors import BadInputError
from perseid.measure.prices import Prices

SIZES = st.integers(1, 300)


@settings(deadline=None)
@given(SIZES, st.data())
def test_every_rank_hangs_on_one_parent_and_subtrees_have_no_gaps(size, data):
    root = data.draw(st.integers(0, size - 1))
    parents = {}
    for rank in range(size):
        place = branch(rank, size, root)
        for child, count in zip(place.children, place.sizes, strict=True):
            assert branch(child, size, root).parent == rank
            assert count == 1 + sum(branch(child, size, root).sizes)
            parents[child] = rank
        assert len(place.children) <= (size - 1).bit_length()
    assert sorted(parents) == [rank for rank in range(size) if rank != root]
    assert branch(root, size, root).parent == -1


@settings(deadline=None)
@given(SIZES)
def test_recursive_doubling_pairs_ranks_and_reaches_all(size):
    plans = [plan(rank, size) for rank in range(size)]
    for rank, mine in enumerate(plans):
        for partner, step, lower in mine.rounds:
            assert (rank, step, not lower) in plans[partner].rounds
        for peer in mine.peers:
            assert rank in plans[peer].peers
    known = [{rank} for rank in range(size)]
    for rank, mine in enumerate(plans):
        if mine.folded:
            known[rank] |= {rank + 1}
    for step in (1 << k for k in range((size - 1).bit_length() + 1)):
        before = [set(one) for one in known]
        for rank, mine in enumerate(plans):
            for partner, at, _ in mine.rounds:
                if at == step:
                    known[rank] |= before[partner]
    active = [known[rank] for rank in range(size) if not plans[rank].passive]
    assert all(one == set(range(size)) for one in active)


@settings(deadline=None)
@given(SIZES)
def test_a_folded_world_is_a_power_of_two(size):
    shape = fold(size)
    assert shape.core & (shape.core - 1) == 0
    assert shape.core <= size < 2 * shape.core
    actors = [rank for rank in range(size) if not shape.passive(rank)]
    assert [shape.actor(rank) for rank in actors] == list(range(shape.core))
    assert [shape.rank(actor) for actor in range(shape.core)] == actors


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 64))
def test_cuts_cover_an_array_evenly(length, parts):
    ends = cuts(length, parts)
    sizes = [b - a for a, b in itertools.pairwise(ends)]
    assert ends[0] == 0
    assert ends[-1] == length
    assert max(sizes) - min(sizes) <= 1


def test_a_message_takes_latency_and_its_bytes_share_of_the_bandwidth():
    way = TransportCosts("post", 0.5, 100.0, puts=1, gets=2)
    one = estimate("send", 2, 200, way, Rates(worker_second=10, put=3, get=0.5))
    assert one.seconds == 0.5 + 2.0
    assert one.usd == 2.5 * 2 * 10 + 3 + 2 * 0.5
    assert (one.messages, one.moved) == (1, 200)


def test_a_shared_bottleneck_counts_all_bytes():
    alone = estimate("alltoall", 10, 1e6, TransportCosts("w", 0, 1e9))
    shared = estimate("alltoall", 10, 1e6, TransportCosts("w", 0, 1e9, shared=1e9))
    assert alone.seconds == pytest.approx(9e-3)
    assert shared.seconds == pytest.approx(90e-3)


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_more_ranks_and_more_bytes_never_take_less(operation):
    for way in TRANSPORTS:
        assert estimate(operation, 1, 1e6, way).seconds == 0
        times = [estimate(operation, ranks, 1e4, way).seconds for ranks in (2, 5, 17, 100, 517)]
        assert times == sorted(times)
        times = [estimate(operation, 16, size, way).seconds for size in (0, 8, 1e4, 2e5, 1e8)]
        assert times == sorted(times)


def test_the_hint_decides():
    ways = (
        TransportCosts("quick", 1e-3, 1e9, server=True),
        TransportCosts("slow", 1.0, 1e6, puts=1, gets=1),
    )
    rates = Rates(worker_second=0.0, server_second=1.0, put=1e-9, get=1e-9)
    assert choose("bcast", 8, 1e3, "fast", ways, rates).transport == "quick"
    assert choose("bcast", 8, 1e3, "cheap", ways, rates).transport == "slow"
    for wrong in (
        lambda: choose("bcast", 8, 1e3, "nice"),
        lambda: choose("bcast", 8, 1e3, transports=()),
        lambda: estimate("sing", 8, 1e3, ways[0]),
        lambda: estimate("bcast", 0, 1e3, ways[0]),
    ):
        with pytest.raises(BadInputError):
            wrong()


def test_the_shipped_prices_are_those_of_the_table():
    prices = Prices()
    server = 0.25 * prices.fargate_vcpu_hour_x86.usd + 0.5 * prices.fargate_gb_hour_x86.usd
    expected = Rates(
        2 * prices.lambda_gb_second_x86.usd,
        (server + prices.ipv4_hour.usd) / 3600,
        prices.s3_put.usd,
        prices.s3_get.usd,
    )
    for name in ("worker_second", "server_second", "put", "get"):
        assert getattr(RATES, name) == pytest.approx(getattr(expected, name), rel=1e-9)


def test_constants_survive_their_file(tmp_path):
    direct, relay, store = TRANSPORTS
    mine = Constants(
        (replace(direct, latency=1e-6), relay, replace(store, gets=1.5)),
        replace(RATES, put=1.0),
        "measured here",
    )
    mine.dump(tmp_path / "c.json")
    assert Constants.load(tmp_path / "c.json") == mine
    (tmp_path / "part.json").write_text('{"ways": {"relay": {"latency": 3}}}')
    part = Constants.load(tmp_path / "part.json")
    assert part.transports == (direct, replace(relay, latency=3.0), store)
    assert part.rates == RATES


@pytest.mark.parametrize(
    "told",
    [
        "[]", "{", '{"direct": {"latency": 1}}', '{"ways": []}',
        '{"ways": {"pigeon": {}}}', '{"ways": {"relay": {"speed": 1}}}',
        '{"ways": {"relay": {"latency": -1}}}', '{"ways": {"relay": {"bandwidth": 0}}}',
        '{"ways": {"relay": {"latency": "soon"}}}', '{"rates": {"get": Infinity}}',
        '{"ways": {"relay": {"name": "x"}}}', '{"rates": {"gold": 1}}',
    ],
)  # fmt: skip
def test_constants_that_make_no_sense_are_refused(tmp_path, told):
    (tmp_path / "c.json").write_text(told)
    with pytest.raises(BadInputError, match=r"c\.json"):
        Constants.load(tmp_path / "c.json")


EASY = {"rendezvous": True, "store": True}


def test_a_hint_picks_among_what_a_job_can_use():
    ways = (
        TransportCosts("direct", 2.0, 1e9, server=True),
        TransportCosts("relay", 1.0, 1e9, server=True),
        TransportCosts("store", 9.0, 1e9, puts=1),
    )
    constants = Constants(ways, Rates(server_second=1.0, put=1e-9))

    def way(hint, transport="auto", **more):
        return choose_for_job(hint, transport, 2, ("send", 8), constants, **(EASY | more)).transport

    assert (way("fast"), way("cheap")) == ("relay", "store")
    assert (way("fast", "direct"), way("cheap", "direct")) == ("direct", "store")
    assert way("cheap", store=False) == "relay"
    assert way("fast", rendezvous=False) == way("fast", "store") == "store"
    with pytest.raises(BadInputError, match="no transport"):
        way("fast", rendezvous=False, store=False)
    with pytest.raises(BadInputError, match="fast or cheap"):
        way("nice")


def test_what_the_job_expects_decides():
    """Alltoall of large parts is more than a small relay passes on; the store has no such limit."""

    def way(*expects):
        return choose_for_job("fast", "relay", 100, expects, Constants(), **EASY).transport

    assert way("barrier", 0) == way("allreduce", 1000) == "relay"
    assert way("alltoall", 1e7) == "store"
    with pytest.raises(BadInputError, match="operations are"):
        way("sing", 1)
