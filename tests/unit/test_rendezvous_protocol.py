"""The rendezvous' frames: what is packed is read back, and no bytes crash the readers."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseid.rendezvous import protocol as p
from perseid.rendezvous.protocol.wire import (
    MAX_CLIENT_FRAME,
    MAX_WORLD,
    Address,
    FrameReader,
    ProtocolError,
    pack_frame,
    to_ranges,
)

ADDRESS = st.builds(
    Address,
    st.one_of(
        st.ip_addresses(v=4).map(str),
        st.ip_addresses(v=6).map(str),
    ),
    st.integers(0, 65535),
)
RANGES = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(lambda x: range(x[0], x[0] + x[1])),
    max_size=5,
).map(tuple)
JOB = st.text(st.characters(codec="utf-8"), min_size=1, max_size=50)
NAT = st.builds(p.NatBehavior, st.sampled_from(p.NatMapping), st.sampled_from(p.NatFiltering))
RANK = st.integers(0, 2**32 - 1)
RANKS = st.lists(RANK, max_size=9).map(tuple)
BYTES8, NONCE, MAC = (st.binary(min_size=n, max_size=n) for n in (8, 16, 32))
WORLD_AND_RANK = st.integers(1, MAX_WORLD).flatmap(
    lambda world: st.tuples(st.just(world), st.integers(0, world - 1))
)


@st.composite
def registers(draw):
    world, rank = draw(WORLD_AND_RANK)
    return p.Register(
        draw(JOB), rank, world, draw(RANK), draw(BYTES8), draw(NONCE), draw(st.integers(0, 65535)),
        tuple(draw(st.lists(ADDRESS, max_size=8))), draw(RANGES),
    )  # fmt: skip


PEER = st.builds(p.PeerRecord, RANK, BYTES8, NAT, ADDRESS, st.lists(ADDRESS, max_size=3).map(tuple))
RELAY = st.builds(p.RelayRequest, JOB, st.integers(0, 9), st.integers(10, 20), RANK, BYTES8, NONCE)
FROM_CLIENT = st.one_of(
    registers(), RELAY, st.just(p.Probe()), st.builds(p.Proof, MAC), st.builds(p.Subscribe, RANGES),
    st.just(p.MissingRequest()), st.builds(p.Heartbeat, RANK), st.builds(p.NatReport, NAT),
    st.just(p.ReachabilityRequest()), st.builds(p.ConnectRequest, RANKS), st.just(p.Deregister()),
    st.builds(p.FailureReport, st.binary(max_size=p.MAX_REPORT_BYTES)),
)  # fmt: skip
GONE = st.builds(p.Departure, RANK, BYTES8, st.sampled_from(p.DepartureReason))
FROM_SERVER = st.one_of(
    st.builds(p.Challenge, NONCE),
    st.builds(p.Welcome, ADDRESS, MAC, st.booleans(), st.integers(0, 65535), st.integers(0, 65535),
              st.booleans()),
    st.builds(p.RankFailure, RANK, BYTES8, st.binary(max_size=p.MAX_REPORT_BYTES)),
    st.builds(p.Refused, st.sampled_from(p.RefusalCode), st.text(st.characters(codec="ascii"))),
    st.builds(p.ObservedAddress, ADDRESS, st.integers(0, 65535), st.booleans()),
    st.builds(p.Peers, st.lists(PEER, max_size=5).map(tuple)),
    st.builds(p.Departures, st.lists(GONE, max_size=5).map(tuple)),
    st.builds(p.MissingRanks, RANGES), st.builds(p.Complete, RANK), st.builds(p.Superseded, RANK),
    st.builds(p.Heartbeat, RANK), st.builds(p.ReachabilityResult, st.sampled_from(p.NatFiltering)),
    st.builds(p.ConnectRequest, RANKS), st.builds(p.RelayInvite, RANK),
    st.just(p.RelayReady()), st.just(p.Draining()),
)  # fmt: skip


def read_all(table, most, data):
    return [p.decode(table, kind, body) for kind, body in FrameReader(most).feed(data)]


@given(st.lists(FROM_CLIENT, max_size=4))
def test_frames_of_clients_are_read_back(frames):
    data = b"".join(frame.pack() for frame in frames)
    assert read_all(p.FROM_CLIENT, MAX_CLIENT_FRAME, data) == frames


@given(st.lists(FROM_SERVER, max_size=4))
def test_frames_of_the_server_are_read_back(frames):
    data = b"".join(frame.pack() for frame in frames)
    assert read_all(p.FROM_SERVER, 1 << 20, data) == frames


@given(st.lists(FROM_CLIENT, min_size=1, max_size=3), st.data())
def test_frames_in_pieces_are_the_same_frames(frames, data):
    raw = b"".join(frame.pack() for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    reader, found = FrameReader(MAX_CLIENT_FRAME), []
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        found += reader.feed(raw[start:stop])
    assert [p.decode(p.FROM_CLIENT, *one) for one in found] == frames
    assert reader.unfinished == b""


@given(FROM_CLIENT)
def test_reading_just_what_is_needed_ends_at_the_frame(frame):
    raw = frame.pack() + b"the peer's own bytes"
    reader, pos = FrameReader(MAX_CLIENT_FRAME), 0
    while True:
        part = raw[pos : pos + reader.needed]
        pos += len(part)
        found = reader.feed(part)
        if found:
            break
    assert raw[pos:] == b"the peer's own bytes"
    assert p.decode(p.FROM_CLIENT, *found[0]) == frame


@settings(max_examples=300)
@given(st.binary(max_size=600), st.sampled_from([p.FROM_CLIENT, p.FROM_SERVER]))
def test_random_bytes_never_crash_the_reader(data, table):
    reader = FrameReader(4096)
    with contextlib.suppress(ProtocolError):
        for kind, body in reader.feed(data):
            p.decode(table, kind, body)
    assert len(reader.unfinished) <= len(data)


@settings(max_examples=300)
@given(st.one_of(FROM_CLIENT, FROM_SERVER), st.data())
def test_a_damaged_body_is_an_error_or_another_frame(frame, data):
    raw = bytearray(frame.pack()[5:])
    for _ in range(data.draw(st.integers(1, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(ProtocolError):
        assert type(type(frame).unpack(cut)) is type(frame)


def test_an_oversize_frame_is_refused_at_its_header():
    reader = FrameReader(100)
    with pytest.raises(ProtocolError, match="101 bytes, at most 100"):
        reader.feed(pack_frame(p.Subscribe.KIND, bytes(101))[:5])


def test_kinds_are_unique_in_each_direction():
    kinds = [frame.KIND for frame in vars(p).values() if dataclasses.is_dataclass(frame)
             and hasattr(frame, "KIND")]  # fmt: skip
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rank": 4}, "rank 4 in a world of 4"),
        ({"world": 0, "rank": 0}, "rank 0 in a world of 0"),
        ({"job": ""}, "no name"),
        ({"interest": (range(MAX_WORLD, MAX_WORLD + 1),)}, "beyond rank"),
    ],
)
def test_a_registration_outside_its_bounds_names_the_field(change, text):
    hello = p.Register("job", 1, 4, 0, bytes(8), bytes(16))
    raw = dataclasses.replace(hello, **change).pack()
    with pytest.raises(ProtocolError, match=text):
        p.Register.unpack(raw[5:])


def test_the_layout_of_a_registration_is_the_documented_one():
    hello = p.Register(
        "ab", 3, 8, 7, b"12345678", b"n" * 16, 1500, (Address("10.0.0.2", 4242),), (range(2, 5),)
    )
    assert hello.pack() == bytes.fromhex(
        "01 0000003c 01 01 00000008 00000003 00000007 05dc"
        "3132333435363738 6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e"
        "02 6162 04 0a000002 1092 0001 00000002 00000003"
    )


@given(st.sets(st.integers(0, 60)))
def test_ranges_hold_the_same_ranks_and_never_touch(ranks):
    found = to_ranges(ranks)
    assert [rank for part in found for rank in part] == sorted(ranks)
    assert all(one.stop < two.start for one, two in itertools.pairwise(found))


@given(NAT)
def test_nat_kinds_fit_one_byte(nat):
    assert p.NatBehavior.from_byte(nat.to_byte()) == nat


def test_a_newer_nat_kind_reads_as_unknown():
    assert p.NatBehavior.from_byte(0xFF) == p.NatBehavior()


@given(ADDRESS)
def test_addresses_show_their_family(address):
    assert address.family == ipaddress.ip_address(address.host).version
    assert str(address).endswith(f":{address.port}")
