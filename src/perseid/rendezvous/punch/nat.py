"""What follows from the NATs of two workers: which addresses to dial, and when it is no use.

Pure functions, tested in network namespaces with the NATs of nftables, not behind a cloud's NAT.
The terms are those of RFC 4787.
"""

from __future__ import annotations

from perseid.rendezvous.protocol import NatBehavior, NatFiltering, NatMapping, PeerRecord
from perseid.rendezvous.protocol.wire import Address


def mapping_kind(local: Address, first: Address, second: Address | None) -> NatMapping:
    """Infer the mapping of a NAT from two observations of one local port.

    Parameters
    ----------
    local
        The socket's local address.
    first, second
        The address that the server saw on each of its two ports; ``second`` may be None.
    """
    # The server sees the worker's own address: nothing translates it.
    if first == local:
        return NatMapping.NONE
    if second is None:
        return NatMapping.UNKNOWN
    return NatMapping.INDEPENDENT if second == first else NatMapping.SYMMETRIC


def dial_candidates(me: PeerRecord, peer: PeerRecord) -> list[Address]:
    """Addresses of a peer to dial, the most likely first.

    Private addresses only if both workers have the same public host (elsewhere they belong to
    some other machine), never one of this worker's own, and only of families that both have.
    """
    found: list[Address] = []
    # 10 - 4 is 6 and 10 - 6 is 4: the family that the peer registered by comes first.
    for family in (peer.public.family, 10 - peer.public.family):
        mine, theirs = in_family(me, family), in_family(peer, family)
        if mine and theirs:
            public, *private = theirs
            # Behind one NAT the private address is the short way, and the public one works only
            # where the NAT can hairpin (RFC 4787, section 6).
            found.extend(private if public.host == mine[0].host else ())
            found.append(public)
    # Two workers behind different NATs can have the same private address. Dialing it would reach
    # this worker itself.
    own = {me.public, *me.private}
    return [address for address in dict.fromkeys(found) if address not in own]


def in_family(peer: PeerRecord, family: int) -> list[Address]:
    """A worker's addresses of one family (4 or 6), the public one first.

    In the family that the worker did not register by, the first in ``private`` is the public one.
    """
    return [one for one in (peer.public, *peer.private) if one.family == family]


def direct_impossible(me: PeerRecord, peer: PeerRecord) -> bool:
    """Whether a direct connection cannot succeed; both ends come to the same answer.

    A worker behind a symmetric NAT reaches only peers that accept unsolicited connections or are
    behind the same NAT. Workers without a common address family need the relay.
    """
    common = [family for family in (4, 6) if in_family(me, family) and in_family(peer, family)]
    if not common:
        return True
    if common != [me.public.family] or me.public.family != peer.public.family:
        return False  # the NAT is known only for the family by which a worker registered
    if me.public.host == peer.public.host:
        return False
    return _blocks(me.nat, peer.nat) or _blocks(peer.nat, me.nat)


def _blocks(one: NatBehavior, other: NatBehavior) -> bool:
    return one.mapping is NatMapping.SYMMETRIC and other.filter is NatFiltering.FILTERED
