"""Workers' handshake, NAT rules, keys: pairs of state machines in memory."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseid.cli.ping import nat_words
from perseid.errors import BadInputError, JobKeyRefusedError
from perseid.rendezvous import read_secret
from perseid.rendezvous.client.connectivity import View
from perseid.rendezvous.net.endpoint import Endpoint
from perseid.rendezvous.protocol import NatBehavior, NatFiltering, NatMapping, PeerRecord, auth
from perseid.rendezvous.protocol.candidates import usable_candidates
from perseid.rendezvous.protocol.handshake import (
    DECISION_BYTES,
    HELLO_BYTES,
    Handshake,
    HandshakeError,
    HandshakeState,
    Identity,
)
from perseid.rendezvous.protocol.wire import Address
from perseid.rendezvous.punch.nat import (
    dial_candidates,
    direct_impossible,
    mapping_kind,
)
from perseid.rendezvous.punch.pacing import (
    BACKOFF_SECONDS,
    MAX_BACKOFF_SECONDS,
    MAX_WAIT,
    TokenBucket,
    backoff,
    retry_wait,
)

KEY = b"k" * 32
LOW, HIGH = (Identity("job", 0, rank, bytes([rank]) * 8) for rank in (1, 2))


def dialed(me=LOW, peer=HIGH, key=KEY):
    return Handshake(me, key, peer.rank, peer.instance)


def settle(low, high):
    """Both greet; the lower selects; the higher acknowledges."""
    first = low.hello()
    if first:
        assert high.feed(first) is HandshakeState.HELLO_RECEIVED
    second = high.hello()
    assert low.feed(second) is HandshakeState.HELLO_RECEIVED
    late = low.hello()
    if late:
        assert high.feed(late) is HandshakeState.HELLO_RECEIVED
    assert high.feed(low.select()) is HandshakeState.SELECT_RECEIVED
    assert low.feed(high.acknowledge()) is HandshakeState.DONE
    assert high.state is HandshakeState.DONE


def test_both_dialed():
    settle(dialed(), dialed(HIGH, LOW))


def test_the_higher_accepted():
    settle(dialed(), Handshake(HIGH, KEY))


def test_the_lower_accepted():
    low, high = Handshake(LOW, KEY), dialed(HIGH, LOW)
    assert low.hello() == b""
    assert low.feed(high.hello()) is HandshakeState.HELLO_RECEIVED
    assert high.feed(low.hello()) is HandshakeState.HELLO_RECEIVED
    assert high.feed(low.select()) is HandshakeState.SELECT_RECEIVED
    assert low.feed(high.acknowledge()) is HandshakeState.DONE


def test_frames_have_fixed_sizes():
    low, high = dialed(), dialed(HIGH, LOW)
    greeting = low.hello()
    assert len(greeting) == HELLO_BYTES == high.needed
    high.feed(greeting)
    low.feed(high.hello())
    assert len(low.select()) == DECISION_BYTES == high.needed


@pytest.mark.parametrize(
    "stranger",
    [
        dialed(LOW, HIGH, key=b"x" * 32),
        dialed(Identity("another", 0, 1, LOW.instance)),
        dialed(Identity("second job", 0, 1, LOW.instance)),
        dialed(Identity("job", 1, 1, LOW.instance)),
        dialed(peer=Identity("job", 0, 2, b"replaced")),
        dialed(peer=Identity("job", 0, 3, HIGH.instance)),
        dialed(Identity("job", 0, 2, HIGH.instance)),
    ],
    ids=["key", "job", "job below", "generation", "instance", "meant", "oneself"],
)
def test_a_greeting_of_somebody_else_is_refused(stranger):
    with pytest.raises(HandshakeError):
        Handshake(HIGH, KEY).feed(stranger.hello())


def test_digests_of_other_jobs_lie_above_and_below():
    """A comparison that is wrong in one direction alone would be seen by one of them."""
    above, below = (
        Identity(name, 0, 1, LOW.instance).digest() for name in ("another", "second job")
    )
    assert below < LOW.digest() < above


def test_a_greeting_of_an_earlier_generation_is_refused():
    later = Identity("job", 5, 2, HIGH.instance)
    for generation in (4, 6):
        greeting = dialed(Identity("job", generation, 1, LOW.instance), later).hello()
        with pytest.raises(HandshakeError, match="generation"):
            Handshake(later, KEY).feed(greeting)


@pytest.mark.parametrize("instance", [b"\0" * 8, b"\xff" * 8])
def test_another_instance_than_the_one_dialed_is_refused(instance):
    again = Identity("job", 0, 2, instance)
    with pytest.raises(HandshakeError, match="answered instead"):
        dialed().feed(dialed(again, LOW).hello())


def test_another_rank_than_the_one_dialed_is_refused():
    third = Identity("job", 0, 3, b"3" * 8)
    with pytest.raises(HandshakeError, match="rank 3 answered instead of rank 2"):
        dialed().feed(dialed(third, LOW).hello())


def test_a_recorded_greeting_gets_nobody_in():
    low, high = dialed(), dialed(HIGH, LOW)
    greeting = low.hello()
    high.feed(greeting)
    low.feed(high.hello())
    select = low.select()
    again = dialed(HIGH, LOW)
    again.hello()
    assert again.feed(greeting) is HandshakeState.HELLO_RECEIVED  # it is a valid greeting …
    with pytest.raises(HandshakeError, match="not authentic"):
        again.feed(select)  # … but the choice answers another nonce


def test_a_connection_is_selected_once():
    low, high = dialed(), dialed(HIGH, LOW)
    high.feed(low.hello())
    low.feed(high.hello())
    select = low.select()
    assert high.feed(select) is HandshakeState.SELECT_RECEIVED
    with pytest.raises(HandshakeError):
        high.feed(select)
    assert low.feed(high.acknowledge()) is HandshakeState.DONE


def test_bytes_before_the_choice_are_refused():
    low, high = dialed(), dialed(HIGH, LOW)
    low.feed(high.hello())
    with pytest.raises(HandshakeError):
        low.feed(bytes(DECISION_BYTES))


@settings(max_examples=200)
@given(st.binary(min_size=HELLO_BYTES, max_size=HELLO_BYTES))
def test_random_bytes_are_no_greeting(data):
    with pytest.raises(HandshakeError):
        Handshake(HIGH, KEY).feed(data)


@given(st.integers(0, HELLO_BYTES - 1), st.integers(1, 255))
def test_each_byte_of_a_greeting_counts(position, change):
    raw = bytearray(dialed().hello())
    raw[position] ^= change
    with pytest.raises(HandshakeError):
        Handshake(HIGH, KEY).feed(bytes(raw))


# --- keys ---------------------------------------------------------------------------------------


def test_jobs_have_different_keys_and_proofs_cover_everything():
    one, two = auth.job_key(b"s" * 32, "one"), auth.job_key(b"s" * 32, "two")
    assert one != two
    proof = auth.client_proof(one, b"hello", b"nonce")
    others = [
        auth.client_proof(two, b"hello", b"nonce"),
        auth.client_proof(one, b"hallo", b"nonce"),
        auth.client_proof(one, b"hello", b"fresh"),
        auth.server_proof(one, b"hello", b"nonce"),
    ]
    assert proof not in others
    assert len(proof) == 32


def test_peers_without_a_job_key_have_one_by_the_name():
    assert auth.peer_key(None, "a") != auth.peer_key(None, "b")
    assert auth.peer_key(KEY, "a") != auth.peer_key(None, "a")


def test_key_files(tmp_path):
    good, short = tmp_path / "good", tmp_path / "short"
    good.write_text("0123456789abcdef0123\nsecond line\n")
    short.write_text("secret\n")
    assert read_secret(good) == b"0123456789abcdef0123"
    with pytest.raises(BadInputError, match="6 bytes"):
        read_secret(short)
    with pytest.raises(BadInputError, match="cannot be read"):
        read_secret(tmp_path / "none")


def test_keys_in_hexadecimal():
    assert auth.parse_key(KEY.hex() + "\n") == KEY
    for text in ("", "zz", "00" * 31):
        with pytest.raises(JobKeyRefusedError):
            auth.parse_key(text)


# --- NAT rules ----------------------------------------------------------------------------------


def peer(rank, public, private="10.0.0.2", nat=None, port=4000):
    own = (Address(private, port),)
    return PeerRecord(rank, bytes([rank]) * 8, nat or NatBehavior(), Address(public, port + 1), own)


def test_private_addresses_only_behind_the_same_nat():
    me, near, far = peer(0, "192.0.2.1"), peer(1, "192.0.2.1", "10.0.0.3"), peer(2, "192.0.2.9")
    assert dial_candidates(me, near) == [Address("10.0.0.3", 4000)]  # the public one is also my own
    near = peer(1, "192.0.2.1", "10.0.0.3", port=5000)
    assert dial_candidates(me, near) == [Address("10.0.0.3", 5000), Address("192.0.2.1", 5001)]
    assert dial_candidates(me, far) == [Address("192.0.2.9", 4001)]


def test_ones_own_address_is_never_dialed():
    me = peer(0, "192.0.2.1", "10.0.0.2")
    twin = PeerRecord(
        1, bytes(8), NatBehavior(), Address("192.0.2.1", 9), (Address("10.0.0.2", 4000),)
    )
    assert dial_candidates(me, twin) == [Address("192.0.2.1", 9)]


def test_other_families_are_not_dialed_but_relayed():
    me, six = peer(0, "192.0.2.1"), peer(1, "2001:db8::1", "2001:db8::1")
    assert dial_candidates(me, six) == []
    assert direct_impossible(me, six)


SYMMETRIC = NatBehavior(NatMapping.SYMMETRIC, NatFiltering.FILTERED)


def with_six(rank, public, six, nat=None):
    """Registered by IPv4, with an IPv6 address (as the server and as it sees it) besides."""
    four = peer(rank, public, nat=nat)
    return PeerRecord(
        rank, four.instance, four.nat, four.public, (*four.private, Address(six, 4000))
    )


def test_both_families_are_dialed_where_both_have_them():
    me, other = (with_six(n, f"192.0.2.{n}", f"2001:db8::{n}", SYMMETRIC) for n in (1, 2))
    assert dial_candidates(me, other) == [Address("192.0.2.2", 4001), Address("2001:db8::2", 4000)]
    assert not direct_impossible(me, other)  # IPv6 may go where IPv4 cannot
    assert not direct_impossible(other, me)


def test_a_family_that_one_has_alone_is_not_dialed():
    both = with_six(1, "192.0.2.1", "2001:db8::1", SYMMETRIC)
    four, six = peer(2, "192.0.2.2", nat=SYMMETRIC), peer(3, "2001:db8::3", "2001:db8::3")
    assert dial_candidates(both, four) == [Address("192.0.2.2", 4001)]
    assert direct_impossible(both, four)
    assert direct_impossible(four, both)
    assert dial_candidates(six, both) == [Address("2001:db8::1", 4000)]
    assert Address("2001:db8::3", 4001) in dial_candidates(both, six)
    assert not direct_impossible(six, both)
    assert not direct_impossible(both, six)


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        (SYMMETRIC, SYMMETRIC, True),
        (SYMMETRIC, NatBehavior(NatMapping.INDEPENDENT, NatFiltering.FILTERED), True),
        (SYMMETRIC, NatBehavior(NatMapping.NONE, NatFiltering.OPEN), False),
        (SYMMETRIC, NatBehavior(), False),
        (
            NatBehavior(NatMapping.INDEPENDENT, NatFiltering.FILTERED),
            NatBehavior(NatMapping.NONE, NatFiltering.FILTERED),
            False,
        ),
    ],
)
def test_hopeless_pairs_are_known_alike_at_both_ends(mine, theirs, expected):
    one, two = peer(0, "192.0.2.1", nat=mine), peer(1, "192.0.2.2", nat=theirs)
    assert direct_impossible(one, two) is expected
    assert direct_impossible(two, one) is expected
    assert direct_impossible(one, peer(1, "192.0.2.1", nat=theirs)) is False


def test_the_mapping_is_told_by_two_observations():
    local, one, two = Address("10.0.0.2", 4), Address("192.0.2.1", 4), Address("192.0.2.1", 5)
    assert mapping_kind(local, local, None) is NatMapping.NONE
    assert mapping_kind(local, one, None) is NatMapping.UNKNOWN
    assert mapping_kind(local, one, one) is NatMapping.INDEPENDENT
    assert mapping_kind(local, one, two) is NatMapping.SYMMETRIC


HERE, SEEN, OTHER = Address("10.0.0.2", 5), Address("192.0.2.1", 7), Address("192.0.2.1", 8)
FIRST, PORT_2, HOST_2 = (
    Address("203.0.113.1", 10000), Address("203.0.113.1", 10001), Address("203.0.113.2", 10000),
)  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "others", "mapping", "words"),
    [
        (HERE, (), NatMapping.NONE, "none: "),
        (SEEN, (), NatMapping.UNKNOWN, "unknown: "),
        (SEEN, ((PORT_2, SEEN),), NatMapping.INDEPENDENT, "not port-dependent: "),
        (SEEN, ((PORT_2, OTHER),), NatMapping.SYMMETRIC, "symmetric: each port"),
        (SEEN, ((HOST_2, OTHER),), NatMapping.SYMMETRIC, "symmetric (address-dependent): "),
        (SEEN, ((HOST_2, SEEN),), NatMapping.INDEPENDENT, "endpoint-independent: 2 addresses"),
        (
            SEEN, ((PORT_2, SEEN), (HOST_2, OTHER)), NatMapping.SYMMETRIC,
            "symmetric (address-dependent): ",
        ),
        (
            SEEN, ((PORT_2, SEEN), (HOST_2, SEEN)), NatMapping.INDEPENDENT,
            "endpoint-independent: both ports and 2 addresses",
        ),
    ],
)  # fmt: skip
def test_ping_claims_no_more_than_was_compared(seen, others, mapping, words):
    view = View(HERE, FIRST, seen, others)
    assert view.mapping is mapping
    assert nat_words(view).startswith(words)


SEEN_BY_SERVER = Address("198.51.100.7", 4000)


@pytest.mark.parametrize(
    ("claimed", "kept"),
    [
        (["198.51.100.7:4000"], ["198.51.100.7:4000"]),
        (["10.0.0.2:4000", "2001:db8::1:9", "2001:db8::2:8"], None),
        (["198.51.100.7:22"], []),
        (["10.0.0.2:1", "10.0.0.2:2", "10.0.0.2:1"], ["10.0.0.2:1"]),
        ([f"10.0.0.{n}:1" for n in range(1, 9)], ["10.0.0.1:1", "10.0.0.2:1"]),
        (["10.0.0.2:0", "0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "240.0.0.1:1"], []),
        (["127.0.0.1:1", "::1:1"], []),
        (["169.254.169.254:80", "fe80::1:1", "ff02::1:1", ":::1"], []),
    ],
)
def test_only_a_few_claims_that_can_be_a_workers_are_passed_on(claimed, kept):
    split = [Address(host, int(port)) for host, _, port in (x.rpartition(":") for x in claimed)]
    found = usable_candidates(split, SEEN_BY_SERVER)
    names = [f"{one.host}:{one.port}" for one in found]
    assert names == (claimed if kept is None else kept)
    assert usable_candidates(found, SEEN_BY_SERVER) == found


def test_loopback_is_passed_on_where_the_server_sees_it():
    claimed = (Address("127.0.0.1", 4000), Address("::1", 4000))
    assert usable_candidates(claimed, Address("127.0.0.1", 4000)) == claimed


def test_a_token_bucket_allows_its_burst_and_then_its_rate():
    bucket, now, taken = TokenBucket(burst=3, rate=2), 100.0, []
    while now < 110:
        wait = bucket.take(now)
        if wait == 0:
            taken.append(now)
        now += max(wait, 0.001)
    assert len([at for at in taken if at < 100.4]) == 3
    assert len(taken) == pytest.approx(3 + 10 * 2, abs=1)


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_waits_after_failed_handshakes_grow_and_end(failures, chance):
    assert 0.5 * BACKOFF_SECONDS <= backoff(failures, chance) <= 1.5 * MAX_BACKOFF_SECONDS
    assert backoff(failures + 1, chance) >= backoff(failures, chance)


@given(st.floats(0, 1), st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_waits_are_short_and_random(round_trip, tries, chance):
    assert 0 <= retry_wait(round_trip, tries, chance) <= 2 * MAX_WAIT


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.org", "example.org", 10000),
        ("example.org:1", "example.org", 1),
        ("[2001:db8::1]:77", "2001:db8::1", 77),
        ("[::1]", "::1", 10000),
        ("::1", "::1", 10000),
        ("host:", "host", 10000),
        (" host:5 ", "host", 5),
        ("a_b.example.", "a_b.example.", 10000),
        ("b\u00fccher.example", "b\u00fccher.example", 10000),
    ],
)
def test_servers_as_users_write_them(text, host, port):
    assert Endpoint.parse(text) == Endpoint(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ":1", "host:0", "host:70000", "host:x", "host:-1", "host:²", "host:9999999999",
        "a..b", ".host", "x" * 64, "ä" * 64, "a b", "a/b", "user@host", "host\0", "host\n:1", "h?q",
        "[::1", "::1]", "[::1]x", "[::1]:x", "[host]:1:2", "1:2:3", "[]:1",
    ],
)  # fmt: skip
def test_what_is_no_server_is_refused_in_one_sentence(text):
    with pytest.raises(BadInputError, match=r"^[^\n]+\.$"):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("https://example.org", "example.org"),
        ("tcp://example.org:77/path", "example.org:77"),
        ("http://user:pw@[2001:db8::1]:5", "[2001:db8::1]:5"),
        ("://x", "x"),
    ],
)
def test_a_url_is_no_server_and_the_sentence_says_what_to_write(url, meant):
    with pytest.raises(BadInputError, match="is a URL") as caught:
        Endpoint.parse(url)
    assert repr(meant) in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_a_server_or_a_sentence(text):
    try:
        found = Endpoint.parse(text)
    except BadInputError:
        return
    assert Endpoint.parse(str(found)) == found
    with contextlib.suppress(OSError):
        socket.getaddrinfo(found.host.encode("idna"), found.port, flags=socket.AI_NUMERICHOST)


def test_an_ascii_host_loads_no_codec_for_international_names() -> None:
    program = (
        "import sys; from perseid.rendezvous.net.endpoint import Endpoint; "
        "Endpoint.parse('127.0.0.1:1'); Endpoint.parse('host.example'); "
        "print('encodings.idna' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.split() == [b"False"]
