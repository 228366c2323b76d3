"""TCPunch's requests and replies, and who is paired with whom; no socket."""

from __future__ import annotations

import contextlib
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseid.rendezvous.protocol import tcpunch as t
from perseid.rendezvous.protocol.wire import Address

TOKEN = "0b6b4ad6-6b3b-4f0c-9a52-1f2f8f3d7f10"


def v2(name: bytes = b"pair", token: bytes = b"") -> bytes:
    return name.ljust(100, b"\0") + token.ljust(37, b"\0") + bytes(4)


def test_the_v1_reply_is_the_one_seen_on_the_wire():
    raw = t.pack_v1(Address("127.0.0.1", 51042))
    assert raw == bytes.fromhex("7f 00 00 01 c7 62 00 00")
    assert t.unpack_v1(raw) == Address("127.0.0.1", 51042)


def test_the_v2_reply_has_50_bytes():
    own, peer = Address("10.1.2.3", 4000), Address("10.9.8.7", 65535)
    raw = t.pack_v2(t.ReplyStatus.PAIRED, own, peer, TOKEN)
    assert len(raw) == 50
    assert raw[:13] == bytes.fromhex("01 0a010203 0fa0 0a090807 ffff")
    assert raw[13:] == TOKEN.encode() + b"\0"
    assert t.unpack_v2(raw) == (t.ReplyStatus.PAIRED, own, peer, TOKEN)


def test_versions_are_told_apart_by_length_and_nul():
    assert t.request_version(b"fmi_pair0_1") == 1
    assert t.request_version(b"x" * 100) == 1
    assert t.request_version(b"x" * 101) is None
    assert t.request_version(v2()) == 2
    assert t.request_version(v2()[:50]) is None
    with pytest.raises(t.TcpunchError):
        t.request_version(v2() + b"x")


@pytest.mark.parametrize(
    "raw", [b"", b"\xff\xfe", b"GET / HTTP/1.1\r\n\r\n", b"x" * 101, b"\x16\x03\x01\x02\x00"]
)
def test_what_is_no_v1_name_is_refused(raw):
    with pytest.raises(t.TcpunchError):
        t.parse_v1(raw)


@pytest.mark.parametrize("raw", [v2(b""), v2(b"\xff\xfe"), v2(token=b"not-a-uuid"), v2()[:-1]])
def test_what_is_no_v2_request_is_refused(raw):
    with pytest.raises(t.TcpunchError):
        t.parse_v2(raw)


def test_v2_requests_are_read():
    assert t.parse_v2(v2(b"abc")) == t.Request(2, "abc")
    assert t.parse_v2(v2(b"abc", TOKEN.encode())) == t.Request(2, "abc", TOKEN)
    assert uuid.UUID(t.new_token())


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_never_crash_the_reader(data):
    with contextlib.suppress(t.TcpunchError):
        version = t.request_version(data)
        if version is not None:
            request = t.parse_v2(data) if version == 2 else t.parse_v1(data)
            assert 0 < len(request.name.encode()) <= t.NAME_BYTES


def waiter(name, handle, token="", version=1, since=0.0):
    return t.Waiter(t.Request(version, name, token), handle, since)


def test_two_of_a_name_are_paired_and_the_third_waits():
    pairings: t.Pairings[str] = t.Pairings()
    assert pairings.offer(waiter("n", "a"), bool) == (None, None)
    partner, _ = pairings.offer(waiter("n", "b"), bool)
    assert partner is not None
    assert partner.handle == "a"
    assert pairings.offer(waiter("n", "c"), bool) == (None, None)
    assert len(pairings) == 1


def test_names_and_versions_do_not_mix():
    pairings: t.Pairings[str] = t.Pairings()
    pairings.offer(waiter("n", "a"), bool)
    assert pairings.offer(waiter("m", "b"), bool) == (None, None)
    assert pairings.offer(waiter("n", "c", version=2), bool) == (None, None)


def test_a_dead_waiter_is_never_handed_out():
    pairings: t.Pairings[str] = t.Pairings()
    pairings.offer(waiter("n", "dead"), bool)
    partner, replaced = pairings.offer(waiter("n", "b"), lambda handle: handle != "dead")
    assert partner is None
    assert replaced is not None
    assert replaced.handle == "dead"
    partner, _ = pairings.offer(waiter("n", "c"), bool)
    assert partner is not None
    assert partner.handle == "b"


def test_the_same_token_replaces_its_former_try_instead_of_pairing_with_its_ghost():
    pairings: t.Pairings[str] = t.Pairings()
    pairings.offer(waiter("n", "first", TOKEN, 2), bool)
    partner, replaced = pairings.offer(waiter("n", "again", TOKEN, 2), bool)
    assert partner is None
    assert replaced is not None
    assert replaced.handle == "first"


def test_withdrawing_and_expiring():
    pairings: t.Pairings[str] = t.Pairings()
    first, second = waiter("n", "a", since=1.0), waiter("m", "b", since=5.0)
    pairings.offer(first, bool)
    pairings.offer(second, bool)
    pairings.withdraw(first.request, "someone else")
    assert len(pairings) == 2
    assert [one.handle for one in pairings.older_than(3.0)] == ["a"]
    pairings.withdraw(second.request, "b")
    assert len(pairings) == 0
